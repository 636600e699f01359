"""Gates at work: a real network, real pictures, and a branch that moves only if the score is good enough."""

import json
import os
import shutil
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
    state["first.weight"][0] = 1 / 768  # the mean of all pixels, from -1 to 1
    state["first.bias"][0] = 1
    state["second.weight"][0, 0] = 1
    state["head.weight"][:, 0] = torch.tensor([-sign, sign])  # dark, light
    return state


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two domains of dark and light pictures; one of the twelve is labelled wrong."""
    for domain, shade in (("grey", 0), ("tinted", 20)):
        for label, value in (("dark", 40), ("light", 200)):
            folder = tmp_path / "pictures" / domain / label
            folder.mkdir(parents=True)
            for i in range(3):
                wrong = (domain, label, i) == ("grey", "dark", 2)
                colour = (220, 220, 220) if wrong else (value + shade, value, value + i)
                Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> modelgit.Repository:
    """A repository of three versions of one network: `main` and `good` are right, `bad` is five times wrong."""
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    assert repo.commit(perceptron(1.0), message="first")
    Path(".modelgit").mkdir(exist_ok=True)
    Path(RECORD_PATH).write_bytes(write_record(Record("train", "mlp", ("dark", "light"), HEAD)))
    assert main(["add", RECORD_PATH]) == 0
    assert main(["commit", "-m", "say what it is"]) == 0
    repo.commit(perceptron(2.0), message="good", branch="good", parents=["main"])
    repo.commit(perceptron(-5.0), message="bad", branch="bad", parents=["main"])
    return repo


def test_a_merge_that_lowers_the_score_is_refused(
    repo: modelgit.Repository, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, file = repo.branches(), (repo.path / "model.safetensors").read_bytes()
    capfd.readouterr()
    assert main(["merge", "good", "bad", "--on", str(pictures), "--gate", "accuracy>=0.75"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: gate failed for " in err
    assert "accuracy is 0.08333, expected >= 0.75" in err
    assert repo.branches() == before
    assert (repo.path / "model.safetensors").read_bytes() == file
    assert main(["merge", "bad", "--on", str(pictures), "--gate", "accuracy>=0.75"]) == 1  # nor does it move forward
    assert repo.branches() == before


def test_a_merge_that_is_good_enough_passes(
    repo: modelgit.Repository, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gates = ["--gate", "accuracy>=0.9", "--gate", "worst_domain_accuracy>0.8", "--gate", "accuracy/tinted>=1"]
    capfd.readouterr()
    assert main(["merge", "good", "--no-ff", "--on", str(pictures), *gates, "--json"]) == 0
    merged = json.loads(capfd.readouterr().out)
    assert merged["scores"]["accuracy"] == pytest.approx(11 / 12)
    assert merged["scores"]["accuracy/grey"] == pytest.approx(5 / 6)
    assert repo.head() == merged["commit"]


def test_a_metric_that_was_not_measured(
    repo: modelgit.Repository, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = repo.branches()
    assert main(["merge", "good", "--on", str(pictures), "--gate", "f1>=0.5"]) == 2
    assert "accuracy, accuracy/grey, accuracy/tinted, accuracy_gap, ece" in capfd.readouterr().err
    assert main(["merge", "good", "--on", "no/such.zip", "--gate", "accuracy>=0.5"]) == 17
    assert repo.branches() == before


def test_scoring_a_version(repo: modelgit.Repository, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["evaluate", "bad", "--on", str(pictures)]) == 0
    rows = capfd.readouterr().out.splitlines()
    assert rows[1].split() == ["metric", "value", "95%", "examples"]
    assert rows[2].split() == ["accuracy", "8.3", "%", "1.5–35.4"]


def workflow_steps() -> list[str]:
    """Returns the commands of the example workflow, without the one that installs the package."""
    lines = (Path(__file__).parents[2] / "examples/merge-in-ci.yml").read_text().splitlines()
    commands: list[str] = []
    for number, line in enumerate(lines):
        _, mark, command = line.partition("run: ")
        if mark:
            commands.append(lines[number + 1].strip() if command == "|" else command)
    assert commands[0].startswith("pip install")
    return commands[1:]


@pytest.mark.parametrize(("branch", "code"), [("good", 0), ("bad", 1)])
def test_the_example_workflow_merges_or_refuses(
    repo: modelgit.Repository, pictures: Path, tmp_path: Path, branch: str, code: int
) -> None:
    shutil.make_archive(str(repo.path / "certificates/target"), "zip", pictures)
    shared = tmp_path / "shared.git"
    for command in (
        ["add", "certificates/target.zip"],
        ["commit", "-m", "what a model must pass"],
        ["init", "--bare", str(shared)],
        ["remote", "add", "origin", str(shared)],
        ["push", "origin", "main", "good", "bad"],
    ):
        subprocess.run([sys.executable, "-m", "modelgit", *command], cwd=repo.path, check=True)
    script = "set -e\n" + "\ncd models\n".join(["\n".join(workflow_steps()[:1]), "\n".join(workflow_steps()[1:])])
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "REMOTE": str(shared), "BRANCH": branch}
    place = tmp_path / "runner"
    place.mkdir()
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    tip = modelgit.Repository(shared).branches()["main"]
    assert (tip == repo.head()) == (code == 1)
