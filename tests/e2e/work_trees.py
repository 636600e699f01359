"""Small models in a work tree over real git, and what is asked of them."""

import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from modelgit.repo.repository import Repository
from modelgit.repo.worktree import commit_worktree, status

MODEL = "model.safetensors"


def git(place: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(place), *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def model(value: float, size: int = 1000) -> dict[str, "np.ndarray[tuple[int], np.dtype[np.float32]]"]:
    return {"a": np.full(size, value, np.float32), "b": np.arange(size, dtype=np.float32)}


def save(root: Path, value: float, path: str = MODEL) -> bytes:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    save_file(model(value), root / path)
    return (root / path).read_bytes()


def commit(repo: Repository, message: str = "x") -> str:
    made = commit_worktree(repo, message)
    assert made is not None
    return made


def forbid_filter(repo: Repository) -> None:
    """Makes plain git fail if it asks the filter about any file."""
    git(repo.git_dir, "config", "filter.modelgit.process", "false")


def kinds(repo: Repository) -> dict[str, str]:
    return {change.path: change.kind for change in status(repo).changes}


def contents(root: Path) -> dict[str, bytes]:
    found = (p for p in root.rglob("*") if p.is_file() and ".git" not in p.relative_to(root).parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in found}
