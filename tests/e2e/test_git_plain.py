"""Plain git in a repository with weights: verbs that write files leave real ones, and git sees them unchanged."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from plain_git import (
    MODEL,
    clean,
    commit,
    copied,
    environment,
    git,
    leftovers,
    load,
    modelgit,
    moved,
    run,
    save,
    tensors,
)

from modelgit.formats.manifest import is_manifest
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import checkout, commit_worktree, status

BASE = tensors()
OTHER = moved(BASE, {"a.weight": 0.5})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: `base` on main; `other` on a branch, tagged `changed`; both by plain git."""
    work = tmp_path_factory.mktemp("made") / "work"
    modelgit(work.parent, "init", str(work))
    (work / "notes.txt").write_text("an ordinary file")
    commit(work, BASE, "base")
    git(work, "switch", "--quiet", "-c", "other")
    commit(work, OTHER, "other")
    git(work, "tag", "changed")
    git(work, "switch", "--quiet", "main")
    return work


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it; nothing unfinished may be left there."""
    work = copied(made, tmp_path / "work")
    yield work
    assert leftovers(work) == []


def same(place: Path, values: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]) -> bool:
    found = load(place)
    return found.keys() == values.keys() and all(np.array_equal(found[name], values[name]) for name in values)


def test_add_and_commit_store_tensors_and_git_holds_a_manifest(place: Path) -> None:
    assert is_manifest(git(place, "show", "--no-textconv", f"main:{MODEL}").encode()[:64])
    assert modelgit(place, "fsck", "--full").startswith("ok 2 versions")
    assert same(place, BASE)
    assert clean(place)
    stored = sum(path.stat().st_size for path in (place / ".git" / "modelgit" / "packs").iterdir())
    assert stored < 2 * (place / MODEL).stat().st_size, "the second version is stored as a difference"


def test_verbs_that_write_files_leave_weights(place: Path) -> None:
    git(place, "switch", "--quiet", "other")
    assert same(place, OTHER) and clean(place)
    git(place, "reset", "--quiet", "--hard", "main")
    assert same(place, BASE) and clean(place)
    git(place, "reset", "--quiet", "--hard", "ORIG_HEAD")
    (place / MODEL).unlink()
    (place / "folder").mkdir()
    git(place / "folder", "restore", f"../{MODEL}")
    assert same(place, OTHER) and clean(place)
    git(place / "folder", "checkout", "--quiet", "main", "--", f"../{MODEL}")
    assert same(place, BASE)
    assert git(place, "status", "--porcelain") == f"M  {MODEL}\n"
    git(place, "checkout", "--quiet", "HEAD", "--", MODEL)
    (place / MODEL).unlink()
    git(place, "checkout-index", "--all", "--force")
    assert same(place, OTHER)
    git(place, "update-index", "--refresh")
    assert clean(place)
    git(place, "bisect", "start", "other", "main")
    git(place, "bisect", "reset", "main")
    assert same(place, BASE) and clean(place)


def test_rebase_and_stash_leave_weights(place: Path) -> None:
    (place / "more.txt").write_text("x")
    git(place, "add", "more.txt")
    git(place, "commit", "--quiet", "--message", "more")
    git(place, "rebase", "--quiet", "other")
    assert same(place, OTHER) and clean(place)
    changed = moved(OTHER, {"b.weight": 1.0})
    data = save(place, changed)
    git(place, "stash")
    assert same(place, OTHER) and clean(place)
    git(place, "stash", "pop")
    assert (place / MODEL).read_bytes() == data
    assert git(place, "status", "--porcelain") == f" M {MODEL}\n", "the trap: clean over changed weights"
    git(place, "stash", "--quiet")
    git(place, "stash", "apply", "--index", "--quiet")
    git(place, "commit", "--quiet", "--all", "--message", "changed")
    assert (place / MODEL).read_bytes() == data and clean(place)
    assert same(place, changed)


def test_git_reads_no_weights_to_say_that_nothing_has_changed(place: Path) -> None:
    git(place, "switch", "--quiet", "other")
    trace = place.parent / "trace"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=openat,open", "git", "status", "--porcelain"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, env=environment(), check=False)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    assert done.stdout == b""
    assert ".git/index" in trace.read_text()
    assert MODEL not in trace.read_text()


def test_linked_work_trees_each_have_their_files(place: Path) -> None:
    second = place.parent / "second"
    git(place, "worktree", "add", "--quiet", str(second), "other")
    assert same(second, OTHER) and clean(second)
    assert same(place, BASE) and clean(place)
    commands = [(place, "git switch -q --detach other; git switch -q main"), (second, "git reset -q --hard HEAD~1")] * 2
    running = [subprocess.Popen(["sh", "-c", c], cwd=p, env=environment(), stderr=subprocess.PIPE) for p, c in commands]
    complaints = [process.communicate()[1].decode() for process in running]
    assert all("modelgit" not in complaint for complaint in complaints)
    for tree in (place, second):
        git(tree, "reset", "--quiet", "--hard", "main")
        assert same(tree, BASE) and clean(tree)
    outside = ("--git-dir", str(place / ".git"), "--work-tree", str(place))
    git(place.parent, *outside, "checkout", "--quiet", "--detach", "changed")
    assert same(place, OTHER) and clean(place)


def test_two_commands_at_once_leave_one_of_both_results(place: Path) -> None:
    commands = [["git", "checkout", "--quiet", "--force", "--detach", name] for name in ("main", "other") * 3]
    running = [subprocess.Popen(c, cwd=place, env=environment(), stderr=subprocess.PIPE) for c in commands]
    for process in running:
        process.communicate()
    git(place, "reset", "--quiet", "--hard")
    assert same(place, BASE if git(place, "rev-parse", "HEAD") == git(place, "rev-parse", "main") else OTHER)
    assert clean(place)


def test_a_malformed_file_is_refused_and_nothing_is_staged(place: Path) -> None:
    for content, message in ((b"no model", "not a safetensors file"), (save(place, OTHER)[:-9], "truncated")):
        (place / MODEL).write_bytes(content)
        done = run(place, "git", "add", MODEL, code=128)
        assert f"error: {MODEL}: {message}" in done.stderr
        assert "internal error" not in done.stderr and "Traceback" not in done.stderr
    assert git(place, "diff", "--cached", "--name-only") == ""
    (place / MODEL).write_bytes(save(place, OTHER) + b"more")
    assert "bytes after the last tensor" in run(place, "git", "add", MODEL, code=128).stderr
    (place / MODEL).write_bytes(b"")
    assert "0 bytes, expected a header" in run(place, "git", "add", MODEL, code=128).stderr
    save(place, OTHER, "new.safetensors")
    git(place, "add", "--intent-to-add", "new.safetensors")  # git has an empty blob in its place now
    (place / "new.safetensors").write_bytes(b"")
    assert "0 bytes, expected a header" in run(place, "git", "commit", "-am", "Never", code=128).stderr
    git(place, "rm", "--quiet", "-f", "new.safetensors")
    git(place, "reset", "--quiet", "--hard")


def test_diff_and_log_tell_of_tensors(place: Path) -> None:
    save(place, moved(BASE, {"a.weight": 0.25}))
    text = git(place, "diff")
    assert text.startswith(f"diff --modelgit a/{MODEL} b/{MODEL}\n")
    row = next(line.split() for line in text.splitlines() if line.startswith("a.weight"))
    length = float(np.linalg.norm(BASE["a.weight"]))
    step = float(np.linalg.norm(moved(BASE, {"a.weight": 0.25})["a.weight"] - BASE["a.weight"]))
    assert row[1:6] == ["F32", "[150,", "200]", "100.0", "%"] and float(row[6]) == pytest.approx(
        step / length, rel=0.01
    )
    assert text.splitlines()[-1] == "1 tensor differs, 2 the same"
    git(place, "reset", "--quiet", "--hard")
    assert "a.weight" in git(place, "diff", "main", "other")
    log = git(place, "log", "-p", "-1", "other")
    assert "-a.weight F32 [150,200] " in log and "+a.weight F32 [150,200] " in log and " b.weight F32" in log
    assert "new file mode 100644" in git(place, "diff", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "main")
    assert "other" not in git(place, "blame", "-s", "main", "--", MODEL).split("\n")[1]
    blame = [line.split()[0] for line in git(place, "blame", "-s", "other", "--", MODEL).splitlines()]
    assert blame[2] != blame[0] == blame[1] == blame[3] == blame[4]  # the first say what the others are


def test_a_diff_without_objects_names_the_tensors(place: Path) -> None:
    for pack in (place / ".git" / "modelgit" / "packs").iterdir():
        pack.unlink()
    text = git(place, "diff", "main", "other")
    assert "a.weight" in text and "numbers are absent: their objects are not here" in text


def test_missing_objects_never_stop_a_checkout(place: Path) -> None:
    bare = place.parent / "bare.git"
    git(place.parent, "init", "--quiet", "--bare", str(bare))
    git(place, "remote", "add", "origin", str(bare))
    git(place, "push", "--quiet", "origin", "main", "other")
    packs = place / ".git" / "modelgit" / "packs"
    for pack in packs.iterdir():
        pack.unlink()
    git(place, "switch", "--quiet", "other")
    assert same(place, OTHER) and clean(place), "the objects came from the remote"
    git(place, "remote", "remove", "origin")
    for pack in packs.iterdir():
        pack.unlink()
    done = run(place, "git", "switch", "main")
    assert f"error: {MODEL} holds its manifest only" in done.stderr and "modelgit checkout" in done.stderr
    assert is_manifest((place / MODEL).read_bytes()[:64])
    assert git(place, "status", "--porcelain") == ""
    git(place, "remote", "add", "again", str(bare))
    modelgit(place, "checkout")
    assert same(place, BASE) and clean(place)


def test_odd_indexes_are_served_too(place: Path) -> None:
    git(place, "update-index", "--index-version", "4")
    git(place, "switch", "--quiet", "other")
    assert same(place, OTHER) and clean(place)
    git(place, "update-index", "--assume-unchanged", "notes.txt")
    git(place, "reset", "--quiet", "--keep", "main")
    assert same(place, BASE)
    assert git(place, "ls-files", "-v").splitlines()[1] == "h notes.txt", "what else the index says stays"
    git(place, "update-index", "--split-index")
    git(place, "checkout", "--quiet", "--force", "--detach", "changed")
    assert same(place, OTHER) and clean(place)
    assert git(place, "fsck", "--strict") == ""


def test_an_older_repository_gets_the_new_settings(place: Path) -> None:
    old = f"{sys.executable} -P -m modelgit plumbing clean %f"
    for key in ("filter.modelgit.process", "modelgit.setup", "merge.modelgit.driver"):
        git(place, "config", "--unset", key)
    git(place, "config", "filter.modelgit.clean", old)
    git(place, "config", "filter.modelgit.smudge", "cat")
    data = save(place, OTHER)
    git(place, "add", MODEL)
    assert git(place, "rev-parse", f":{MODEL}") == git(place, "rev-parse", f"other:{MODEL}"), "the old one still works"
    modelgit(place, "commit", "-m", "by modelgit")
    assert "plumbing process" in git(place, "config", "filter.modelgit.process")
    assert git(place, "config", "filter.modelgit.clean", code=1) == ""
    assert (place / MODEL).read_bytes() == data and clean(place)


def test_a_manifest_with_marks_of_a_conflict_is_refused_unless_git_has_it(place: Path) -> None:
    text = git(place, "show", "--no-textconv", f"main:{MODEL}")
    broken = text.replace('"b', '<<<<<<< ours\n"b').encode()
    (place / MODEL).write_bytes(broken)
    done = run(place, "git", "add", MODEL, code=128)
    assert "line 5: expected" in done.stderr and "modelgit restore FILE" in done.stderr
    blob = git(place, "hash-object", "-w", "--no-filters", MODEL).strip()
    git(place, "update-index", "--cacheinfo", f"100644,{blob},{MODEL}")
    git(place, "commit", "--quiet", "-m", "made elsewhere")
    git(place, "update-index", "--really-refresh")
    assert git(place, "status", "--porcelain") == ""
    git(place, "switch", "--quiet", "other")
    assert same(place, OTHER) and clean(place)


def test_a_pointer_of_git_lfs_from_before_is_left_alone(place: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 54864\n"
    (place / MODEL).write_text(pointer)
    blob = git(place, "hash-object", "-w", "--no-filters", MODEL).strip()
    git(place, "update-index", "--cacheinfo", f"100644,{blob},{MODEL}")
    git(place, "commit", "--quiet", "-m", "before modelgit")
    git(place, "update-index", "--really-refresh")
    assert git(place, "status", "--porcelain") == ""
    (place / "notes.txt").write_text("changed")
    repo = Repository.open(place)
    assert commit_worktree(repo, "of notes alone") == repo.head()
    assert git(place, "rev-parse", f"HEAD:{MODEL}").strip() == blob
    assert status(repo).changes == ()
    checkout(repo, "other")
    assert same(place, OTHER) and clean(place)
    (place / MODEL).write_text(pointer)
    assert "a Git LFS pointer, expected the weight file itself" in run(place, "git", "add", MODEL, code=128).stderr
    assert [change.kind for change in status(repo).changes] == ["modified"]


def test_attributes_that_come_with_a_model_do_not_touch_manifests(place: Path) -> None:
    """Git would write `$Id$` for what follows an Id in a name, and the other branch's manifest as UTF-16."""
    (place / ".gitattributes").write_text("*.safetensors ident working-tree-encoding=UTF-16LE\n")
    data = commit(place, {**BASE, "a.$Id: weight $": BASE["a.weight"]}, "named oddly")
    git(place, "switch", "--quiet", "other")
    assert same(place, OTHER) and clean(place)
    git(place, "switch", "--quiet", "main")
    assert (place / MODEL).read_bytes() == data and clean(place)
    assert '"a.$Id: weight $" F32' in git(place, "show", "--no-textconv", f"main:{MODEL}")


def test_archives_hold_manifests(place: Path) -> None:
    archive = place.parent / "out.tar"
    git(place, "archive", "-o", str(archive), "main")
    text = subprocess.run(["tar", "-xOf", str(archive), MODEL], capture_output=True, check=True).stdout
    assert is_manifest(text[:64])
    assert (place / MODEL).stat().st_size > len(text)
