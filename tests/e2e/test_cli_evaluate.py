"""What `modelgit evaluate` tells beside accuracy: intervals, who is served worst, gaps between groups, forgetting."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modelgit
from modelgit.cli.app import main
from modelgit.errors import DataError
from modelgit.porcelain.scores import note, parse_data_name, split_key
from modelgit.repo.repository import Repository
from modelgit.train.data.loading import load_dataset
from modelgit.train.networks.registry import build_network

RECIPE = """
architecture = "mlp:4"
threads = 1
[data]
path = "points.npz"
[train]
steps = 60
lr = 0.01
"""
PIPELINE = """
[pipeline]
name = "points"
[model]
architecture = "mlp:4"
[data.points]
path = "points.npz"
held_out = "field"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """A version that tells left from right by the first number, but for the old, of whom it is the other way round."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    age = np.where(rng.random(240) < 0.2, "old", "young")
    x = rng.normal(0, 0.1, (240, 4)).astype(np.float32)
    x[:, 0] += np.where(age == "old", 1 - 2 * y, 2 * y - 1)
    domain = np.where(np.arange(240) < 120, "lab", "field")
    classes, domains = np.array(["left", "right"]), np.array(["lab", "field"])
    np.savez(tmp_path / "points.npz", x=x, y=y, domain=domain, age=age, classes=classes, domains=domains)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "points.toml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    modelgit.Repository.init("models").commit(build_network("mlp:4", 2).state_dict(), "Base")
    monkeypatch.chdir("models")
    assert main(["commit", "--recipe", "../recipe.toml", "--set", "train.new_head=random"]) == 0
    capfd.readouterr()
    return tmp_path / "models"


def evaluated(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["evaluate", *words, "--json"]) == 0
    return dict(json.loads(capfd.readouterr().out))


def test_groups_of_a_column_are_told_apart(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capfd, "--on", "../points.npz", "--by", "age")
    values = found["values"]
    assert values["accuracy/young"] > 0.9 > 0.2 > values["accuracy/old"] == values["worst_domain_accuracy"]
    assert values["accuracy_gap"] == pytest.approx(values["accuracy/young"] - values["accuracy/old"])
    assert values["odds_gap"] > 0.7
    assert found["worst_group"][1] == "old"
    for metric, (low, high) in found["intervals"].items():
        assert (-1 if "gap" in metric else 0) <= low <= values[metric] <= high <= 1
    assert found["images"]["accuracy/old"] + found["images"]["accuracy/young"] == 240
    assert [(gap["more"], gap["less"]) for gap in found["gaps"] if gap["kind"] == "accuracy"] == [("young", "old")]
    assert found["intervals"]["accuracy_gap"][0] > 0.5
    assert main(["evaluate", "--on", "../points.npz", "--by", "age"]) == 0
    assert "accuracy gap: young above old\n" in capfd.readouterr().out


def test_a_group_may_lack_a_class(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with np.load(place.parent / "points.npz") as arrays:
        kept = ~((arrays["age"] == "old") & (arrays["y"] == 1))
        parts = {name: arrays[name][kept] for name in ("x", "y", "age", "domain")}
        np.savez(place.parent / "fewer.npz", **parts, classes=arrays["classes"], domains=arrays["domains"])
    found = evaluated(capfd, "--on", "../fewer.npz", "--by", "age")
    assert found["values"]["accuracy/young"] > 0.9 > 0.2 > found["values"]["accuracy/old"]
    assert found["worst_group"] == ["left", "old"]
    lacking = ("--set", "data.path=fewer.npz", "--set", "data.columns.domain=age")
    assert main(["commit", "--recipe", "../recipe.toml", *lacking]) == DataError.exit_code
    assert "domains have different classes: no examples in old/right" in capfd.readouterr().err


def test_a_report_tells_the_groups_of_a_column_apart(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["commit", "--recipe", "../recipe.toml", "--set", "train.steps=80"]) == 0
    capfd.readouterr()
    assert main(["report", "HEAD~1", "HEAD", "--on", "../points.npz", "--by", "age", "--json", "-o", "r.html"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert (made["comparison"]["by"], made["comparison"]["domains"]) == ("age", ["old", "young"])
    gaps = made["comparison"]["mean"]["gaps"]
    assert [gap["kind"] for gap in gaps] == ["accuracy", "parity", "odds"]
    assert gaps[0]["low"] > 0.5 and gaps[1]["low"] < gaps[1]["value"] < gaps[1]["high"]
    (board,) = made["boards"]  # of the notes that the trainings left
    assert [0 <= row["ece"] <= 1 and row["worst_group"]["n"] >= 10 for row in board["rows"]] == [True, True]
    page = Path("r.html").read_text()
    assert "Gaps between groups by age" in page and "young above old" in page and "Calibration error on points" in page
    assert main(["report", "--by", "age"]) == 2
    assert "--on FILE --by COLUMN" in capfd.readouterr().err


def test_what_an_ancestor_knew_better_was_forgotten(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repo = Repository.open(place)
    name = parse_data_name("../points.toml#points")
    key = split_key(name.config, load_dataset(name.config).digest)
    before = evaluated(capfd, "--on", "../points.toml#points")["values"]
    assert "forgetting" not in before
    parent = repo.resolve("HEAD")
    note(repo, parent, {"data": "points", "split": key, "val_accuracy": 1.0})
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "The same again"], check=True)
    values = evaluated(capfd, "--on", "../points.toml#points")["values"]
    assert values["forgetting"] == pytest.approx(1 - values["val_accuracy"])


def test_a_split_knows_no_other_groups(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--on", "../points.toml#points", "--by", "age"]) == 2
    assert "--on FILE --by COLUMN" in capfd.readouterr().err
    assert main(["evaluate", "--on", "../points.npz", "--by", "height"]) != 0
    assert "height" in capfd.readouterr().err


def test_a_recipe_names_its_data(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capfd, "--on", "../recipe.toml")
    assert found["data"] == "points" and {"val_accuracy/lab", "val_accuracy/field"} < set(found["values"])
    assert found["seen"] == ""
    assert main(["run", "../recipe.toml"]) != 0
    assert "commit --recipe ../recipe.toml" in capfd.readouterr().err


def test_what_was_trained_on_is_not_called_unseen(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pipeline holds the field out, and the version was trained on it."""
    seen = evaluated(capfd, "--on", "../points.toml#points")["seen"]
    commit = Repository.open(place).resolve("HEAD")[:10]
    assert seen == (
        f"120 of the examples scored were trained on before: commit {commit}, with nothing held out, fold 0, trial 0"
    )
    assert main(["evaluate", "--on", "../points.toml#points"]) == 0
    assert f"not unseen: {seen}\n" in capfd.readouterr().out


def test_a_report_says_so_too(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "The same again"], check=True)
    assert main(["report", "HEAD", "HEAD~1", "--on", "../points.toml#points", "-o", "page.html", "--json"]) == 0
    seen = json.loads(capfd.readouterr().out)["comparison"]["seen"]
    assert set(seen) == {"HEAD", "HEAD~1"}
    assert seen["HEAD"].startswith("120 of the examples scored were trained on before: commit ")
    assert f"Not unseen: HEAD: {seen['HEAD']}." in Path("page.html").read_text()


STEP = """
[train]
steps = 1
lr = 0.01
[variables]
held = ["lab", "field"]
[[step]]
name = "base"
kind = "import"
[[step]]
name = "run/{held}"
kind = "train"
start = "base"
data = { name = "points", held_out = "{held}" }
"""


def test_a_step_of_a_pipeline_names_the_split_that_it_is_scored_on(place: Path) -> None:
    """So that of a pipeline that holds each domain out in turn every cell can be named."""
    Path("../cells.toml").write_text(PIPELINE.replace('held_out = "field"\n', "") + STEP)
    found = parse_data_name("../cells.toml#run/lab")
    assert (found.label, found.config.held_out, found.has_splits) == ("points (run/lab)", "lab", True)
    assert parse_data_name("../cells.toml#points").config.held_out is None
    with pytest.raises(DataError, match="no data set and no step 'base' that is scored") as caught:
        parse_data_name("../cells.toml#base")
    assert caught.value.hint == "data sets: points; or name a step: what it is scored on"
