"""Networks of somebody's own through the command: named by the user they are trained, a clone alone runs none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from telling import Tell, teller
from test_examples_run import DOMAINS, write_data

import modelgit as package
from modelgit.errors import UsageError
from modelgit.porcelain.training.rerunning import rerun
from modelgit.repo.repository import Repository

NETS = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".ran").touch()

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.featurizer = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.ReLU())
        self.head = nn.Linear(8, classes)

small = Net
"""
PIPELINE = """
[pipeline]
name = "own"
repository = "models"
[model]
architecture = "factory:emoji_nets:small"
weights = "random"
[data.d]
path = "data.zip"
held_out = "fluent"
image_size = 16
[train]
steps = 4
lr = 0.01
views = 1
[[step]]
name = "base"
kind = "import"
[[step]]
name = "main"
kind = "train"
start = "base"
data = "d"
"""
TRUST = ("--trust-factory", "emoji_nets:small")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, its data, and a module that leaves a file whenever it is imported."""
    place = tmp_path_factory.mktemp("own")
    write_data(place / "data.zip", DOMAINS, 0)
    (place / "p.toml").write_text(PIPELINE)
    (place / "lib").mkdir()
    (place / "lib" / "emoji_nets.py").write_text(NETS)
    return place


def modelgit(place: Path, *words: str) -> None:
    """Runs the command as people do, with the module on the path."""
    paths = os.pathsep.join([str(place / "lib"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "modelgit", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def test_what_the_user_names_is_trained_by_workers_and_what_a_clone_names_is_not_run(
    place: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = place / "lib" / "emoji_nets.ran"
    monkeypatch.syspath_prepend(str(place / "lib"))
    monkeypatch.chdir(place)
    refused = tell("run", "p.toml", "--workers", "1", code=2)
    assert refused["hint"] == "if you trust it: --trust-factory emoji_nets:small"
    assert not ran.exists() and not (place / "models").exists()

    modelgit(place, "run", "p.toml", "--workers", "1", *TRUST)
    assert ran.exists()
    ran.unlink()
    state = package.Repository(place / "models").load("main")
    assert sorted(state) == ["featurizer.2.bias", "featurizer.2.weight", "head.bias", "head.weight"]
    assert state["head.weight"].shape == (3, 8)

    tell("clone", "models", "clone")
    (place / "clone" / "emoji_nets.py").write_text("raise SystemExit('code of a clone was run')")  # beside the weights
    monkeypatch.chdir(place / "clone")
    for words in (["verify", "--rerun", "main", "--data", str(place)], ["evaluate", "main", "--on", "../p.toml#d"]):
        assert "code outside modelgit" in tell(*words, code=2)["message"]
    with pytest.raises(UsageError, match="made by emoji_nets:small"):
        rerun(Repository.open(place / "clone"), "main", [str(place)])
    assert not ran.exists() and "emoji_nets" not in sys.modules

    modelgit(place, "-C", "clone", "verify", "--rerun", "main", "--data", str(place), *TRUST)
    assert ran.exists()
