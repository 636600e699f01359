"""Checkpoints cut into shards and put together again: the same objects, and differences across the cuts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from modelgit.porcelain.comparing import diff, diff_worktree
from modelgit.porcelain.importing import import_model
from modelgit.repo import worktree
from modelgit.repo.repository import Repository

State = Mapping[str, npt.NDArray[Any]]
WHOLE = "model.safetensors"


def state(step: float = 0.0) -> State:
    """Return a model of six matrices that are stored alone and six vectors that share records."""
    rng = np.random.default_rng(1)
    matrices = {f"layer.{i}.weight": rng.normal(0, 0.02, (160, 128)).astype(np.float32) for i in range(6)}
    vectors = {f"layer.{i}.bias": rng.normal(0, 0.02, 32).astype(np.float16) for i in range(6)}
    tensors: State = {**matrices, **vectors}
    return {name: array * array.dtype.type(1 + step) for name, array in tensors.items()}


def save_whole(folder: Path, tensors: State) -> None:
    remove_weights(folder)
    save_file(dict(tensors), folder / WHOLE, {"format": "pt"})


def save_shards(folder: Path, tensors: State, count: int) -> None:
    """Write the tensors as `transformers` does: shards and an index beside."""
    remove_weights(folder)
    place = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(place.values()):
        part = {name: array for name, array in tensors.items() if place[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    (folder / f"{WHOLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def remove_weights(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()


def tensors_of(repo: Repository, rev: str) -> dict[str, str]:
    manifests = repo.version(rev).manifests.values()
    return {entry.name: entry.oid for manifest in manifests for entry in manifest.tensors}


def commit(repo: Repository, message: str) -> str:
    assert repo.worktree is not None
    names = [path.name for path in repo.worktree.iterdir() if path.name.startswith("model")]
    gone = [path for path in repo.tree("HEAD") if path.startswith("model")] if repo.head() else []
    made = worktree.commit_worktree(repo, message, paths=sorted({*names, *gone}))
    assert made is not None
    return made


def kinds(repo: Repository) -> dict[str, str]:
    return {oid: repo.store.info(oid).kind for oid in repo.store.oids()}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "models")


def test_a_comparison_follows_tensors_into_other_shards(repo: Repository) -> None:
    assert repo.worktree is not None
    save_shards(repo.worktree, state(), 2)
    commit(repo, "two shards")
    tuned = {**state(), "layer.3.weight": state(1e-3)["layer.3.weight"]}
    save_shards(repo.worktree, tuned, 3)
    for found in (diff_worktree(repo), diff(repo, "HEAD~1", commit(repo, "three, tuned"))):
        assert [(change.kind, change.name) for change in found.tensors] == [("changed", "layer.3.weight")]
        assert found.same == len(tuned) - 1


@pytest.mark.parametrize("shards_first", [False, True], ids=["cut", "joined"])
def test_cutting_anew_makes_no_tensor_objects(repo: Repository, shards_first: bool) -> None:
    assert repo.worktree is not None
    savers = [lambda folder: save_whole(folder, state()), lambda folder: save_shards(folder, state(), 3)]
    for save in reversed(savers) if shards_first else savers:
        before = kinds(repo)
        save(repo.worktree)
        commit(repo, "again")
    new = {oid: kind for oid, kind in kinds(repo).items() if oid not in before}
    assert set(new.values()) == {"blob"}
    assert len(new) == (1 if shards_first else 3)  # the headers
    assert tensors_of(repo, "HEAD") == tensors_of(repo, "HEAD~1")
    assert (f"{WHOLE}.index.json" in repo.version("HEAD").files) is not shards_first


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_fine_tune_in_other_shards_is_stored_as_differences(repo: Repository, count: int) -> None:
    assert repo.worktree is not None
    save_shards(repo.worktree, state(), 3)
    commit(repo, "base")
    old = tensors_of(repo, "HEAD")
    if count == 1:
        save_whole(repo.worktree, state(0.001))
    else:
        save_shards(repo.worktree, state(0.001), count)
    commit(repo, "tuned")
    for name, oid in tensors_of(repo, "HEAD").items():
        assert repo.store.info(oid).codec == "delta", name
        assert old[name] in repo.store.info(oid).parents


def test_importing_a_folder_in_other_shards_makes_no_tensor_objects(repo: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_whole(folder, state())
    import_model(repo, folder)
    before = kinds(repo)
    save_shards(folder, state(), 3)
    made = import_model(repo, folder)
    assert {kind for oid, kind in kinds(repo).items() if oid not in before} == {"blob"}
    assert tensors_of(repo, made.commit) == tensors_of(repo, f"{made.commit}~1")
    assert WHOLE not in repo.tree(made.commit)


def test_files_come_back_byte_for_byte_after_each_cut(repo: Repository) -> None:
    assert repo.worktree is not None
    files: dict[str, dict[str, bytes]] = {}
    for number, count in enumerate((3, 2, 4)):
        save_shards(repo.worktree, state(0.001 * number), count)
        made = commit(repo, f"{count} shards")
        files[made] = {path.name: path.read_bytes() for path in repo.worktree.glob("model*")}
    for made, expected in files.items():
        worktree.checkout(repo, made)
        assert {path.name: path.read_bytes() for path in repo.worktree.glob("model*")} == expected
