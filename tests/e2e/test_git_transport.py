"""Sharing over real git: objects before refs, only what is missing, nothing of a stranger's executed."""

import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import DirtyWorktree, FormatError, RemoteError, RepositoryError, UsageError
from modelgit.formats.manifest import Manifest
from modelgit.repo.repository import Repository
from modelgit.repo.transport import clone, fetch, pull, push
from modelgit.repo.values import Blob, CommitDraft
from modelgit.repo.worktree import add, checkout, commit_worktree, status

MODEL = "model.safetensors"
SCORES = "refs/notes/modelgit-scores"


def git(place: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x")
    done = subprocess.run(["git", "-C", str(place), *identity, *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def save(root: Path, value: float, path: str = MODEL) -> bytes:
    tensors = {"a": np.full(1000, value, np.float32), "b": np.random.default_rng(0).random(50_000, np.float32)}
    save_file(tensors, root / path)
    return (root / path).read_bytes()


def version(repo: Repository, value: float) -> str:
    assert repo.worktree is not None
    save(repo.worktree, value)
    made = commit_worktree(repo, f"version {value}")
    assert made is not None
    return made


def started(place: Path) -> Repository:
    repo = Repository.init(place)
    (place / "config.json").write_text('{"hidden": 3}')
    add(repo, ["config.json"])
    version(repo, 1)
    return repo


def hub_of(repo: Repository, place: Path) -> Repository:
    """Makes a plain bare git repository and calls it hub."""
    subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(place)], check=True)
    git(repo.git.directory, "remote", "add", "hub", str(place))
    return Repository.open(place)


def sound(repo: Repository) -> bool:
    """Tells whether every version that a ref names is all there."""
    entries = repo.log([], everything=True)
    oids = {oid for e in entries for m in repo.version(e.commit).manifests.values() for oid in m.oids()}
    return not repo.store.missing(oids) and repo.store.fsck(full=True).problems == ()


@pytest.mark.parametrize("form", ["{0}", "file://{0}", "{0}/.git", "{0}/"])
def test_a_clone_is_the_same_byte_for_byte(tmp_path: Path, form: str) -> None:
    repo = started(tmp_path / "a b")
    second = version(repo, 2)
    url = form.format(tmp_path / "a b")
    copy = clone(url.replace(" ", "%20") if url.startswith("file") else url, tmp_path / "copy")
    assert (copy.head(), copy.branch()) == (second, "main")
    assert (tmp_path / "copy" / MODEL).read_bytes() == (tmp_path / "a b" / MODEL).read_bytes()
    assert (tmp_path / "copy" / "config.json").read_text() == '{"hidden": 3}'
    assert git(tmp_path / "copy", "status", "--porcelain") == ""
    assert git(tmp_path / "copy", "rev-parse", "--abbrev-ref", "main@{upstream}").strip() == "origin/main"
    assert sound(copy)
    checkout(copy, "main~1")
    checkout(repo, "main~1")
    assert (tmp_path / "copy" / MODEL).read_bytes() == (tmp_path / "a b" / MODEL).read_bytes()


def test_a_clone_of_another_branch_and_of_a_bare_one(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    git(tmp_path / "r", "branch", "side")
    checkout(repo, "side")
    tip = version(repo, 5)
    copy = clone(str(tmp_path / "r"), tmp_path / "copy", branch="side")
    assert (copy.branch(), copy.head()) == ("side", tip)
    hub_of(repo, tmp_path / "hub.git")
    push(repo, "hub", ["main", "side"])
    second = clone(str(tmp_path / "hub.git"), tmp_path / "second")
    assert second.branch() == "main"
    assert second.refs("refs/remotes/") == {
        "refs/remotes/origin/main": repo.resolve("main"), "refs/remotes/origin/side": tip}  # fmt: skip
    assert sound(second)


def test_an_empty_repository_is_cloned(tmp_path: Path) -> None:
    Repository.init(tmp_path / "r", branch="trunk")
    copy = clone(str(tmp_path / "r"), tmp_path / "copy")
    assert (copy.head(), copy.branch()) == (None, "trunk")


def test_a_clone_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for url, target, kind, message in (
        (tmp_path / "none", "copy", RemoteError, "there is no such folder"),
        (tmp_path / "full", "copy", RemoteError, "the folder holds none"),
        (tmp_path / "r", "full", RepositoryError, "exists and is not an empty folder"),
        (tmp_path / "r", "full/file", RepositoryError, "exists and is not an empty folder"),
    ):
        with pytest.raises(kind, match=message):
            clone(str(url), tmp_path / target)
    for target in ("copy", "empty"):
        with pytest.raises(RemoteError, match="has no branch 'nope'") as caught:
            clone(str(tmp_path / "r"), tmp_path / target, branch="nope")
        assert caught.value.hint == "branches: main"
    shutil.rmtree(repo.git_dir / "modelgit" / "packs")
    with pytest.raises(RemoteError, match="the remote lacks 3 of 3 objects"):
        clone(str(tmp_path / "r"), tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "r"]
    assert list((tmp_path / "empty").iterdir()) == []
    assert [p.read_text() for p in (tmp_path / "full").iterdir()] == ["mine"]


def test_nothing_of_a_strangers_is_executed(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\necho ran $0 >> {tmp_path}/caught\ncat\n")
    trap.chmod(0o755)
    for name in ("filter.modelgit.clean", "filter.modelgit.smudge", "core.fsmonitor", "core.sshCommand", "core.pager",
                 "uploadpack.packObjectsHook", "core.alternateRefsCommand", "alias.status", "gpg.program"):  # fmt: skip
        git(tmp_path / "r", "config", name, str(trap))
    for hook in ("post-checkout", "post-merge", "reference-transaction", "pre-push", "post-index-change"):
        (repo.git_dir / "hooks" / hook).write_bytes(trap.read_bytes())
        (repo.git_dir / "hooks" / hook).chmod(0o755)
    content = (tmp_path / "r" / MODEL).read_bytes()
    code = b"open('caught', 'w')\n"
    files: dict[str, Manifest | Blob | bytes] = {**repo.version("main").tree(), ".gitattributes": b"* filter=evil\n"}
    files |= {"modelgit.py": code, "json.py": code, "modelgit/__init__.py": code, ".gitconfig": b"[core]\npager=x\n"}
    head = repo.head()
    assert head is not None
    repo.commit(CommitDraft((head,), files, "hostile", ref="refs/heads/main", expected=head))
    copy = clone(str(tmp_path / "r"), tmp_path / "copy")
    assert (tmp_path / "copy" / MODEL).read_bytes() == content
    assert status(copy).changes == ()
    save(tmp_path / "copy", 9)
    (tmp_path / "copy" / "config.json").write_text("other")
    assert git(tmp_path / "copy", "status", "--porcelain") == f" M config.json\n M {MODEL}\n"
    assert not (tmp_path / "caught").exists()
    assert not (tmp_path / "copy" / "caught").exists()
    assert "trap" not in (copy.git_dir / "config").read_text()


def made_tree(place: Path, row: str) -> str:
    """Returns a tree of one entry; git makes any."""
    done = subprocess.run(["git", "-C", str(place), "mktree"], input=row.encode(), capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("path", ["../escaped", ".git/hooks/post-checkout", "sub/.GIT/config"])
def test_a_hostile_tree_is_not_checked_out(tmp_path: Path, path: str) -> None:
    repo = started(tmp_path / "r")
    blob = git(tmp_path / "r", "rev-parse", "HEAD:config.json").strip()
    *folders, name = path.split("/")
    tree = made_tree(tmp_path / "r", f"100644 blob {blob}\t{name}")
    for folder in reversed(folders):
        tree = made_tree(tmp_path / "r", f"040000 tree {tree}\t{folder}")
    commit = git(tmp_path / "r", "commit-tree", tree, "-m", "x", "-p", "HEAD").strip()
    git(tmp_path / "r", "update-ref", "refs/heads/main", commit)
    with pytest.raises((FormatError, RemoteError)):
        clone(str(tmp_path / "r"), tmp_path / "copy")
    assert repo.resolve("main") == commit
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_only_missing_objects_travel_and_as_they_are_stored(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    hub = hub_of(repo, tmp_path / "hub.git")
    first = push(repo, "hub", ["main"])
    assert first.refs == {"main": repo.head()}
    assert (first.objects, first.bytes > 100_000) == (3, True)
    assert (tmp_path / "hub.git" / "modelgit" / "packs").is_dir()
    tip = version(repo, 2)
    second = push(repo, "hub", ["main"])
    assert second.refs == {"main": tip}
    assert (second.objects, second.bytes < 10_000) == (1, True)
    third = push(repo, "hub", ["main"])
    assert (third.refs, third.objects) == ({}, 0)
    assert sound(Repository.open(hub.git_dir))
    copy = clone(str(hub.git_dir), tmp_path / "copy")
    version(repo, 3)
    push(repo, "hub", ["main"])
    moved = fetch(copy, "origin")
    assert moved.objects == 1
    assert moved.refs == {"refs/remotes/origin/main": repo.head()}
    assert fetch(copy, "origin").refs == {}
    assert sound(copy)


def test_a_push_only_moves_forward(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    hub = hub_of(repo, tmp_path / "hub.git")
    push(repo, "hub", ["main"])
    other = clone(str(hub.git_dir), tmp_path / "other")
    theirs = version(other, 7)
    push(other, "origin", ["main"])
    version(repo, 8)
    for _ in range(2):  # their commit unknown here, then known
        with pytest.raises(RemoteError, match=f"hub has commits that are not here \\({theirs[:12]}\\)") as caught:
            push(repo, "hub", ["main"])
        assert caught.value.hint == "get and merge them first: modelgit fetch hub, modelgit merge hub/main"
        fetch(repo, "hub")
    assert hub.resolve("main") == theirs
    with pytest.raises(UsageError, match="no branch is called 'nope'") as unknown:
        push(repo, "hub", ["nope"])
    assert unknown.value.hint == "branches: main"
    with pytest.raises(RemoteError, match="no remote is called 'nope'") as absent:
        push(repo, "nope", ["main"])
    assert (absent.value.hint or "").startswith("known remotes: hub")
    with pytest.raises(RemoteError, match=r"it is checked out in .*other"):
        git(tmp_path / "r", "remote", "add", "other", str(tmp_path / "other"))
        fetch(repo, "other")
        git(tmp_path / "r", "reset", "-q", "--soft", "other/main")
        version(repo, 9)
        push(repo, "other", ["main"])


def test_a_relative_remote_is_the_repositorys_not_the_shells(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "hub.git")], check=True)
    git(tmp_path / "r", "remote", "add", "hub", "../hub.git")
    assert push(repo, "hub", ["main"]).refs == {"main": repo.head()}
    assert Repository.open(tmp_path / "hub.git").resolve("main") == repo.head()


def test_a_pull_moves_forward_and_keeps_local_changes(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    copy = clone(str(tmp_path / "r"), tmp_path / "copy")
    tip = version(repo, 2)
    (tmp_path / "copy" / "config.json").write_text("mine")
    assert pull(copy, "origin").objects == 1
    assert (copy.head(), copy.branch()) == (tip, "main")
    assert (tmp_path / "copy" / MODEL).read_bytes() == (tmp_path / "r" / MODEL).read_bytes()
    assert [(c.path, c.kind) for c in status(copy).changes] == [("config.json", "modified")]
    (tmp_path / "copy" / "config.json").write_text('{"hidden": 3}')
    assert pull(copy, "origin").refs == {}
    version(repo, 3)
    save(tmp_path / "copy", 5)
    with pytest.raises(DirtyWorktree, match=MODEL):
        pull(copy, "origin")
    assert copy.head() == tip
    version(copy, 5)
    with pytest.raises(RepositoryError, match="main and origin/main have diverged") as caught:
        pull(copy, "origin")
    assert caught.value.hint == "average them: modelgit merge origin/main"
    checkout(copy, tip)
    with pytest.raises(RepositoryError, match="HEAD is on no branch"):
        pull(copy, "origin")


def test_a_fetch_brings_what_plain_git_left_behind(tmp_path: Path) -> None:
    started(tmp_path / "r")
    subprocess.run(["git", "clone", "-q", str(tmp_path / "r"), str(tmp_path / "copy")], check=True)
    copy = Repository.init(tmp_path / "copy")
    assert fetch(copy, "origin").objects == 3
    checkout(copy, "main")
    assert (tmp_path / "copy" / MODEL).read_bytes() == (tmp_path / "r" / MODEL).read_bytes()
    assert sound(copy)


def test_branches_and_tags_follow_the_remote(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    git(tmp_path / "r", "branch", "old")
    git(tmp_path / "r", "tag", "-a", "-m", "x", "v1")
    copy = clone(str(tmp_path / "r"), tmp_path / "copy")
    assert copy.resolve("v1") == repo.head()
    git(tmp_path / "copy", "tag", "-f", "v1", "main")
    mine = copy.refs("refs/tags/")
    git(tmp_path / "r", "branch", "-D", "old")
    git(tmp_path / "r", "branch", "old/deeper")
    git(tmp_path / "r", "tag", "-f", "v1", "main")
    git(tmp_path / "r", "tag", "v2")
    fetch(copy, "origin")
    assert set(copy.refs("refs/remotes/")) == {"refs/remotes/origin/main", "refs/remotes/origin/old/deeper"}
    assert copy.refs("refs/tags/v1") == mine
    assert copy.resolve("v2") == repo.head()


def test_notes_of_both_sides_come_together(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    hub = hub_of(repo, tmp_path / "hub.git")
    head = repo.resolve("HEAD")
    repo.write_note(SCORES, head, '{"a": 1}\n')
    push(repo, "hub", ["main"])
    other = clone(str(hub.git_dir), tmp_path / "other")
    assert other.read_note(SCORES, head) == '{"a": 1}\n'
    other.write_note(SCORES, head, '{"a": 1}\n{"b": 2}\n')
    push(other, "origin", ["main"])
    repo.write_note(SCORES, head, '{"a": 1}\n{"c": 3}\n')
    push(repo, "hub", ["main"])
    fetch(other, "origin")
    expected = '{"a": 1}\n{"b": 2}\n{"c": 3}\n'
    assert [r.read_note(SCORES, head) for r in (repo, hub, other)] == [expected] * 3
    assert set(repo.refs("refs/notes/")) == {SCORES}


def test_objects_are_there_before_a_ref_names_them(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    hub = hub_of(repo, tmp_path / "hub.git")
    hook = hub.git_dir / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\nls modelgit/packs > seen\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RemoteError, match=r"hub refused the push: .*pre-receive hook declined"):
        push(repo, "hub", ["main"])
    assert len((hub.git_dir / "seen").read_text().split()) == 1
    assert hub.branches() == {}
    hook.unlink()
    assert push(repo, "hub", ["main"]).objects == 0
    assert sound(hub)


def test_a_damaged_object_never_arrives(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    (pack,) = (repo.git_dir / "modelgit" / "packs").iterdir()
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    os.chmod(pack, 0o644)  # noqa: PTH101
    pack.write_bytes(content)
    with pytest.raises(Exception, match=r"damaged|checksum|does not|corrupt|wrong"):
        clone(str(tmp_path / "r"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def push_often(place: Path, hub: Path, number: int, results: "multiprocessing.Queue[int]") -> None:
    """Clones, then commits to a branch of its own and pushes it, three times."""
    repo = clone(str(hub), place)
    git(place, "branch", f"own{number}")
    checkout(repo, f"own{number}")
    for i in range(3):
        version(repo, 10 * number + i)
        push(repo, "origin", [f"own{number}"])
    results.put(number)


def test_many_push_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    repo = started(tmp_path / "r")
    hub = hub_of(repo, tmp_path / "hub.git")
    push(repo, "hub", ["main"])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=push_often, args=(tmp_path / f"c{i}", hub.git_dir, i, results)) for i in range(3)
    ]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=120) for _ in processes) == [0, 1, 2]
    for process in processes:
        process.join()
    hub = Repository.open(tmp_path / "hub.git")
    assert [len(list(hub.log([f"own{i}"]))) for i in range(3)] == [4, 4, 4]
    assert sound(hub)
