"""Adapters trained on two data sets: small commits in PEFT's layout, merged exactly, evaluated, and made again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from telling import Tell, teller
from test_examples_run import write_data

import modelgit as package
from modelgit.cli.app import main
from modelgit.errors import DataError, UsageError
from modelgit.porcelain.scores import known_model
from modelgit.porcelain.tensors import load_state
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.train.networks.registry import build_network

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
RECIPE = """
threads = 1
[data]
path = "{name}.zip"
image_size = 16
[train]
steps = 20
lr = 0.01
views = 1
lora = {{ rank = {rank}, alpha = 8 }}
"""


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a head, and adapters of it on two branches, each trained on data of its own."""
    place = tmp_path_factory.mktemp("lora")
    for number, (name, shade, rank) in enumerate((("dark", 20, 4), ("light", 150, 2))):
        write_data(place / f"{name}.zip", {name: shade}, 5000 * number)
        (place / f"{name}.toml").write_text(RECIPE.format(name=name, rank=rank))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        repo = package.Repository.init("models")
        torch.manual_seed(0)
        repo.commit(build_network("mlp", 3).state_dict(), "Base")
        repo.train({"kind": "probe", "architecture": "mlp", "data": {"path": "dark.zip", "image_size": 16}})
        for name in ("dark", "light"):
            repo = package.Repository("models")
            patch.chdir(place / "models")
            assert main(["switch", "-q", "-c", name, "main"]) == 0
            repo.train(place / f"{name}.toml")
            patch.chdir(place)
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = shutil.copytree(template, tmp_path / "lora")
    monkeypatch.chdir(place / "models")
    return place


def change(tensors: dict[str, torch.Tensor], table: dict[str, object], layer: str) -> torch.Tensor:
    """Returns the change of a layer that an adapter's files say."""
    a, b = (tensors[f"base_model.model.{layer}.lora_{x}.weight"].double() for x in "AB")
    assert table["r"] == len(a) and isinstance(table["lora_alpha"], int)
    return table["lora_alpha"] / len(a) * b @ a


def test_a_fine_tuning_commits_the_adapter_alone(place: Path, tell: Tell) -> None:
    shown = tell("show", "dark")
    assert [file["path"] for file in shown["files"] if file["tensors"]] == [FILE]
    assert shown["size_bytes"] < 0.4 * tell("show", "main")["size_bytes"]
    repo = Repository.open(Path())
    tree, base = repo.tree("dark"), repo.resolve("main")
    assert sorted(tree) == [".gitattributes", ".modelgit/record.json", CONFIG, FILE]
    table = json.loads(repo.read_file("dark", CONFIG) or b"")
    assert (table["base_model_name_or_path"], table["r"], table["target_modules"]) == (base, 4, ["first", "second"])
    assert table["modules_to_save"] == ["head"]
    before, after = state_at(repo, "main"), state_at(repo, "dark")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"first.weight", "second.weight", "head.weight", "head.bias"}
    rank = torch.linalg.matrix_rank((after["first.weight"] - before["first.weight"]).double(), rtol=1e-5)
    assert int(rank) == 4


def test_it_is_trained_again_to_the_same_bits(place: Path, tell: Tell) -> None:
    assert tell("verify", "--rerun", "dark", "--data", "..")["exact"] is True


def test_adapters_of_two_data_sets_are_merged_and_evaluated(place: Path, tell: Tell) -> None:
    parts = {}
    for name in ("dark", "light"):
        tell("checkout", name)
        tensors, table = load_file(FILE), json.loads(Path(CONFIG).read_text())
        parts[name] = {layer: change(tensors, table, layer) for layer in ("first", "second")}
    pairs = [(on, rev) for on in parts for rev in parts]
    alone = {(on, rev): tell("evaluate", rev, "--on", f"../{on}.zip")["values"]["accuracy"] for on, rev in pairs}
    assert alone["dark", "dark"] == alone["light", "light"] == 1.0 > alone["light", "dark"]
    tell("merge", "dark", "--method", "lora_cat", "-m", "both", "--on", "../dark.zip", "--gate", "accuracy>=0.5")
    tensors, table = load_file(FILE), json.loads(Path(CONFIG).read_text())
    assert table["r"] == 6 and not Path("model.safetensors").exists()
    for layer in ("first", "second"):
        wanted = (parts["dark"][layer] + parts["light"][layer]) / 2
        assert (change(tensors, table, layer) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    merged = {on: tell("evaluate", "--on", f"../{on}.zip")["values"]["accuracy"] for on in parts}
    assert sum(merged.values()) > alone["dark", "dark"] + alone["light", "dark"]
    assert tell("verify", "--rerun")["tensors"] == 6


def test_peft_loads_it_and_makes_the_same_weights(place: Path, tell: Tell) -> None:
    peft = pytest.importorskip("peft")
    repo = Repository.open(Path())
    tell("checkout", "light")
    base = build_network("mlp", 3)
    base.load_state_dict(state_at(repo, "main"))
    theirs = peft.PeftModel.from_pretrained(base, ".").merge_and_unload().state_dict()
    ours = state_at(repo, "light")
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], ours[name], rtol=1e-6, atol=1e-7) for name in ours)


def test_it_is_folded_into_its_base(place: Path, tell: Tell) -> None:
    repo = Repository.open(Path())
    tell("checkout", "main")
    assert tell("fold", code=2)["message"].endswith("holds no adapter that could be folded into its base")
    tell("checkout", "dark")
    wanted, adapter = state_at(repo, "dark"), repo.resolve("dark")
    made = tell("fold")
    assert (made["branch"], made["parents"]) == ("dark", [adapter])
    assert (made["subject"], made["deleted"]) == (f"Fold {FILE} into its base", [CONFIG, FILE])
    assert not Path(FILE).exists() and not Path(CONFIG).exists()
    found, before = load_file("model.safetensors"), state_at(repo, "main")
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    own = raw_state(repo, adapter)
    a, b = (own[f"base_model.model.first.lora_{x}.weight"] for x in "AB")
    assert torch.equal(found["first.weight"], before["first.weight"] + 8 / 4 * (b @ a))
    assert known_model(repo, "dark").classes == ("bar", "cup", "hat")
    assert tell("verify", "--rerun")["method"] == "fold"
    scores = [tell("evaluate", rev, "--on", "../dark.zip")["values"]["accuracy"] for rev in ("dark", "dark~1")]
    assert scores == [1.0, 1.0]
    found["first.weight"][0, 0] += 1
    save_file(found, "model.safetensors")
    forged = repo.git.run("log", "-1", "--format=%B")
    tell("add", "model.safetensors")
    repo.git.run("commit", "-q", "--amend", "-m", forged)
    assert "gave other weights" in tell("verify", "--rerun", code=1)["message"]


def test_an_adapter_from_elsewhere_is_folded_into_what_one_names(place: Path, tell: Tell) -> None:
    repo = Repository.open(Path())
    wanted = state_at(repo, "light")
    table = json.loads(repo.read_file("light", CONFIG) or b"")
    tell("export", "light", "../theirs")
    Path("../theirs", CONFIG).write_text(json.dumps({**table, "base_model_name_or_path": "somebody/mlp"}))
    shutil.rmtree("../theirs/.modelgit")
    tell("switch", "-c", "beside", "main")
    tell("import", "../theirs")
    assert Path(FILE).exists() and Path("model.safetensors").exists()
    tell("fold", "-m", "whole again")
    assert not Path(FILE).exists()
    tell("switch", "-c", "alone", "beside~1")
    repo.git.run("rm", "-q", "model.safetensors")
    tell("commit", "-m", "The adapter alone")
    told = tell("fold", code=17)
    assert "adapter of 'somebody/mlp', which is no version that it descends from" in told["message"]
    assert "modelgit fold --base REV" in told["hint"]
    assert "holds no whole weights" in tell("fold", "--base", "light", code=2)["message"]
    package.Repository(".").fold("main")
    for rev in ("beside", "alone"):
        found = raw_state(repo, rev)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert tell("verify", "--rerun", "beside")["tensors"] == tell("verify", "--rerun", "alone")["tensors"] == 6


def raw_state(repo: Repository, rev: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a version as they are in its files."""
    return load_state(weights_of(repo, rev))


def test_what_cannot_be_done_with_an_adapter_is_told(place: Path, tell: Tell) -> None:
    searched = tell(
        "merge", "light", "dark", "--method", "lora_cat", "--on", "../dark.zip", "--search", "weights", code=2
    )
    assert "searched or measured on the way between adapters" in searched["message"]
    compared = tell("report", "light", "dark", "--on", "../dark.zip", code=2)
    assert compared["message"] == "light is an adapter, and whole models are compared here"
    tell("checkout", "dark")
    with pytest.raises(UsageError, match="is an adapter, which is not trained further"):
        package.Repository(".").train("../dark.toml")
    table = json.loads(Path(CONFIG).read_text())
    for said in ("bert-base-uncased", "0" * 40, Repository.open(Path()).resolve("light")):
        Path(CONFIG).write_text(json.dumps({**table, "base_model_name_or_path": said}))
        tell("add", ".")
        tell("commit", "-m", said[:10])
        with pytest.raises(DataError, match=f"is an adapter of '{said}', which is no version that it descends from"):
            state_at(Repository.open(Path()), "HEAD")
    assert known_model(Repository.open(Path()), "main").classes == ("bar", "cup", "hat")
