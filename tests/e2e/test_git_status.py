"""What `status` tells of a work tree, and that it reads no file twice to tell it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from work_trees import MODEL, commit, forbid_filter, git, kinds, save

from modelgit.errors import FormatError, RepositoryError
from modelgit.repo.look import CACHE_PATH, PRINTS_PATH
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import add, checkout, commit_worktree, status


def test_status_tells_what_changed_tensor_by_tensor(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    assert status(repo).head is None
    save(tmp_path, 1)
    save(tmp_path, 1, "other.safetensors")
    assert kinds(repo) == {MODEL: "new", "other.safetensors": "new"}
    commit(repo)
    assert status(repo).changes == ()
    save(tmp_path, 2)
    (tmp_path / "other.safetensors").unlink()
    (tmp_path / "third.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "note.txt").write_text("x")
    found = status(repo)
    assert found.branch == "main"
    assert found.untracked == ("note.txt",)
    changes = {change.path: change for change in found.changes}
    assert {path: change.kind for path, change in changes.items()} == {
        MODEL: "modified", "other.safetensors": "deleted", "third.safetensors": "new"}  # fmt: skip
    tensors = changes[MODEL].tensors
    assert tensors is not None
    assert ([old.name for old, _ in tensors.changed], tensors.same) == (["a"], 1)
    add(repo, [MODEL])
    staged = {change.path: change.tensors for change in status(repo).changes}
    assert staged[MODEL] == tensors
    assert "not a safetensors file" in (changes["third.safetensors"].problem or "")
    with pytest.raises(FormatError, match=r"third\.safetensors: not a safetensors file"):
        commit(repo)


def test_a_changed_file_is_read_once_and_remembered(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    commit(repo)
    save(tmp_path, 2)
    time.sleep(0.1)
    (before,) = status(repo).changes
    cache = repo.git_dir / CACHE_PATH
    assert before.tensors is not None
    _, new = before.tensors.changed[0]
    cache.write_text(cache.read_text().replace(new.oid, "e" * 64))
    (after,) = status(repo).changes
    assert after.tensors is not None
    assert after.tensors.changed[0][1].oid == "e" * 64, "the second look took the cache's word"
    cache.write_bytes(b"\0damaged")
    assert status(repo).changes == (before,)
    save(tmp_path, 1)
    assert status(repo).changes == ()


def test_a_touched_file_is_read_once_more_then_clean_for_good(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    commit(repo)
    os.utime(tmp_path / MODEL, ns=(10**18, 10**18))
    assert kinds(repo) == {}
    forbid_filter(repo)
    assert git(tmp_path, "status", "--porcelain") == ""


def test_a_touched_file_is_known_by_its_print_without_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = Repository.init(tmp_path)
    data = save(tmp_path, 1.0)
    commit(repo)
    place = tmp_path / MODEL
    changed = bytearray(data)
    changed[-1] ^= 1

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was hashed")

    with monkeypatch.context() as patch:
        patch.setattr("modelgit.repo.look.hashed", refuse)
        patch.setattr("modelgit.store.files.intake.store_and_print", refuse)
        os.utime(place, ns=(1, 1))
        assert commit_worktree(repo, "x") is None
        os.utime(place, ns=(2, 2))
        assert kinds(repo) == {}
    place.write_bytes(changed)
    os.utime(place, ns=(3, 3))
    assert kinds(repo) == {MODEL: "modified"}
    assert commit(repo) and repo.packed_bytes() > 0
    place.write_bytes(data)
    os.utime(place, ns=(4, 4))
    assert kinds(repo) == {MODEL: "modified"}


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "prints": [1]}', '{"version": 9, "prints": {}}'])
def test_a_damaged_book_of_prints_is_an_empty_one(tmp_path: Path, text: str) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1.0)
    commit(repo)
    (repo.private_dir / PRINTS_PATH).write_text(text)
    os.utime(tmp_path / MODEL, ns=(1, 1))
    assert kinds(repo) == {}
    save(tmp_path, 2.0)
    assert kinds(repo) == {MODEL: "modified"}


def test_status_works_while_another_command_holds_the_index(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    first = commit(repo)
    os.utime(tmp_path / MODEL, ns=(10**18, 10**18))
    lock = repo.git_dir / "index.lock"
    lock.write_bytes(b"")
    assert kinds(repo) == {}
    save(tmp_path, 2)
    steps: list[Callable[[], str]] = [lambda: commit(repo), lambda: checkout(repo, first, force=True)]
    for step in steps:
        with pytest.raises(RepositoryError, match="index is locked") as caught:
            step()
        assert str(lock) in (caught.value.hint or "")
    assert load_file(tmp_path / MODEL)["a"][0] == 2
    lock.unlink()
    assert repo.version(commit(repo)).entry.parents == (first,)
