"""The commit that lost a score, found by git's bisect with `modelgit evaluate --gate` as its question."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import RECORD_PATH, Record, write_record

HEAD = ("head.weight", "head.bias")


def perceptron(sign: float) -> dict[str, torch.Tensor]:
    """Returns a network that tells light pictures from dark ones, or with a negative sign takes one for the other."""
    state = {
        "first.weight": torch.zeros(64, 768),
        "first.bias": torch.zeros(64),
        "second.weight": torch.zeros(32, 64),
        "second.bias": torch.zeros(32),
        "head.weight": torch.zeros(2, 32),
        "head.bias": torch.tensor([sign, -sign]),
    }
    state["first.weight"][0] = 1 / 768
    state["first.bias"][0] = 1
    state["second.weight"][0, 0] = 1
    state["head.weight"][:, 0] = torch.tensor([-sign, sign])
    return state


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for label, value in (("dark", 40), ("light", 200)):
        folder = tmp_path / "pictures" / "grey" / label
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (16, 16), (value + i, value, value)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[modelgit.Repository, list[str]]:
    """Seven versions: the first has no record, the fifth (number 4) takes dark for light, as do those after it."""
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    commits = [str(repo.commit(perceptron(1.0), message="no record"))]
    Path(".modelgit").mkdir(exist_ok=True)
    Path(RECORD_PATH).write_bytes(write_record(Record("train", "mlp", ("dark", "light"), HEAD)))
    assert main(["add", RECORD_PATH]) == 0
    assert main(["commit", "-m", "say what it is"]) == 0
    commits.append(str(repo.head()))
    for sign in (2.0, 3.0, -4.0, -5.0, -6.0):
        commits.append(str(repo.commit(perceptron(sign), message=f"sign {sign:g}")))
    return repo, commits


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the tests' own modelgit first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def test_bisect_finds_the_commit_that_lost_the_score(
    history: tuple[modelgit.Repository, list[str]], pictures: Path
) -> None:
    repo, commits = history
    assert command("modelgit", "bisect", "start", "main", commits[2]).returncode == 0
    question = ("modelgit", "evaluate", "--on", str(pictures), "--gate", "accuracy>=0.75")
    done = command("modelgit", "bisect", "run", *question)
    assert done.returncode == 0, done.stderr
    assert f"{commits[4]} is the first bad commit" in done.stdout
    assert command("modelgit", "bisect", "reset").returncode == 0
    assert main(["status", "--quiet"]) == 0
    assert repo.head() == commits[-1]


def test_bisect_without_writing_any_weights(history: tuple[modelgit.Repository, list[str]], pictures: Path) -> None:
    repo, commits = history
    before = (repo.path / "model.safetensors").read_bytes()
    assert command("git", "bisect", "start", "--no-checkout", "main", commits[2]).returncode == 0
    question = ("modelgit", "evaluate", "BISECT_HEAD", "--on", str(pictures), "--gate", "accuracy>=0.75")
    assert f"{commits[4]} is the first bad commit" in command("git", "bisect", "run", *question).stdout
    assert (repo.path / "model.safetensors").read_bytes() == before
    assert command("git", "bisect", "reset").returncode == 0


def test_exit_codes_of_a_judgement(
    history: tuple[modelgit.Repository, list[str]], pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, commits = history
    ask = ["--on", str(pictures), "--gate", "accuracy>=0.75"]
    assert main(["evaluate", commits[3], *ask]) == 0
    assert main(["evaluate", commits[4], *ask]) == 1
    capfd.readouterr()
    assert main(["evaluate", commits[0], *ask]) == 125
    assert "no record says which architecture" in capfd.readouterr().err
    assert main(["evaluate", commits[3], "--on", "no/such.zip", "--gate", "accuracy>=0.75"]) == 125
    assert main(["evaluate", commits[3], "--on", str(pictures), "--gate", "accuracy"]) == 2
    assert main(["evaluate", commits[3], "--on", str(pictures), "--gate", "f1>=1"]) == 2
    assert command("git", "bisect", "start", "main", commits[1]).returncode == 0
    assert main(["evaluate", "--on", str(pictures), "--gate", "f1>=1"]) == 125  # no version is called bad for a typo
