"""Whole files: in and out byte for byte, whatever the header looks like."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from modelgit.errors import CorruptObject, FormatError, MissingObject, StorageFull
from modelgit.events import Advanced, Event, Started
from modelgit.formats.manifest import Manifest, TensorEntry, parse, write
from modelgit.store.files.intake import store_file, store_tensors
from modelgit.store.files.materialise import materialise
from modelgit.store.files.tensors import FileTensors, StoredTensors
from modelgit.store.objects import ObjectStore

WIDTHS = {"BF16": 2, "F32": 4, "F16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "F64": 8}
Table = dict[str, tuple[str, list[int]]]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "modelgit", threads=2)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def file_of(path: Path, table: Table, *, pad: bytes = b"", seed: int = 0, extra: object = None) -> Path:
    """Write a safetensors file whose header lists `table` in its order."""
    described: dict[str, object] = {} if extra is None else {"__metadata__": extra}
    data = b""
    for number, (name, (dtype, shape)) in enumerate(table.items()):
        size = int(np.prod(shape, dtype=np.int64)) * WIDTHS[dtype]
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += noise(size, seed + number)
    header = json.dumps(described).encode() + pad
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def commit(store: ObjectStore, path: Path, parent: Manifest | None = None) -> Manifest:
    with store.begin() as pack:
        manifest = store_file(pack, path, parent)
        pack.commit()
    return manifest


MIXED: Table = {
    "z.weight": ("BF16", [300, 400]),
    "a.bias": ("F32", [7]),
    "odd": ("U8", [3]),
    "misaligned": ("F32", [50_000]),
    "scalar": ("I64", []),
    "empty": ("F16", [0, 4]),
    "mask": ("BOOL", [5]),
    "eight": ("F8_E4M3", [70_001]),
    "complex": ("C64", [9000]),
    'naïve "name"': ("F64", [2, 2]),
    "big": ("F16", [3, 1 << 20]),
}


@pytest.mark.parametrize("pad", [b"", b" ", b"     "])
def test_files_come_back_byte_for_byte(store: ObjectStore, tmp_path: Path, pad: bytes) -> None:
    path = file_of(tmp_path / "in.safetensors", MIXED, pad=pad, extra={"format": "pt", "note": "é"})
    manifest = commit(store, path)
    assert [entry.name for entry in manifest.tensors] == sorted(MIXED, key=str.encode)
    assert manifest.size_bytes == path.stat().st_size
    assert parse(write(manifest), "test") == manifest
    materialise(store, manifest, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == path.read_bytes()
    assert store.fsck(full=True).problems == ()


def test_a_file_without_tensors_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "none", {})
    materialise(store, commit(store, path), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_header_and_tensors_are_of_one_file(store: ObjectStore, tmp_path: Path) -> None:
    """A trainer puts its next checkpoint into the place of the last one, after the header was read."""
    new = file_of(tmp_path / "new", {"b": ("F32", [30])}, seed=1)

    class Replaced(type(tmp_path)):  # type: ignore[misc]
        def open(self, *arguments: Any, **options: Any) -> Any:
            file = super().open(*arguments, **options)
            new.replace(str(self))
            return file

    path = Replaced(file_of(tmp_path / "old", {"a": ("F32", [30])}))
    with store.begin() as pack, pytest.raises(FormatError, match="changed while it was read"):
        store_file(pack, path)


def test_an_unchanged_file_adds_nothing(store: ObjectStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "in", MIXED)
    first = commit(store, path)
    size = store.size_on_disk()
    assert commit(store, path, first) == first
    assert commit(store, path) == first
    assert store.size_on_disk() == size


def test_a_fine_tune_is_stored_as_differences(store: ObjectStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "in", MIXED)
    first = commit(store, path)
    data = bytearray(path.read_bytes())
    changed = slice(-2, -6_000_000, -100)
    data[changed] = bytes((value + 1) % 256 for value in data[changed])
    path.write_bytes(data)
    second = commit(store, path, first)
    assert store.info(second.entry("big").oid).codec == "delta"
    assert store.info(second.entry("big").oid).parents == (first.entry("big").oid,)
    materialise(store, second, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(data)


def test_an_older_file_is_reused_and_checked(store: ObjectStore, tmp_path: Path) -> None:
    first = commit(store, file_of(tmp_path / "a", MIXED))
    second = commit(store, file_of(tmp_path / "b", {**MIXED, "new": ("F32", [40_000])}))
    target = tmp_path / "work"
    materialise(store, first, target)
    damaged = bytearray(target.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    target.write_bytes(damaged)
    materialise(store, second, target, previous=first)
    assert target.read_bytes() == (tmp_path / "b").read_bytes()
    materialise(store, first, tmp_path / "absent", previous=second)
    assert (tmp_path / "absent").read_bytes() == (tmp_path / "a").read_bytes()


def test_tensors_given_one_by_one_make_the_file_that_safetensors_writes(store: ObjectStore, tmp_path: Path) -> None:
    from safetensors.numpy import save

    arrays: dict[str, npt.NDArray[Any]] = {
        "w": np.arange(200_000, dtype=np.float32),
        "b": np.ones(3, np.float16),
        "n": np.array(4, np.int64),
    }
    buffer = bytearray(800_000)

    def one_by_one() -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
        for name, dtype in (("w", "F32"), ("b", "F16"), ("n", "I64")):
            raw = arrays[name].tobytes()
            buffer[: len(raw)] = raw  # the same memory for every tensor
            yield name, dtype, arrays[name].shape, memoryview(buffer)[: len(raw)]

    with store.begin() as pack:
        manifest = store_tensors(pack, one_by_one(), {"format": "np"})
        pack.commit()
    materialise(store, manifest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == save(arrays, {"format": "np"})


def test_tensors_of_the_wrong_length_are_refused(store: ObjectStore) -> None:
    with store.begin() as pack, pytest.raises(FormatError, match="expected 8 bytes"):
        store_tensors(pack, [("w", "F32", (2,), memoryview(bytes(7)))], {})


def test_sources_agree_on_names_entries_and_bytes(store: ObjectStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "in", MIXED)
    stored, direct = StoredTensors(store, commit(store, path)), FileTensors(path)
    assert list(stored.names()) == list(direct.names())
    for name in direct.names():
        assert stored.entry(name) == direct.entry(name)
        assert stored.read(name) == direct.read(name)
        assert [len(frame) for frame in stored.frames(name)] == [len(frame) for frame in direct.frames(name)]
        assert b"".join(map(bytes, stored.frames(name))) == stored.read(name)
    with pytest.raises(FormatError):
        stored.entry("absent")
    with pytest.raises(FormatError, match="no tensor 'absent'"):
        direct.entry("absent")


def test_a_manifest_that_contradicts_its_header_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    manifest = commit(store, file_of(tmp_path / "in", {"a": ("F32", [4]), "b": ("F32", [8])}))
    a, b = manifest.tensors
    wrong = [
        replace(manifest, tensors=(a,)),
        replace(manifest, tensors=(a._replace(name="c"), b)),
        replace(manifest, tensors=(a._replace(dtype="I32"), b)),
        replace(manifest, tensors=(a._replace(oid=b.oid), b)),
        replace(manifest, size_bytes=manifest.size_bytes + 1),
        replace(manifest, header_bytes=manifest.header_bytes - 1),
        replace(manifest, header=a.oid),
    ]
    for other in wrong:
        with pytest.raises(CorruptObject):
            materialise(store, other, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "modelgit"]


def test_a_missing_object_leaves_the_old_file(store: ObjectStore, tmp_path: Path) -> None:
    manifest = commit(store, file_of(tmp_path / "in", {"a": ("F32", [4])}))
    (tmp_path / "out").write_bytes(b"old")
    broken = replace(manifest, tensors=(TensorEntry("a", "F32", (4,), "0" * 64),))
    with pytest.raises(MissingObject):
        materialise(store, broken, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "modelgit", "out"]


def test_a_folder_that_is_absent_is_named(store: ObjectStore, tmp_path: Path) -> None:
    manifest = commit(store, file_of(tmp_path / "in", {"a": ("F32", [4])}))
    with pytest.raises((StorageFull, Exception), match="nowhere"):
        materialise(store, manifest, tmp_path / "nowhere" / "out")


def test_a_file_that_is_cut_while_it_is_read_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    path = file_of(tmp_path / "in", {"a": ("F32", [100_000]), "b": ("F32", [100_000])})

    def cut(event: Event) -> None:
        if isinstance(event, Advanced):
            path.write_bytes(path.read_bytes()[:1000])

    with store.begin() as pack, pytest.raises(FormatError, match=r"while it was read|cut short|size"):
        store_file(pack, path, None, cut)
        store_file(pack, path, None, cut)


def test_the_listener_hears_of_every_byte(store: ObjectStore, tmp_path: Path) -> None:
    events: list[Event] = []
    path = file_of(tmp_path / "in", MIXED)
    with store.begin() as pack:
        manifest = store_file(pack, path, None, events.append)
        pack.commit()
    started = events[0]
    assert isinstance(started, Started)
    assert started.total == sum(e.n for e in events if isinstance(e, Advanced))
    events.clear()
    materialise(store, manifest, tmp_path / "out", events.append)
    data = manifest.size_bytes - manifest.header_bytes
    assert sum(e.n for e in events if isinstance(e, Advanced)) == data


def test_older_versions_are_looked_at_only_as_far_as_need_be(store: ObjectStore, tmp_path: Path) -> None:
    near = commit(store, file_of(tmp_path / "near", {"a": ("F32", [50_000])}))
    old = commit(store, file_of(tmp_path / "old", {"a": ("F32", [50_000]), "b": ("F32", [50_000])}, seed=1))
    asked: list[str] = []

    def older() -> Iterator[dict[str, TensorEntry]]:
        for name, manifest in (("old", old), ("older", near)):
            asked.append(name)
            yield {entry.name: entry for entry in manifest.tensors}

    def stored(name: str) -> tuple[str, ...]:
        data = bytearray(store.read(old.entry(name).oid))
        data[4] ^= 1
        shape = [50_000]
        with store.begin() as pack:
            made = store_tensors(pack, [(name, "F32", shape, memoryview(data))], {}, near, older())
            pack.commit()
        return store.info(made.entry(name).oid).parents

    assert (stored("b"), asked) == ((old.entry("b").oid,), ["old"])
    asked.clear()
    stored("a")
    assert asked == []
