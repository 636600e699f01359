"""Models from elsewhere, and the Python interface: in and out without a difference."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import modelgit
from modelgit.errors import DirtyWorktree, FormatError, UsageError
from modelgit.events import Advanced, Event, Noted
from modelgit.porcelain import sharing, versions, work
from modelgit.porcelain.importing import import_model
from modelgit.porcelain.records import read_record
from modelgit.repo.repository import Repository


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "models")


def hugging_face_folder(place: Path) -> dict[str, bytes]:
    """Writes a sharded checkpoint with all that belongs to it; returns its files."""
    place.mkdir()
    for i in (1, 2):
        save_file({f"layer{i}.weight": np.full((4, 4), i, np.float16)}, place / f"model-0000{i}-of-00002.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    (place / "config.json").write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}))
    (place / "tokenizer").mkdir()
    (place / "tokenizer" / "vocab.txt").write_bytes(b"a\r\nb\xff\n")
    (place / ".git").mkdir()
    (place / ".git" / "HEAD").write_text("not ours")
    return {
        p.relative_to(place).as_posix(): p.read_bytes()
        for p in place.rglob("*")
        if p.is_file() and ".git" not in p.parts
    }


def test_a_folder_comes_back_byte_for_byte(repo: Repository, tmp_path: Path) -> None:
    files = hugging_face_folder(tmp_path / "bert")
    made = import_model(repo, tmp_path / "bert")
    assert (made.added, made.branch, made.subject) == (2, "main", "Import bert")
    sharing.export(repo, "main", tmp_path / "out")
    record = tmp_path / "out" / ".modelgit" / "record.json"
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert found == {**files, ".modelgit/record.json": record.read_bytes()}
    assert work.status(repo).changes == ()
    known = read_record(repo, "main")
    assert known is not None
    assert known.classes == ("bad", "good")
    assert sorted(versions.weights_of(repo, "main").names()) == ["layer1.weight", "layer2.weight"]


def test_a_second_import_of_a_folder_replaces_the_model_and_nothing_else(repo: Repository, tmp_path: Path) -> None:
    """Shards and their index go; so does a single file of that name. What the user keeps beside them stays."""
    root = repo.worktree
    assert root is not None
    own = {
        ".gitignore": "*.log\n",
        "NOTES.md": "mine\n",
        ".gitattributes": "*.safetensors filter=modelgit -text\n*.md text\n",
    }
    for name, text in own.items():
        (root / name).write_text(text)
    for name in ("model", "adapter_model"):
        save_file({name: np.ones(2, np.float32)}, root / f"{name}.safetensors")
    work.add(repo, [*own], root)
    work.commit(repo, "by hand")
    bert = tmp_path / "bert"
    hugging_face_folder(bert)
    for name in (".gitignore", ".gitattributes"):
        (bert / name).write_text("*.safetensors filter=lfs -text\n")
    said: list[object] = []
    assert import_model(repo, bert, listener=said.append).deleted == ("model.safetensors",)
    assert [event.message for event in said if isinstance(event, Noted)] == [
        f"left out {name}: the repository has its own" for name in (".gitattributes", ".gitignore")
    ]
    (bert / "model-00001-of-00002.safetensors").unlink()
    (bert / "model-00002-of-00002.safetensors").rename(bert / "model.safetensors")
    for name in ("model.safetensors.index.json", "tokenizer/vocab.txt"):
        (bert / name).unlink()
    made = import_model(repo, bert, "in one piece")
    gone = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert (made.same, made.removed, set(made.deleted)) == (2, 1, gone)
    assert {name: (root / name).read_text() for name in own} == own
    assert list(repo.version("main").manifests) == ["adapter_model.safetensors", "model.safetensors"]
    assert (root / "tokenizer" / "vocab.txt").is_file()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pytorch_checkpoint_becomes_safetensors(repo: Repository, tmp_path: Path, legacy: bool) -> None:
    state = {"w": torch.arange(12.0).reshape(3, 4).t(), "n": torch.tensor(7), "h": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    said: list[Event] = []
    import_model(repo, tmp_path / "model.pt", listener=said.append)
    assert sum(event.n for event in said if isinstance(event, Advanced) and event.task == "store weights") == 60
    assert repo.worktree is not None
    loaded = modelgit.Repository(repo.worktree).load("main")
    assert {name: (t.dtype, t.tolist()) for name, t in loaded.items()} == {
        name: (t.dtype, t.tolist()) for name, t in state.items()
    }


def test_what_an_import_leaves_out_is_named_and_can_be_chosen(repo: Repository, tmp_path: Path) -> None:
    parts = {"state_dict": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}, "epoch": 3}
    torch.save(parts, tmp_path / "best.pt")
    said: list[Event] = []
    assert import_model(repo, tmp_path / "best.pt", listener=said.append).left_out == ("best.pt: ema", "best.pt: epoch")
    assert said[0] == Noted("left out of best.pt: ema, epoch; for another state dict: --part ema")
    made = import_model(repo, tmp_path / "best.pt", part="ema")
    assert (made.changed, made.left_out) == (1, ("best.pt: state_dict", "best.pt: epoch"))
    record = read_record(repo, "main")
    assert record is not None
    assert record.details == {"source": "best.pt", "part": "ema"}
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "plain.safetensors")
    for source in (tmp_path, tmp_path / "plain.safetensors"):
        with pytest.raises(UsageError, match="--part"):
            import_model(repo, source, part="ema")


def test_what_is_called_a_checkpoint_and_is_none_is_told_so(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(FormatError, match=r"plain\.bin: neither a PyTorch checkpoint") as caught:
        import_model(repo, tmp_path / "plain.bin")
    assert "torch.load" in str(caught.value.hint)
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "weights.bin")
    import_model(repo, tmp_path / "weights.bin")
    assert repo.version("main").manifests["model.safetensors"].entry("w").shape == (3,)


def test_checkpoints_beside_safetensors_are_left_out(repo: Repository, tmp_path: Path) -> None:
    hugging_face_folder(tmp_path / "bert")
    torch.save({"w": torch.ones(2)}, tmp_path / "bert" / "pytorch_model.bin")
    said: list[object] = []
    import_model(repo, tmp_path / "bert", listener=said.append)
    assert "pytorch_model.bin" not in repo.version("main").tree()
    assert any("left out pytorch_model.bin" in str(event) for event in said)


def test_checkpoints_of_a_folder_get_the_names_that_libraries_look_for(repo: Repository, tmp_path: Path) -> None:
    """What a trainer keeps beside the model is no model, and the index of the shards names the new files."""
    old = tmp_path / "old"
    (old / "unet").mkdir(parents=True)
    shards = {f"w{i}": f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    for i, (name, shard) in enumerate(shards.items()):
        torch.save({name: torch.full((2,), float(i))}, old / shard)
    index = {"metadata": {"total_size": 16}, "weight_map": shards}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"arguments": Path()}, old / "training_args.bin")
    said: list[object] = []
    import_model(repo, old, listener=said.append)
    version = repo.version("main")
    new = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert list(version.manifests) == new
    found = json.loads(repo.read_file("main", "model.safetensors.index.json") or b"")
    assert found == {**index, "weight_map": dict(zip(shards, new, strict=True))}
    assert "pytorch_model.bin.index.json" not in version.files
    assert any("left out training_args.bin" in str(event) for event in said)


def test_only_a_pytorch_checkpoint_in_a_folder(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "old" / "unet").mkdir(parents=True)
    for name in ("pytorch_model.bin", "unet/pytorch_model.bin"):
        torch.save({"w": torch.ones(2)}, tmp_path / "old" / name)
    import_model(repo, tmp_path / "old")
    assert list(repo.version("main").manifests) == ["model.safetensors", "unet/model.safetensors"]


def test_checkpoints_that_would_take_each_others_name_are_refused(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("best.pt", "best.pth"):
        torch.save({"w": torch.ones(2)}, tmp_path / "old" / name)
    with pytest.raises(FormatError, match=r"best.pt and best.pth would both become best.safetensors"):
        import_model(repo, tmp_path / "old")
    (tmp_path / "old" / "best.pth").rename(tmp_path / "old" / "best.bin.index.json")
    with pytest.raises(FormatError, match="no index of a sharded checkpoint"):
        import_model(repo, tmp_path / "old")
    assert repo.head() is None


def test_from_python(tmp_path: Path) -> None:
    repo = modelgit.Repository.init(tmp_path / "models")
    state = {"layer.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "layer.bias": torch.zeros(3)}
    first = repo.commit(state, message="First version")
    assert repo.head() == first
    weights = repo.load("main")
    assert list(weights) == ["layer.bias", "layer.weight"]
    assert torch.equal(weights["layer.weight"], state["layer.weight"])
    assert weights.entry("layer.bias").shape == (3,)
    with pytest.raises(KeyError):
        weights["layer.wieght"]
    assert (repo.path / "model.safetensors").is_file()
    one = repo.commit({**state, "layer.bias": np.full(3, 2, np.float32)}, message="one", branch="one", parents=["main"])
    assert repo.branches() == {"main": first, "one": one}
    assert repo.load("main")["layer.bias"].tolist() == [0.0, 0.0, 0.0]
    repo.commit({**state, "layer.bias": torch.full((3,), 4.0)}, message="two")
    merged = repo.merge(["one"], message="both", method="linear", weights=(1.0, 3.0))
    assert merged.kind == "merge"
    assert repo.load()["layer.bias"].tolist() == [2.5, 2.5, 2.5]
    assert [entry.subject for entry in repo.log(limit=1)] == ["both"]
    assert repo.checkout("one") == one
    two = repo.commit(state, message="from here", branch="two")
    root = repo.commit(state, message="from nowhere", branch="three", parents=[])
    assert [entry.parents for entry in (repo.log("two")[0], repo.log("three")[0])] == [(one,), ()]
    assert (repo.head(), repo.branches()["two"], repo.branches()["three"]) == (one, two, root)


def test_from_python_in_a_bare_repository(tmp_path: Path) -> None:
    repo = modelgit.Repository.init(tmp_path / "bare.git", bare=True)
    first = repo.commit({"w": torch.ones(2)}, message="first")
    second = repo.commit({"w": torch.ones(2)}, message="second", branch="side")
    assert (repo.branches(), repo.log("side")[0].parents) == ({"main": first, "side": second}, (first,))
    assert repo.load("main")["w"].tolist() == [1.0, 1.0]


def test_from_python_local_changes_are_safe(tmp_path: Path) -> None:
    repo = modelgit.Repository.init(tmp_path / "models")
    repo.commit({"w": torch.ones(2)}, message="first")
    save_file({"w": np.zeros(2, np.float32)}, repo.path / "model.safetensors")
    with pytest.raises(DirtyWorktree):
        repo.commit({"w": torch.zeros(3)}, message="second")
    with pytest.raises(FormatError, match="complex128"):
        repo.commit({"w": torch.zeros(3, dtype=torch.complex128)}, message="third", branch="other")


def test_a_snapshot_of_a_hugging_face_cache_is_followed_into_its_blobs_alone(repo: Repository, tmp_path: Path) -> None:
    hugging_face_folder(tmp_path / "bert")
    cache = tmp_path / "models--bert"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        (tmp_path / "bert" / name).rename(cache / "blobs" / f"id-{name}")
        (snapshot / name).symlink_to(f"../../blobs/id-{name}")
    assert import_model(repo, snapshot).files == ("config.json", "model-00001-of-00002.safetensors")
    (tmp_path / "secret").write_text("not for others")
    (cache / "blobs" / "chain").symlink_to(tmp_path / "secret")
    for target in ("../../../secret", "../../blobs/chain", "../../blobs/absent/x", "../../blobs"):
        (snapshot / "stray").symlink_to(target)
        with pytest.raises(FormatError, match="a link, expected plain files"):
            import_model(repo, snapshot)
        (snapshot / "stray").unlink()
