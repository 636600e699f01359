"""What every backend must do; a new one is added to `make_backend`."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelgit.errors import StorageFull, StoreError
from modelgit.store.backend import Backend, DirBackend, MemoryBackend

NOBODY = 65534
NAME = "packs/" + "a" * 64 + ".pack"


@pytest.fixture(params=["directory", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return DirBackend(tmp_path / "store") if request.param == "directory" else MemoryBackend()


def test_an_unused_backend_is_empty(backend: Backend) -> None:
    assert backend.list("packs/") == []
    with pytest.raises(StoreError):
        backend.size(NAME)
    with pytest.raises(StoreError):
        backend.read(NAME, 0, 1)


def test_pieces_come_back_in_ranges(backend: Backend) -> None:
    assert backend.put_if_absent(NAME, [b"hello ", bytearray(b"wor"), memoryview(b"ld")])
    assert backend.size(NAME) == 11
    assert backend.read(NAME, 6, 5) == b"world"
    into = bytearray(4)
    backend.read_into(NAME, 1, memoryview(into))
    assert into == b"ello"
    assert backend.list("packs/") == [NAME]


def test_a_range_beyond_the_end_is_refused(backend: Backend) -> None:
    backend.put_if_absent(NAME, [b"short"])
    with pytest.raises(StoreError):
        backend.read(NAME, 3, 3)
    with pytest.raises(StoreError):
        backend.read_into(NAME, 9, memoryview(bytearray(1)))


def test_a_piece_is_never_replaced(backend: Backend) -> None:
    assert backend.put_if_absent(NAME, [b"first"])
    assert not backend.put_if_absent(NAME, [b"second"])
    assert backend.read(NAME, 0, 5) == b"first"


def test_delete_is_final_and_may_be_repeated(backend: Backend) -> None:
    backend.put_if_absent(NAME, [b"x"])
    backend.delete(NAME)
    backend.delete(NAME)
    assert backend.list("packs/") == []


def test_a_stage_is_invisible_until_published(backend: Backend) -> None:
    stage = backend.stage()
    stage.write([b"abc", b"", b"defghi"])
    stage.rewind(5)
    stage.write([b"XY"])
    into = bytearray(3)
    stage.read_into(3, memoryview(into))
    assert into == b"deX"
    assert backend.list("packs/") == []
    before = backend.state()
    assert stage.publish(NAME)
    stage.discard()
    assert backend.read(NAME, 0, 7) == b"abcdeXY"
    assert backend.state() != before


def test_a_discarded_stage_leaves_nothing(backend: Backend) -> None:
    stage = backend.stage()
    stage.write([b"abc"])
    stage.discard()
    stage.discard()
    assert backend.list("packs/") == []


@pytest.mark.parametrize("name", ["../x", "packs/../../x", "packs/.hidden", "/etc/passwd", "a", "a/b/c", "packs/"])
def test_names_cannot_leave_the_store(backend: Backend, name: str) -> None:
    with pytest.raises(StoreError, match="not the name of a piece"):
        backend.put_if_absent(name, [b"x"])
    with pytest.raises(StoreError, match="not the name of a piece"):
        backend.read(name, 0, 1)


def test_many_small_parts_are_written_whole(backend: Backend) -> None:
    parts = [bytes([i % 251]) * (i % 7) for i in range(3000)]
    backend.put_if_absent(NAME, parts)
    assert backend.read(NAME, 0, backend.size(NAME)) == b"".join(parts)


def test_packs_on_disk_are_read_only(tmp_path: Path) -> None:
    DirBackend(tmp_path).put_if_absent(NAME, [b"x"])
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) & 0o222 == 0
    assert [p.name for p in (tmp_path / "packs").iterdir()] == [Path(NAME).name]


def test_temporary_files_of_dead_writers_are_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    backend = DirBackend(tmp_path)
    living = backend.stage()
    living.write([b"alive"])
    (tmp_path / "packs" / "tmp-1-dead").write_bytes(b"half a pack")
    other = backend.stage()
    left = sorted(p.name for p in (tmp_path / "packs").iterdir())
    assert "tmp-1-dead" not in left
    assert len(left) == 2
    living.discard()
    other.discard()


def test_a_refused_write_says_where(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises((StorageFull, StoreError), match="store"):
        DirBackend(tmp_path / "store").stage()


def test_no_permission_is_storage_full() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder lets nobody else in
        place = Path(name)
        place.chmod(0o555)
        with not_as_root(), pytest.raises(StorageFull, match="Permission denied"):
            DirBackend(place / "store").stage()


@contextmanager
def not_as_root() -> Iterator[None]:
    """Root may write anywhere: what is refused to others is tried as one of them."""
    user = os.geteuid()
    if not user:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_moved_piece_is_young_again_and_still_found_by_those_who_saw_it(backend: Backend) -> None:
    backend.put_if_absent(NAME, [b"hello"])
    backend.date(NAME, 1_000_000.0)
    assert backend.changed_at(NAME) == 1_000_000.0
    before = backend.state()
    moved = "condemned/" + NAME.removeprefix("packs/")
    backend.move(NAME, moved)
    assert backend.state() != before
    assert (backend.list("packs/"), backend.list("condemned/")) == ([], [moved])
    assert backend.changed_at(moved) > 1_000_000_000
    assert backend.read(moved, 0, 5) == b"hello"
    if isinstance(backend, DirBackend):
        assert backend.read(NAME, 1, 2) == b"el"
        assert backend.size(NAME) == 5
    backend.delete(moved)
    with pytest.raises(StoreError):
        backend.read(NAME, 0, 1)


def test_somebody_who_writes_is_noticed(tmp_path: Path) -> None:
    backend = DirBackend(tmp_path / "store")
    assert not backend.busy()
    stage = backend.stage()
    stage.write([b"x"])
    assert backend.busy()
    stage.discard()
    assert not backend.busy()
