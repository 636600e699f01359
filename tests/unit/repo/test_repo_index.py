"""The index that is written is one that git reads: every path, blob, mode and stat, flags, and the checksum."""

import os
import subprocess
from pathlib import Path

import pytest

from modelgit.errors import FormatError, RepositoryError
from modelgit.repo import index as written
from modelgit.repo.index import read_index, write_index
from modelgit.repo.look import status
from modelgit.repo.repository import Repository
from modelgit.repo.stamps import UNKNOWN, Stamp, index_lock, put_stamp, stamp_of
from modelgit.repo.values import Blob

STAMP = Stamp((1 << 31, 12), (13, 999_999_999), 15, (1 << 32) - 1, 17, 18, 19)
LONG = "d/" * 2047 + "ab"  # as long as a path may be, and longer than an entry can tell
PATHS = ("a", "a.b", "a/b", *(f"padded{'x' * count}" for count in range(9)), "é.txt", LONG)


def git(place: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["git", *arguments], cwd=place, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path)


def test_git_reads_every_entry(repo: Repository, tmp_path: Path) -> None:
    files = {path: repo.write_blob(path.encode()) for path in PATHS} | {"run": Blob("0" * 39 + "1", "100755")}
    before = read_index(repo)
    write_index(before, files, {"a": STAMP, "é.txt": STAMP})
    found = read_index(repo)
    assert found.blobs == files
    assert list(found.blobs) == sorted(files, key=str.encode)
    assert {path: stamp for path, stamp in found.stamps.items() if stamp != Stamp()} == {"a": STAMP, "é.txt": STAMP}
    with pytest.raises(RepositoryError, match="has written git's index meanwhile"):
        write_index(before, {}, {})


def test_git_finds_nothing_amiss_and_goes_on_from_it(repo: Repository, tmp_path: Path) -> None:
    """fsck recomputes the checksum; a later `git add` reads all entries and writes them anew."""
    write_index(read_index(repo), {path: repo.write_blob(path.encode()) for path in PATHS}, {})
    git(tmp_path, "fsck", "--strict", "--no-dangling")
    (tmp_path / "another").write_text("x")
    git(tmp_path, "add", "another")
    assert set(read_index(repo).blobs) == {*PATHS, "another"}


def test_an_index_of_nothing_is_one(repo: Repository, tmp_path: Path) -> None:
    write_index(read_index(repo), {}, {})
    assert git(tmp_path, "ls-files") == ""
    git(tmp_path, "fsck", "--strict")
    assert repo.index_file.read_bytes()[:12] == b"DIRC\0\0\0\x02\0\0\0\0"


def test_a_path_that_gitpython_refuses_is_told_of(repo: Repository) -> None:
    write_index(read_index(repo), {"a": repo.write_blob(b"a")}, {})
    old = repo.index_file.read_bytes()
    with pytest.raises(FormatError, match="Invalid repository path 'c:x'") as caught:
        write_index(read_index(repo), {"c:x": repo.write_blob(b"a")}, {})
    assert "rename it" in (caught.value.hint or "")
    assert repo.index_file.read_bytes() == old
    assert not list(repo.git_dir.glob("*.tmp"))


# ---------------------------------------------------------------------- changed in place

KINDS = {
    "version 2": (),
    "version 4": ("--index-version", "4"),
    "untracked cache": ("--force-untracked-cache",),
    "split": ("--split-index",),
}


@pytest.fixture
def only_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing write an index anew."""

    def refused(*arguments: object) -> bytes:
        raise AssertionError("the index is written anew")

    monkeypatch.setattr(written, "written_anew", refused)


def prepared(repo: Repository, top: Path, *options: str) -> dict[str, Blob]:
    """Returns what an index of git's own says: cached trees, a flag, and an extension or version of its kind."""
    for path in ("a", "b/c", "b/d"):
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(path)
    git(top, "add", "--all")
    git(top, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "first")
    git(top, "update-index", "--assume-unchanged", "b/d")
    if options:
        git(top, "update-index", *options)
    git(top, "status")
    return dict(read_index(repo).blobs)


@pytest.mark.parametrize("kind", ["version 2", "version 4", "untracked cache"])
def test_entries_change_in_place(repo: Repository, tmp_path: Path, kind: str, only_in_place: None) -> None:
    files = prepared(repo, tmp_path, *KINDS[kind])
    old = repo.index_file.read_bytes()
    assert b"TREE" in old and (b"UNTR" in old) == (kind == "untracked cache")
    files |= {"a": repo.write_blob(b"other"), "b/c": Blob(files["b/c"].sha, "100755")}
    write_index(read_index(repo), files, {"a": STAMP, "b/d": stamp_of((tmp_path / "b/d").stat())})
    new, found = repo.index_file.read_bytes(), read_index(repo)
    assert found.blobs == files
    assert (found.stamps["a"], found.stamps["b/c"]) == (STAMP, UNKNOWN)
    assert new[4:8] == old[4:8], "the version of the format"
    assert b"TREE" not in new and (b"UNTR" in new) == (kind == "untracked cache")
    assert git(tmp_path, "ls-files", "-v").split() == ["H", "a", "H", "b/c", "h", "b/d"]
    git(tmp_path, "fsck", "--strict", "--no-dangling")
    tree = git(tmp_path, "ls-tree", "-r", git(tmp_path, "write-tree").strip())
    assert {row.split("\t")[1]: Blob(row.split()[2], row.split()[0]) for row in tree.splitlines()} == files


def test_extensions_stay_true_where_only_stats_change(repo: Repository, tmp_path: Path, only_in_place: None) -> None:
    files = prepared(repo, tmp_path)
    old = repo.index_file.read_bytes()
    write_index(read_index(repo), files, {"a": STAMP})
    new = repo.index_file.read_bytes()
    start = old.index(b"TREE")
    assert new[start:-20] == old[start:-20]
    assert read_index(repo).stamps["a"] == STAMP
    git(tmp_path, "fsck", "--strict", "--no-dangling")


@pytest.mark.parametrize("damage", ["split", "checksum"])
def test_what_is_not_known_is_written_anew(repo: Repository, tmp_path: Path, damage: str) -> None:
    files = prepared(repo, tmp_path, *KINDS.get(damage, ()))
    if damage == "checksum":
        data = bytearray(repo.index_file.read_bytes())
        data[-30] ^= 1  # in an extension: git reads the entries all the same
        repo.index_file.write_bytes(data)
    files["a"] = repo.write_blob(b"other")
    write_index(read_index(repo), files, {})
    assert read_index(repo).blobs == files
    assert git(tmp_path, "ls-files", "-v").split() == ["H", "a", "H", "b/c", "h", "b/d"], "flags stay then too"
    git(tmp_path, "fsck", "--strict", "--no-dangling")
    git(tmp_path, "write-tree")


def test_an_index_without_a_checksum_stays_one(repo: Repository, tmp_path: Path, only_in_place: None) -> None:
    files = prepared(repo, tmp_path)
    repo.index_file.write_bytes(repo.index_file.read_bytes()[:-20] + bytes(20))
    files["a"] = repo.write_blob(b"other")
    write_index(read_index(repo), files, {})
    assert repo.index_file.read_bytes()[-20:] == bytes(20)
    assert read_index(repo).blobs == files


@pytest.mark.parametrize("another", [False, True])
def test_an_intention_lasts_until_it_is_carried_out(repo: Repository, tmp_path: Path, another: bool) -> None:
    """Both ways of writing: in place, and anew for another path."""
    files = prepared(repo, tmp_path)
    for path in ("intended", "empty"):
        (tmp_path / path).touch()
        git(tmp_path, "add", "--intent-to-add", path)
    files |= {path: read_index(repo).blobs[path] for path in ("intended", "empty")}
    files["a"] = repo.write_blob(b"other")
    if another:
        files["new"] = repo.write_blob(b"new")
    write_index(read_index(repo), files, {"a": STAMP})
    status(repo)  # reads the empty files, which are what their entries seem to say
    assert set(git(tmp_path, "diff", "--name-only", "--diff-filter=A").split()) == {"empty", "intended"}
    (tmp_path / "intended").write_text("x")
    files |= {"intended": repo.write_blob(b"x")}
    write_index(read_index(repo), files, {"empty": stamp_of((tmp_path / "empty").stat())})
    assert git(tmp_path, "diff", "--name-only", "--diff-filter=A") == ""
    assert git(tmp_path, "diff", "--name-only", "--diff-filter=A", "--cached").split()[:2] == ["empty", "intended"]
    assert git(tmp_path, "ls-files", "-v", "b").split() == ["H", "b/c", "h", "b/d"]
    git(tmp_path, "fsck", "--strict", "--no-dangling")


def test_a_stat_that_proves_nothing_is_not_made_to_seem_to(repo: Repository, tmp_path: Path) -> None:
    """A file changed in the instant of the index has its entry's stat; a later index would hide the change."""
    prepared(repo, tmp_path)
    place, sha = tmp_path / "a", read_index(repo).blobs["a"].sha
    place.write_text("b")
    for either in (place, repo.index_file):
        os.utime(either, (10**9, 10**9))
    with index_lock(repo.index_file) as lock:
        assert put_stamp(repo.index_file, lock, "a", sha, stamp_of(place.stat()))
    (tmp_path / "b/c").touch()  # read by the next look, which writes its stat down
    before = repo.index_file.stat().st_ino
    assert [change.path for change in status(repo).changes] == ["a"]
    assert repo.index_file.stat().st_ino != before
    assert git(tmp_path, "status", "--porcelain").split() == ["M", "a"]
