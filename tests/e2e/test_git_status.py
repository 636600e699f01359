"""What `status` tells of a work tree, and that it reads no file twice to tell it."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from work_trees import MODEL, commit, forbid_filter, git, kinds, model, save

from modelgit.cli.app import main
from modelgit.errors import FormatError, RepositoryError
from modelgit.porcelain import work
from modelgit.repo import worktree
from modelgit.repo.look import CACHE_PATH, PRINTS_PATH
from modelgit.repo.merging.underway import Unmerged
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


# ------------------------------------------------------------------------------------------- amid conflicts


def begun(place: Path) -> Repository:
    repo = Repository.init(place)
    save(place, 1)
    commit(repo)
    return repo


def stopped(place: Path, *words: str) -> None:
    """Has git stop at a conflict."""
    who = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", str(place), *words], capture_output=True, check=False, env={**os.environ, **who}
    )
    assert done.returncode == 1, done.stderr


@pytest.mark.parametrize(
    ("verb", "what", "tool"), [("merge", "a", "modelgit"), ("cherry-pick", "a", "git"), ("rebase", "b onto a", "git")]
)
def test_status_amid_conflicts_names_the_files_and_the_ways_on_and_out(
    tmp_path: Path, verb: str, what: str, tool: str, capfd: pytest.CaptureFixture[str]
) -> None:
    repo = begun(tmp_path)
    for name, size in (("a", 3), ("b", 4)):
        work.checkout(repo, "main")
        work.create_branch(repo, name, None)
        save_file(model(1, size), tmp_path / MODEL)
        work.commit(repo, name)
    stopped(tmp_path, verb, "a")
    found = work.status(repo)
    assert (found.conflicts, found.changes) == ((Unmerged(MODEL, "both modified"),), ())
    assert found.under_way is not None
    assert (found.under_way.verb, found.under_way.what) == (verb, what)
    assert (found.under_way.go_on, found.under_way.give_up) == (f"{tool} {verb} --continue", f"{tool} {verb} --abort")
    with pytest.raises(RepositoryError, match=f"a git {verb} is under way here, with conflicts in {MODEL}") as caught:
        worktree.local_changes(repo)
    assert f"{tool} {verb} --continue; or {tool} {verb} --abort" in str(caught.value.hint)
    capfd.readouterr()
    assert main(["-C", str(tmp_path), "status"]) == 0
    told = capfd.readouterr().out
    assert f"Under way: {verb} of {what}\n" in told
    assert f"git checkout --theirs {MODEL} && git add {MODEL}\n" in told
    git(tmp_path, "checkout", "--theirs", MODEL)
    work.add(repo, [MODEL], tmp_path)
    assert (work.status(repo).conflicts, work.status(repo).under_way) == ((), found.under_way)
    git(tmp_path, verb, "--abort")
    assert (work.status(repo).changes, work.status(repo).under_way) == ((), None)


def test_status_after_a_stash_that_does_not_fit_says_how_to_undo_that(tmp_path: Path) -> None:
    repo = begun(tmp_path)
    save_file(model(1, 3), tmp_path / MODEL)
    git(tmp_path, "stash")
    save_file(model(1, 4), tmp_path / MODEL)
    work.commit(repo, "Four")
    stopped(tmp_path, "stash", "pop")
    found = work.status(repo)
    assert (found.under_way, found.conflicts) == (None, (Unmerged(MODEL, "both modified"),))
    with pytest.raises(RepositoryError, match=f"git has left conflicts in {MODEL}") as caught:
        work.commit(repo, "no")
    assert "git reset --merge" in str(caught.value.hint)
    git(tmp_path, "reset", "--merge")
    assert (work.status(repo).changes, git(tmp_path, "stash", "list").count("\n")) == ((), 1)
