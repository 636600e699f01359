"""The everyday round, with the real command line in real processes and real git beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

SMALL = 40


def run(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command and expects its exit code."""
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done


def modelgit(folder: Path, *words: str, code: int = 0) -> str:
    """Returns what a modelgit command prints."""
    return run(folder, sys.executable, "-m", "modelgit", *words, code=code).stdout


def write_model(place: Path, shift: float = 0.0) -> None:
    """Writes a model of two tensors, the first moved by a fixed pattern times `shift`."""
    weight = np.arange(SMALL * 8, dtype=np.float32).reshape(SMALL, 8) / 7
    save_file(
        {"layer.weight": weight + shift * np.float32(np.cos(weight)), "layer.bias": np.zeros(8, np.float32)}, place
    )


@pytest.mark.slow
def test_from_init_to_a_byte_identical_copy(tmp_path: Path) -> None:
    models, weights = tmp_path / "models", tmp_path / "models" / "model.safetensors"
    assert "ready for weights" in modelgit(tmp_path, "init", "models")
    write_model(weights)
    assert "2 new" in modelgit(models, "commit", "-m", "Foundation model")
    for name, shift in (("reviews", 0.01), ("tweets", 0.03)):
        modelgit(models, "switch", "main")
        assert f"On new branch {name}" in modelgit(models, "switch", "-c", name)
        write_model(weights, shift)
        assert "changed layer.weight" in modelgit(models, "status")
        assert "1 changed, 1 shared" in modelgit(models, "commit", "-m", f"Fine-tune on {name}")
    modelgit(models, "switch", "main")
    merged = json.loads(modelgit(models, "merge", "reviews", "tweets", "-m", "Average", "--json"))
    assert (merged["kind"], merged["recipes"], merged["copied"]) == ("merge", 1, 1)
    assert [head["name"] for head in merged["heads"]] == ["reviews", "tweets"]
    check_average(models)
    check_history(models, merged["commit"])
    check_sharing(tmp_path, models)


def check_average(models: Path) -> None:
    """The merged file is the mean of the two, rounded once; and recomputing gives the same."""
    both = [
        run(models, sys.executable, "-m", "modelgit", "export", n, f"../{n}").returncode for n in ("reviews", "tweets")
    ]
    assert both == [0, 0]
    a, b = (load_file(models.parent / n / "model.safetensors")["layer.weight"] for n in ("reviews", "tweets"))
    expected = ((a.astype(np.float64) + b) / 2).astype(np.float32)
    merged = load_file(models / "model.safetensors")["layer.weight"]
    assert merged.tobytes() == expected.tobytes()
    assert "every id the same" in modelgit(models, "verify", "--rerun", "HEAD")


def check_history(models: Path, commit: str) -> None:
    """Git and modelgit tell the same history, and both find the work tree clean."""
    drawing = modelgit(models, "log", "--graph").splitlines()
    assert [row.split(" ")[0] for row in drawing] == ["*", "|\\", "|", "*", "|/", "*"]
    assert "[linear of 2]" in drawing[0]
    assert run(models, "git", "log", "-1", "--format=%H").stdout.strip() == commit
    assert len(run(models, "git", "log", "-1", "--format=%P").stdout.split()) == 2
    assert run(models, "git", "status", "--porcelain").stdout == ""
    assert "Nothing has changed" in modelgit(models, "status")
    assert modelgit(models, "branch", "--list").split() == ["*", "main", "reviews", "tweets"]
    assert modelgit(models, "log", "--quiet", "-n", "1").strip() == commit
    assert "layer.weight" in modelgit(models, "diff", "reviews", "tweets")


def check_sharing(tmp_path: Path, models: Path) -> None:
    """A push, a clone, a further push and a pull; then nothing is damaged anywhere."""
    run(tmp_path, "git", "init", "--quiet", "--bare", "shared.git")
    modelgit(models, "remote", "add", "origin", "../shared.git")
    modelgit(models, "push", "origin", "main", "reviews")
    modelgit(tmp_path, "clone", "shared.git", "copy")
    copy = tmp_path / "copy"
    assert (copy / "model.safetensors").read_bytes() == (models / "model.safetensors").read_bytes()
    write_model(models / "model.safetensors", 0.5)
    modelgit(models, "commit", "-m", "Further")
    modelgit(models, "push")
    modelgit(copy, "pull")
    assert (copy / "model.safetensors").read_bytes() == (models / "model.safetensors").read_bytes()
    assert "On new branch reviews" in modelgit(copy, "switch", "reviews")
    assert modelgit(copy, "fsck", "--full").startswith("ok ")
    modelgit(copy, "export", "main", "../plain")
    plain = tmp_path / "plain"
    assert sorted(p.relative_to(plain).as_posix() for p in plain.rglob("*") if p.is_file()) == [
        ".modelgit/record.json",
        "model.safetensors",
    ]
    assert (plain / "model.safetensors").read_bytes() == (models / "model.safetensors").read_bytes()


def test_habits_from_git_and_paths_from_where_one_stands(tmp_path: Path) -> None:
    modelgit(tmp_path, "init", ".")
    folder = tmp_path / "bert"
    folder.mkdir()
    write_model(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert json.loads(modelgit(folder, "add", "config.json", "--json"))["paths"] == ["bert/config.json"]
    modelgit(folder, "commit", "-am", "one")
    assert run(tmp_path, "git", "ls-files").stdout.split() == [
        ".gitattributes",
        "bert/config.json",
        "bert/model.safetensors",
    ]
    modelgit(tmp_path, "-C", "bert", "checkout", "-b", "other")
    assert modelgit(tmp_path, "branch", "--show-current") == "other\n"


@pytest.mark.slow
def test_git_verbs_that_write_files_leave_weights(tmp_path: Path) -> None:
    modelgit(tmp_path, "init", ".")
    weights = tmp_path / "model.safetensors"
    write_model(weights)
    modelgit(tmp_path, "commit", "-m", "one")
    first = weights.read_bytes()
    write_model(weights, 0.2)
    second = weights.read_bytes()
    modelgit(tmp_path, "stash")
    assert weights.read_bytes() == first
    assert run(tmp_path, "git", "status", "--porcelain").stdout == ""
    modelgit(tmp_path, "stash", "pop")
    assert weights.read_bytes() == second
    run(tmp_path, "git", "commit", "--quiet", "--all", "--message", "by git alone")
    without = ("-c", "filter.modelgit.process=", "-c", "filter.modelgit.required=false")
    run(tmp_path, "git", *without, "checkout", "--quiet", "HEAD~1")
    assert weights.read_bytes().startswith(b"modelgit manifest")
    assert "fill them in: modelgit checkout" in modelgit(tmp_path, "status")
    assert json.loads(modelgit(tmp_path, "status", "--json"))["manifests"] == ["model.safetensors"]
    assert (
        "modelgit restore model.safetensors"
        in run(tmp_path, sys.executable, "-m", "modelgit", "checkout", "model.safetensors", code=11).stderr
    )
    modelgit(tmp_path, "checkout")
    assert weights.read_bytes() == first
    assert run(tmp_path, sys.executable, "-m", "modelgit", "rev-parse", "nothing", code=128).stdout == "nothing\n"
