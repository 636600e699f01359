"""The work tree over real git: bytes come back, nothing is overwritten unasked, plain git stays quiet."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from work_trees import MODEL, commit, contents, forbid_filter, git, kinds, save

from modelgit.errors import DirtyWorktree, FormatError, MissingObject, RepositoryError, UsageError
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import add, advance, checkout, commit_worktree, status


def raw(table: object, data: bytes = b"", pad: bytes = b"") -> bytes:
    text = json.dumps(table).encode() + pad
    return struct.pack("<Q", len(text)) + text + data


ODD = {
    "padded.safetensors": raw({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"xy", b"   "),
    "order.safetensors": raw(
        {
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "z": {"dtype": "F32", "shape": [0, 7], "data_offsets": [5, 5]},
            "s": {"dtype": "F64", "shape": [], "data_offsets": [5, 13]},
            "__metadata__": {"k": "v"},
        },
        b"0123456789abc",
    ),
    "narrow.safetensors": raw(
        {
            "f4": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
            "f6": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [2, 5]},
            "e4": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [5, 6]},
            "e8": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [6, 7]},
            "bool": {"dtype": "BOOL", "shape": [1], "data_offsets": [7, 8]},
            "c": {"dtype": "C64", "shape": [1], "data_offsets": [8, 16]},
            "i": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]},
        },
        bytes(range(24)),
    ),
    "nothing.safetensors": raw({}),
    "shards/model-00001-of-00002.safetensors": raw(
        {"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"ab"
    ),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": bytes(range(256)),
    "run.sh": b"#!/bin/sh\r\n",
}


def test_odd_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    for path, content in ODD.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "run.sh").chmod(0o755)
    add(repo, ["."])
    first = commit(repo)
    assert set(repo.version(first).manifests) == {p for p in ODD if p.endswith(".safetensors")}
    assert contents(tmp_path) == {**ODD, ".gitattributes": b"*.safetensors filter=modelgit -text\n"}
    for path in ODD:
        (tmp_path / path).unlink()
    assert set(kinds(repo).values()) == {"deleted"}
    second = commit(repo)
    checkout(repo, first)
    assert {p: c for p, c in contents(tmp_path).items() if p in ODD} == ODD
    assert (tmp_path / "run.sh").stat().st_mode & 0o111
    assert kinds(repo) == {}
    checkout(repo, second)
    assert contents(tmp_path).keys() == {".gitattributes"}
    assert not (tmp_path / "shards").exists()


def test_plain_git_status_is_clean_at_once_and_asks_no_filter(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    first = commit(repo)
    forbid_filter(repo)
    assert git(tmp_path, "status", "--porcelain") == ""
    save(tmp_path, 2)
    commit(repo)
    assert git(tmp_path, "status", "--porcelain") == ""
    checkout(repo, first)
    assert git(tmp_path, "status", "--porcelain") == ""
    checkout(repo, "main")
    assert git(tmp_path, "status", "--porcelain") == ""
    assert git(tmp_path, "diff", "HEAD") == ""


def test_plain_git_sees_a_change_of_the_same_size_made_at_once(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    commit(repo)
    save(tmp_path, 3)
    assert git(tmp_path, "status", "--porcelain").strip() == f"M {MODEL}"
    assert kinds(repo) == {MODEL: "modified"}
    checkout(repo, "main", force=True)
    save(tmp_path, 4)
    assert git(tmp_path, "status", "--porcelain").strip() == f"M {MODEL}"
    assert kinds(repo) == {MODEL: "modified"}


def test_plain_git_commits_and_switches_with_the_filter(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    commit(repo)
    (tmp_path / "config.json").write_text("{}")
    content = save(tmp_path, 2)
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "-m", "by git")
    version = repo.version("HEAD")
    assert version.entry.subject == "by git"
    assert set(version.files) == {".gitattributes", "config.json"}
    assert kinds(repo) == {}
    checkout(repo, "main~1")
    assert load_file(tmp_path / MODEL)["a"][0] == 1
    checkout(repo, "main")
    assert (tmp_path / MODEL).read_bytes() == content


def test_a_commit_after_plain_git_add_has_no_stale_trees(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text("1")
    add(repo, ["folder"])
    commit(repo)
    git(tmp_path, "write-tree")
    git(tmp_path, "status")
    (tmp_path / "folder" / "a.json").write_text("22")
    add(repo)
    assert git(tmp_path, "show", git(tmp_path, "write-tree").strip() + ":folder/a.json") == "22"


def test_local_changes_are_not_overwritten(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    (tmp_path / "config.json").write_text("1")
    (tmp_path / "same.json").write_text("same")
    add(repo, ["config.json", "same.json"])
    first = commit(repo)
    save(tmp_path, 2)
    (tmp_path / "config.json").write_text("2")
    second = commit(repo)
    save(tmp_path, 3)
    (tmp_path / "config.json").write_text("3")
    (tmp_path / "same.json").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(DirtyWorktree, match=f"overwritten: config.json, {MODEL}$") as caught:
        checkout(repo, first)
    assert caught.value.hint == "commit them (modelgit commit), or throw them away: --force"
    assert contents(tmp_path) == before
    assert repo.head() == second
    save(tmp_path, 2)
    (tmp_path / "config.json").write_text("2")
    checkout(repo, first)
    assert (tmp_path / "same.json").read_text() == "mine"
    assert kinds(repo) == {"same.json": "modified"}
    (tmp_path / "added.txt").write_text("added")
    git(tmp_path, "add", "added.txt")
    checkout(repo, second)
    assert "A  added.txt" in git(tmp_path, "status", "--porcelain").splitlines()
    git(tmp_path, "rm", "--quiet", "--cached", "added.txt")
    checkout(repo, second, force=True)
    assert (tmp_path / "same.json").read_text() == "same"
    assert kinds(repo) == {}


def test_new_files_that_a_version_also_has_are_not_overwritten(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    first = commit(repo)
    save(tmp_path, 7, "second.safetensors")
    second = commit(repo)
    checkout(repo, first)
    assert not (tmp_path / "second.safetensors").exists()
    save(tmp_path, 8, "second.safetensors")
    with pytest.raises(DirtyWorktree, match=r"second\.safetensors"):
        checkout(repo, second)
    save(tmp_path, 7, "second.safetensors")
    checkout(repo, second)
    assert kinds(repo) == {}


def test_a_users_own_gitattributes_is_kept(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    mine = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    (tmp_path / ".gitattributes").write_text(mine)
    save(tmp_path, 1)
    made = commit(repo)
    assert (tmp_path / ".gitattributes").read_text() == mine
    assert repo.read_file(made, ".gitattributes") == mine.encode()
    assert git(tmp_path, "check-attr", "filter", "diff", "--", MODEL).split() == [
        f"{MODEL}:", "filter:", "modelgit", f"{MODEL}:", "diff:", "modelgit"]  # fmt: skip


def test_files_become_folders_and_folders_files(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    (tmp_path / "x").write_text("file")
    add(repo, ["x"])
    first = commit(repo)
    (tmp_path / "x").unlink()
    content = save(tmp_path, 1, "x/y/model.safetensors")
    second = commit(repo)
    checkout(repo, first)
    assert (tmp_path / "x").read_text() == "file"
    checkout(repo, second)
    assert (tmp_path / "x/y/model.safetensors").read_bytes() == content
    assert kinds(repo) == {}
    (tmp_path / "x" / "mine").write_text("keep me")
    with pytest.raises(DirtyWorktree, match="x/mine"):
        checkout(repo, first, force=True)
    assert (tmp_path / "x/mine").read_text() == "keep me"
    assert (tmp_path / "x/y/model.safetensors").read_bytes() == content


def test_links_in_the_work_tree_are_not_written_through(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "r")
    root = tmp_path / "r"
    save(root, 1, "sub/model.safetensors")
    first = commit(repo)
    save(root, 2, "sub/model.safetensors")
    second = commit(repo)
    outside = tmp_path / "outside"
    shutil.move(root / "sub", outside)
    (root / "sub").symlink_to(outside)
    before = contents(outside)
    for rev, force in ((first, False), (first, True)):
        with pytest.raises((FormatError, DirtyWorktree)):
            checkout(repo, rev, force=force)
    assert contents(outside) == before
    (root / "link.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(FormatError, match="expected an ordinary file, found a link"):
        commit(repo)
    assert repo.head() == second


def test_missing_objects_are_found_before_anything_is_touched(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    (tmp_path / "config.json").write_text("1")
    add(repo, ["config.json"])
    commit(repo)
    kept = {p.name for p in (repo.git_dir / "modelgit" / "packs").iterdir()}
    save(tmp_path, 2)
    (tmp_path / "config.json").write_text("2")
    second = commit(repo)
    checkout(repo, "main~1")
    for pack in (repo.git_dir / "modelgit" / "packs").iterdir():
        if pack.name not in kept:
            pack.unlink()
    before = contents(tmp_path)
    with pytest.raises(MissingObject, match="1 of 3 objects are not in the store") as caught:
        checkout(Repository.open(tmp_path), second)
    assert "modelgit fetch" in (caught.value.hint or "")
    assert contents(tmp_path) == before
    assert kinds(repo) == {}


def test_head_moves_as_gits_does(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    first = commit(repo)
    git(tmp_path, "branch", "side")
    checkout(repo, "side")
    assert repo.branch() == "side"
    save(tmp_path, 2)
    second = commit(repo)
    assert repo.branches() == {"main": first, "side": second}
    checkout(repo, first)
    assert (repo.branch(), repo.head()) == (None, first)
    save(tmp_path, 3)
    third = commit(repo)
    assert (repo.branch(), repo.head()) == (None, third)
    assert repo.branches() == {"main": first, "side": second}
    checkout(repo, "main")
    advance(repo, second, expected=repo.head())
    assert (repo.branch(), repo.branches()["main"]) == ("main", second)
    assert load_file(tmp_path / MODEL)["a"][0] == 2
    assert kinds(repo) == {}
    assert "moving from main to side" in git(tmp_path, "reflog")


def test_a_merge_of_plain_gits_is_not_lost(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    head = commit(repo)
    (repo.git_dir / "MERGE_HEAD").write_text(f"{head}\n")
    save(tmp_path, 2)
    with pytest.raises(RepositoryError, match="a merge is under way"):
        commit(repo)
    with pytest.raises(RepositoryError, match="a merge is under way"):
        checkout(repo, "main", force=True)
    assert repo.head() == head


def test_adding_names_what_cannot_be_added(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    with pytest.raises(UsageError, match="none: no such file"):
        add(repo, ["none"])
    for path in ("../outside", "/etc/passwd", ".git/config"):
        with pytest.raises(FormatError, match="add: path"):
            add(repo, [path])
    assert commit_worktree(repo, "nothing") is None


def test_a_commit_of_what_has_not_changed_is_none(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    save(tmp_path, 1)
    commit(repo)
    assert commit_worktree(repo, "again") is None
    size = repo.store.size_on_disk()
    os.utime(tmp_path / MODEL)
    assert commit_worktree(repo, "touched") is None
    assert repo.store.size_on_disk() == size


def test_a_bare_repository_has_no_work_tree(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path, bare=True)
    steps: list[Callable[[], object]] = [lambda: status(repo), lambda: commit_worktree(repo, "x")]
    for step in steps:
        with pytest.raises(RepositoryError, match="has no work tree"):
            step()


def test_a_linked_work_tree_has_its_own_index_and_the_same_objects(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "r")
    content = save(tmp_path / "r", 1)
    first = commit(repo)
    git(tmp_path / "r", "worktree", "add", "-q", "-b", "side", str(tmp_path / "w"))
    other = Repository.open(tmp_path / "w")
    assert other.git_dir == repo.git_dir
    assert other.private_dir != repo.private_dir
    checkout(other, "side", force=True)
    assert (tmp_path / "w" / MODEL).read_bytes() == content
    save(tmp_path / "w", 2)
    second = commit(other)
    assert repo.branches() == {"main": first, "side": second}
    assert kinds(repo) == kinds(other) == {}


KILLED = """
import sys
from pathlib import Path
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import checkout
checkout(Repository.open(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 6])
def test_a_killed_checkout_is_gone_on_with(tmp_path: Path, kill_at: int) -> None:
    repo = Repository.init(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "sub/c.safetensors"):
        save(tmp_path, 1, name)
    first = commit(repo)
    for name in ("a.safetensors", "b.safetensors", "sub/c.safetensors"):
        save(tmp_path, 2, name)
    (tmp_path / "new.json").write_text("{}")
    add(repo, ["new.json"])
    commit(repo)
    after = contents(tmp_path)
    checkout(repo, first)
    before = contents(tmp_path)
    inject = f"inject=rename,renameat,renameat2:signal=SIGKILL:when={kill_at}"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat,renameat2", "-e", inject]
    run = subprocess.run([*command, sys.executable, "-c", KILLED, str(tmp_path), "main"], check=False)
    assert run.returncode in (0, -signal.SIGKILL)
    for path, content in contents(tmp_path).items():
        assert path.endswith("tmp") or content in (before.get(path), after.get(path)), "no half-written file"
    lock = repo.git_dir / "index.lock"
    if lock.exists():
        lock.unlink()  # as after a killed git: our message says so
    checkout(repo, "main")
    assert {p: c for p, c in contents(tmp_path).items() if not p.endswith("tmp")} == after
    assert kinds(repo) == {}
    assert status(repo).untracked == ()
