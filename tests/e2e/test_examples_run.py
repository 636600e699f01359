"""Every strategy of the examples is carried out, on a few small pictures."""

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modelgit.train.networks.registry import build_network

EXAMPLES = Path(__file__).parents[2] / "examples"
DOMAINS = {"fluent": 20, "noto": 150, "openmoji": 90, "twemoji": 120}
SMALLER = [
    (r"\bsteps = \d+", "steps = 3"),
    (r"\bstart = 20\b", "start = 1"),
    (r"\banneal = \d+", "anneal = 1"),
    (r"\beval_every = \d+", "eval_every = 1"),
    (r"\bfrozen_stages = \d+", "frozen_stages = 1"),
    (r"\blength = \[.*\]", "length = [1, 2, 3]"),
    (r"\brun = \[0, 1, 2, 3\]", "run = [0, 1]"),
    (r"\bround = \[1, 2, 3\]", "round = [1, 2]"),
    (r'"efficientnet-lite0"', '"mlp"'),
    (r'"pretrained"', '"base.safetensors"'),
    (r'"data/(\w+)\.zip"', r'"\1.zip"'),
]


def picture(label: int, shade: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (16, 16, 3)).astype(np.uint8) + np.uint8(shade)
    pixels[4 * label : 4 * label + 4] = 250
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_data(path: Path, domains: dict[str, int], first_seed: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for domain, shade in domains.items():
            for label, name in enumerate(("bar", "cup", "hat")):
                for i in range(16):
                    seed = first_seed + 1000 * label + i
                    archive.writestr(f"{domain}/{name}/my-{name}-{i}.png", picture(label, shade, seed))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path / "emojidg.zip", DOMAINS, 0)
    for number, task in enumerate(("icons", "clipart", "fashion"), 1):
        write_data(tmp_path / f"{task}.zip", {"only": 100}, 10_000 * number)
    save_file(build_network("mlp", 5).state_dict(), tmp_path / "base.safetensors")
    return tmp_path


def modelgit(place: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "modelgit", *arguments, "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def carry_out(place: Path, example: str, *more: str) -> dict[str, Any]:
    """Returns the report of an example at a tiny size, all of its steps made."""
    text = (EXAMPLES / example).read_text()
    for pattern, smaller in SMALLER:
        text = re.sub(pattern, smaller, text)
    (place / example).write_text(text)
    where = ("--set", "pipeline.repository=models", "--set", "pipeline.report=report")
    modelgit(place, "run", example, "--workers", "2", *where, *more)
    table: dict[str, Any] = json.loads((place / "report.json").read_text())
    return table


def state(place: Path, rev: str) -> dict[str, torch.Tensor]:
    folder = place / f"out-{rev.replace('/', '-')}"
    modelgit(place, "-C", "models", "export", rev, str(folder))
    return load_file(folder / "model.safetensors")


def trailer(place: Path, rev: str, key: str) -> str:
    format_ = f"--format=%(trailers:key={key},valueonly)"
    command = ["git", "log", "-1", format_, rev]
    done = subprocess.run(command, cwd=place / "models", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_strategy_of_the_papers_table(place: Path) -> None:
    report = carry_out(place, "strategies.toml")
    rows = {row["strategy"]: row for row in report["rows"]}
    assert len(rows) == 24
    assert all(row["runs"] >= 1 and 0 <= row["ood_accuracy"] <= 1 for row in rows.values())
    assert rows["erm-left-out"]["commits"][0] in {v["commit"] for v in report["versions"]}
    selection = json.loads(trailer(place, "soup-greedy/0", "Merge-Selection"))
    assert (selection["mode"], selection["metric"]) == ("greedy", "val_accuracy")
    mixed = [json.loads(trailer(place, f"fused/0/{run}", "Merge-Weights")) for run in (0, 1)]
    assert mixed == [[0.0773399, 0.0802779, 0.0539902, 0.788392], [0.0314143, 0.139654, 0.265029, 0.563903]]
    assert rows["diwa-dagger"]["val_accuracy"] is rows["recycling-dagger"]["val_accuracy"] is None
    daggers = [trailer(place, name, "Merge-Weights") for name in ("soup-dagger", "recycling-dagger")]
    assert [len(json.loads(weights)) for weights in daggers] == [4, 8]  # of two splits, two and four runs of each
    modelgit(place, "-C", "models", "verify", "--rerun", "fused/0/1")
    modelgit(place, "-C", "models", "verify", "--rerun", "soup-greedy/0")
    modelgit(place, "-C", "models", "verify", "--rerun", "recycling-dagger")


def test_every_strategy_of_updatable_learning(place: Path) -> None:
    report = carry_out(place, "updatable.toml")
    rows = {row["strategy"]: row for row in report["rows"]}
    assert len(rows) == 10
    assert all(row["runs"] >= 1 and 0 <= row["ood_accuracy"] <= 1 for row in rows.values())
    weights = json.loads(trailer(place, "btm/average", "Merge-Weights"))
    assert sum(weights) == pytest.approx(1) and len(set(weights)) == 3
    assert 0 <= json.loads(trailer(place, "patch/paint", "Merge-Settings"))["alpha"] <= 1
    shares = json.loads(trailer(place, "fedavg/1/mean", "Merge-Weights"))
    assert sum(shares) == sum(trained_on(place, f"fedavg/1/{domain}") for domain in DOMAINS if domain != "fluent")
    check_outer_steps(place)
    assert subject(place, "diloco/2/outer").startswith("diloco/2/outer: outer step of ")
    for rev in ("diloco/2/outer", "btm/average", "patch/paint", "cold/2/mean"):
        modelgit(place, "-C", "models", "verify", "--rerun", rev)


def subject(place: Path, rev: str) -> str:
    command = ["git", "log", "-1", "--format=%s", rev]
    return subprocess.run(command, cwd=place / "models", capture_output=True, text=True, check=True).stdout


def trained_on(place: Path, rev: str) -> int:
    command = ["git", "show", f"{rev}:.modelgit/record.json"]
    done = subprocess.run(command, cwd=place / "models", capture_output=True, text=True, check=True)
    return sum(json.loads(done.stdout)["details"]["data"]["trained_on"].values())


def check_outer_steps(place: Path) -> None:
    """The two outer steps are those of SGD with Nesterov momentum, as PyTorch takes them."""
    start = state(place, "probe")
    outer = {name: torch.nn.Parameter(tensor.double().clone()) for name, tensor in start.items()}
    optimiser = torch.optim.SGD(outer.values(), lr=0.7, momentum=0.9, nesterov=True)
    for number in (1, 2):
        workers = [state(place, f"diloco/{number}/worker-{shard}") for shard in (1, 2, 3)]
        for name, parameter in outer.items():
            mean = torch.stack([worker[name].double() for worker in workers]).mean(0)
            parameter.grad = parameter.detach() - mean
        optimiser.step()
        found = state(place, f"diloco/{number}/outer")
        assert all(torch.allclose(found[n].double(), p.detach(), rtol=1e-6, atol=1e-6) for n, p in outer.items())
        assert any(not torch.equal(found[n], start[n]) for n in found)


def test_an_examples_run_of_several_seeds_has_a_dagger_of_all(place: Path) -> None:
    report = carry_out(place, "strategies.toml", "--set", "variables.seed=[0,1]", "--only", "soup-dagger")
    assert len(json.loads(trailer(place, "soup-dagger", "Merge-Weights"))) == 6
    trials = {json.loads(version)["trial"] for version in splits(place)}
    assert trials == {0, 1, 100}
    dagger = next(version for version in report["versions"] if version["branch"] == "soup-dagger")
    assert dagger["val_accuracy"] is None and dagger["ood_accuracy"] is not None


def splits(place: Path) -> list[str]:
    found = []
    for rev in ("erm/0/0", "erm/1/1", "other-erm/100/0"):
        command = ["git", "show", f"{rev}:.modelgit/record.json"]
        done = subprocess.run(command, cwd=place / "models", capture_output=True, text=True, check=True)
        found.append(json.dumps(json.loads(done.stdout)["details"]["data"]))
    return found
