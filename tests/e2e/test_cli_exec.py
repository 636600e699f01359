"""A program of one's own: run in the work tree, and what it wrote committed with how it came about."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

TRAIN = """
import pathlib, sys
import numpy as np
from safetensors.numpy import load_file, save_file
state = load_file("model.safetensors")
state["a"] += float(sys.argv[1])
save_file(state, "model.safetensors")
pathlib.Path("metrics.json").write_text('{"loss": 0.5}')
pathlib.Path("junk.tmp").write_text("x")
print("trained")
"""


def git(place: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True).stdout.strip()


def modelgit(place: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelgit", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def place(tmp_path: Path) -> Path:
    home = tmp_path / "models"
    home.mkdir()
    modelgit(home, "init")
    save_file({"a": np.zeros(10, np.float32), "b": np.ones(3, np.float32)}, home / "model.safetensors")
    (home / "train.py").write_text(TRAIN)
    (home / ".gitignore").write_text("*.tmp\n")
    (home / "note.txt").write_text("mine, not the program's")
    modelgit(home, "add", "train.py", ".gitignore")
    modelgit(home, "commit", "-m", "Start")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.csv").write_text("1,2\n")
    return home


def test_what_a_program_wrote_is_committed_with_how_it_came_about(place: Path) -> None:
    before = git(place, "rev-parse", "HEAD")
    words = ["exec", "--data", "../data", "--json", "--", sys.executable, "train.py", "2"]
    done = modelgit(place, *words)
    table = json.loads(done.stdout)  # what the program printed went to stderr
    assert "trained" in done.stderr
    assert table["paths"] == ["metrics.json", "model.safetensors"]
    assert git(place, "rev-parse", "HEAD^") == before
    assert git(place, "log", "-1", "--format=%s") == f"exec: {sys.executable} train.py 2"
    record = json.loads(git(place, "show", "HEAD:.modelgit/record.json"))
    assert record["kind"] == "exec"
    assert record["details"]["command"] == [sys.executable, "train.py", "2"]
    assert record["details"]["code"] == before
    assert record["details"]["data"] == table["data"] and len(table["data"]["../data"]) == 64
    assert record["details"]["environment"]["packages"]["numpy"] == np.__version__
    assert git(place, "status", "--short") == "?? note.txt"
    assert load_file(place / "model.safetensors")["a"].tolist() == [2.0] * 10
    (place.parent / "data/x.csv").write_text("1,3\n")
    again = json.loads(modelgit(place, *words).stdout)
    assert again["data"] != table["data"]


def test_a_program_that_fails_commits_nothing_and_hands_its_code_on(place: Path) -> None:
    before = git(place, "rev-parse", "HEAD")
    code = "import pathlib, sys; pathlib.Path('metrics.json').write_text('half'); sys.exit(7)"
    modelgit(place, "exec", "--", sys.executable, "-c", code, code=7)
    assert git(place, "rev-parse", "HEAD") == before
    assert (place / "metrics.json").read_text() == "half"


def test_a_program_that_writes_nothing_makes_no_commit(place: Path) -> None:
    before = git(place, "rev-parse", "HEAD")
    done = modelgit(place, "exec", "-m", "Look", "--", sys.executable, "-c", "print('looked')")
    assert "looked" in done.stdout and "no commit" in done.stdout
    assert git(place, "rev-parse", "HEAD") == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--", "no-such-program-at-all"], 2, "no such program"),
        (["--data", "gone.csv", "--", "true"], 17, "gone.csv: cannot be read"),
        (["--"], 2, ""),
    ],
)
def test_what_cannot_be_run_is_said(place: Path, words: list[str], code: int, message: str) -> None:
    done = modelgit(place, "exec", *words, code=code)
    assert message in done.stderr


def test_changes_from_before_stay_out_of_the_commit(place: Path) -> None:
    (place / "train.py").write_text(TRAIN + "\n# edited\n")
    done = modelgit(place, "exec", "--", sys.executable, "train.py", "1", code=10)
    assert "the work tree has changes: train.py" in done.stderr
    assert load_file(place / "model.safetensors")["a"].tolist() == [0.0] * 10
