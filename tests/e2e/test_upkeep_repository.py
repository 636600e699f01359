"""Upkeep of repositories: what git still has survives, whoever is killed or at work meanwhile; damage is mended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelgit.errors import DamageFound, RepositoryError, StoreError, UsageError
from modelgit.events import Advanced, Event, Started
from modelgit.porcelain.upkeep.collecting import age_seconds, gc
from modelgit.porcelain.upkeep.damage import fsck
from modelgit.porcelain.upkeep.usage import du
from modelgit.repo.repository import Repository
from modelgit.repo.transport import clone, fetch, push
from modelgit.repo.values import CommitDraft
from modelgit.repo.worktree import add, checkout, commit_worktree, status
from modelgit.store.upkeep.copying import alone

MODEL = "model.safetensors"
GC = """
import sys
from pathlib import Path
from modelgit.porcelain.upkeep.collecting import gc
from modelgit.repo.repository import Repository
gc(Repository.open(Path(sys.argv[1])), grace="0", prune="now", deep=len(sys.argv) > 2)
"""
READ = """
import sys, time
from pathlib import Path
from modelgit.repo.repository import Repository
repo = Repository.open(Path(sys.argv[1]))
manifest = repo.version("HEAD").manifests["model.safetensors"]
oids = manifest.oids()
first = [repo.store.read(oid) for oid in oids]
print("ready", flush=True)
end = time.monotonic() + 60
while not (Path(sys.argv[1]) / ".git" / "stop").exists() and time.monotonic() < end:
    assert [repo.store.read(oid) for oid in oids] == first
print("done", flush=True)
"""
WRITE = """
import os, signal, sys
from pathlib import Path
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import commit_worktree
from modelgit.store.files import intake
repo = Repository.open(Path(sys.argv[1]))
original = intake.store_and_print
def stopped(*arguments):
    made = original(*arguments)
    os.kill(os.getpid(), signal.SIGSTOP)  # all objects are known to be stored, no manifest is written yet
    return made
intake.store_and_print = stopped
commit_worktree(repo, "again")
"""
CALLS = "rename,renameat,renameat2,unlink,unlinkat,mkdir,fsync,utimensat,writev,flock"
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def save(root: Path, value: int) -> None:
    rng = np.random.default_rng(value)
    save_file(
        {
            "a": rng.normal(0, 0.02, 20_000).astype(np.float32),
            "b": np.full(300, value, np.float32),
            "same": np.arange(20_000, dtype=np.float32),
        },
        root / MODEL,
    )


def version(repo: Repository, value: int) -> str:
    root = Path(str(repo.worktree))
    save(root, value)
    made = commit_worktree(repo, f"version {value}")
    assert made is not None
    return made


def git(place: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(place), *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Three versions, of which git has forgotten the last."""
    found = Repository.init(tmp_path / "r")
    first, _, _ = (version(found, value) for value in (1, 2, 3))
    assert first == found.resolve("HEAD~2")
    git(tmp_path / "r", "config", "user.name", "t")
    git(tmp_path / "r", "config", "user.email", "t@example.org")
    return found


def forget(repo: Repository, rev: str) -> None:
    to = repo.resolve(rev)
    checkout(repo, to)
    git(repo.git_dir, "branch", "-f", "main", to)
    checkout(repo, "main")
    git(repo.git_dir, "reflog", "expire", "--expire=now", "--all")


def swept(repo: Repository) -> None:
    """Collects with no grace, twice: the second time all that was condemned is gone."""
    for _ in range(2):
        gc(repo, grace="0", prune="now")
    assert repo.store.backend.list("condemned/") == []


def value_of(repo: Repository, rev: str, tmp_path: Path) -> float:
    place = tmp_path / "look"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(repo.git_dir, place / ".git")
    copy = Repository.open(place)
    checkout(copy, rev, force=True)
    return float(load_file(place / MODEL)["b"][0])


def test_what_git_has_forgotten_goes_and_nothing_else(repo: Repository, tmp_path: Path) -> None:
    last = repo.resolve("HEAD")
    gone = set(repo.version(last).manifests[MODEL].oids())
    forget(repo, "HEAD~1")
    kept = {oid for rev in ("HEAD", "HEAD~1") for oid in repo.version(rev).manifests[MODEL].oids()}
    dry = gc(repo, dry_run=True, grace="0")
    assert (dry.bytes_after, dry.freed_bytes) == (dry.bytes_before, 0)  # git has not let go yet
    done = gc(repo, grace="0", prune="now")
    assert (done.bytes_after < done.bytes_before, done.freed_bytes > 0, done.postponed) == (True, True, False)
    assert set(repo.store.oids()) == kept
    assert gone - kept
    assert fsck(repo, full=True).versions == 2
    assert value_of(repo, "HEAD~1", tmp_path) == 1
    assert status(repo).changes == ()


@pytest.mark.parametrize("keeper", ["reflog", "stash", "index", "worktree", "linked", "tag", "merge", "detached"])
def test_whatever_git_keeps_keeps_its_objects(repo: Repository, tmp_path: Path, keeper: str) -> None:
    root, last = tmp_path / "r", repo.resolve("HEAD")
    manifest = repo.version(last).manifests[MODEL]
    if keeper == "reflog":
        git(root, "branch", "--create-reflog", "old", last)
        checkout(repo, "HEAD~1")
        git(root, "update-ref", "--create-reflog", "-m", "x", "refs/heads/old", repo.resolve("HEAD"))
        git(root, "update-ref", "refs/heads/main", repo.resolve("HEAD"))
        checkout(repo, "main")
        gc(repo, grace="0")  # git prunes nothing that is two weeks young, and expires no young reflog
        assert git(root, "rev-parse", "old@{1}") == last
    else:
        if keeper == "worktree":
            git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "linked"), last)
        elif keeper == "tag":
            git(root, "tag", "kept", last)
        elif keeper == "merge":
            (repo.git_dir / "MERGE_HEAD").write_text(last + "\n")
        forget(repo, "HEAD~1") if keeper != "merge" else git(root, "update-ref", "refs/heads/main", "HEAD~1")
        if keeper in ("index", "stash"):
            save(root, 3)
            add(repo, [MODEL])
        if keeper == "stash":
            git(root, "stash", "push", "-q")
        elif keeper == "detached":
            checkout(repo, last)
        elif keeper == "linked":
            git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "linked"))
            save(tmp_path / "linked", 3)
            add(Repository.open(tmp_path / "linked"), [MODEL])
        git(root, "reflog", "expire", "--expire=now", "--all") if keeper not in ("stash", "detached") else None
        swept(repo)
    fresh = Repository.open(root).store
    assert fresh.missing(manifest.oids()) == set()
    assert all(fresh.read(oid) is not None for oid in manifest.oids())


@pytest.mark.parametrize("bare", [False, True])
def test_an_empty_repository_needs_no_upkeep(tmp_path: Path, bare: bool) -> None:
    repo = Repository.init(tmp_path / "r", bare=bare)
    assert gc(repo, deep=True, grace="0", prune="now").bytes_after == 0
    assert (du(repo).versions, fsck(repo, repair=True).objects) == ((), 0)
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    git(repo.git_dir, "hash-object", "-w", str(tmp_path / "large"))
    assert gc(repo).bytes_after == 0


def test_git_that_cannot_be_read_stops_everything(repo: Repository) -> None:
    blob = repo.version("HEAD~1").manifest_blobs[MODEL].sha
    place = repo.git_dir / "objects" / blob[:2] / blob[2:]
    kept = place.read_bytes()
    place.chmod(0o644)
    for damage in (b"", kept[:-5]):
        place.write_bytes(damage)
        with pytest.raises(RepositoryError):
            gc(repo, grace="0", prune="now")
    place.unlink()
    with pytest.raises(RepositoryError):
        gc(repo, grace="0", prune="now")
    assert len(repo.store.backend.list("packs/")) == 3


def test_a_partial_clone_is_no_damage_but_not_enough(repo: Repository, tmp_path: Path) -> None:
    git(repo.git_dir, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{repo.worktree}", "partial")
    partial = Repository.open(tmp_path / "partial")
    for look in (fsck, gc, du):
        with pytest.raises(RepositoryError, match="left objects at a remote") as caught:
            look(partial)
        assert "partial clone" in str(caught.value.hint)


def test_a_suspended_writer_loses_nothing(repo: Repository, tmp_path: Path) -> None:
    forget(repo, "HEAD~1")
    save(tmp_path / "r", 3)  # every object of it is stored, no manifest names them
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "r")], stderr=subprocess.PIPE)
    try:
        assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])
        git(tmp_path / "r", "prune", "--expire=now")
        for path in (repo.git_dir / "modelgit" / "packs").iterdir():
            os.utime(path, (1e9, 1e9))
        assert gc(repo, prune="now").waiting_bytes > 0  # condemned, though the writer counts on it
        writer.send_signal(signal.SIGCONT)
        assert writer.communicate(timeout=30)[1].decode() == ""
    finally:
        writer.kill()
    assert fsck(repo, full=True).versions == 3
    for path in (repo.git_dir / "modelgit" / "condemned").iterdir():
        os.utime(path, (1e9, 1e9))
    gc(repo, prune="now")
    assert repo.store.backend.list("condemned/") == []
    assert fsck(Repository.open(tmp_path / "r"), full=True).versions == 3
    assert value_of(repo, "main", tmp_path) == 3


def test_readers_go_on_while_packs_are_condemned(repo: Repository, tmp_path: Path) -> None:
    forget(repo, "HEAD~1")
    reader = subprocess.Popen([sys.executable, "-c", READ, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for path in (repo.git_dir / "modelgit" / "packs").iterdir():
            os.utime(path, (1e9, 1e9))
        assert gc(repo, prune="now", deep=True).waiting_bytes > 0
        time.sleep(0.2)
        (repo.git_dir / "stop").touch()
        assert reader.stdout.readline() == "done\n"
        assert reader.wait(30) == 0
    finally:
        reader.kill()
        reader.wait()


def test_what_is_condemned_is_not_counted_on(repo: Repository, tmp_path: Path) -> None:
    """A gc that runs on the other side may be about to delete it."""
    git(tmp_path, "init", "-q", "--bare", "--initial-branch=main", "hub.git")
    git(tmp_path / "r", "remote", "add", "origin", "../hub.git")
    wanted = repo.version("HEAD").manifests[MODEL].oids()
    push(repo, "origin", ["main"])
    hub, copy = Repository.open(tmp_path / "hub.git"), Repository.init(tmp_path / "copy")
    git(tmp_path / "copy", "remote", "add", "origin", "../hub.git")
    fetch(copy, "origin")
    for place in (hub, copy):
        for name in place.store.backend.list("packs/"):
            place.store.backend.move(name, name.replace("packs/", "condemned/"))
    git(tmp_path / "hub.git", "update-ref", "-d", "refs/heads/main")
    git(tmp_path / "copy", "update-ref", "-d", "refs/remotes/origin/main")
    push(repo, "origin", ["main"])
    fetch(copy, "origin")
    for place in (hub, copy):
        assert place.store.missing(wanted, lasting=True) == set()


def test_two_collections_at_once(repo: Repository, tmp_path: Path) -> None:
    forget(repo, "HEAD~1")
    with alone(repo.store.backend), pytest.raises(StoreError, match="another gc"):
        gc(repo, grace="0", prune="now")
    both = [subprocess.Popen([sys.executable, "-c", GC, str(tmp_path / "r")], stderr=subprocess.PIPE) for _ in range(2)]
    assert 0 in [one.wait(60) for one in both]
    assert fsck(repo, full=True).versions == 2


def test_what_killed_commands_leave_is_tidied(repo: Repository, tmp_path: Path) -> None:
    root, hexes = tmp_path / "r", "0123456789abcdef"
    old = [repo.git_dir / "modelgit-index-1-1", root / f".{MODEL}.{hexes}.tmp", repo.git_dir / f"index.{hexes}.tmp"]
    young, mine = root / f".other.{hexes}.tmp", root / ".notes.tmp"
    stage = repo.git_dir / "modelgit" / "packs" / "tmp-1-ab"
    for path in (*old, young, mine, stage):
        path.write_text("x")
    for path in (*old, mine):
        os.utime(path, (1e9, 1e9))
    assert set(gc(repo, dry_run=True).leftovers) == set(map(str, old))
    assert set(gc(repo).leftovers) == set(map(str, old))
    assert [path.exists() for path in (*old, young, mine)] == [False] * 3 + [True, True]


def gathered(repo: Repository) -> None:
    """Puts three versions into one pack, and lets git forget the last: so its objects lie among others."""
    gc(repo, deep=True, grace="0", prune="now")
    forget(repo, "HEAD~1")


def aged(repo: Repository) -> None:
    """Makes what a killed writer left look older than a minute: a new empty file may be somebody's who starts."""
    for path in (repo.git_dir / "modelgit" / "packs").glob("tmp-*"):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("when", [1, 3, 4, 6, 7, 9, 10, 12])
@needs_strace
def test_a_killed_collection_is_done_again(repo: Repository, tmp_path: Path, when: int) -> None:
    gathered(repo)
    deep = ["deep"] if when % 2 else []
    effect = f"inject={CALLS}:signal=SIGKILL:when={when}"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", effect]
    code = subprocess.run(
        [*command, sys.executable, "-c", GC, str(tmp_path / "r"), *deep], check=False, capture_output=True
    ).returncode
    assert code in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
    fresh = Repository.open(tmp_path / "r")
    assert fsck(fresh, full=True).versions == 2
    save(tmp_path / "r", 5)
    assert commit_worktree(fresh, "after the crash") is not None
    aged(fresh)
    swept(fresh)
    assert fsck(fresh, full=True).versions == 3
    assert list((fresh.git_dir / "modelgit" / "packs").glob("tmp-*")) == []
    assert value_of(fresh, "HEAD~1", tmp_path) == 2


def test_deep_collection_gives_the_same_files_in_fewer_bytes(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repo = Repository.init(root)
    files = []
    base = np.random.default_rng(0).normal(0, 0.02, 60_000)
    for number in range(4):  # branches without a common ancestor: each stored alone
        values = (base + np.random.default_rng(1 + number).normal(0, 1e-5, 60_000)).astype(np.float32)
        git(root, "checkout", "-q", "--orphan", f"b{number}")
        git(root, "read-tree", "--empty")
        save_file({"w": values, "b": values[:200]}, root / MODEL)
        files.append((root / MODEL).read_bytes())
        assert commit_worktree(repo, f"import {number}") is not None
    before = du(repo)
    done = gc(repo, deep=True, grace="0", prune="now")
    assert done.deeper is not None
    assert done.bytes_after < 0.75 * done.bytes_before
    assert repo.store.backend.list("condemned/") == []
    for number, data in enumerate(files):
        checkout(repo, f"b{number}")
        assert (root / MODEL).read_bytes() == data
    after = du(repo)
    assert (after.size_bytes, after.stored_bytes < before.stored_bytes) == (before.size_bytes, True)
    assert fsck(repo, full=True).versions == 4
    assert gc(repo, deep=True, grace="0").deeper == 0


def damage(repo: Repository, position: int = 200) -> None:
    """Flips a bit in every pack."""
    for path in (repo.git_dir / "modelgit" / "packs").glob("*.pack"):
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)


def test_damage_is_mended_from_a_remote(repo: Repository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "--initial-branch=main", "hub.git")
    git(tmp_path / "r", "remote", "add", "origin", "../hub.git")
    push(repo, "origin", ["main"])
    copy = clone(str(tmp_path / "hub.git"), tmp_path / "copy")
    damage(copy)
    copy = Repository.open(tmp_path / "copy")
    with pytest.raises(DamageFound) as caught:
        fsck(copy)
    assert "--repair" in str(caught.value.hint)
    done = fsck(copy, repair=True)
    assert (done.brought > 0, len(done.put_aside)) == (True, 1)
    assert fsck(Repository.open(tmp_path / "copy"), full=True).objects == fsck(repo).objects
    checkout(copy, "HEAD~1")
    assert load_file(tmp_path / "copy" / MODEL)["b"][0] == 2


def test_what_nobody_has_is_named_with_who_needs_it(repo: Repository, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "r", tmp_path / "sound")
    damage(repo)
    repo = Repository.open(tmp_path / "r")
    with pytest.raises(DamageFound, match=rf"missing object [0-9a-f]{{64}}, needed by {MODEL} of version") as caught:
        fsck(repo, repair=True)
    assert "fsck --repair PATH" in str(caught.value.hint)
    assert len(repo.store.backend.list("damaged/")) == 3
    done = fsck(repo, repair=True, remotes=[str(tmp_path / "sound")])
    assert done.brought > 0
    assert value_of(repo, "HEAD~2", tmp_path) == 1


def test_a_manifest_that_its_header_does_not_bear_out_is_found(repo: Repository) -> None:
    """Nobody could check such a version out, though every object of it is sound."""
    found = repo.version("HEAD").manifests[MODEL]
    swapped = {"a": found.entry("same").oid, "same": found.entry("a").oid}
    fine = replace(found, tensors=tuple(e._replace(oid=swapped.get(e.name, e.oid)) for e in found.tensors))
    wrong = replace(found, tensors=tuple(e._replace(name=e.name.replace("b", "c")) for e in found.tensors))
    for manifest in (fine, wrong):
        repo.commit(
            CommitDraft((repo.resolve("main"),), {MODEL: manifest}, "by hand", (), "refs/heads/main", repo.head())
        )
    assert fsck(repo).versions == 5
    with pytest.raises(DamageFound, match=rf"^version {repo.resolve('main')[:10]}: {MODEL}: header") as caught:
        fsck(repo, full=True)
    assert "who made it" in str(caught.value.hint)


def test_fetch_brings_what_is_missing_or_lies_in_a_pack_without_index(repo: Repository, tmp_path: Path) -> None:
    copy = clone(str(tmp_path / "r"), tmp_path / "copy")
    damage(copy, -20)
    copy = Repository.open(tmp_path / "copy")
    assert fetch(copy, "origin").objects > 0
    assert len(copy.store.backend.list("damaged/")) == 1
    checkout(copy, "HEAD~1")
    assert load_file(tmp_path / "copy" / MODEL)["b"][0] == 2
    fsck(copy, repair=True)
    assert fsck(Repository.open(tmp_path / "copy")).versions == 3


def test_fetch_replaces_what_is_damaged_when_asked(repo: Repository, tmp_path: Path) -> None:
    clone(str(tmp_path / "r"), tmp_path / "copy")
    damage(Repository.open(tmp_path / "copy"))
    words = [sys.executable, "-m", "modelgit", "fetch", "--repair", "--json"]
    run = subprocess.run(words, cwd=tmp_path / "copy", check=True, capture_output=True)
    assert json.loads(run.stdout)["objects"] > 0
    assert fsck(Repository.open(tmp_path / "copy"), full=True).versions == 3


def test_use_is_told_for_versions_branches_and_tensors(repo: Repository, tmp_path: Path) -> None:
    told = du(repo)
    assert len(told.versions) == 3
    assert told.size_bytes == 3 * (tmp_path / "r" / MODEL).stat().st_size
    assert told.saved.sharing >= 2 * 80_000  # `same` is stored once
    assert (told.dead_bytes, told.waiting_bytes) == (0, 0)
    assert abs(told.disk_bytes - repo.store.size_on_disk()) < 3000  # indexes and footers
    (branch,) = told.branches
    assert (branch.branch, branch.versions, branch.own_bytes) == ("main", 3, branch.stored_bytes)
    assert told.stored_bytes == branch.stored_bytes
    assert {use.name for use in told.tensors} >= {"a", "same"}
    assert next(use.versions for use in told.tensors if use.name == "same") == 3
    one = du(repo, ["HEAD"])
    assert [use.commit for use in one.versions] == [repo.resolve("HEAD")]
    assert one.branches == ()
    assert 0 < one.versions[0].own_bytes < one.versions[0].stored_bytes
    forget(repo, "HEAD~1")
    git(tmp_path / "r", "prune", "--expire=now")
    assert du(repo).dead_bytes > 0


def test_what_takes_long_is_told(repo: Repository, tmp_path: Path) -> None:
    events: list[Event] = []
    fsck(repo, full=True, listener=events.append)
    du(repo, listener=events.append)
    clone(str(tmp_path / "r"), tmp_path / "copy", listener=events.append)
    begun = [(event.task, event.total) for event in events if isinstance(event, Started) and event.unit != "bytes"]
    versions, objects = ("look at versions", 3), len(list(repo.store.oids()))
    expected = [versions, ("check packs", objects), versions, versions, ("check objects", objects)]
    assert begun == expected
    for task, total in begun:
        done = sum(event.n for event in events if isinstance(event, Advanced) and event.task == task)
        assert done == (total or 0) * begun.count((task, total))
    save(tmp_path / "r", 9)
    status(repo, events.append)
    size = (tmp_path / "r" / MODEL).stat().st_size
    read = [event.total or 0 for event in events if isinstance(event, Started) and event.task == f"read {MODEL}"]
    assert len(read) == 1
    assert size - 1000 < read[0] < size


def test_the_commands_say_it_in_json(repo: Repository, tmp_path: Path) -> None:
    def told(*words: str) -> dict[str, object]:
        run = subprocess.run(
            [sys.executable, "-m", "modelgit", *words, "--json"], cwd=tmp_path / "r", check=True, capture_output=True
        )
        answer: dict[str, object] = json.loads(run.stdout)
        return answer

    assert told("du")["schema"] == 1
    assert told("gc", "--dry-run")["dry_run"] is True
    assert told("fsck", "--full", "--repair")["put_aside"] == []


def test_ages() -> None:
    assert [age_seconds(text) for text in ("14d", "2w", "12h", "5m", "30s", "3", "0", "now")] == [
        14 * 86_400, 2 * 604_800, 43_200, 300, 30, 3 * 86_400, 0, 0,
    ]  # fmt: skip
    with pytest.raises(UsageError):
        age_seconds("a while")
