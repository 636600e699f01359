"""Locks that a killed command has left are removed by the next one, and no others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import RepositoryError
from modelgit.repo.repository import Repository
from modelgit.repo.upkeep.locks import git_is_at_work, started_at
from modelgit.repo.worktree import commit_worktree

LEFT = ("HEAD.lock", "index.lock", "refs/heads/main.lock", "packed-refs.lock")
DIE = """
import os, signal, sys
from pathlib import Path
from modelgit.repo.repository import Repository
repo = Repository.open(Path(sys.argv[1]))
with repo.git.taking_locks():
    for name in sys.argv[2:]:
        (repo.git_dir / name).touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def started(place: Path) -> Repository:
    repo = Repository.init(place)
    change(repo, 1)
    assert commit_worktree(repo, "first") is not None
    return repo


def change(repo: Repository, value: float) -> None:
    assert repo.worktree is not None
    save_file({"a": np.full(2000, value, np.float32)}, repo.worktree / "model.safetensors")


def locks(repo: Repository) -> list[str]:
    return [name for name in LEFT if (repo.git_dir / name).exists()]


def test_what_a_killed_command_left_is_cleared_away(tmp_path: Path) -> None:
    repo = started(tmp_path)
    done = subprocess.run([sys.executable, "-c", DIE, str(tmp_path), *LEFT], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(locks(repo)) == len(LEFT)
    change(repo, 2)
    assert commit_worktree(Repository.open(tmp_path), "second") is not None
    assert locks(repo) == []


def test_locks_that_nobody_was_killed_with_stay(tmp_path: Path) -> None:
    repo = started(tmp_path)
    (repo.git_dir / "index.lock").touch()
    change(repo, 2)
    with pytest.raises(RepositoryError, match="another git command is at work"):
        commit_worktree(Repository.open(tmp_path), "second")
    assert locks(repo) == ["index.lock"]


@pytest.mark.skipif(not started_at(), reason="the system does not say when it started")
def test_locks_from_before_the_system_started_go(tmp_path: Path) -> None:
    repo = started(tmp_path)
    (repo.git_dir / "index.lock").touch()
    os.utime(repo.git_dir / "index.lock", (started_at() - 10, started_at() - 10))
    change(repo, 2)
    assert commit_worktree(Repository.open(tmp_path), "second") is not None


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="the system does not list its processes")
def test_nothing_goes_while_git_is_at_work(tmp_path: Path) -> None:
    repo = started(tmp_path)
    git = subprocess.Popen(["git", "cat-file", "--batch"], cwd=tmp_path, stdin=subprocess.PIPE)
    try:
        while not git_is_at_work([tmp_path]):
            time.sleep(0.01)
        subprocess.run([sys.executable, "-c", DIE, str(tmp_path), "index.lock"], check=False)
        with pytest.raises(RepositoryError, match="another git command is at work"):
            commit_worktree(Repository.open(tmp_path), "second")
    finally:
        assert git.stdin is not None
        git.stdin.close()
        git.wait()
    assert not git_is_at_work([tmp_path])
    assert locks(repo) == ["index.lock"]
