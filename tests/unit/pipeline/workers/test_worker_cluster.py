"""Workers as jobs: whatever becomes of a job costs one retry, and none goes on when nobody wants it.

The scheduler here is a small one that runs jobs on this machine, each a process group; real clusters are in e2e.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest

from modelgit.errors import ClusterError, TrainingError
from modelgit.events import Advanced, Noted
from modelgit.pipeline.messages import Done, Failed, ScoreRequest
from modelgit.pipeline.workers.cluster import Asking, Cluster, Pace
from modelgit.pipeline.workers.jobs import Roll, write_job
from modelgit.pipeline.workers.pool import Heard, Pool
from modelgit.train.config import DataConfig

WORKER = """
import os, pathlib, signal, sys, time
from modelgit.errors import DataError
from modelgit.events import Advanced
from modelgit.pipeline.messages import Done
from modelgit.pipeline.workers.jobs import attend

folder = pathlib.Path(sys.argv[sys.argv.index("--job") + 1])

def execute(request, say):
    marker = pathlib.Path(request.commit)
    first = not marker.exists()
    marker.touch()
    if request.step == "sleeper":
        marker.write_text(str(os.getpid()))
        time.sleep(60)
    if request.step == "fragile" and first:
        os._exit(9)
    if request.step == "vanishing" and first:
        os.killpg(0, signal.SIGKILL)
    if request.step == "foreign" and first:
        (folder / "replies").open("a").write("good morning\\n")
        time.sleep(60)
    if request.step == "doomed":
        sys.exit("Illegal instruction")
    if request.step == "bad":
        raise DataError("no such data", hint="look elsewhere")
    say(Advanced(request.step, 3, "half way"))
    return Done(request.step, request.commit, {})

attend(folder, execute)
"""
QUICK = Pace(look_s=0.02, beat_s=0.2, ask_s=0.1, tell_s=0.0, patience_s=0.3)


class Here:
    """Runs jobs on this machine; `held` ones wait, and one that is `deaf` does not answer or end anything."""

    name = "Here"

    def __init__(self) -> None:
        self.held = self.deaf = False
        self.waiting: dict[str, Path] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, title: str, folder: Path) -> str:
        job = f"{title}-{folder.name}"
        self.waiting[job] = folder
        if not self.held:
            self.release()
        return job

    def release(self) -> None:
        for job, folder in self.waiting.items():
            with (folder / "log").open("w") as log:
                self.running[job] = subprocess.Popen(
                    ["/bin/sh", str(folder / "job.sh")], start_new_session=True, stdout=log, stderr=log
                )
        self.waiting.clear()

    def alive(self) -> Mapping[str, str | None]:
        if self.deaf:
            raise ClusterError("no answer")
        return {job: None for job, process in self.running.items() if process.poll() is None} | dict.fromkeys(
            self.waiting, "Resources"
        )

    def ending(self, job: str) -> tuple[str, str]:
        return f"by itself ({job})", "wait for better days"

    def cancel(self, jobs: Collection[str]) -> None:
        for job in jobs:
            if not self.deaf and job in self.running and self.running[job].poll() is None:
                os.killpg(self.running[job].pid, signal.SIGKILL)
                self.running[job].wait()


@pytest.fixture
def here() -> Iterator[Here]:
    scheduler = Here()
    yield scheduler
    scheduler.deaf = False
    scheduler.cancel(list(scheduler.running))


@pytest.fixture
def pool(here: Here, tmp_path: Path) -> Iterator[Pool]:
    with Pool(Cluster(here, command(tmp_path), tmp_path / "jobs", QUICK), 4) as made:
        yield made


def command(place: Path) -> list[str]:
    (place / "worker.py").write_text(WORKER)
    return [sys.executable, str(place / "worker.py")]


def request(step: str, place: Path) -> ScoreRequest:
    return ScoreRequest(step, str(place / step), DataConfig(path="nowhere.zip"))


def until(met: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    return "Z" not in stat.read_text().split()[2] if (stat := Path(f"/proc/{pid}/stat")).exists() else False


def test_replies_arrive_and_errors_travel_as_values(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pool.submit(request("a/b", tmp_path))
    assert pool.next_reply() == Advanced("a/b", 3, "half way")
    assert isinstance(pool.next_reply(), Done)
    pool.submit(request("bad", tmp_path))
    assert pool.next_reply() == Failed("bad", "DataError", "no such data", "look elsewhere")
    assert (pool.busy, pool.free) == (0, 4)


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ("fragile", "with exit code 9 on "),
        ("vanishing", "by itself (vanishing-0001)"),
        ("foreign", "speaking another language: "),
    ],
)
def test_a_job_that_dies_costs_one_retry(pool: Pool, tmp_path: Path, step: str, how: str) -> None:
    pool.submit(request(step, tmp_path))
    noted = pool.next_reply()
    assert isinstance(noted, Noted) and noted.message.startswith(f"{step}: its worker died {how}")
    assert pool.next_reply() == Advanced(step, 3, "half way")
    assert isinstance(pool.next_reply(), Done)


def test_dying_twice_is_an_error_that_shows_the_log(here: Here, tmp_path: Path) -> None:
    with Pool(Cluster(here, command(tmp_path), tmp_path / "jobs", QUICK), 4) as pool:
        pool.submit(request("doomed", tmp_path))
        assert isinstance(pool.next_reply(), Noted)
        with pytest.raises(TrainingError, match="'doomed': its worker died twice, last with exit code 1 on") as caught:
            pool.next_reply()
    log = next((tmp_path / "jobs").glob("*/0002/log"))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"its log, {log}, ends: Illegal instruction; are the repository")


def test_it_is_said_how_many_wait_and_why(pool: Pool, here: Here, tmp_path: Path) -> None:
    here.held = True
    for step in ("a", "b"):
        pool.submit(request(step, tmp_path))
    assert pool.next_reply() == Noted("waiting in the queue: 2 (Resources)")
    here.release()
    replies = [pool.next_reply() for _ in range(4)]
    assert [type(reply) for reply in replies].count(Done) == 2


def test_a_scheduler_may_be_silent_for_a_while(pool: Pool, here: Here, tmp_path: Path) -> None:
    here.deaf = True
    pool.submit(request("sleeper", tmp_path))
    assert pool.next_reply() == Noted("Here does not answer; it is asked again: no answer")
    with pytest.raises(ClusterError, match="no answer"):
        pool.next_reply()  # it is said once


def test_silence_is_counted_anew_once_it_was_broken(here: Here) -> None:
    asking, heard = Asking(here, Pace(patience_s=0.02)), list[Heard]()
    for deaf, answer in ((True, None), (False, {}), (True, None)):
        here.deaf = deaf
        assert asking.ask(heard.append) == answer
        time.sleep(0.05)
    assert len(heard) == 2
    with pytest.raises(ClusterError, match="no answer"):
        asking.ask(heard.append)


def test_nothing_is_left_behind(here: Here, tmp_path: Path) -> None:
    with Pool(Cluster(here, command(tmp_path), tmp_path / "jobs", QUICK), 4) as pool:
        here.deaf = True  # it does not even end jobs: they see for themselves that they are not wanted
        pool.submit(request("sleeper", tmp_path))
        until(lambda: (tmp_path / "sleeper").exists() and (tmp_path / "sleeper").read_text() != "")
        pid = int((tmp_path / "sleeper").read_text())
        assert is_alive(pid)
    until(lambda: not is_alive(pid))
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_that_begins_when_its_coordinator_is_long_gone_does_nothing(tmp_path: Path) -> None:
    roll = Roll(tmp_path)
    write_job(tmp_path / "0001", request("a", tmp_path), command(tmp_path))
    roll.write(["0001"])
    os.utime(tmp_path / "roll", (0, 0))
    assert subprocess.run(["/bin/sh", tmp_path / "0001/job.sh"], check=False, timeout=60).returncode == 3
    assert not (tmp_path / "a").exists()


def test_folders_of_runs_that_were_killed_go_after_a_day(here: Here, tmp_path: Path) -> None:
    for name, age_s in (("old", 90_000), ("young", 3_600)):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        Roll(tmp_path / "jobs" / name).write(())
        os.utime(tmp_path / "jobs" / name / "roll", (time.time() - age_s,) * 2)
    Cluster(here, ["true"], tmp_path / "jobs").close()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["young"]
