"""Classifiers that differ, and embeddings that are tied in some models: refused, or merged as one asks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from telling import Tell, teller

from modelgit.cli.app import main
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.repo.repository import Repository


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def save_model(classes: dict[str, float], body: float) -> None:
    """Writes a model into the work tree, a row of one value for each class, and its record."""
    rows = np.array(list(classes.values()), np.float32)
    state = {"fc.weight": np.repeat(rows[:, None], 3, 1), "fc.bias": rows, "body": np.full((4, 4), body, np.float32)}
    save_file(state, "model.safetensors")
    Path(RECORD_PATH).parent.mkdir(exist_ok=True)
    record = Record("train", "mlp", tuple(classes), ("fc.weight", "fc.bias"))
    Path(RECORD_PATH).write_bytes(write_record(record))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`main` knows cats and dogs; `birds` dogs and birds; `fish` the classes of both, otherwise ordered."""
    place = tmp_path_factory.mktemp("template") / "models"
    versions = {
        "main": ({"cat": 1.0, "dog": 2.0}, 0.0),
        "pets": ({"cat": 3.0, "dog": 4.0}, 2.0),
        "birds": ({"dog": 8.0, "bird": 9.0}, 4.0),
        "fish": ({"fish": 6.0, "dog": 0.0, "cat": 5.0}, 6.0),
    }
    with pytest.MonkeyPatch.context() as patch:
        assert main(["init", "-q", str(place)]) == 0
        patch.chdir(place)
        for branch, (classes, body) in versions.items():
            if branch != "main":
                assert main(["switch", "-q", "-c", branch, "main"]) == 0
            save_model(classes, body)
            assert main(["add", "."]) == 0
            assert main(["commit", "-q", "-m", branch]) == 0
        assert main(["switch", "-q", "pets"]) == 0
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def rows() -> dict[str, float]:
    """Returns the row of each class, as the record numbers them."""
    record, state = read_record(Repository.open(Path()), "HEAD"), load_file("model.safetensors")
    assert record is not None and record.head == ("fc.weight", "fc.bias")
    assert all((state["fc.weight"][i] == value).all() for i, value in enumerate(state["fc.bias"]))
    assert len(record.classes) == len(state["fc.bias"])
    return {name: float(state["fc.bias"][i]) for i, name in enumerate(record.classes)}


def test_other_classes_are_a_conflict_that_names_the_ways_on(models: Path, tell: Tell) -> None:
    before = Path("model.safetensors").read_bytes()
    error = tell("merge", "birds", code=1)
    assert [conflict["kind"] for conflict in error["conflicts"]] == ["classes"]
    assert "--heads mean" in error["hint"]
    assert Path("model.safetensors").read_bytes() == before


def test_the_classifier_of_the_other(models: Path, tell: Tell) -> None:
    tell("merge", "birds", "--heads", "theirs")
    assert rows() == {"dog": 8.0, "bird": 9.0}
    assert load_file("model.safetensors")["body"][0, 0] == 3.0
    assert tell("verify", "--rerun")["tensors"] == 3


def test_theirs_needs_two(models: Path, tell: Tell) -> None:
    error = tell("merge", "birds", "fish", "--heads", "theirs", code=2)
    assert "expected two models, got 3" in error["message"]


def test_the_mean_by_class(models: Path, tell: Tell) -> None:
    tell("merge", "birds", "fish", "--heads", "mean")
    found = rows()
    assert list(found) == ["cat", "dog", "fish", "bird"]
    assert found == {"cat": 4.0, "dog": 4.0, "bird": 9.0, "fish": 6.0}
    assert tell("verify", "--rerun")["tensors"] == 3


def test_the_order_of_models_gives_the_same_rows(models: Path, tell: Tell) -> None:
    tell("merge", "fish", "birds", "--heads", "mean")
    assert rows() == {"cat": 4.0, "dog": 4.0, "bird": 9.0, "fish": 6.0}


def test_task_vectors_by_class(models: Path, tell: Tell) -> None:
    tell("merge", "birds", "--heads", "mean", "--method", "task_arithmetic")
    found = rows()
    assert found["dog"] == 2 + (4 - 2) + (8 - 2)
    assert found["bird"] == 9.0  # nobody else knows it: the mean of those that do, from which no vector points away
    assert tell("verify", "--rerun")["tensors"] == 3


def test_classes_that_nobody_knows(models: Path, tell: Tell) -> None:
    Path(RECORD_PATH).write_bytes(write_record(Record("commit")))
    tell("commit", "-a", "-m", "no record")
    assert (
        "nobody knows the classes" in tell("merge", "birds", "--heads", "mean", "--head-name", "fc", code=2)["message"]
    )


def tied(embedding: float, output: float | None) -> None:
    state = {"model.embed_tokens.weight": np.full((6, 4), embedding, np.float32)}
    state["lm_head.weight"] = np.full((6, 4), embedding if output is None else output, np.float32)
    save_file(state, "model.safetensors")


@pytest.fixture
def languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> Path:
    """Branches whose embedding is their output layer (main, one, two), and one where it is not (apart)."""
    tell("init", str(tmp_path / "languages"))
    monkeypatch.chdir(tmp_path / "languages")
    for branch, embedding, output in (("main", 1.0, None), ("one", 2.0, None), ("two", 4.0, None), ("apart", 3.0, 5.0)):
        if branch != "main":
            tell("switch", "-c", branch, "main")
        tied(embedding, output)
        tell("add", ".")
        tell("commit", "-m", branch)
    return tmp_path / "languages"


def test_what_is_tied_everywhere_stays_tied(languages: Path, tell: Tell) -> None:
    tell("switch", "one")
    tell("merge", "two", "--method", "ties", "--set", "density=1")
    state = load_file("model.safetensors")
    assert state["lm_head.weight"].tobytes() == state["model.embed_tokens.weight"].tobytes()
    (manifest,) = Repository.open(languages).version("HEAD").manifests.values()
    assert manifest.entry("lm_head.weight").oid == manifest.entry("model.embed_tokens.weight").oid


def test_what_is_tied_in_some_is_a_conflict(languages: Path, tell: Tell) -> None:
    tell("switch", "one")
    error = tell("merge", "apart", code=1)
    (conflict,) = error["conflicts"]
    assert (conflict["kind"], conflict["where"]) == ("tied", "lm_head.weight, model.embed_tokens.weight")
    assert (conflict["expected"], conflict["got"]) == ("one matrix, as in one", "two in apart")
    assert "--tied untie" in error["hint"]
    made = tell("merge", "apart", "--tied", "untie")
    assert "one tensor in one only" in made["notes"][0]
    state = load_file("model.safetensors")
    assert (state["model.embed_tokens.weight"][0, 0], state["lm_head.weight"][0, 0]) == (2.5, 3.5)
    assert tell("verify", "--rerun")["tensors"] == 2


def test_what_is_tied_in_the_models_but_not_in_their_base_is_a_conflict(languages: Path, tell: Tell) -> None:
    tell("switch", "apart")
    for branch, value in (("left", 6.0), ("right", 7.0)):
        tell("switch", "-c", branch, "apart")
        tied(value, None)
        tell("commit", "-a", "-m", branch)
    error = tell("merge", "left", "--method", "task_arithmetic", code=1)
    assert [(c["kind"], c["got"]) for c in error["conflicts"]] == [("tied", "two in the merge base")]
    assert tell("merge", "left")["notes"] == []  # the mean needs no base


def test_what_does_not_go_with_classes_by_name(models: Path, tell: Tell) -> None:
    assert (
        "--align does not go with" in tell("merge", "birds", "--heads", "mean", "--align", "weights", code=2)["message"]
    )
    told = tell("merge", "birds", "--heads", "mean", "--head-name", "body", code=2)["message"]
    assert "expected a row for each of its 2 classes, got shape [4, 4]" in told
