"""A small history for cherry-pick, revert and rebase, and what is asked of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import modelgit
from modelgit.cli.app import main
from modelgit.repo.repository import Repository

SIZE = 64


def full(value: float, size: int = SIZE) -> np.ndarray[Any, Any]:
    return np.full((size, 4), value, np.float32)


def state(**values: float) -> dict[str, np.ndarray[Any, Any]]:
    return {name: full(value) for name, value in values.items()}


def history(place: Path) -> Path:
    """Makes `main` at a base; `skill` two fine-tunes further (a, then b); `newer` a newer base that moved a and c."""
    repo = modelgit.Repository.init(place)
    repo.commit(state(a=1, b=1, c=1), message="base", branch="main", parents=[])
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"NAME": "Ada", "EMAIL": "ada@example.org", "DATE": "@1700000000 +0530"}.items():
            patch.setenv(f"GIT_AUTHOR_{key}", value)
        told = "tune a\n\nSigned-off-by: Ada"
        repo.commit(state(a=1.5, b=1, c=1), message=told, branch="skill", parents=["main"])
        repo.commit(state(a=1.5, b=1.25, c=1), message="tune b", branch="skill")
    repo.commit(state(a=3, b=1, c=2), message="newer base", branch="newer", parents=["main"])
    return place


def copied(history: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Returns a copy of the history to work in, on `newer`; the process is inside."""
    monkeypatch.chdir(shutil.copytree(history, place))
    assert main(["switch", "newer", "--quiet"]) == 0
    return Repository.open(Path.cwd())


def values() -> dict[str, float]:
    """Returns each tensor's first value in the work tree."""
    return {name: float(tensor.ravel()[0]) for name, tensor in load_file("model.safetensors").items()}


def picture(repo: Repository) -> tuple[object, ...]:
    """Returns all that a refused command must leave as it was."""
    index = repo.git.run("ls-files", "--stage")
    return repo.refs(), repo.head(), repo.branch(), index, Path("model.safetensors").read_bytes()
