"""Packs that no writer of ours makes, and honest ones in odd company: bounded work, our own errors, nothing lost."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import CorruptObject, ModelgitError
from modelgit.store.backend import MemoryBackend
from modelgit.store.identity import root, whole
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import FOOTER, MAGIC, Directory, Entry, write_directory, write_footer, write_index

BRIEF = settings(max_examples=30, deadline=None, derandomize=True)
WEIGHTS = np.random.default_rng(3).normal(0, 0.02, 20_000).astype("<f4")


def near(share: float) -> bytes:
    return (WEIGHTS * np.float32(1 + share)).tobytes()


def pack_of(records: list[tuple[bytes, Directory]]) -> bytes:
    """Return a pack of records without stored frames."""
    data, places = bytearray(MAGIC), dict[bytes, Entry]()
    for oid, directory in records:
        written = write_directory(directory)
        places[oid] = Entry(len(data), len(written), directory.size, 0, len(written))
        data += written
    index = write_index(places)
    return bytes(data) + index + write_footer(index, len(data))


def store_of(*packs: bytes) -> ObjectStore:
    backend = MemoryBackend()
    for number, pack in enumerate(packs):
        backend.put_if_absent(f"packs/{number:064x}.pack", [pack])
    return ObjectStore(backend, threads=1)


def recipe(leaf: bytes, parents: list[bytes], depth: int, cost: int) -> Directory:
    shares = (1.0,) * len(parents)
    return Directory("linear", "tensor", 4, depth, cost, 4, leaves=leaf, parents=tuple(parents), dtype="F32",
                     coefficients=shares)  # fmt: skip


def name_of(leaf: bytes) -> bytes:
    return root("tensor", 4, leaf)


def refused(store: ObjectStore, oid: bytes) -> None:
    start = time.process_time()
    with pytest.raises(CorruptObject):
        store.read(oid.hex())
    assert store.fsck(full=True).problems
    assert time.process_time() - start < 20


@pytest.mark.parametrize("depths", [(1, 1), (2, 1), (64, 63)])
def test_two_objects_that_hang_on_each_other(depths: tuple[int, int]) -> None:
    leaves = [bytes([n]) * 32 for n in (1, 2)]
    first, second = (name_of(leaf) for leaf in leaves)
    rows = [(first, recipe(leaves[0], [second], depths[0], 2)), (second, recipe(leaves[1], [first], depths[1], 2))]
    refused(store_of(pack_of(rows)), first)


def test_a_tower_in_which_each_names_the_one_below_a_thousand_times() -> None:
    leaves = [bytes([n]) * 32 for n in range(40)]
    names = [name_of(leaf) for leaf in leaves]
    rows = [(names[0], recipe(leaves[0], [names[0]], 1, 2))]
    rows += [(names[n], recipe(leaves[n], [names[n - 1]] * 1000, min(64, n + 1), 4096)) for n in range(1, 40)]
    refused(store_of(pack_of(rows)), names[-1])


def test_a_record_of_thousands_of_parents_stops_at_its_cost() -> None:
    base = whole("tensor", b"abcd")
    backend = MemoryBackend()
    with ObjectStore(backend, threads=1).begin() as pack:
        assert pack.add_tensor(b"abcd", "F32") == base.hex()
        pack.commit()
    (name,) = backend.list("packs/")
    leaves = [struct.pack("<Q", n) * 4 for n in range(3000)]
    names = [name_of(leaf) for leaf in leaves]
    rows = [(oid, recipe(leaf, [base, base], 1, 3)) for oid, leaf in zip(names, leaves, strict=True)]
    top = bytes(32)
    rows.append((name_of(top), recipe(top, names, 2, 4096)))
    refused(store_of(backend.read(name, 0, backend.size(name)), pack_of(rows)), name_of(top))


def test_an_index_of_ids_that_begin_alike_is_refused() -> None:
    leaf = bytes(32)
    rows = [(b"alike..." + struct.pack("<Q", n) * 3, recipe(leaf, [leaf], 1, 2)) for n in range(2000)]
    store = store_of(pack_of(rows))
    with pytest.raises(CorruptObject, match="begin as the one before, expected at most 64"):
        store.read(rows[0][0].hex())


@pytest.mark.parametrize("n", [2**40, 2**63, 2**64 - 1])
def test_an_index_of_more_objects_than_the_pack_has_room_for(n: int) -> None:
    data = MAGIC + FOOTER.pack(8, n, blake3(b"").digest(), MAGIC)
    with pytest.raises(CorruptObject, match="does not fit a pack of 64 bytes"):
        store_of(data).read("0" * 64)


@BRIEF
@given(
    st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1), st.integers(0, 3), st.integers(0, 70),
    st.integers(0, 5000), st.sampled_from(["raw", "zstd", "full", "delta", "linear"]),
)  # fmt: skip
def test_records_that_claim_anything(leaf: bytes, size: int, width: int, depth: int, cost: int, codec: str) -> None:
    parents = (name_of(leaf),) if codec in ("delta", "linear") else ()
    claim = Directory(codec, "tensor", 1 << width, depth, cost, size, parents=parents, dtype="F32",  # type: ignore[arg-type]
                      coefficients=(1.0,) * len(parents))  # fmt: skip
    try:
        pack = pack_of([(name_of(leaf), claim)])
    except struct.error:
        return
    with pytest.raises(ModelgitError):
        store_of(pack).read(name_of(leaf).hex())


def packs_with(*tensors: tuple[bytes, bytes | None]) -> list[tuple[str, bytes]]:
    """Return the packs of a store that got (data, parent's data) one commit after another."""
    backend = MemoryBackend()
    store = ObjectStore(backend, threads=1)
    for data, parent in tensors:
        with store.begin() as pack:
            pack.add_tensor(data, "F32", None if parent is None else whole("tensor", parent).hex())
            pack.commit()
    return [(name, backend.read(name, 0, backend.size(name))) for name in backend.list("packs/")]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("small", [False, True], ids=["large", "bundled"])
def test_packs_that_hold_each_what_the_other_refers_to(seed: int, small: bool) -> None:
    cut = 4000 if small else 80_000
    a, b = near(seed)[:cut], near(seed + 0.0001)[:cut]
    backend = MemoryBackend()
    for name, data in [*packs_with((a, None), (b, a)), *packs_with((b, None), (a, b))]:
        backend.put_if_absent(name, [data])
    store = ObjectStore(backend, threads=1)
    for data in (a, b):
        assert store.read(whole("tensor", data).hex()) == data
    assert store.fsck(full=True).problems == ()


@pytest.mark.parametrize("seed", range(4))
def test_copies_between_stores_that_grew_apart_never_form_a_loop(seed: int, tmp_path: Path) -> None:
    versions = [near(seed + step / 10_000)[:4000] for step in range(4)]
    ids = [whole("tensor", data).hex() for data in versions]
    here, there = (ObjectStore(tmp_path / name, threads=1) for name in ("here", "there"))
    for store, order in ((here, [0, 1, 2, 3]), (there, [3, 1, 0, 2])):
        parent = None
        for number in order:
            with store.begin() as pack:
                parent = pack.add_tensor(versions[number], "F32", parent)
                pack.add_tensor(versions[number][: 100 + 4 * number], "F32")
                pack.commit()
    extra = near(seed + 5)[:4000]
    with here.begin() as pack:
        new = pack.add_tensor(extra, "F32", ids[3])
        pack.commit()
    here.copy_to(there, [new, *ids])
    there.copy_to(here, [*ids, *there.oids()])
    for store in (here, there):
        assert [store.read(oid) for oid in [*ids, new]] == [*versions, extra]
        assert store.fsck(full=True).problems == ()
