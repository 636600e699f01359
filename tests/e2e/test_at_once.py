"""Several processes commit to one repository at the same time, in one work tree's repository and in linked ones."""

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
from safetensors.numpy import load_file, save_file

from modelgit.porcelain.upkeep.damage import fsck
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import commit_worktree

WITHOUT_FILES = """
import sys, numpy as np, modelgit
repo, who = modelgit.Repository(sys.argv[1]), int(sys.argv[2])
shared = np.arange(20_000, dtype=np.float32)
for number in range(8):
    state = {"shared": shared, "own": np.full(20_000, 100 * who + number, np.float32)}
    repo.commit(state, f"{who}: {number}", branch=f"branch{who}", parents=["main"] if number == 0 else None)
assert "torch" not in sys.modules  # arrays alone need none of it
"""
WITH_FILES = """
import sys, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import commit_worktree
place, who = Path(sys.argv[1]), int(sys.argv[2])
for number in range(5):
    save_file({"w": np.full(20_000, 100 * who + number + 1, np.float32)}, place / "model.safetensors")
    assert commit_worktree(Repository.open(place), f"{who}: {number}")
"""
ONE_BRANCH = """
import sys, numpy as np, modelgit
from modelgit.errors import DirtyWorktree, RepositoryError
repo, who = modelgit.Repository(sys.argv[1]), int(sys.argv[2])
for number in range(6):
    try:
        print(repo.commit({"w": np.full(20_000, 100 * who + number + 1, np.float32)}, f"{who}: {number}"), flush=True)
    except (DirtyWorktree, RepositoryError):
        print("refused", flush=True)
"""


def run_together(script: str, places: list[Path]) -> list[str]:
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(place), str(who)], stdout=PIPE, stderr=PIPE, text=True)
        for who, place in enumerate(places)
    ]
    told = [process.communicate(timeout=120) for process in running]
    assert [errors for _, errors in told] == [""] * len(places)
    return [line for output, _ in told for line in output.splitlines()]


def started(place: Path) -> Repository:
    repo = Repository.init(place)
    save_file({"w": np.zeros(20_000, np.float32)}, place / "model.safetensors")
    assert commit_worktree(repo, "first") is not None
    return repo


def test_three_processes_lose_nothing(tmp_path: Path) -> None:
    repo = started(tmp_path)
    run_together(WITHOUT_FILES, [tmp_path] * 3)
    for who in range(3):
        subjects = [entry.subject for entry in repo.log([f"branch{who}"])]
        assert subjects == [*(f"{who}: {number}" for number in range(7, -1, -1)), "first"]
    assert fsck(repo, full=True).versions == 25


def test_what_one_branch_takes_from_two_processes_stays(tmp_path: Path) -> None:
    """Whoever comes second is refused, before a file is touched, or goes on top; nothing that was told of is lost."""
    repo = started(tmp_path)
    told = run_together(ONE_BRANCH, [tmp_path] * 2)
    assert len(told) == 12
    made = [line for line in told if line != "refused"]
    assert len(made) >= 4
    assert {entry.commit for entry in repo.log(["main"])} >= set(made)
    assert len(list(repo.log(["main"]))) == len(made) + 1
    done = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout == b""


def test_two_work_trees_lose_nothing(tmp_path: Path) -> None:
    repo = started(tmp_path / "one")
    subprocess.run(["git", "worktree", "add", "-q", "-b", "other", "../two"], cwd=tmp_path / "one", check=True)
    run_together(WITH_FILES, [tmp_path / "one", tmp_path / "two"])
    assert [entry.subject for entry in repo.log(["main"])][:5] == [f"0: {number}" for number in range(4, -1, -1)]
    assert [entry.subject for entry in repo.log(["other"])][:5] == [f"1: {number}" for number in range(4, -1, -1)]
    assert fsck(repo, full=True).versions == 11
    assert load_file(tmp_path / "two" / "model.safetensors")["w"][0] == 105
    for place in ("one", "two"):
        done = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path / place, check=True, capture_output=True)
        assert done.stdout == b""
