"""What the graph says: criss-cross histories, merges of merges, branches that moved."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from telling import Tell, teller

import modelgit
from modelgit.repo.repository import Repository

Values = dict[str, float]


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def state(**values: float) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.full((40, 8), value, np.float32) for name, value in values.items()}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a1 and b1 from `main`, each merged into the other's branch (a2, b2): two best common ancestors. Then a3, b3."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    repo.commit(state(w=0.0, v=0.0), message="base", branch="main", parents=[])
    for branch, value in (("a", 2.0), ("b", 4.0)):
        repo.commit(state(w=value, v=0.0), message=f"{branch}1", branch=branch, parents=["main"])
    commits = {branch: git(place, "rev-parse", branch) for branch in ("a", "b")}
    for branch, other in (("a", "b"), ("b", "a")):
        parents = [commits[branch], commits[other]]
        repo.commit(state(w=3.0, v=0.0), message=f"{branch}2: merge", branch=branch, parents=parents)
    for branch, value in (("a", 5.0), ("b", 8.0)):
        repo.commit(state(w=value, v=0.0), message=f"{branch}3", branch=branch, parents=[branch])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def git(place: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def value(name: str = "w") -> float:
    return float(load_file("model.safetensors")[name][0, 0])


def test_a_criss_cross_has_the_mean_of_its_ancestors_as_base(models: Path, tell: Tell) -> None:
    ancestors = sorted(git(models, "merge-base", "--all", "a", "b").split())
    assert len(ancestors) == 2
    tell("switch", "a")
    made = tell("merge", "b", "--method", "task_arithmetic")
    assert made["bases"] == ancestors
    assert value() == 3 + (5 - 3) + (8 - 3)  # the mean of 2 and 4, and both changes from it
    trailers = Repository.open(models).version("HEAD").entry.trailers
    assert trailers["Merge-Base"] == ancestors
    assert tell("verify", "--rerun")["tensors"] == 2


def test_the_order_of_the_branches_reaches_no_byte(models: Path, tell: Tell) -> None:
    found = []
    for ours, theirs in (("a", "b"), ("b", "a")):
        tell("switch", "-c", f"from-{ours}", ours)
        tell("merge", theirs, "--method", "ties", "--set", "density=0.7")
        found.append(git(models, "rev-parse", "HEAD:model.safetensors"))
    assert found[0] == found[1]


def test_a_base_of_ones_own_choice(models: Path, tell: Tell) -> None:
    tell("switch", "a")
    made = tell("merge", "b", "--method", "task_arithmetic", "--base", "main", "--set", "scale=0.5")
    assert (made["bases"], value()) == ([git(models, "rev-parse", "main")], 6.5)


def test_a_mean_needs_no_base_and_says_which_there_are(models: Path, tell: Tell) -> None:
    tell("switch", "a")
    made = tell("merge", "b")
    assert (len(made["bases"]), value()) == (2, 6.5)


def test_merging_a_merge_takes_what_is_new(models: Path, tell: Tell) -> None:
    tell("switch", "-c", "soup", "a")
    tell("merge", "b")
    tell("switch", "b")
    made = tell("merge", "soup")
    assert (made["kind"], value()) == ("fast-forward", 6.5)
    tell("switch", "a")
    assert tell("merge", "soup", "--no-ff")["kind"] == "merge"
    assert value() == 6.5


def test_a_branch_that_moved_on_is_merged_from_where_it_was_last(models: Path, tell: Tell) -> None:
    repo = modelgit.Repository.init(models)
    tell("switch", "-c", "soup", "a")
    tell("merge", "b")
    repo.commit(state(w=10.0, v=1.0), message="b4", branch="b", parents=["b"])
    made = tell("merge", "b", "--method", "task_arithmetic")
    assert made["bases"] == [git(models, "rev-parse", "b~1")]
    assert (value(), value("v")) == (8 + (6.5 - 8) + (10 - 8), 1.0)
    assert tell("verify", "--rerun")["tensors"] == 2
