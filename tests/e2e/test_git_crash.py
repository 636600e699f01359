"""Killed or refused in the middle: what was acknowledged stays, the next command succeeds, no store is damaged."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelgit.repo.repository import Repository
from modelgit.repo.transport import clone, fetch, push
from modelgit.repo.worktree import checkout, commit_worktree, status

MODEL = "model.safetensors"
CALLS = "rename,renameat,renameat2,link,linkat,unlink,unlinkat"
COMMIT = """
import sys
from pathlib import Path
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import commit_worktree
commit_worktree(Repository.open(Path(sys.argv[1])), "second")
"""
PUSH = """
import sys
from pathlib import Path
from modelgit.repo.repository import Repository
from modelgit.repo.transport import push
push(Repository.open(Path(sys.argv[1])), "hub", ["main"])
"""
FETCH = """
import sys
from pathlib import Path
from modelgit.repo.repository import Repository
from modelgit.repo.transport import fetch
fetch(Repository.open(Path(sys.argv[1])), "origin")
"""
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def save(root: Path, value: float) -> None:
    save_file({"a": np.full(2000, value, np.float32), "b": np.arange(2000, dtype=np.float32)}, root / MODEL)


def started(place: Path) -> Repository:
    repo = Repository.init(place)
    save(place, 1)
    assert commit_worktree(repo, "first") is not None
    return repo


def broken(script: str, place: Path, effect: str) -> int:
    """Runs a script, its process or one of git's struck at one system call; returns the exit code."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS},fsync", "-e", f"inject={effect}"]
    run = subprocess.run([*command, sys.executable, "-c", script, str(place)], check=False, capture_output=True)
    return run.returncode


def sound(repo: Repository) -> bool:
    """Tells whether git and the store find no fault, and every version has its objects."""
    subprocess.run(["git", "-C", str(repo.git_dir), "fsck", "--strict"], check=True, capture_output=True)
    entries = list(repo.log([], everything=True))
    oids = {oid for e in entries for m in repo.version(e.commit).manifests.values() for oid in m.oids()}
    return not repo.store.missing(oids) and repo.store.fsck(full=True).problems == ()


def unlock(repo: Repository) -> None:
    """Removes the locks that a killed git leaves, as git asks people to."""
    for lock in [*repo.git_dir.glob("*.lock"), *repo.git_dir.glob("refs/**/*.lock")]:
        if lock.name != "modelgit-notes.lock":
            lock.unlink()


@needs_strace
@pytest.mark.parametrize("effect", [f"{CALLS}:signal=SIGKILL:when={k}" for k in (1, 2, 3, 4, 5)])
def test_a_killed_commit_is_made_again(tmp_path: Path, effect: str) -> None:
    repo = started(tmp_path)
    first = repo.resolve("main")
    save(tmp_path, 2)
    code = broken(COMMIT, tmp_path, effect)
    assert code in (0, 1, -signal.SIGKILL, 128 + signal.SIGKILL)
    unlock(repo)
    repo = Repository.open(tmp_path)
    assert sound(repo)
    assert load_file(tmp_path / MODEL)["a"][0] == 2
    done = repo.resolve("main") != first
    assert done or code != 0
    made = commit_worktree(repo, "second")
    assert (made is None) == done
    assert status(repo).changes == ()
    assert sound(repo)
    checkout(repo, first)
    assert load_file(tmp_path / MODEL)["a"][0] == 1


@needs_strace
@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_commit_that_cannot_be_made_durable_is_not_acknowledged(tmp_path: Path, error: str, when: int) -> None:
    repo = started(tmp_path)
    first = repo.resolve("main")
    save(tmp_path, 2)
    assert broken(COMMIT, tmp_path, f"fsync:error={error}:when={when}") == 1
    repo = Repository.open(tmp_path)
    assert sound(repo)
    assert repo.resolve("main") == first
    assert commit_worktree(repo, "second") is not None
    assert status(repo).changes == ()


@needs_strace
@pytest.mark.parametrize("effect", [f"{CALLS}:signal=SIGKILL:when={k}" for k in (1, 2, 3)])
def test_a_killed_push_and_a_killed_fetch_are_done_again(tmp_path: Path, effect: str) -> None:
    repo = started(tmp_path / "r")
    subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(tmp_path / "hub.git")], check=True)
    subprocess.run(["git", "-C", str(tmp_path / "r"), "remote", "add", "hub", "../hub.git"], check=True)
    broken(PUSH, tmp_path / "r", effect)
    hub = Repository.open(tmp_path / "hub.git")
    unlock(hub)
    assert sound(hub)
    push(repo, "hub", ["main"])
    copy = clone(str(hub.git_dir), tmp_path / "copy")
    save(tmp_path / "r", 2)
    tip = commit_worktree(repo, "second")
    push(repo, "hub", ["main"])
    broken(FETCH, tmp_path / "copy", effect)
    unlock(copy)
    assert sound(Repository.open(tmp_path / "copy"))
    fetch(copy, "origin")
    assert copy.resolve("origin/main") == tip
    assert sound(Repository.open(tmp_path / "copy"))


def test_variables_that_git_sets_for_hooks_do_not_lead_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = started(tmp_path / "other")
    repo = started(tmp_path / "r")
    for name, value in (("GIT_DIR", other.git_dir), ("GIT_WORK_TREE", other.worktree), ("GIT_INDEX_FILE", "/none")):
        monkeypatch.setenv(name, str(value))
    found = Repository.open(tmp_path / "r")
    assert found.git_dir == repo.git_dir
    save(tmp_path / "r", 2)
    assert commit_worktree(found, "second") == found.head()
    assert status(found).changes == ()
    assert len(list(found.log())) == 2
