"""Networks that were trained apart, lined up and merged: what is recorded, recomputed, refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from telling import Tell, teller
from torch import Tensor

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import Record, read_record
from modelgit.repo.repository import Repository
from modelgit.train.networks.registry import build_network

CLASSES, HEAD = ("dark", "light"), ("head.weight", "head.bias")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of dark and light pictures."""
    root, draws = tmp_path_factory.mktemp("data") / "pictures", torch.Generator().manual_seed(0)
    for domain in ("left", "right"):
        for label, value in (("dark", 60), ("light", 190)):
            (root / domain / label).mkdir(parents=True)
            for i in range(6):
                pixels = (value + 40 * torch.randn(16, 16, 3, generator=draws)).clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / domain / label / f"{i}.png")
    return root


def drawn(architecture: str, seed: int) -> State:
    """Returns a network as it begins, its norms with scales and statistics of their own."""
    torch.manual_seed(seed)
    state = build_network(architecture, 2).state_dict()
    for name, tensor in state.items():
        if "norms" in name and tensor.is_floating_point():
            state[name] = tensor + torch.rand(tensor.shape)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def shuffled(state: State, seed: int) -> State:
    """Returns the same perceptron with its first 64 units in another order."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    moved = {"first.weight": state["first.weight"][order], "first.bias": state["first.bias"][order]}
    return {**state, **moved, "second.weight": state["second.weight"][:, order].contiguous()}


def versions(repo: modelgit.Repository, architecture: str | None, states: dict[str, State]) -> None:
    """Commits each state as a branch without ancestors in common."""
    record = Record("train", architecture, CLASSES, HEAD) if architecture else None
    for name, state in states.items():
        repo.commit(state, message=name, branch=name, parents=[], record=record)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> modelgit.Repository:
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    return repo


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def test_a_permuted_copy_is_merged_as_if_it_were_the_same(repo: modelgit.Repository, tell: Tell) -> None:
    ours = drawn("mlp", 0)
    versions(repo, "mlp", {"main": ours, "copy": shuffled(ours, 1)})
    tell("switch", "main")
    head, packs = repo.branches()["main"], sorted((repo.path / ".git/modelgit").rglob("*.pack"))
    rehearsed = tell("merge", "copy", "--align", "weights", "--dry-run")
    assert (rehearsed["aligned"]["heads"][0]["after"], repo.branches()["main"]) == (0, head)
    assert sorted((repo.path / ".git/modelgit").rglob("*.pack")) == packs
    merged = tell("merge", "copy", "--align", "weights", "--seed", "3")
    found = merged["aligned"]
    assert (found["by"], found["seed"], found["to"], found["source"], found["units"]) == (
        "weights",
        3,
        head,
        "graph",
        96,
    )
    assert found["difference"] < 1e-12
    assert (found["heads"][0]["name"], found["heads"][0]["after"]) == ("copy", 0)
    assert found["heads"][0]["moved"] > 50 and found["heads"][0]["before"] > 0.5
    assert {name: t.tolist() for name, t in repo.load("main").items()} == {n: t.tolist() for n, t in ours.items()}
    told = json.loads(Repository.open(repo.path).version("main").entry.trailers["Merge-Align"][0])
    assert {key: told[key] for key in ("by", "seed", "to", "source")} == {
        "by": "weights",
        "seed": 3,
        "to": head,
        "source": "graph",
    }
    assert told["digest"] == found["digest"]
    assert tell("verify", "--rerun")["tensors"] == 6


def test_what_is_said(repo: modelgit.Repository, capfd: pytest.CaptureFixture[str]) -> None:
    ours = drawn("mlp", 0)
    versions(repo, "mlp", {"main": ours, "copy": shuffled(ours, 1)})
    assert main(["switch", "main"]) == 0
    capfd.readouterr()
    assert main(["merge", "copy", "--align", "weights"]) == 0
    out = capfd.readouterr().out
    assert "  aligned by weights, spec from graph, 96 units\n    copy: " in out
    assert "to 0.000\n    function unchanged (outputs differ by" in out


def test_the_barrier_goes_once_units_are_lined_up(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    ours = drawn("mlp", 0)
    versions(repo, "mlp", {"main": ours, "copy": shuffled(ours, 1)})
    on = ("--metric", "accuracy", "--on", str(pictures))
    apart, lined = (tell("barrier", "main", "copy", *on, *more)["paths"][0] for more in ((), ("--align", "weights")))
    scores = [[point["score"] for point in path["points"]] for path in (apart, lined)]
    assert len(set(scores[1])) == 1 and scores[0][0] == scores[1][0]
    tell("switch", "main")
    assert tell("merge", "copy", "--align", "weights", "--barrier-max", "0", "--on", str(pictures))["kind"] == "merge"


def test_networks_trained_apart_are_averaged_and_recomputed(
    repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    states = {name: drawn("mlp", seed) for seed, name in enumerate(("main", "one", "two"))}
    versions(repo, "mlp", states)
    tell("switch", "main")
    merged = tell("merge", "two", "one", "--align", "activations", "--on", str(pictures))
    assert (merged["recipes"], [h["name"] for h in merged["aligned"]["heads"]]) == (0, ["one", "two"])
    assert all(head["after"] < head["before"] for head in merged["aligned"]["heads"])
    assert merged["aligned"]["data"] == "pictures"
    plain = sum(state["first.weight"] for state in states.values()) / 3
    assert not torch.allclose(repo.load("main")["first.weight"], torch.as_tensor(plain), atol=1e-3)
    assert tell("verify", "--rerun", "--on", str(pictures))["tensors"] == 6
    assert "say where it is" in tell("verify", "--rerun", code=2)["message"]
    Image.new("RGB", (16, 16)).save(pictures / "left" / "dark" / "more.png")
    try:
        assert "other data" in tell("verify", "--rerun", "--on", str(pictures), code=17)["message"]
    finally:
        (pictures / "left" / "dark" / "more.png").unlink()


@pytest.mark.parametrize(("architecture", "what", "changed"), [("mlp", "moments", 4), ("cnn", "statistics", 6)])
def test_activations_are_set_right(
    architecture: str, what: str, changed: int, repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    versions(repo, architecture, {name: drawn(architecture, seed) for seed, name in enumerate(("main", "other"))})
    tell("switch", "main")
    merged = tell("merge", "other", "--align", "weights", "--repair", "--on", str(pictures))
    repaired = merged["repaired"]
    assert (repaired["what"], repaired["images"], repaired["tensors"]) == (what, 24, changed)
    version = Repository.open(repo.path).version("main")
    assert json.loads(version.entry.trailers["Merge-Repair"][0]) == repaired
    assert tell("verify", "--rerun", "--on", str(pictures))["method"] == "linear"
    assert "say where it is" in tell("verify", "--rerun", code=2)["message"]
    tell("fsck")


def test_a_spec_of_ones_own_and_one_that_is_wrong(repo: modelgit.Repository, tmp_path: Path, tell: Tell) -> None:
    ours = drawn("mlp", 0)
    versions(repo, "mlp", {"main": ours, "copy": shuffled(ours, 1)})
    tell("switch", "main")
    head = repo.branches()["main"]
    (tmp_path / "wrong.json").write_text('{"groups": {"hidden": [["first.weight", 0], ["second.weight", 1]]}}')
    refused = tell("merge", "copy", "--align", "weights", "--align-spec", str(tmp_path / "wrong.json"), code=12)
    assert "computes something else" in refused["message"] and repo.branches()["main"] == head
    places = '[["first.weight", 0], ["first.bias", 0], ["second.weight", 1]]'
    (tmp_path / "right.toml").write_text(f"[groups]\nhidden = {places}\n")
    merged = tell("merge", "copy", "--align", "weights", "--align-spec", str(tmp_path / "right.toml"))
    assert (merged["aligned"]["source"], merged["aligned"]["units"]) == ("file", 64)
    (tmp_path / "right.toml").unlink()
    assert tell("verify", "--rerun")["tensors"] == 6  # the record holds the spec
    record = read_record(Repository.open(repo.path), "main")
    assert record is not None and record.details["alignment"]["spec"]["groups"]["hidden"][1] == ["first.bias", 0]


def test_models_that_cannot_be_run_are_lined_up_by_their_names(
    repo: modelgit.Repository, tmp_path: Path, tell: Tell
) -> None:
    fixtures = Path(__file__).parents[1] / "data" / "rebasin"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"num_attention_heads": 2}')
    (tmp_path / "model" / "model.safetensors").write_bytes((fixtures / "llama_block.a.safetensors").read_bytes())
    tell("import", str(tmp_path / "model"))
    for branch, side in (("theirs", "b"), ("main", "a")):
        state = {name: t * 1.001 for name, t in load_file(fixtures / f"llama_block.{side}.safetensors").items()}
        repo.commit(state, message=side, branch=branch, parents=["main"])
    tell("switch", "main")
    merged = tell("merge", "theirs", "--align", "weights")
    found = merged["aligned"]
    assert (found["source"], found["difference"], found["heads"][0]["before"] > 0.9) == ("layout", None, True)
    assert found["heads"][0]["after"] < 0.1
    assert tell("verify", "--rerun")["tensors"] == 21


def test_options_that_make_no_sense_are_refused(repo: modelgit.Repository, tmp_path: Path, tell: Tell) -> None:
    ours = drawn("mlp", 0)
    versions(repo, "mlp", {"main": ours, "copy": shuffled(ours, 1)})
    save_file({"w": torch.ones(4, 4)}, tmp_path / "odd.safetensors")
    tell("switch", "main")
    assert "--on" in tell("merge", "copy", "--repair", code=2)["hint"]
    assert "--on" in tell("merge", "copy", "--align", "activations", code=2)["hint"]
    assert "one of weights, activations" in tell("merge", "copy", "--align", "hope", code=2)["message"]
    assert "is for --align" in tell("merge", "copy", "--align-spec", "x.json", code=2)["message"]
    missing = tell("merge", "copy", "--align", "weights", "--align-spec", "absent.json", code=12)
    assert "not a permutation spec" in missing["message"]
    versions(repo, None, {"odd": {"w": torch.ones(4, 4)}, "odder": {"w": torch.zeros(4, 4)}})
    tell("switch", "odd")
    assert "no known layout" in tell("merge", "odder", "--align", "weights", code=12)["message"]
    assert tell("merge", "odder", "--align", "activations", "--on", str(tmp_path), code=12)["hint"] is not None
