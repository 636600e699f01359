"""Workers as processes: one that dies costs one retry, none outlives its coordinator, each has its own GPU."""

import sys
from pathlib import Path

import pytest

from modelgit.errors import TrainingError
from modelgit.events import Advanced, Noted
from modelgit.pipeline.messages import Done, Failed, ScoreRequest, StackDone, StackRequest
from modelgit.pipeline.workers.pool import Pool, told_of
from modelgit.pipeline.workers.processes import Processes, freest, gpu_names
from modelgit.porcelain.training.values import TrainRequest
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.memory import KILLED

WORKER = """
import os, signal, sys, pathlib
from modelgit.errors import DataError
from modelgit.events import Advanced
from modelgit.pipeline.messages import Done, StackDone, StackRequest
from modelgit.pipeline.worker import serve

def execute(request, say):
    if isinstance(request, StackRequest):
        if not request.apart:
            os._exit(9)
        return StackDone(request.step, tuple(Done(member.step, member.start, {}) for member in request.members))
    marker = pathlib.Path(request.commit)
    if request.step == "fragile" and not marker.exists():
        marker.touch()
        os._exit(9)
    if request.step == "doomed":
        os._exit(9)
    if request.step == "too large":
        os.kill(os.getpid(), signal.SIGKILL)
    if request.step == "bad":
        raise DataError("no such data", hint="look elsewhere")
    say(Advanced(request.step, 3, "half way"))
    return Done(request.step, request.commit, {"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")})

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
    with Pool(Processes(command), 1) as pool:
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
    with Pool(Processes(command), 1) as pool:
        pool.submit(request("bad"))
        assert pool.next_reply() == Failed("bad", "DataError", "no such data", "look elsewhere")


def test_a_worker_that_dies_costs_one_retry(command: list[str], tmp_path: Path) -> None:
    with Pool(Processes(command), 1) as pool:
        pool.submit(request("fragile", str(tmp_path / "marker")))
        assert pool.next_reply() == Noted("fragile: its worker died with exit code 9; it is tried once more")
        assert pool.next_reply() == Advanced("fragile", 3, "half way")
        assert isinstance(pool.next_reply(), Done)


def test_the_members_of_a_stack_that_dies_are_tried_once_more_one_by_one(command: list[str]) -> None:
    config = FineTune(steps=1, lr=0.1)
    members = tuple(TrainRequest(n, "train", n, "cnn", n, None, DataConfig(path="x.zip"), config) for n in "ab")
    with Pool(Processes(command), 1) as pool:
        pool.submit(StackRequest(members))
        told = "a and 1 more: its worker died with exit code 9; it is tried once more, one by one"
        assert pool.next_reply() == Noted(told)
        assert pool.next_reply() == StackDone("a and 1 more", (Done("a", "a", {}), Done("b", "b", {})))
        assert pool.busy == 0


def test_dying_twice_is_an_error_that_names_the_step(command: list[str]) -> None:
    with Pool(Processes(command), 1) as pool:
        pool.submit(request("doomed"))
        assert isinstance(pool.next_reply(), Noted)
        with pytest.raises(TrainingError, match="step 'doomed': its worker died twice, last with exit code 9"):
            pool.next_reply()


def test_a_worker_that_the_kernel_kills_says_what_is_likely_and_what_to_turn_down(command: list[str]) -> None:
    with Pool(Processes(command), 1) as pool:
        pool.submit(request("too large"))
        how = "with exit code -9: killed, as it is when memory runs out"
        assert pool.next_reply() == Noted(f"too large: its worker died {how}; it is tried once more")
        with pytest.raises(TrainingError, match=f"'too large': its worker died twice, last {how}") as caught:
            pool.next_reply()
    assert caught.value.hint == KILLED
    assert told_of(137, " on node7", "")[0] == "with exit code 137 on node7: killed, as it is when memory runs out"
    assert told_of(1, "", "look there") == ("with exit code 1", "look there")


def test_workers_stop_when_their_input_ends(command: list[str]) -> None:
    import subprocess

    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == 0


def done(pool: Pool) -> Done:
    while not isinstance(reply := pool.next_reply(), Done):
        assert not isinstance(reply, Failed)
    return reply


def test_each_worker_has_a_gpu_of_its_own(command: list[str]) -> None:
    with Pool(Processes(command, ("0", "GPU-8f1a")), 2) as pool:
        for step in ("a", "b"):
            pool.submit(request(step))
        assert {done(pool).scores["gpu"] for _ in range(2)} == {"0", "GPU-8f1a"}


def test_a_new_worker_goes_where_the_fewest_are() -> None:
    assert freest(("0", "1"), ["0"]) == "1"
    assert freest(("0", "1"), ["0", "1", "1"]) == "0"
    assert freest((), [None, None]) is None


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (0, None, ()),
        (1, None, ()),
        (2, None, ("0", "1")),
        (2, "3, GPU-8f1a", ("3", "GPU-8f1a")),
        (2, "5,6,-1,7", ("5", "6")),
        (2, "", ("0", "1")),
    ],
)
def test_gpus_are_called_as_the_variable_calls_them(count: int, visible: str | None, names: tuple[str, ...]) -> None:
    assert gpu_names(count, visible) == names
