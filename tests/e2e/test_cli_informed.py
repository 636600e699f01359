"""Merging with statistics: networks fine-tuned on different data, the formulas' values, what is recorded, refused."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from telling import Tell, teller
from torch import Tensor
from torch.nn import functional

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import Record
from modelgit.repo.repository import Repository
from modelgit.train.fitting.passes import apply_head
from modelgit.train.networks.small import Perceptron

CLASSES, HEAD = ("dark", "light"), ("head.weight", "head.bias")
IMAGES = 12
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets of dark and light pictures, of different brightness."""
    places = []
    for number, values in enumerate(((40, 120), (110, 210))):
        root, draws = tmp_path_factory.mktemp("data") / f"pictures{number}", torch.Generator().manual_seed(number)
        for label, value in zip(CLASSES, values, strict=True):
            (root / "any" / label).mkdir(parents=True)
            for i in range(IMAGES // 2):
                pixels = (value + 40 * torch.randn(16, 16, 3, generator=draws)).clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / "any" / label / f"{i}.png")
        places.append(root)
    return places[0], places[1]


def images_of(root: Path) -> tuple[Tensor, Tensor]:
    """Returns prepared images (n, 768) and labels, read without the project."""
    files = [(file, label) for label, name in enumerate(CLASSES) for file in sorted((root / "any" / name).iterdir())]
    scaled = [
        np.asarray(Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)) for file, _ in files
    ]
    pixels = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2)
    return Perceptron(2).prepare(pixels), torch.tensor([label for _, label in files])


def scores(network: Perceptron, x: Tensor) -> Tensor:
    for stage, _ in network.stages():
        x = stage(x)
    return apply_head(network, x)


def tuned(root: Path | None, start: State | None = None) -> State:
    """Returns a perceptron, fine-tuned on a data set."""
    torch.manual_seed(0)
    network = Perceptron(2)
    if start is not None and root is not None:
        network.load_state_dict(start)
        x, labels = images_of(root)
        optimiser = torch.optim.SGD(network.parameters(), 0.05)
        for _ in range(15):
            optimiser.zero_grad()
            functional.cross_entropy(scores(network, x), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def states(pictures: tuple[Path, Path]) -> tuple[State, State]:
    base = tuned(None)
    return tuned(pictures[0], base), tuned(pictures[1], base)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: tuple[State, State]) -> modelgit.Repository:
    repo = modelgit.Repository.init(tmp_path / "models")
    record = Record("train", "mlp", CLASSES, HEAD)
    repo.commit(tuned(None), message="base", branch="main", record=record)
    for name, state in (("other", states[1]), ("main", states[0])):
        repo.commit(state, message=name, branch=name, parents=["main"], record=record)
    monkeypatch.chdir(repo.path)
    return repo


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str], repo: modelgit.Repository) -> Tell:
    run = teller(capfd)
    run("switch", "main")
    return run


def trailer(repo: modelgit.Repository) -> Any:
    return json.loads(Repository.open(repo.path).version("main").entry.trailers["Merge-Statistics"][0])


def fisher_by_hand(state: State, x: Tensor, labels: Tensor | None = None) -> State:
    """Returns the diagonal Fisher information, one image and one class after another."""
    network = Perceptron(2)
    network.load_state_dict(state)
    found = {name: torch.zeros(p.shape).double() for name, p in network.named_parameters()}
    for i in range(len(x)):
        told = scores(network, x[i : i + 1]).log_softmax(1)[0]
        for label in range(2):
            share = float(told[label].detach().exp()) if labels is None else float(int(labels[i]) == label)
            gradients = torch.autograd.grad(told[label], list(network.parameters()), retain_graph=True)
            for name, gradient in zip(found, gradients, strict=True):
                found[name] += share * gradient.double() ** 2 / len(x)
    return {name: value.float() for name, value in found.items()}


def fisher_mean(states: tuple[State, State], known: list[State], floor: float = 1e-6) -> State:
    sizes = [sum(float((v.double() ** 2).sum()) for v in one.values()) ** 0.5 for one in known]
    merged = {}
    for name in states[0]:
        shares = [(one[name].double() + floor) / (size + floor) for one, size in zip(known, sizes, strict=True)]
        above = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
        merged[name] = torch.as_tensor(above / sum(shares))
    return merged


def close(found: dict[str, Tensor], wanted: State) -> bool:
    return all(torch.allclose(found[name].double(), wanted[name].double(), rtol=1e-4, atol=1e-6) for name in wanted)


@pytest.mark.parametrize("labels", ["model", "data"])
def test_fisher_gives_the_values_of_the_formula_and_is_recomputed(
    repo: modelgit.Repository, pictures: tuple[Path, Path], states: tuple[State, State], tell: Tell, labels: str
) -> None:
    on = [word for place in pictures for word in ("--stats-on", str(place))]
    merged = tell("merge", "other", "--method", "fisher", *on, "--stats-labels", labels)
    assert (merged["method"], merged["computed"], merged["recipes"]) == ("fisher", 6, 0)
    assert [(h["name"], h["data"], h["images"]) for h in merged["informed"]["heads"]] == [
        ("main", "pictures0", IMAGES),
        ("other", "pictures1", IMAGES),
    ]
    seen = [images_of(place) for place in pictures]
    known = [
        fisher_by_hand(state, x, y if labels == "data" else None) for state, (x, y) in zip(states, seen, strict=True)
    ]
    found = {name: torch.as_tensor(tensor) for name, tensor in repo.load("main").items()}
    assert close(found, fisher_mean(states, known))
    mean = {name: (a + states[1][name]) / 2 for name, a in states[0].items()}
    assert not close(found, mean)
    assert trailer(repo) == merged["informed"]
    assert tell("verify", "--rerun", *on)["tensors"] == 6
    assert "other data" in tell("verify", "--rerun", "--on", str(pictures[1]), code=17)["message"]
    assert "say where it is" in tell("verify", "--rerun", code=2)["message"]


def test_regmean_gives_the_values_of_the_formula(
    repo: modelgit.Repository, pictures: tuple[Path, Path], states: tuple[State, State], tell: Tell
) -> None:
    merged = tell("merge", "other", "--method", "regmean", "--on", str(pictures[0]))
    assert (merged["computed"], merged["recipes"]) == (5, 1)  # three matrices, two biases of a few bytes
    x, _ = images_of(pictures[0])
    found = {name: torch.as_tensor(tensor) for name, tensor in repo.load("main").items()}
    inputs = [x.double(), x.double()]
    for layer in ("first", "second", "head"):
        weights = [state[f"{layer}.weight"].double() for state in states]
        grams = [0.9 * y.T @ y / len(y) + 0.1 * torch.diag((y**2).mean(0)) for y in inputs]
        live = torch.diagonal(grams[0] + grams[1]) > 0
        pull = sum(gram @ w.T for gram, w in zip(grams, weights, strict=True))
        wanted = (weights[0] + weights[1]).T / 2
        wanted[live] = torch.linalg.solve((grams[0] + grams[1])[live][:, live], torch.as_tensor(pull)[live])
        assert torch.allclose(found[f"{layer}.weight"].double(), wanted.T, rtol=1e-4, atol=1e-5), layer
        biases = [state[f"{layer}.bias"].double() for state in states]
        assert torch.allclose(found[f"{layer}.bias"].double(), (biases[0] + biases[1]) / 2, rtol=1e-6)
        inputs = [torch.relu(y @ w.T + b) for y, w, b in zip(inputs, weights, biases, strict=True)]
    assert trailer(repo)["kind"] == "gram"
    assert tell("verify", "--rerun", "--on", str(pictures[0]))["tensors"] == 6


def test_what_was_computed_once_is_kept_and_what_is_damaged_is_made_again(
    repo: modelgit.Repository, pictures: tuple[Path, Path], tell: Tell
) -> None:
    words = ("merge", "other", "--method", "fisher", "--on", str(pictures[0]))
    first = tell(*words, "--dry-run")["informed"]
    kept = sorted((repo.path / ".git/modelgit/cache/statistics").iterdir())
    written = [place.stat().st_mtime_ns for place in kept]
    assert len(kept) == 2 and set(load_file(kept[0])) == set(tuned(None))
    assert tell(*words, "--dry-run")["informed"] == first
    assert [place.stat().st_mtime_ns for place in kept] == written
    damaged = bytearray(kept[0].read_bytes())
    damaged[-1] ^= 1
    kept[0].write_bytes(damaged)
    kept[1].write_bytes(b"short")
    assert tell(*words, "--dry-run")["informed"] == first
    assert sorted((repo.path / ".git/modelgit/cache/statistics").iterdir()) == kept


def test_statistics_from_files_and_those_that_are_none(
    repo: modelgit.Repository, states: tuple[State, State], tmp_path: Path, tell: Tell
) -> None:
    known = [{name: torch.rand(t.shape) for name, t in state.items()} for state in states]
    for i, one in enumerate(known):
        save_file(one, tmp_path / f"{i}.safetensors")
    files = [word for i in range(2) for word in ("--stats", str(tmp_path / f"{i}.safetensors"))]
    bad = {
        "negative": {**known[0], "head.bias": torch.tensor([1.0, -1.0])},
        "infinite": {**known[0], "head.bias": torch.tensor([1.0, float("inf")])},
        "shape": {**known[0], "head.bias": torch.ones(3)},
        "foreign": {**known[0], "elsewhere": torch.ones(3)},
        "some": {name: t for name, t in known[0].items() if name != "head.bias"},
    }
    head, objects = repo.branches()["main"], sorted((repo.path / ".git/modelgit").rglob("*.pack"))
    told = {
        "negative": "head.bias: expected values of 0 or more",
        "infinite": "head.bias: expected finite values",
        "shape": "head.bias: expected [2], got [3]",
        "foreign": "elsewhere: expected a tensor of the model",
        "some": "head.bias: expected statistics of every model or of none, got none of main",
    }
    for name, one in bad.items():
        save_file(one, tmp_path / "bad.safetensors")
        words = ("--stats", str(tmp_path / "bad.safetensors"), *files[2:])
        assert told[name] in tell("merge", "other", "--method", "fisher", *words, code=1)["message"], name
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    words = ("--stats", str(tmp_path / "bad.safetensors"), *files[2:])
    tell("merge", "other", "--method", "fisher", *words, code=12)
    assert (repo.branches()["main"], sorted((repo.path / ".git/modelgit").rglob("*.pack"))) == (head, objects)
    tell("merge", "other", "--method", "fisher", *files)
    found = {name: torch.as_tensor(tensor) for name, tensor in repo.load("main").items()}
    assert close(found, fisher_mean(states, known))
    assert tell("verify", "--rerun", *files)["tensors"] == 6
    assert "from files: say where" in tell("verify", "--rerun", code=2)["message"]
    swapped = [*files[2:], *files[:2]]
    assert "other statistics" in tell("verify", "--rerun", *swapped, code=17)["message"]


def test_what_makes_no_sense_is_refused(
    repo: modelgit.Repository, pictures: tuple[Path, Path], tmp_path: Path, tell: Tell
) -> None:
    on = ("--stats-on", str(pictures[0]))
    fisher = ("merge", "other", "--method", "fisher")
    assert "needs statistics of every model" in tell(*fisher, code=2)["message"]
    assert "1 files of statistics for 2 models" in tell(*fisher, "--stats", "x.safetensors", code=2)["message"]
    assert "choose one" in tell(*fisher, "--stats", "x.safetensors", *on, code=2)["message"]
    assert "3 data sets for 2 models" in tell(*fisher, *on, *on, *on, code=2)["message"]
    assert "uses no statistics" in tell("merge", "other", *on, code=2)["message"]
    assert "--align does not go with fisher" in tell(*fisher, *on, "--align", "weights", code=2)["message"]
    assert "weights of 0 or more" in tell(*fisher, *on, "--weights", "1,-1", code=2)["message"]
    assert "from 1 to" in tell(*fisher, *on, "--stats-images", "0", code=2)["message"]
    assert "one of model, data" in tell(*fisher, *on, "--stats-labels", "none", code=2)["message"]
    assert "no such data set" in tell(*fisher, "--stats-on", str(tmp_path / "absent"), code=17)["message"]
    repo.commit(tuned(None), message="unknown", branch="unknown", parents=[])
    assert "no record says which architecture" in tell(*fisher[:1], "unknown", *fisher[2:], *on, code=17)["message"]


def test_coefficients_are_searched_with_the_same_statistics(
    repo: modelgit.Repository, pictures: tuple[Path, Path], tell: Tell
) -> None:
    words = ("--on", str(pictures[1]), "--search", "weights", "--evaluations", "4", "--gate", "accuracy>=0.1")
    merged = tell("merge", "other", "--method", "fisher", *words)
    assert (merged["method"], merged["findings"]["search"]["what"]) == ("fisher", "weights")
    assert merged["scores"]["accuracy"] >= 0.1
    assert tell("verify", "--rerun", "--on", str(pictures[1]))["tensors"] == 6


def test_git_has_no_statistics_to_give(repo: modelgit.Repository, tell: Tell) -> None:
    git = ("git", "-C", str(repo.path), "-c", "user.name=n", "-c", "user.email=e")
    subprocess.run([*git, "config", "modelgit.merge.method", "fisher"], check=True)
    done = subprocess.run([*git, "merge", "other"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fisher needs statistics of every model, which git does not give" in done.stdout + done.stderr


def test_what_is_said(repo: modelgit.Repository, pictures: tuple[Path, Path], tell: Tell, capfd: Any) -> None:
    assert main(["merge", "other", "--method", "fisher", "--on", str(pictures[0])]) == 0
    assert f"  statistics: Fisher information on {IMAGES} images of pictures0\n" in capfd.readouterr().out
