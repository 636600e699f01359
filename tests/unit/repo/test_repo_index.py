"""The index that is written is one that git reads: every path, blob, mode and stat, and the checksum."""

import subprocess
from pathlib import Path

import pytest

from modelgit.errors import RepositoryError
from modelgit.repo.index import Stamp, index_bytes, read_index, write_index
from modelgit.repo.repository import Repository
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
    assert index_bytes({}, {})[:12] == b"DIRC\0\0\0\x02\0\0\0\0"
