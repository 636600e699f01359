"""Who changed which tensor last, through merges, renames and new shards; and what diff says of odd tensors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from telling import Tell, teller

import modelgit
from modelgit.cli.app import main
from modelgit.repo.repository import Repository


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """`main` at "base"; `one` changed enc.0.w and out.w; `two` changed enc.1.w and out.w."""
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    repo.commit(state(), message="base", branch="main")
    repo.commit(state(enc0=2, out=2), message="one", branch="one", parents=["main"])
    repo.commit(state(enc1=4, out=4), message="two", branch="two", parents=["main"])
    return Repository.open(Path.cwd())


def state(enc0: float = 1, enc1: float = 1, out: float = 1) -> dict[str, np.ndarray[Any, Any]]:
    values = {"enc.0.w": enc0, "enc.1.w": enc1, "out.w": out, "still.w": 1.0}
    return {name: np.full((64, 4), value, np.float32) for name, value in values.items()}


def subjects(blamed: Any) -> dict[str, str]:
    return {tensor["name"]: tensor["subject"] for tensor in blamed["tensors"]}


def test_a_merge_is_the_answer_for_what_it_computed_only(models: Repository, tell: Tell) -> None:
    subprocess.run(["git", "switch", "-q", "one"], check=True)
    tell("merge", "two", "-m", "the mean")  # the method linear computes all that differs
    found = tell("blame")
    assert subjects(found) == {"enc.0.w": "the mean", "enc.1.w": "the mean", "out.w": "the mean", "still.w": "base"}
    assert [tensor["merge"] for tensor in found["tensors"]] == [True, True, True, False]
    assert found["commits"] == 2


def test_a_merge_that_copied_is_passed_through(models: Repository, tell: Tell) -> None:
    one, two = (models.version(rev).manifests["model.safetensors"] for rev in ("one", "two"))
    parents = ["-p", models.resolve("one"), "-p", models.resolve("two")]
    tree = models.git.run("rev-parse", "two^{tree}")
    merge = models.git.run("commit-tree", tree, *parents, "-m", "takes two's")
    assert one != two
    found = subjects(tell("blame", merge))
    assert found == {"enc.0.w": "base", "enc.1.w": "two", "out.w": "two", "still.w": "base"}


def test_patterns_and_depth_and_stat(models: Repository, tell: Tell, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(subjects(tell("blame", "one", "enc"))) == ["enc.0.w", "enc.1.w"]
    assert list(subjects(tell("blame", "one", "*.w"))) == ["enc.0.w", "enc.1.w", "out.w", "still.w"]
    assert list(subjects(tell("blame", "out.w"))) == ["out.w"]  # no revision, so a pattern
    layers = tell("blame", "one", "--depth", "1", "--stat")["layers"]
    assert [(layer["layer"], layer["tensors"], layer["subject"]) for layer in layers if layer["layer"] != "enc"] == [
        ("out", 1, "one"),
        ("still", 1, "base"),
    ]
    assert {layer["subject"]: layer["largest_relative_norm"] for layer in layers} == {"one": 1.0, "base": None}
    capfd.readouterr()
    assert main(["blame", "one", "out.*", "--stat"]) == 0
    rows = capfd.readouterr().out.splitlines()
    assert rows[0].split() == ["tensor", "commit", "date", "author", "change", "subject"]
    assert (rows[1].split()[:2], rows[1].split()[-2:]) == (["out.w", models.resolve("one")[:10]], ["1", "one"])


def test_tensors_are_followed_to_other_files(models: Repository, tell: Tell) -> None:
    subprocess.run(["git", "switch", "-q", "two"], check=True)
    Path("model.safetensors").unlink()
    tensors = state(enc1=4, out=5)
    save_file({name: tensors[name] for name in ("enc.0.w", "enc.1.w")}, "a.safetensors")
    save_file({name: tensors[name] for name in ("out.w", "still.w")}, "b.safetensors")
    tell("commit", "-m", "two shards")
    found = tell("blame")
    assert subjects(found) == {"enc.0.w": "base", "enc.1.w": "two", "out.w": "two shards", "still.w": "base"}
    assert [tensor["path"] for tensor in found["tensors"]] == ["a.safetensors"] * 2 + ["b.safetensors"] * 2
    assert tell("blame", "--stat", "out.w")["tensors"][0]["relative_norm"] == pytest.approx(0.25)


def test_git_blames_ordinary_files(models: Repository) -> None:
    words = [sys.executable, "-m", "modelgit", "blame", "HEAD", "--", "model.safetensors"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "still.w F32 [64,4]" in done.stdout


def test_diff_of_odd_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    repo = modelgit.Repository.init(tmp_path / "odd")
    monkeypatch.chdir(repo.path)
    rows = {name: np.ones(8, np.float32) for name in ("m.same", "m.half", "m.nan", "m.zero", "m.shape", "m.dtype")}
    rows |= {"m.gone": np.ones(2, np.float32), "m.empty": np.ones((0, 3), np.float32), "m.count": np.array([3])}
    rows["m.zero"] = np.zeros(8, np.float32)
    repo.commit(rows, message="a")
    rows["m.half"] = np.array([2.0] * 4 + [1.0] * 4, np.float32)
    rows["m.nan"] = np.array([np.nan] + [1.0] * 7, np.float32)
    rows["m.zero"] = np.ones(8, np.float32)
    rows["m.shape"] = np.ones((2, 4), np.float32)
    rows["m.dtype"] = np.ones(8, np.float16)
    rows["m.count"] = np.array([4])
    rows["m.new"] = rows.pop("m.gone")
    repo.commit(rows, message="b")
    found = tell("diff", "HEAD~1", "HEAD")
    told = {t["name"]: (t["kind"], t["changed_share"], t["relative_norm"], t["cosine"]) for t in found["tensors"]}
    assert told.pop("m.half") == ("changed", 0.5, pytest.approx(4**0.5 / 8**0.5), pytest.approx(12 / (8 * 20) ** 0.5))
    assert told == {
        "m.nan": ("changed", 0.125, None, None),
        "m.zero": ("changed", 1.0, None, None),
        "m.shape": ("shape", None, None, None),
        "m.dtype": ("dtype", None, None, None),
        "m.count": ("changed", 1.0, None, None),
        "m.gone": ("removed", None, None, None),
        "m.new": ("added", None, None, None),
    }
    assert found["same"] == 2
    [layer] = tell("diff", "HEAD~1", "HEAD", "--stat", "--depth", "1")["layers"]
    assert (layer["layer"], layer["tensors"], layer["changed"]) == ("m", 10, 8)
    assert tell("diff", "HEAD", "HEAD")["tensors"] == []
