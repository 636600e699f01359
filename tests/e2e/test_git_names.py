"""Names and what they point at: a tag called like a branch, a branch that would lose commits, a step kept twice."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import modelgit
from modelgit.errors import RepositoryError
from modelgit.pipeline.keys import keep
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


def test_a_branch_never_loses_commits_to_a_commit_with_other_parents(tmp_path: Path) -> None:
    repo = modelgit.Repository.init(tmp_path)
    first = repo.commit({"w": torch.zeros(2)}, message="first")
    second = repo.commit({"w": torch.ones(2)}, message="second")
    with pytest.raises(RepositoryError, match=f"branch 'main' would lose {second[:10]}"):
        repo.commit({"w": torch.ones(2)}, message="third", parents=[first])
    assert repo.branches() == {"main": second}
    assert repo.commit({"w": torch.ones(2)}, message="third", parents=[first], branch="other") != second


def test_a_step_that_another_run_has_kept_is_taken_over(tmp_path: Path) -> None:
    repo = modelgit.Repository.init(tmp_path)
    first = repo.commit({"w": torch.zeros(2)}, message="first")
    second = repo.commit({"w": torch.ones(2)}, message="second")
    plain = Repository.open(tmp_path)
    assert keep(plain, "a" * 64, first) == first
    assert keep(plain, "a" * 64, second) == first
