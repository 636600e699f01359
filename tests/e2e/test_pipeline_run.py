"""The main job at a tiny size, through the command: made once, gone on with after a kill, never done twice."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modelgit import Repository
from modelgit.events import Event, Measured, Noted
from modelgit.pipeline.execution import execute
from modelgit.pipeline.messages import Done, StackDone, StackRequest
from modelgit.porcelain.records import RECORD_PATH
from modelgit.porcelain.scores import workbench
from modelgit.porcelain.tensors import load_state
from modelgit.porcelain.training.rerunning import rerun
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository as LowRepository
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.networks.registry import build_network, untrained

PIPELINE = """
[pipeline]
name = "tiny"
repository = "models"
report = "report"
[model]
architecture = "mlp"
weights = "base.safetensors"
[variables]
seed = [0, 1]
run = [0, 1]
[data.target]
path = "target.zip"
held_out = "night"
group = "name"
image_size = 16
[data.other]
path = "other.zip"
image_size = 16
[train]
steps = 20
lr = 0.01
views = 1
frozen_stages = 1
[draws]
lr = [0.003, 0.02]
[[step]]
name = "base"
kind = "import"
[[step]]
name = "aux/other"
kind = "train"
start = "base"
data = "other"
[[step]]
name = "probe"
kind = "probe"
start = "base"
data = "target"
[[step]]
name = "plain/{seed}/{run}"
kind = "train"
start = "probe"
data = "target"
run = "{run}"
[[step]]
name = "recycled/{seed}/other"
kind = "train"
start = "aux/other"
head = "probe"
data = "target"
run = 1
[[step]]
name = "main"
kind = "merge"
heads = ["plain/*/0", "recycled/*/*"]
evaluate = "target"
[[step]]
name = "ensemble/{seed}"
kind = "ensemble"
heads = ["plain/{seed}/*"]
evaluate = "target"
[[report]]
strategy = "erm"
title = "ERM"
of = ["plain/*/*"]
[[report]]
strategy = "best"
title = "best by validation"
of = ["plain/*/*"]
pick = "best"
[[report]]
strategy = "ensemble"
title = "ensembles"
of = ["ensemble/*"]
[[report]]
strategy = "recycling"
title = "Recycling"
of = ["main"]
"""


def picture(label: int, shade: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (16, 16, 3)).astype(np.uint8) + np.uint8(shade)
    pixels[4 * label : 4 * label + 4] = 250
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_data(path: Path, domains: dict[str, int], classes: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for domain, shade in domains.items():
            for label, name in enumerate(classes):
                for i in range(20):
                    archive.writestr(f"{domain}/{name}/thing-{name}-{i}.png", picture(label, shade, 100 * label + i))


def prepare(folder: Path) -> Path:
    (folder / "tiny.toml").write_text(PIPELINE)
    write_data(folder / "target.zip", {"day": 150, "dusk": 90, "night": 20}, ("bar", "cup", "hat"))
    write_data(folder / "other.zip", {"only": 120}, ("ant", "bee", "cow", "dog"))
    save_file(build_network("mlp", 5).state_dict(), folder / "base.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The pipeline, run once for all tests that begin where it has ended, and what it said."""
    folder = prepare(tmp_path_factory.mktemp("original"))
    return folder, run_json(folder)


@pytest.fixture
def ended(tmp_path: Path, original: tuple[Path, dict[str, list[str]]]) -> Path:
    """A copy of it."""
    return shutil.copytree(original[0], tmp_path / "ended", symlinks=True)


def modelgit(place: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "modelgit", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def run_json(place: Path, *more: str) -> dict[str, list[str]]:
    table: dict[str, list[str]] = json.loads(modelgit(place, "run", "tiny.toml", "--workers", "2", "--json", *more))
    return table


UNTRAINED = """
[pipeline]
name = "untrained"
repository = "untrained"
[model]
architecture = "mlp"
weights = "random"
[data.target]
path = "target.zip"
image_size = 16
[data.unlike]
path = "unlike.zip"
held_out = "dawn"
image_size = 16
[train]
steps = 3
lr = 0.01
[[step]]
name = "base"
kind = "import"
[[step]]
name = "stranger"
kind = "import"
weights = "random"
seed = 1
[[step]]
name = "one"
kind = "train"
start = "base"
data = "target"
evaluate = "unlike"
[[step]]
name = "other"
kind = "train"
start = "stranger"
data = "target"
[[step]]
name = "main"
kind = "merge"
heads = ["one", "other"]
"""


def test_untrained_starts_are_drawn_by_their_seed(place: Path) -> None:
    (place / "untrained.toml").write_text(UNTRAINED)
    write_data(place / "unlike.zip", {"noon": 10, "dawn": 200}, ("bar", "cup", "hat"))
    table = json.loads(modelgit(place, "run", "untrained.toml", "--workers", "1", "--json"))
    assert table["made"] == ["base", "stranger", "one", "other", "main"]
    repo = Repository(place / "untrained")
    base, stranger, main = (repo.load(name) for name in ("base", "stranger", "main"))
    drawn = untrained("mlp", 0)
    assert base.keys() == drawn.keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert all(torch.equal(base[name], tensor) for name, tensor in drawn.items())
    assert not torch.equal(base["first.weight"], stranger["first.weight"])
    assert main["head.weight"].shape == (3, 32)
    score = json.loads(modelgit(place, "-C", "untrained", "show", "one", "--json"))["scores"][0]
    again = json.loads(
        modelgit(place, "-C", "untrained", "evaluate", "one", "--on", "../untrained.toml#unlike", "--json")
    )
    assert score["values"].keys() >= {"ood_accuracy", "val_accuracy/noon"}  # of what it names, not of its own data
    assert all(again["values"][name] == pytest.approx(value) for name, value in score["values"].items())


def test_a_pipeline_becomes_a_history_and_runs_once(ended: Path, original: tuple[Path, dict[str, list[str]]]) -> None:
    first, place = original[1], ended
    assert len(first["made"]) == 10
    assert first["found"] == []
    repo = place / "models"
    log = subprocess.run(
        ["git", "log", "--format=%P", "-1", "main"], cwd=repo, capture_output=True, text=True, check=True
    )
    assert len(log.stdout.split()) == 4
    assert (repo / "model.safetensors").stat().st_size > 100_000
    assert (
        subprocess.run(["git", "status", "--short"], cwd=repo, capture_output=True, text=True, check=True).stdout == ""
    )
    report = json.loads((place / "report.json").read_text())
    assert [row["strategy"] for row in report["rows"]] == ["erm", "best", "ensemble", "recycling"]
    assert all(0 <= row["ood_accuracy"] <= 1 and row["commits"] for row in report["rows"])
    assert report["stored_bytes"] < report["weight_bytes"]
    assert (place / "report.svg").read_text().startswith("<svg")
    second = run_json(place)
    assert second["made"] == []
    assert len(second["found"]) == 10
    assert [row["runs"] for row in report["rows"]] == [4, 2, 2, 1]
    values = {version["branch"]: version["val_accuracy"] for version in report["versions"]}
    best = [max(values[f"plain/{seed}/{run}"] for run in (0, 1)) for seed in (0, 1)]
    assert report["rows"][1]["val_accuracy"] == pytest.approx(sum(best) / 2)
    assert not any(version["branch"].startswith("ensemble") for version in report["versions"])
    assert json.loads((place / "report.json").read_text())["rows"] == report["rows"]
    graph = modelgit(place, "-C", "models", "log", "--graph", "--all")
    assert all(name in graph for name in ("aux/other", "probe", "plain/1/1", "recycled/0/other", "main"))
    modelgit(place, "-C", "models", "verify", "--rerun", "main")
    modelgit(place, "-C", "models", "fsck", "--full")
    modelgit(place, "clone", "models", "copy")
    assert (place / "copy/model.safetensors").read_bytes() == (repo / "model.safetensors").read_bytes()


def test_scores_can_be_measured_again(ended: Path) -> None:
    version = next(v for v in json.loads((ended / "report.json").read_text())["versions"] if v["branch"] == "main")
    words = (ended, "-C", "models", "evaluate", "main", "--json", "--on")
    again = json.loads(modelgit(*words, "../tiny.toml#target"))["values"]
    assert again["worst_domain_accuracy"] <= again["ood_accuracy"] == pytest.approx(version["ood_accuracy"])
    assert again["val_accuracy"] == pytest.approx(version["val_accuracy"])
    assert {"worst_domain_accuracy", "accuracy/night"} < set(json.loads(modelgit(*words, "../target.zip"))["values"])


FISHER = """
[[step]]
name = "fisher"
kind = "merge"
heads = ["plain/0/*", "recycled/0/*"]
method = "fisher"
on = { name = "target", trial = 1 }
statistics = { examples = 40, labels = "data" }
evaluate = "target"
"""


def test_a_merge_with_statistics_is_a_step_like_others(ended: Path) -> None:
    (ended / "tiny.toml").write_text(PIPELINE + FISHER)
    made = run_json(ended, "--workers", "1", "--only", "fisher")
    assert (made["made"], run_json(ended, "--only", "fisher")["made"]) == (["fisher"], [])
    told = json.loads(git(ended, "log", "-1", "--format=%(trailers:key=Merge-Statistics,valueonly,unfold)", "fisher"))
    assert [(head["images"], head["split"]["held_out"], head["split"]["trial"]) for head in told["heads"]] == [
        (40, "night", 1)
    ] * 3
    found = json.loads(
        modelgit(ended, "-C", "models", "verify", "--rerun", "fisher", "--on", "../target.zip", "--json")
    )
    assert (found["method"], found["tensors"]) == ("fisher", 6)
    (ended / "same.toml").write_text(PIPELINE.replace('group = "name"', 'group = "name"\ntrial = 1', 1))
    words = (
        "--method",
        "fisher",
        "--stats-on",
        "../same.toml#target",
        "--stats-images",
        "40",
        "--stats-labels",
        "data",
    )
    modelgit(ended, "-C", "models", "switch", "-c", "by-hand", "plain/0/0")
    modelgit(ended, "-C", "models", "merge", "plain/0/1", "recycled/0/other", *words)
    assert git(ended, "rev-parse", "by-hand:model.safetensors") == git(ended, "rev-parse", "fisher:model.safetensors")


def test_a_fine_tuning_is_verified_by_training_again(place: Path) -> None:
    settings = ("--set", 'train.averaging="ema"', "--set", "train.commit_raw=true", "--only", "plain/0/*")
    run_json(place, *settings, "--workers", "1", "--together", "2")
    assert json.loads(git(place, "show", "plain/0/1:.modelgit/record.json"))["details"]["machine"]["together"] == 2
    for rev in ("plain/0/1", "plain/0/1^", "probe"):
        found = json.loads(modelgit(place, "-C", "models", "verify", "--rerun", rev, "--on", "../target.zip", "--json"))
        assert (found["exact"], found["apart"], found["device"]) == (True, 0.0, "cpu")
    (place / "target.zip").rename(place / "renamed.zip")  # else it is found beside the repository
    said = modelgit(place, "-C", "models", "verify", "--rerun", "plain/0/1", "--json", code=2)
    assert json.loads(said)["error"]["hint"].startswith("--data PATH/TO/target.zip")
    said = modelgit(place, "-C", "models", "verify", "--rerun", "plain/0/1", "--on", "../other.zip", "--json", code=17)
    assert "is not here: expected digest" in said and "no data set at ../other.zip" in said


def stack(repo: LowRepository, place: Path, *changes: dict[str, Any]) -> tuple[StackRequest, TrainRequest]:
    """Fine-tunings from the probe, as the pipeline asks for them, and the first of them under a key of its own."""
    data = DataConfig(str(place / "target.zip"), held_out="night", group="name", image_size=16)
    config = FineTune(steps=6, lr=0.01, views=1, frozen_stages=1, eval_every=3)
    start = repo.resolve("probe")
    members = tuple(
        TrainRequest(f"run/{n}", "train", f"{n:064x}", "mlp", start, None, data, replace(config, seed=n, **change))
        for n, change in enumerate(changes)
    )
    return StackRequest(members), replace(members[0], key="f" * 64)


def run_of(repo: LowRepository, done: Done) -> dict[str, Any]:
    details: dict[str, Any] = json.loads(repo.read_blob(repo.version(done.commit).files[RECORD_PATH]))["details"]
    return details


def test_a_stack_becomes_a_commit_for_each_run_like_that_of_the_run_alone(ended: Path) -> None:
    repo, events = LowRepository.open(ended / "models"), list[Event]()
    bench = workbench(repo, "cpu")
    request, first = stack(repo, ended, {}, {"lr": 0.003, "dropout": 0.2})
    made = execute(repo, bench, request, events.append)
    assert isinstance(made, StackDone) and [done.step for done in made.members] == ["run/0", "run/1"]
    told = [run_of(repo, done) for done in made.members]
    assert [(run["config"]["seed"], run["machine"]["together"]) for run in told] == [(0, 2), (1, 2)]
    assert [len(run["history"]) for run in told] == [3, 3]
    measured = [event.task for event in events if isinstance(event, Measured)]
    assert sorted(set(measured)) == ["run/0: training on target", "run/1: training on target"]
    alone = execute(repo, bench, first, events.append)
    assert isinstance(alone, Done) and run_of(repo, alone)["machine"]["together"] == 1
    states = [load_state(weights_of(repo, done.commit)) for done in (made.members[0], alone)]
    assert all(torch.allclose(states[0][name], tensor, atol=1e-4) for name, tensor in states[1].items())
    assert execute(repo, bench, replace(request, apart=True), events.append) == made  # kept: done once
    rerun(repo, made.members[1].commit, [str(ended / "target.zip")], "cpu")


def test_runs_that_do_not_go_together_are_made_one_by_one(ended: Path) -> None:
    repo, events = LowRepository.open(ended / "models"), list[Event]()
    request, _ = stack(repo, ended, {}, {"batch": 9})
    made = execute(repo, workbench(repo, "cpu"), request, events.append)
    assert Noted("not in one stack but one by one: run/0, run/1: these runs cannot go together") in events
    assert isinstance(made, StackDone)
    assert [run_of(repo, done)["machine"]["together"] for done in made.members] == [1, 1]


def test_weights_that_were_not_trained_so_are_found_out(place: Path) -> None:
    run_json(place, "--only", "plain/0/0")
    git(place, "switch", "-q", "plain/0/0")
    weights = place / "models/model.safetensors"
    state = load_file(weights)
    state["first.weight"][0, 0] += 1e-3
    save_file(state, weights)
    forged = git(place, "log", "-1", "--format=%B")
    git(place, "commit", "-q", "-a", "--amend", "-m", forged)
    said = modelgit(place, "-C", "models", "verify", "--rerun", "HEAD", "--on", "../target.zip", "--json", code=1)
    assert "gave other weights: first.weight;" in json.loads(said)["error"]["message"]


def test_raw_weights_are_committed_below_their_average(place: Path) -> None:
    choices = ["train.objective=coral", 'train.averaging={name="sma", start=5}', "train.commit_raw=true"]
    run_json(place, *(word for choice in choices for word in ("--set", choice)))
    average, raw, start = git(place, "log", "-3", "--format=%s", "plain/0/0").splitlines()
    assert average == "plain/0/0: fine-tune on target, 20 steps, learning rate 0.01"
    assert raw == f"{average}, before sma averaging"
    assert start == "probe: linear probe on target"
    record = json.loads(git(place, "show", "plain/0/0:.modelgit/record.json"))
    assert record["details"]["config"]["averaging"] == {"name": "sma", "start": 5}
    assert set(record["details"]["history"][-1]["domains"]) == {"day", "dusk"}
    assert not list((place / "models/.git/modelgit/cache/runs").glob("*"))


def steps_kept(place: Path) -> int:
    folder = place / "models/.git/refs/modelgit/steps"
    return len(list(folder.glob("[0-9a-f]*"))) if folder.exists() else 0


def kill_after(place: Path, steps: int) -> None:
    """Starts a run and kills it, workers and all, as soon as `steps` steps are kept."""
    command = [sys.executable, "-m", "modelgit", "run", "tiny.toml", "--workers", "2"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while steps_kept(place) < steps and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_again_and_again_it_goes_on_where_it_was(place: Path) -> None:
    kept = []
    for steps in (1, 3, 6):
        kill_after(place, steps)
        kept.append(steps_kept(place))
    assert kept == sorted(kept)
    last = run_json(place)
    assert len(last["found"]) >= kept[-1] >= 6
    assert len(last["made"]) + len(last["found"]) == 10
    modelgit(place, "-C", "models", "fsck", "--full")
    assert run_json(place)["made"] == []


def test_a_changed_setting_makes_only_what_depends_on_it(ended: Path) -> None:
    changed = run_json(ended, "--set", "draws.lr=[0.05]")
    assert sorted(changed["made"]) == ["main", "plain/0/1", "plain/1/1", "recycled/0/other", "recycled/1/other"]


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ('architecture = "mlp"', 'architecture = "mlq"', 16, "unknown architecture 'mlq'"),
        ('path = "other.zip"', 'path = "gone.zip"', 17, "no such data set"),
        ('held_out = "night"', 'held_out = "noon"', 17, "no domain is called 'noon'"),
        ("steps = 20", "stepz = 20", 16, "unknown key 'stepz'"),
        ('kind = "merge"\nheads', 'kind = "merge"\nmethod = "blend"\nheads', 2, "blend"),
        ('weights = "base.safetensors"', 'weights = "none.safetensors"', 16, "no weights"),
    ],
)
def test_mistakes_are_found_before_anything_runs(place: Path, old: str, new: str, code: int, message: str) -> None:
    path = place / "tiny.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    error = json.loads(modelgit(place, "run", "tiny.toml", "--json", code=code))["error"]
    assert message in error["message"]
    assert not (place / "models").exists()


def git(place: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=place / "models", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_rerun_killed_with_files_ahead_of_the_branch_goes_on(ended: Path) -> None:
    old = git(ended, "rev-parse", "main")
    run_json(ended, "--set", "train.steps=25")
    new = git(ended, "rev-parse", "main")
    assert new != old
    git(ended, "update-ref", "refs/heads/main", old)  # as if killed after the files, before the branch
    assert run_json(ended, "--set", "train.steps=25")["made"] == []
    assert git(ended, "rev-parse", "main") == new
    assert git(ended, "status", "--short") == ""


def test_changes_made_while_it_runs_are_never_overwritten(ended: Path) -> None:
    weights = ended / "models/model.safetensors"
    command = [sys.executable, "-m", "modelgit", "run", "tiny.toml", "--workers", "2", "--set", "train.steps=25"]
    process = subprocess.Popen(command, cwd=ended, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    before = steps_kept(ended)
    while steps_kept(ended) == before and process.poll() is None:
        time.sleep(0.01)
    changed = save_file_bytes(ended)
    weights.write_bytes(changed)
    _, complaint = process.communicate(timeout=200)
    assert process.returncode == 10, complaint
    assert "local changes would be overwritten: model.safetensors" in complaint
    assert weights.read_bytes() == changed


def save_file_bytes(place: Path) -> bytes:
    save_file(build_network("mlp", 3).state_dict(), place / "other.safetensors")
    return (place / "other.safetensors").read_bytes()


def test_a_branch_with_commits_of_others_is_refused_before_anything_runs(ended: Path) -> None:
    (ended / "models/model.safetensors").write_bytes(save_file_bytes(ended))
    modelgit(ended, "-C", "models", "commit", "-m", "By hand")
    before = steps_kept(ended)
    text = modelgit(ended, "run", "tiny.toml", "--json", "--set", "train.steps=25", code=16)
    assert "branch 'main' holds commits that this pipeline did not make" in json.loads(text)["error"]["message"]
    assert steps_kept(ended) == before
