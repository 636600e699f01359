"""`commit --recipe`: one fine-tuning becomes a commit, through the command and from Python, and can be checked."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_examples_run import DOMAINS, modelgit, write_data

import modelgit as package
from modelgit.errors import (
    DataError,
    DifferencesFound,
    DirtyWorktree,
    ModelgitError,
    OutOfMemory,
    RecipeError,
    UsageError,
)
from modelgit.porcelain.scores import data_for
from modelgit.porcelain.training.rerunning import Retrained, rerun
from modelgit.repo.repository import Repository
from modelgit.train.networks.registry import build_network
from modelgit.version import VERSION

RECIPE = """
architecture = "mlp"
threads = 1
[data]
path = "data.zip"
held_out = "fluent"
image_size = 16
[train]
steps = 6
lr = 0.01
views = 1
eval_every = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path / "data.zip", DOMAINS, 0)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    repo = package.Repository.init("models")
    torch.manual_seed(0)
    repo.commit(build_network("mlp", 3).state_dict(), "Base")
    return tmp_path


def repository() -> package.Repository:
    return package.Repository("models")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd="models", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_fine_tuning_is_committed_to_the_branch_and_can_be_done_again(place: Path) -> None:
    base = repository().head()
    found = modelgit(place, "-C", "models", "commit", "--recipe", "../recipe.toml", "--set", "train.steps=4")
    assert (found["branch"], found["parents"], found["steps"], found["device"]) == ("main", [base], 4, "cpu")
    assert found["commit"] == repository().head() and git("status", "--short") == ""
    record = json.loads(git("show", "HEAD:.modelgit/record.json"))
    details = record["details"]
    assert (record["kind"], record["architecture"], record["classes"]) == ("train", "mlp", ["bar", "cup", "hat"])
    assert [point["step"] for point in details["history"]] == [0, 3, 4]
    assert details["data"]["path"] == "data.zip" and len(details["data"]["digest"]) == 64
    assert set(details["data"]["trained_on"]) == {"noto", "openmoji", "twemoji"}
    assert (details["config"]["seed"], details["machine"]["threads"]) == (0, 1)
    assert details["versions"]["torch"] == torch.__version__
    scores = modelgit(place, "-C", "models", "log", "-n", "1")["entries"][0]["scores"][0]["values"]
    assert scores["val_accuracy"] == found["values"]["val_accuracy"]
    assert not list(Path("models/.git/modelgit/cache/runs").glob("*"))
    again = verified(str(place))
    assert (again.exact, again.first, again.notes) == (True, None, ())
    git("commit", "--allow-empty", "-q", "-m", "The same")
    repo = Repository.open(Path("models"))
    assert data_for(repo, ["main"], "data.zip").config.image_size == 16  # as it was trained, not the default
    assert data_for(repo, [str(base)], "data.zip").config.image_size == 64


def test_a_commit_says_which_step_was_kept_if_not_the_last(place: Path) -> None:
    best = ["train.keep='best'", "train.lr=1e-9", "train.steps=2"]
    made = repository().train("recipe.toml", overrides=best)
    assert (made.kept_step, made.steps) == (0, 2) and made.subject.endswith(", step 0 kept")
    details = json.loads(git("show", "HEAD:.modelgit/record.json"))["details"]
    assert details["kept_step"] == 0 and [point["step"] for point in details["history"]] == [0, 2]
    assert repository().train("recipe.toml", overrides=best, message="Mine").subject == "Mine"


def test_recipe_pipeline_and_python_come_to_the_same_bits(place: Path) -> None:
    before = repository().head()
    first = repository().train(tomllib.loads(RECIPE))
    weights = load_file("models/model.safetensors")
    git("reset", "-q", "--hard", str(before))
    made = repository().train("recipe.toml", message="From Python")
    assert made.commit != first.commit and made.subject == "From Python"
    again = load_file("models/model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    git("reset", "-q", "--hard", str(before))
    save_file(load_file("models/model.safetensors"), "base.safetensors")
    Path("p.toml").write_text(PIPELINE)
    modelgit(place, "run", "p.toml", "--workers", "1")
    piped = package.Repository("piped").load("tuned")
    seeded = repository().train("recipe.toml", overrides=[f"train.seed={piped_seed()}"])
    found = repository().load(seeded.commit)
    assert all(torch.equal(found[name], piped[name]) for name in found)


PIPELINE = """
[pipeline]
name = "p"
repository = "piped"
[model]
architecture = "mlp"
weights = "base.safetensors"
[data.d]
path = "data.zip"
held_out = "fluent"
image_size = 16
[train]
steps = 6
lr = 0.01
views = 1
eval_every = 3
[[step]]
name = "base"
kind = "import"
[[step]]
name = "tuned"
kind = "train"
start = "base"
data = "d"
"""


def piped_seed() -> int:
    command = ["git", "-C", "piped", "show", "tuned:.modelgit/record.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout)["details"]["config"]["seed"])


def test_changed_files_are_committed_with_it_and_changed_weights_refused(place: Path) -> None:
    Path("models/notes.md").write_text("what I tried\n")
    git("add", "notes.md")
    made = repository().train("recipe.toml", overrides=["train.steps=2"])
    assert git("show", "--stat", "--format=", made.commit).count("notes.md") == 1
    assert git("status", "--short") == ""
    save_file({"x": torch.zeros(1)}, "models/model.safetensors")
    with pytest.raises(DirtyWorktree, match=r"changed weights: model\.safetensors"):
        repository().train("recipe.toml")


def test_raw_weights_lie_below_their_average_and_a_probe_trains_a_head_alone(place: Path) -> None:
    base = repository().head()
    made = repository().train("recipe.toml", overrides=["train.averaging=ema", "train.commit_raw=true"])
    assert git("log", "--format=%s", "-2").splitlines()[1].endswith("before ema averaging")
    assert git("rev-parse", "HEAD~2") == base and made.commit == git("rev-parse", "HEAD")
    probe = repository().train({"kind": "probe", "data": {"path": "data.zip", "image_size": 16}})
    assert (probe.changed, probe.same, probe.steps) == (2, 4, 0)
    assert probe.subject == "Linear probe on data"


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("train.stepz=1", RecipeError, r"\[?train\]?: unknown key 'stepz', did you mean 'steps'"),
        ("tran.steps=1", RecipeError, "unknown key 'tran', did you mean 'train'"),
        ("train.steps=0", RecipeError, "steps = 0: expected at least 1"),
        ("architecture=mlq", RecipeError, "unknown architecture 'mlq'"),
        ("data.path=gone.zip", DataError, "gone.zip"),
        ("data.held_out=noon", DataError, "no domain is called 'noon'"),
        ("device=cuda:99", ModelgitError, "cuda|CUDA"),
        ("head=HEAD", DataError, "expected a head for bar, cup, hat, got none"),
        ("message=''", RecipeError, "expected some words"),
        ("train.batch=1000000000000000", OutOfMemory, "step 1 of training on data: out of main memory, .* asked for"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_and_nothing_changes(
    place: Path, override: str, error: type[ModelgitError], message: str
) -> None:
    before = repository().head()
    with pytest.raises(error, match=message):
        repository().train("recipe.toml", overrides=[override])
    assert repository().head() == before and git("status", "--short") == ""


def test_what_was_trained_on_cannot_be_tested_on_later(place: Path) -> None:
    first = repository().train("recipe.toml", overrides=["data.held_out=noto", "train.steps=1"]).commit
    with pytest.raises(DataError, match="48 of the 48 examples") as caught:
        repository().train("recipe.toml")
    assert caught.value.hint is not None and first[:10] in caught.value.hint


def test_other_data_is_not_mistaken_for_the_recorded(place: Path) -> None:
    repository().train("recipe.toml", overrides=["train.steps=1"])
    Path("data.zip").rename("moved.zip")
    write_data(place / "data.zip", DOMAINS, 77)
    with pytest.raises(DataError, match=r"is not here: expected digest .*, got data\.zip \([0-9a-f]{16}…\)$"):
        verified("data.zip")
    with pytest.raises(DataError, match=r"got .*/data\.zip \([0-9a-f]{16}…\)$"):  # beside the work tree, and other data
        verified()
    assert verified(".").exact
    Path("sets").mkdir()
    Path("moved.zip").rename("sets/data.zip")
    assert verified().exact
    Path("sets/data.zip").rename("moved.zip")
    with pytest.raises(UsageError, match="no such file or folder"):
        verified("gone")
    Path("data.zip").unlink()
    with pytest.raises(UsageError, match="say where that is"):
        verified()


def verified(*places: str) -> Retrained:
    return rerun(Repository.open(Path("models")), "HEAD", places)


def test_weights_by_another_hand_are_told_tensor_by_tensor(place: Path) -> None:
    repository().train("recipe.toml", overrides=["train.steps=2"])
    state = load_file("models/model.safetensors")
    state["second.bias"][3] += 0.25
    save_file(state, "models/model.safetensors")
    message = git("log", "-1", "--format=%B")
    git("commit", "-q", "-a", "--amend", "-m", message)
    with pytest.raises(DifferencesFound, match=r"gave other weights: second\.bias; second\.bias differs by 0\.25"):
        verified(".")


def test_another_version_of_modelgit_is_named_where_bits_may_differ(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository().train("recipe.toml", overrides=["train.steps=2"])
    assert verified(".").notes == ()
    monkeypatch.setattr("modelgit.porcelain.training.rerunning.VERSION", "99.0")
    assert verified(".").notes == (f"modelgit: then {VERSION}, now 99.0",)
