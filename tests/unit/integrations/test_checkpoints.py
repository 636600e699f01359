"""What of a checkpoint is committed, and what a commit says of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import DirtyWorktree, FormatError, RepositoryError, UsageError
from modelgit.integrations.checkpoints import Checkpoint, Metric, commit_checkpoint, filled, latest
from modelgit.porcelain.importing import model_of
from modelgit.porcelain.records import read_record
from modelgit.repo.repository import Repository


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "models")


def saved(folder: Path, value: float, names: tuple[str, ...] = ("model.safetensors",)) -> Path:
    """Writes a checkpoint as the Trainer does, its weights in the files `names`."""
    folder.mkdir()
    for name in names:
        save_file({f"{name}.w": np.full(8, value, np.float32)}, folder / name)
    (folder / "config.json").write_text('{"model_type": "bert", "id2label": {"0": "bad", "1": "good"}}')
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "training_args.bin").write_bytes(b"another")
    return folder


def checkpoint(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(folder, f"step {step}", step, step / 2, (Metric("eval_loss", 0.25, 2), Metric("loss", 0.5, 4)))


def test_weights_and_configuration_are_committed_and_nothing_pickled(repo: Repository, tmp_path: Path) -> None:
    made = commit_checkpoint(repo, checkpoint(saved(tmp_path / "c", 1.0), 4))
    assert sorted(repo.tree(made)) == [".gitattributes", ".modelgit/record.json", "config.json", "model.safetensors"]
    assert repo.head() == made
    assert repo.worktree is not None
    assert (repo.worktree / "model.safetensors").read_bytes() == (tmp_path / "c/model.safetensors").read_bytes()


def test_the_commit_says_where_in_the_training_it_is(repo: Repository, tmp_path: Path) -> None:
    made = commit_checkpoint(repo, checkpoint(saved(tmp_path / "c", 1.0), 4))
    entry = repo.version(made).entry
    metrics = ["eval_loss=0.25 at step 2", "loss=0.5"]
    assert entry.trailers == {"Training-Step": ["4"], "Training-Epoch": ["2"], "Metric": metrics}
    record = read_record(repo, made)
    assert record is not None
    assert record.classes == ("bad", "good")
    assert record.details["metrics"] == {"eval_loss": {"value": 0.25, "step": 2}, "loss": {"value": 0.5, "step": 4}}


def test_old_shards_go_and_other_files_stay(repo: Repository, tmp_path: Path) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    first = saved(tmp_path / "a", 1.0, (*shards, "adapter_model.safetensors"))
    (first / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (first / "README.md").write_text("a model")
    commit_checkpoint(repo, checkpoint(first, 2))
    made = commit_checkpoint(repo, checkpoint(saved(tmp_path / "b", 2.0), 4))
    assert {path for path in repo.tree(made) if not path.startswith(".")} == {
        "README.md",
        "adapter_model.safetensors",
        "config.json",
        "model.safetensors",
    }


def test_another_branch_begins_at_head_and_leaves_the_work_tree(repo: Repository, tmp_path: Path) -> None:
    first = commit_checkpoint(repo, checkpoint(saved(tmp_path / "a", 1.0), 2))
    second = commit_checkpoint(repo, checkpoint(saved(tmp_path / "b", 2.0), 4), "run-1")
    third = commit_checkpoint(repo, checkpoint(saved(tmp_path / "c", 3.0), 6), "run-1")
    assert repo.branches() == {"main": first, "run-1": third}
    assert [repo.version(c).entry.parents for c in (second, third)] == [(first,), (second,)]
    assert repo.worktree is not None
    assert (repo.worktree / "model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()


def test_local_changes_are_never_overwritten(repo: Repository, tmp_path: Path) -> None:
    first = commit_checkpoint(repo, checkpoint(saved(tmp_path / "a", 1.0), 2))
    assert repo.worktree is not None
    (repo.worktree / "config.json").write_text("mine")
    later = saved(tmp_path / "b", 2.0)
    (later / "config.json").write_text("{}")
    with pytest.raises(DirtyWorktree):
        commit_checkpoint(repo, checkpoint(later, 4))
    assert repo.head() == first
    assert (repo.worktree / "config.json").read_text() == "mine"


def test_a_branch_in_another_work_tree_is_left_alone(repo: Repository, tmp_path: Path) -> None:
    commit_checkpoint(repo, checkpoint(saved(tmp_path / "a", 1.0), 2))
    repo.git.run("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    with pytest.raises(RepositoryError, match="checked out in another work tree"):
        commit_checkpoint(repo, checkpoint(saved(tmp_path / "b", 2.0), 4), "side")


def test_a_folder_without_weights_is_refused(repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no checkpoint to commit: No such file"):
        commit_checkpoint(repo, checkpoint(tmp_path / "none", 4))
    with pytest.raises(FormatError, match=r"expected \.safetensors files, got config\.json, optimizer\.pt"):
        commit_checkpoint(repo, checkpoint(saved(tmp_path / "pickled", 1.0, ()), 4))
    assert repo.head() is None


def test_shards_and_index_are_of_one_model() -> None:
    names = ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    assert {model_of(name) for name in names} == {"model.safetensors"}
    assert model_of("adapter_model.safetensors") == "adapter_model.safetensors"
    assert model_of("config.json") == "config.json"


def test_the_latest_of_each_metric_counts() -> None:
    log: list[dict[str, Any]] = [
        {"loss": 2.0, "epoch": 0.5, "step": 1},
        {"eval_loss": 1.5, "eval_runtime": 0.1, "eval_samples_per_second": 9.0, "step": 1},
        {"loss": 1.0, "note": "text", "done": True, "total_flos": 1e9, "step": 2},
    ]
    assert latest(log) == (Metric("eval_loss", 1.5, 1), Metric("loss", 1.0, 2))


def test_a_message_with_a_field_that_is_not_there() -> None:
    assert filled("{run}: {step}", step=3, run="a") == "a: 3"
    with pytest.raises(UsageError, match="'lost'") as caught:
        filled("{lost}", step=3, run="a")
    assert caught.value.hint == "fields: {step}, {run}; a brace is written twice"
    with pytest.raises(UsageError, match="empty"):
        filled(" ", step=3)
