"""The pool, with real processes: a worker that dies costs one retry, and none outlives its coordinator."""

import sys
from pathlib import Path

import pytest

from modelgit.errors import TrainingError
from modelgit.events import Advanced
from modelgit.pipeline.messages import Done, Failed, ScoreRequest
from modelgit.pipeline.pool import Pool
from modelgit.train.config import DataConfig

WORKER = """
import os, sys, pathlib
from modelgit.errors import DataError
from modelgit.events import Advanced
from modelgit.pipeline.messages import Done
from modelgit.pipeline.worker import serve

def execute(request, say):
    marker = pathlib.Path(request.commit)
    if request.step == "fragile" and not marker.exists():
        marker.touch()
        os._exit(9)
    if request.step == "doomed":
        os._exit(9)
    if request.step == "bad":
        raise DataError("no such data", hint="look elsewhere")
    say(Advanced(request.step, 3, "half way"))
    return Done(request.step, request.commit, {"pid": os.getpid()})

serve(sys.stdin, sys.stdout, execute)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script)]


def request(step: str, commit: str = "c") -> ScoreRequest:
    return ScoreRequest(step, commit, DataConfig(path="nowhere.zip"))


def test_replies_arrive_and_workers_are_used_again(command: list[str]) -> None:
    with Pool(command, 1) as pool:
        pids = []
        for step in ("a", "b"):
            pool.submit(request(step))
            assert pool.free == 0
            assert pool.next_reply() == Advanced(step, 3, "half way")
            done = pool.next_reply()
            assert isinstance(done, Done) and done.step == step
            pids.append(done.scores["pid"])
        assert pids[0] == pids[1]
        assert pool.busy == 0


def test_an_error_travels_as_a_value(command: list[str]) -> None:
    with Pool(command, 1) as pool:
        pool.submit(request("bad"))
        assert pool.next_reply() == Failed("bad", "DataError", "no such data", "look elsewhere")


def test_a_worker_that_dies_costs_one_retry(command: list[str], tmp_path: Path) -> None:
    with Pool(command, 1) as pool:
        pool.submit(request("fragile", str(tmp_path / "marker")))
        assert pool.next_reply() == Advanced("fragile", 3, "half way")
        assert isinstance(pool.next_reply(), Done)


def test_dying_twice_is_an_error_that_names_the_step(command: list[str]) -> None:
    with Pool(command, 1) as pool:
        pool.submit(request("doomed"))
        with pytest.raises(TrainingError, match="step 'doomed': its worker died twice, last with exit code 9"):
            pool.next_reply()


def test_workers_stop_when_their_input_ends(command: list[str]) -> None:
    import subprocess

    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == 0
