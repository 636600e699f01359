"""An entry's stat in git's index is set in place, in every version of the format, and git finds nothing amiss."""

import subprocess
from pathlib import Path

import pytest

from modelgit.errors import RepositoryError
from modelgit.repo.stamps import Stamp, index_lock, layout, patched, put_stamp

STAMP = Stamp((11, 12), (13, 14), 15, 16, 17, 18, 19)
PATHS = ("a", "a/longer/path/that/shares/a/prefix", "a/longer/path/that/shares/more", "b", "é.txt")


def git(place: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["git", *arguments], cwd=place, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(params=["2", "3", "4"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    shas = {path: git(tmp_path, "hash-object", "-w", "--stdin", stdin=path).strip() for path in PATHS[1:]}
    rows = "".join(f"100644 {sha} 0\t{path}\n" for path, sha in shas.items())
    rows += "".join(f"100644 {shas['b']} {stage}\tconflict\n" for stage in (1, 2, 3))
    git(tmp_path, "update-index", "--index-info", stdin=rows)
    git(tmp_path, "update-index", "--index-version", request.param)
    if request.param == "3":
        (tmp_path / "intended").touch()
        git(tmp_path, "add", "--intent-to-add", "intended")
    git(tmp_path, "update-index", "--assume-unchanged", "b")
    return tmp_path / ".git" / "index"


def stats_of(index: Path, path: str) -> list[str]:
    text = git(index.parents[1], "-c", "core.quotepath=false", "ls-files", "--debug", "--", path)
    return [word for word in text.replace("\t", " ").replace(":", " ").split()[1:] if word.isdigit()]


@pytest.mark.parametrize("path", PATHS[1:])
def test_only_the_stat_of_the_entry_changes(index: Path, path: str) -> None:
    place, before = index.parents[1], index.stat()
    listed = git(place, "ls-files", "--stage", "-v")
    sha = git(place, "rev-parse", f":{path}").strip()
    old = index.read_bytes()
    with index_lock(index) as lock:
        assert put_stamp(index, lock, path, sha, STAMP)
    assert index.stat().st_mtime_ns == before.st_mtime_ns, "racy entries of other files stay racy"
    assert index.stat().st_mode == before.st_mode
    assert stats_of(index, path)[:9] == ["11", "12", "13", "14", "15", "16", "17", "18", "19"]
    assert git(place, "ls-files", "--stage", "-v") == listed
    assert sum(a != b for a, b in zip(old, index.read_bytes(), strict=True)) <= 40 + 20
    assert not (index.parent / "index.lock").exists()


def test_an_entry_of_another_blob_or_in_conflict_is_left_alone(index: Path) -> None:
    place, old = index.parents[1], index.read_bytes()
    sha = git(place, "rev-parse", ":b").strip()
    with index_lock(index) as lock:
        for path in ("conflict", "absent", PATHS[1]):
            assert not put_stamp(index, lock, path, sha, STAMP)
    assert index.read_bytes() == old


def test_a_damaged_index_is_not_touched(index: Path) -> None:
    data = index.read_bytes()
    for size in (0, 3, 11, 40, len(data) // 2):
        index.write_bytes(data[:size])
        with index_lock(index) as lock:
            assert not put_stamp(index, lock, "zz", "0" * 40, STAMP)
    for changed in (b"DIRC\0\0\0\x09" + data[8:], data[:100] + bytes([data[100] ^ 1]) + data[101:]):
        assert patched(changed, {}) is None
    with pytest.raises(ValueError, match="version 9"):
        layout(bytearray(b"DIRC\0\0\0\x09" + data[8:-20] + bytes(20)))


def test_a_lock_that_stays_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "index.lock").touch()
    with pytest.raises(RepositoryError, match="index is locked") as caught, index_lock(tmp_path / "index"):
        raise AssertionError("not reached")
    assert f"rm {tmp_path / 'index.lock'}" in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["index.lock"]
