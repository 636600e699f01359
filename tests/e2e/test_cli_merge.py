"""Merges by hand: what takes part, what a commit records, what stays as it was."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from telling import Tell, teller

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.repo.repository import Repository

Tensors = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: `main` at the base, and `one` and `two` that were fine-tuned from it."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    for branch, value in (("main", 1.0), ("one", 2.0), ("two", 4.0)):
        state = {"w": full(value), "b": full(0.5)}
        repo.commit(state, message="a version", branch=branch, parents=[] if branch == "main" else ["main"])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template to work in."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def full(value: float, width: int = 4) -> np.ndarray[Any, Any]:
    return np.full((64, width), value, np.float32)


def weights() -> Tensors:
    """Returns the tensors of the work tree."""
    loaded: Tensors = load_file("model.safetensors")
    return loaded


def test_an_average_of_heads_and_what_is_written_of_it(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    base, one, two = (repo.resolve(name) for name in ("main", "one", "two"))
    merged = tell("merge", "one", "two", "--weights", "3,1")
    assert merged["bases"] == [base]
    assert (merged["copied"], merged["recipes"], merged["computed"]) == (1, 1, 0)
    assert weights()["w"].tolist() == full(2.5).tolist()
    entry = repo.version("main").entry
    assert entry.parents == (one, two)
    trailers = entry.trailers
    assert trailers["Merge-Method"] == ["linear"]
    assert json.loads(trailers["Merge-Weights"][0]) == [3.0, 1.0]
    assert trailers["Merge-Base"] == [base]
    assert [value.split()[0] for value in trailers["Merge-Input"]] == [one, two]
    record = read_record(repo, "main")
    assert record is not None
    assert record.kind == "merge"
    assert record.details["inputs"][1] == {"name": "two", "commit": two, "weight": 1.0}
    assert tell("verify", "--rerun")["tensors"] == 2


def test_head_comes_first_and_takes_part_when_nothing_descends_from_it(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    merged = tell("merge", "two", "main")
    assert [head["name"] for head in merged["heads"]] == ["one", "two"]
    assert weights()["w"].tolist() == full(3.0).tolist()


def test_the_order_of_names_reaches_no_byte(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    tell("switch", "-c", "here", "main")
    tell("merge", "one", "two")
    tell("switch", "-c", "there", "main")
    tell("merge", "two", "one")
    assert repo.version("here").manifests == repo.version("there").manifests


def test_moving_forward(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    assert tell("merge", "one", "--dry-run")["commit"] == repo.resolve("one")
    assert tell("merge", "one")["kind"] == "fast-forward"
    assert repo.resolve("main") == repo.resolve("one")
    assert weights()["w"].tolist() == full(2.0).tolist()
    assert tell("merge", "one")["kind"] == "up-to-date"
    assert tell("status")["changes"] == []


def test_no_ff_makes_a_commit_that_can_be_recomputed(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    base = repo.resolve("main")
    assert tell("merge", "one", "--no-ff")["kind"] == "merge"
    assert repo.version("main").entry.parents == (base, repo.resolve("one"))
    assert repo.version("main").manifests == repo.version("one").manifests
    tell("verify", "--rerun")


def test_a_method_with_a_meaning_for_one_head_does_not_move_forward(models: Path, tell: Tell) -> None:
    merged = tell("merge", "two", "--method", "wise_ft", "--set", "alpha=0.25")
    assert (merged["kind"], merged["method"], merged["settings"]) == ("merge", "wise_ft", {"alpha": 0.25})
    assert weights()["w"].tolist() == full(1.75).tolist()
    tell("verify", "--rerun")


def test_task_arithmetic_about_a_base_that_is_named(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    merged = tell("merge", "two", "--method", "task_arithmetic", "--base", "main", "--set", "scale=0.5")
    assert merged["bases"] == [Repository.open(models).resolve("main")]
    assert weights()["w"].tolist() == full(1 + 0.5 * (1 + 3)).tolist()
    tell("verify", "--rerun")


def test_a_dry_run_changes_nothing(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    before = repo.refs()
    merged = tell("merge", "one", "two", "--dry-run")
    assert (merged["kind"], merged["commit"], merged["copied"], merged["computed"]) == ("dry-run", None, 1, 1)
    assert repo.refs() == before
    assert weights()["w"].tolist() == full(1.0).tolist()


def test_weights_that_leave_every_model_out_are_refused(models: Path, tell: Tell) -> None:
    for words in ([], ["--method", "ties"], ["--method", "task_arithmetic"], ["--set", "normalize=false"]):
        assert "all 0" in tell("merge", "one", "two", "--weights", "0,0", *words, code=2)["message"]


def test_files_merge_three_way_and_disagreement_is_a_conflict(models: Path, tell: Tell) -> None:
    for branch, text in (("one", "1"), ("two", "2")):
        tell("switch", branch)
        Path("config.json").write_text('{"v": 1}' if text == "1" else '{"v": 2}')
        Path(f"only-{branch}.txt").write_text(text)
        tell("add", "config.json", f"only-{branch}.txt")
        tell("commit", "-m", "files")
    error = tell("merge", "one", code=1)
    assert error["conflicts"] == [
        {"kind": "file", "where": "config.json", "expected": "as in two", "got": "another content in one"}
    ]
    tell("merge", "one", "--files", "ours")
    assert Path("config.json").read_text() == '{"v": 2}'
    assert (Path("only-one.txt").read_text(), Path("only-two.txt").read_text()) == ("1", "2")
    tell("verify", "--rerun")


def test_heads_of_other_tasks(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    for branch, classes in (("one", ("cat", "dog")), ("two", ("red", "green", "blue"))):
        tell("switch", branch)
        save_file({"w": full(2.0), "b": full(0.5), "head.w": full(1.0, len(classes))}, "model.safetensors")
        Path(".modelgit").mkdir(exist_ok=True)
        Path(RECORD_PATH).write_bytes(write_record(Record("train", "tiny", classes, ("head.w",))))
        tell("add", RECORD_PATH)
        tell("commit", "-m", "a head")
    kinds = {conflict["kind"] for conflict in tell("merge", "one", code=1)["conflicts"]}
    assert kinds == {"shape", "classes"}
    assert tell("merge", "one", "--heads", "drop")["dropped"] == ["head.w"]
    record = read_record(repo, "two")
    assert record is not None
    assert (record.architecture, record.classes, record.head) == ("tiny", (), ())
    assert sorted(weights()) == ["b", "w"]
    tell("verify", "--rerun")


def test_shards_merge_path_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    tell("init", str(tmp_path / "sharded"))
    monkeypatch.chdir(tmp_path / "sharded")
    for branch, value in (("main", 1.0), ("one", 2.0), ("two", 4.0)):
        if branch != "main":
            tell("switch", "-c", branch, "main")
        save_file({"a": full(value)}, "model-00001-of-00002.safetensors")
        save_file({"z": full(10 * value)}, "model-00002-of-00002.safetensors")
        tell("commit", "-m", branch)
    tell("switch", "main")
    assert tell("merge", "one", "two")["recipes"] == 2
    assert load_file("model-00001-of-00002.safetensors")["a"].tolist() == full(3.0).tolist()
    assert load_file("model-00002-of-00002.safetensors")["z"].tolist() == full(30.0).tolist()
    assert tell("verify", "--rerun")["files"] == 2


def test_a_forged_merge_is_found_out(models: Path, tell: Tell) -> None:
    repo = Repository.open(models)
    tell("merge", "one", "two", "-m", "honest")
    honest = repo.version("main")
    message = honest.entry.message.replace("[1.0,1.0]", "[1.0,2.0]")
    tree = repo.git.run("rev-parse", "main^{tree}")
    parents = [word for parent in honest.entry.parents for word in ("-p", parent)]
    forged = repo.git.run("commit-tree", tree, *parents, "-m", message)
    error = tell("verify", "--rerun", forged, code=1)
    assert error["kind"] == "DifferencesFound"
    assert error["message"].endswith("gave other weights: w")
    broken = repo.git.run("commit-tree", tree, *parents, "-m", message.replace("[1.0,2.0]", "[1.0"))
    assert tell("verify", "--rerun", broken, code=12)["kind"] == "FormatError"


def test_verify_stores_nothing(models: Path, tell: Tell) -> None:
    tell("merge", "one", "two")
    store = models / ".git" / "modelgit"
    before = sorted(p.name for p in store.rglob("*"))
    tell("verify", "--rerun")
    assert sorted(p.name for p in store.rglob("*")) == before


def test_quiet_prints_the_commit_alone(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["merge", "one", "two", "--quiet"]) == 0
    assert capfd.readouterr() == (Repository.open(models).resolve("main") + "\n", "")
