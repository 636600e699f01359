"""A tag may be called like a branch: commits and checkouts mean the branch."""

import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from modelgit.repo.repository import Repository
from modelgit.repo.worktree import checkout, commit_worktree


def write(place: Path, value: float) -> bytes:
    save_file({"w": np.full((64, 64), value, np.float32)}, place / "model.safetensors")
    return (place / "model.safetensors").read_bytes()


def test_a_tag_of_the_same_name_does_not_stand_in_the_way(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    write(tmp_path, 1.0)
    first = commit_worktree(repo, "first")
    repo.git.run("tag", "main")
    second_bytes = write(tmp_path, 2.0)
    second = commit_worktree(repo, "second")
    assert repo.branch() == "main"
    assert repo.branches()["main"] == second != first
    repo.git.run("switch", "--quiet", "--create", "other", str(first))
    checkout(repo, "main")
    assert (tmp_path / "model.safetensors").read_bytes() == second_bytes
    assert repo.head() == second
    status = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_plain_git_add_stores_a_delta_against_head(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    commit_worktree(repo, "first")
    before = repo.store.size_on_disk()
    weights[:4] *= 1.001
    save_file({"w": weights}, tmp_path / "model.safetensors")
    subprocess.run(["git", "add", "model.safetensors"], cwd=tmp_path, check=True)
    assert Repository.open(tmp_path).store.size_on_disk() - before < 0.1 * weights.nbytes
