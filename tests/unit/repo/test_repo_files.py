"""Writing into a work tree: whole or not at all, never through a link, never over what is not expected."""

import os
import time
from pathlib import Path

import pytest

from modelgit.errors import DirtyWorktree, FormatError, StorageFull
from modelgit.repo.files import (
    backdate,
    delete_path,
    make_parents,
    refuse_obstacles,
    stat_of,
    write_ordinary,
)


def test_a_stat_is_of_an_ordinary_file_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    found = stat_of(tmp_path, "file")
    assert found is not None and found.st_size == 3
    assert stat_of(tmp_path, "folder") is None
    assert stat_of(tmp_path, "none") is None
    assert stat_of(tmp_path, "file/inside") is None


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "one").symlink_to(outside / "file")
    with pytest.raises(FormatError, match="is a link, expected a folder"):
        stat_of(root, "link/file")
    with pytest.raises(FormatError, match="expected an ordinary file, found a link"):
        stat_of(root, "one")
    with pytest.raises(FormatError, match="is a link, expected a folder"):
        make_parents(root, "link/file")
    with pytest.raises(FormatError, match="is a link, expected a folder"):
        refuse_obstacles(root, ["link/file"], [])
    delete_path(root, "link/file")
    assert (outside / "file").read_bytes() == b"precious"
    write_ordinary(root / "one", b"new", "100644")
    assert (outside / "file").read_bytes() == b"precious"
    assert (root / "one").read_bytes() == b"new"


def test_files_in_the_way_are_named_unless_they_go(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(b"")
    with pytest.raises(DirtyWorktree, match=r"the reverse: a, d/e/f$"):
        refuse_obstacles(tmp_path, ["a/b", "d"], [])
    refuse_obstacles(tmp_path, ["a/b", "d"], ["a", "d/e/f"])
    delete_path(tmp_path, "a")
    delete_path(tmp_path, "d/e/f")
    make_parents(tmp_path, "a/b")
    assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "d").exists()


def test_an_empty_folder_gives_way_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    make_parents(tmp_path, "x")
    write_ordinary(tmp_path / "x", b"1", "100755")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o755


def test_a_refused_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageFull, match="cannot write"):
        write_ordinary(tmp_path / "taken", b"1", "100644")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_file_written_just_now_is_backdated_and_an_old_one_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.write_bytes(b"1")
    assert backdate(place).st_mtime_ns < time.time_ns() - 1_900_000_000
    os.utime(place, ns=(10, 10))
    assert backdate(place).st_mtime_ns == 10
