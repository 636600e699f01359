"""The power fails: what was acknowledged is there afterwards, git's part and ours.

The repository lies on a file system in an image; the writer is stopped, the image is copied as it is on the disk, which
lacks what only memory holds, and looked at. The file system writes its journal when asked to, not by the clock. A file
that is never made durable is written just before: its text must get lost mostly, or the trial shows nothing (its name
may be there: it shares the journal with what is made durable). Needs root and loop devices.
"""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelgit.porcelain.upkeep.damage import fsck
from modelgit.repo.repository import Repository

IMAGE_BYTES = 96 * 1024 * 1024
CRASHES = int(os.environ.get("MODELGIT_CRASHES", "3"))
CARELESS = "careless"
CARELESS_TEXT = "never made durable"
WRITER = """
import sys, numpy as np
from pathlib import Path
import modelgit
place = Path(sys.argv[1])
repo = modelgit.Repository(place)
for number in range(10_000):
    state = {"w": np.random.default_rng(number).normal(0, 0.02, 30_000).astype(np.float32)}
    made = repo.commit(state, f"number {number}", branch=f"side{number % 2}", parents=["main"] if number < 2 else None)
    print(made, flush=True)
"""


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """Mounts an image; skips where that is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop,commit=300", image, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount an image here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, in an image beside it."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    with mounted(image, tmp_path / "disk") as place:
        yield place


def acknowledged(place: Path, seconds: float, image: Path, copy: Path) -> list[str]:
    """Runs the writer until the power fails; the image as it was then is in `copy`. Returns the commits it told of."""
    with (copy.parent / "told").open("w+") as told:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=told)
        try:
            while not (copy.parent / "told").read_text().count("\n") > 2:
                assert writer.poll() is None
                time.sleep(0.02)
            time.sleep(seconds)
            os.kill(writer.pid, signal.SIGSTOP)
            (place / CARELESS).write_text(CARELESS_TEXT)
            lines = (copy.parent / "told").read_text().splitlines()
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        finally:
            writer.kill()
            writer.wait()
    return lines


def test_no_acknowledged_commit_is_lost(disk: Path, tmp_path: Path) -> None:
    rng, told, lost = random.Random(0), 0, 0
    for crash in range(CRASHES):
        place = disk / f"r{crash}"
        first = Repository.init(place)
        subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "start"], cwd=place, check=True, env=named())
        assert first.head() is not None
        subprocess.run(["sync", "-f", place], check=True)
        copy = tmp_path / f"copy{crash}"
        commits = acknowledged(place, rng.uniform(0.1, 1.0), tmp_path / "image", copy)
        with mounted(copy, tmp_path / f"after{crash}") as after:
            check_all_there(after / place.name, commits)
            careless = after / place.name / CARELESS
            lost += not careless.exists() or careless.read_text() != CARELESS_TEXT
            gc.collect()  # nothing may hold a file of it when it goes
        copy.unlink()
        told += len(commits)
        shutil.rmtree(place)
    assert told > 2 * CRASHES
    assert 2 * lost > CRASHES, "what was not durable is there mostly: the trial shows nothing"
    print(f"{CRASHES} crashes, {told} commits acknowledged, 0 lost; {lost} of {CRASHES} careless files lost")


def check_all_there(place: Path, commits: list[str]) -> None:
    """Asserts that the commits are in the repository, and that it is sound."""
    repo = Repository.open(place)
    assert fsck(repo, full=True).versions >= len(commits)
    tips = repo.branches().values()
    assert [commit for commit in commits if not any(repo.is_ancestor(commit, tip) for tip in tips)] == []
    subprocess.run(["git", "fsck", "--strict"], cwd=place, check=True, capture_output=True)


def named() -> dict[str, str]:
    """Returns the environment in which git knows an author."""
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **who}
