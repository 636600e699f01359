"""Small tensors: read and hashed many at once, bundled, stored once each, found many at once."""

import gc
import json
import struct
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CorruptObject, FormatError, StoreError
from modelgit.events import Advanced, Event
from modelgit.formats.manifest import Manifest
from modelgit.formats.safetensors import TensorSpan
from modelgit.store.backend import DirBackend
from modelgit.store.bundling import SMALL_BYTES
from modelgit.store.catalog import FEW
from modelgit.store.codec.arrays import Bytes
from modelgit.store.files import intake
from modelgit.store.files.intake import runs, store_and_print
from modelgit.store.files.materialise import materialise
from modelgit.store.files.prints import print_of
from modelgit.store.identity import parse_oid
from modelgit.store.objects import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "modelgit", threads=2)


def write(path: Path, tensors: Sequence[bytes]) -> Path:
    """Write a file of 16-bit tensors."""
    table, start = {}, 0
    for number, data in enumerate(tensors):
        offsets = [start, start := start + len(data)]
        table[f"t{number:05}"] = {"dtype": "BF16", "shape": [len(data) // 2], "data_offsets": offsets}
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(tensors))
    return path


def many(seed: int = 0) -> list[bytes]:
    """Return tensors of all sizes up to the limit and some above, several of them equal, 12 MB in all."""
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal(6_000_000, np.float32) * 0.02).view(np.uint32) >> 16
    raw, sizes = weights.astype(np.uint16).tobytes(), rng.integers(0, SMALL_BYTES, 300) // 2 * 2
    sizes[[5, 6, 150, 299]] = [0, SMALL_BYTES - 2, SMALL_BYTES, 3 * SMALL_BYTES]
    starts = np.cumsum(sizes) - sizes
    tensors = [raw[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    return [*tensors, tensors[0], tensors[1], tensors[150], tensors[299], b""]


def commit(store: ObjectStore, path: Path, parent: Manifest | None = None) -> Manifest:
    with store.begin() as pack:
        manifest, found = store_and_print(pack, path, parent, lambda event: None)
        pack.commit()
    assert found == print_of(path)
    return manifest


def test_each_comes_back_and_is_stored_once(store: ObjectStore, tmp_path: Path) -> None:
    path = write(tmp_path / "in", many())
    manifest = commit(store, path)
    materialise(store, manifest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert sorted(store.oids()) == sorted(set(manifest.oids())) and len(set(manifest.oids())) < len(manifest.tensors)
    assert not store.fsck(full=True).problems
    before = store.size_on_disk()
    assert commit(store, path).tensors == manifest.tensors and store.size_on_disk() - before < 10_000


def test_a_fine_tune_hangs_on_its_parents(store: ObjectStore, tmp_path: Path) -> None:
    base = commit(store, write(tmp_path / "in", many()))
    before = store.size_on_disk()
    tuned = [bytes(byte ^ (at % 64 == 0) for at, byte in enumerate(data)) for data in many()[:40]]
    path = write(tmp_path / "tuned", tuned)
    manifest = commit(store, path, base)
    assert store.size_on_disk() - before < 0.3 * sum(map(len, tuned))
    depths = [store.info(entry.oid).depth for entry in manifest.tensors if entry.shape != (0,)]
    assert set(depths) == {1}
    materialise(store, manifest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_equal_ones_that_meet_while_a_bundle_is_written_are_stored_once(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes in the same run, after the bundle of the first was full and written."""
    monkeypatch.setattr(intake, "RUN_BYTES", 1 << 30)
    data = [*many()[:149], *many()[151:298]]
    manifest = commit(store, write(tmp_path / "in", [*data, *data, *data]))
    records = {store.open(entry.oid).record.offset for entry in manifest.tensors}
    assert store.size_on_disk() < 1.1 * sum(map(len, data)) and len(records) > 1


def test_runs_hold_small_ones_that_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "RUN_BYTES", 100_000)
    monkeypatch.setattr(intake, "RUN_TENSORS", 3)
    sizes = [60_000, 40_000, 1, 70_000, 0, 0, 0, 5, SMALL_BYTES]
    spans, start = [], 0
    for number, size in enumerate(sizes):
        spans.append(TensorSpan(str(number), "U8", (size,), start, start + size))
        start += size
    found = [(first, [span.end - span.start for span in run]) for first, run in runs(spans)]
    assert found == [(0, [60_000, 40_000]), (2, [1]), (3, [70_000]), (4, [0, 0, 0]), (7, [5]), (8, [SMALL_BYTES])]


def test_a_file_that_is_cut_inside_a_run_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    path = write(tmp_path / "in", many())

    def cut(event: Event) -> None:
        if isinstance(event, Advanced):
            path.write_bytes(path.read_bytes()[:100_000])

    with store.begin() as pack, pytest.raises(FormatError, match=r"while it was read"):
        store_and_print(pack, path, None, cut)
    assert list(store.oids()) == []


def test_what_reads_may_fail_and_the_pack_says_so(store: ObjectStore) -> None:
    def read(into: Bytes) -> Bytes:
        raise OSError("gone")

    with store.begin() as pack:
        pending = pack.enter_together(read, [(4, "F32", None), (4, "F32", None)])
        with pytest.raises(OSError, match="gone"):
            pending[1].oid()
    assert list(store.oids()) == []


def test_what_waits_for_its_record_keeps_nothing_else_in_memory(store: ObjectStore) -> None:
    """Tiny tensors among others that are stored already, or that go into another record."""
    others = np.random.default_rng(0).integers(0, 256, (4, SMALL_BYTES - 8), np.uint8)

    def read(number: int, into: Bytes) -> Bytes:
        rows = [(other, np.array([number + 1], "<u8").view(np.uint8)) for other in others]
        return np.concatenate([part for row in rows for part in row], out=into)

    sizes = [(SMALL_BYTES - 8, "F32", None), (8, "I64", None)] * len(others)
    with store.begin() as pack:
        tracemalloc.start()
        try:
            for number in range(256):  # 64 MiB
                pack.enter_together(partial(read, number), sizes)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        pack.commit()
    assert kept < 16 << 20
    assert len(list(store.oids())) == len(others) + 256


def test_packs_that_were_left_keep_no_parents_in_memory(tmp_path: Path) -> None:
    """Though nobody has looked for cycles yet."""
    store = ObjectStore(tmp_path / "modelgit", threads=1)
    rows = np.random.default_rng(0).integers(0, 256, (128, SMALL_BYTES - 8), np.uint8)
    parents: list[str | None] = [None] * len(rows)
    gc.disable()
    tracemalloc.start()
    try:
        kept = []
        for number in range(4):
            rows[:, number] ^= 1
            with store.begin() as pack:
                parents = [pack.add_tensor(row.data, "U8", parent) for row, parent in zip(rows, parents, strict=True)]
                pack.commit()
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.enable()
    assert {store.info(oid).depth for oid in store.oids()} == {0, 1, 2, 3}
    assert kept[3] - kept[1] < rows.nbytes


def damaged_parent(store: ObjectStore) -> tuple[str, bytes, str]:
    """Store a tensor and a child of it, and damage the parent's record; return parent, child's bytes, child."""
    with store.begin() as pack:
        parent = pack.add_tensor(b"abcd" * 100, "F32")
        pack.commit()
    with store.begin() as pack:
        child = pack.add_tensor(b"efgh" * 100, "F32")
        pack.commit()
    place = store.catalog.find(parse_oid(parent))
    assert place is not None and isinstance(store.backend, DirBackend)
    path = store.backend.root / place.pack
    data = bytearray(path.read_bytes())
    data[place.entry.offset + place.entry.length - 1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return parent, b"efgh" * 100, child


def test_no_id_is_given_of_what_could_not_be_taken_in(store: ObjectStore, tmp_path: Path) -> None:
    parent, _, _ = damaged_parent(store)
    again = ObjectStore(tmp_path / "modelgit", threads=2)

    def read(into: Bytes) -> Bytes:
        into[:] = 7
        return into

    with again.begin() as pack:
        pending = pack.enter_together(read, [(400, "F32", parent)])
        with pytest.raises(CorruptObject, match="checksum"):
            pending[0].oid()
        with pytest.raises(StoreError, match="left before"):
            pending[0].oid()


def test_what_is_stored_already_asks_for_no_parent(store: ObjectStore, tmp_path: Path) -> None:
    parent, data, child = damaged_parent(store)
    again = ObjectStore(tmp_path / "modelgit", threads=2)
    with again.begin() as pack:
        assert pack.add_tensor(data, "F32", parent) == child
        pack.commit()


def test_many_are_found_as_one_is(store: ObjectStore, tmp_path: Path) -> None:
    manifests = [commit(store, write(tmp_path / str(seed), many(seed)[:50])) for seed in (1, 2)]
    oids = [parse_oid(entry.oid) for manifest in manifests for entry in manifest.tensors]
    asked = [b"\0" * 32, *oids, b"\xff" * 32, oids[0][:8] + b"\0" * 24, *oids[:3]]
    one_by_one = [store.catalog.known(oid) for oid in asked]
    assert list(store.catalog.known_together(asked)) == one_by_one
    assert list(store.catalog.known_together(asked[: FEW - 1])) == one_by_one[: FEW - 1]
    assert sum(place is None for place in one_by_one) == 3
    assert list(ObjectStore(tmp_path / "none").catalog.known_together(asked)) == [None] * len(asked)
