"""Damage is found, what is sound is kept, the rest is taken from elsewhere."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import CorruptObject
from modelgit.store.backend import MemoryBackend
from modelgit.store.objects import ObjectStore
from modelgit.store.upkeep.salvage import Mended, mend


def weights(count: int, seed: int = 0, steps: int = 0) -> bytes:
    values = np.random.default_rng(seed).normal(0, 0.02, count)
    for step in range(steps):
        values = values + np.random.default_rng(1000 + step).normal(0, 1e-5, count)
    return values.astype("<f4").tobytes()


def sample() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the packs of a store with records of every kind, and its objects."""
    store = ObjectStore(MemoryBackend(), threads=1)
    parents: list[str | None] = [None] * 4
    for steps in range(3):
        data = [weights(17_000, 0, steps), weights(300, 1, steps), weights(200, 2, steps), weights(17_000, 3, steps)]
        with store.begin() as pack:
            oids = [pack.add_tensor(one, "F32", parent) for one, parent in zip(data, parents, strict=True)]
            pack.add_linear([(oids[0], 0.5), (oids[3], 0.5)], 1.0, "F32", len(data[0]))
            pack.add_blob(b'{"steps": %d}' % steps * 50)
            pack.commit()
        parents = [*oids]
    backend = store.backend
    pieces = {name: backend.read(name, 0, backend.size(name)) for name in backend.list("packs/")}
    return pieces, {oid: store.read(oid) for oid in store.oids()}


PACKS, OBJECTS = sample()
SIZES = [(name, len(data)) for name, data in sorted(PACKS.items())]
NEEDED = [bytes.fromhex(oid) for oid in OBJECTS]


def store_of(pieces: dict[str, bytes]) -> ObjectStore:
    backend = MemoryBackend()
    for name, data in pieces.items():
        backend.put_if_absent(name, [data])
    return ObjectStore(backend, threads=1)


def flipped(position: int, bit: int) -> dict[str, bytes]:
    """Return the packs with one bit changed; `position` counts through all of them."""
    pieces = {name: bytearray(PACKS[name]) for name, _ in SIZES}
    for name, size in SIZES:
        if position < size:
            pieces[name][position] ^= 1 << bit
            break
        position -= size
    return {name: bytes(data) for name, data in pieces.items()}


def mended(store: ObjectStore, sources: Sequence[ObjectStore] = ()) -> Mended:
    return mend(store, sources, NEEDED)


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {oid: store.read(oid) for oid in OBJECTS}


@settings(max_examples=16, deadline=None, derandomize=True)
@given(position=st.integers(0, sum(size for _, size in SIZES) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_repaired_from_another_store(position: int, bit: int) -> None:
    store = store_of(flipped(position, bit))
    assert store.fsck(full=True).problems != ()
    done = mended(store, [store_of(PACKS)])
    assert (done.lost, done.report.problems) == (frozenset(), ())
    assert len(done.put_aside) == 1
    fresh = ObjectStore(store.backend, threads=1)
    assert contents(fresh) == OBJECTS
    assert fresh.fsck(full=True).problems == ()
    assert len(store.backend.list("damaged/")) == 1


@settings(max_examples=6, deadline=None, derandomize=True)
@given(position=st.integers(0, sum(size for _, size in SIZES) - 1), bit=st.integers(0, 7))
def test_without_another_store_most_is_kept_and_the_rest_named(position: int, bit: int) -> None:
    store = store_of(flipped(position, bit))
    done = mended(store)
    assert done.report.problems == ()
    assert done.lost.isdisjoint(map(bytes.fromhex, store.oids()))
    for oid in set(OBJECTS) - {one.hex() for one in done.lost}:
        if oid in store:
            assert store.read(oid) == OBJECTS[oid]
    done = mended(store, [store_of(PACKS)])  # later, when there is one
    assert done.lost == frozenset()
    assert contents(store) == OBJECTS


def test_a_sound_store_is_left_as_it_is() -> None:
    store = store_of(PACKS)
    done = mended(store, [store_of(PACKS)])
    assert (done.salvaged, done.brought, done.put_aside) == (0, 0, ())
    assert store.backend.list("packs/") == sorted(PACKS)


def test_a_lost_pack_comes_back() -> None:
    for name in PACKS:
        store = store_of({other: data for other, data in PACKS.items() if other != name})
        done = mended(store, [store_of(PACKS)])
        assert done.brought > 0
        assert contents(store) == OBJECTS


def test_nothing_is_taken_that_is_damaged_there_as_well() -> None:
    name = max(PACKS, key=lambda name: len(PACKS[name]))
    damaged = bytearray(PACKS[name])
    damaged[100] ^= 1  # in the first tensor's first frame
    store = store_of({**PACKS, name: bytes(damaged)})
    other = store_of({**PACKS, name: bytes(damaged)})
    done = mended(store, [other])
    assert len(done.lost) >= 1
    assert all(oid.hex() not in store for oid in done.lost)
    assert done.report.problems == ()
    assert mended(store, [other, store_of(PACKS)]).lost == frozenset()
    assert contents(store) == OBJECTS


def test_two_damaged_stores_make_one_sound_one() -> None:
    stores = []
    for name in list(PACKS)[:2]:
        damaged = bytearray(PACKS[name])
        damaged[len(damaged) // 3] ^= 4
        stores.append(store_of({**PACKS, name: bytes(damaged)}))
    assert mended(stores[0], [stores[1]]).lost == frozenset()
    assert contents(stores[0]) == OBJECTS


def test_a_pack_cut_short_is_replaced() -> None:
    for name, data in PACKS.items():
        store = store_of({**PACKS, name: data[: len(data) // 2]})
        done = mended(store, [store_of(PACKS)])
        assert (done.lost, done.put_aside) == (frozenset(), (name,))
        assert contents(store) == OBJECTS


def test_a_damaged_index_costs_nothing_but_a_copy() -> None:
    name = min(PACKS)
    damaged = bytearray(PACKS[name])
    damaged[-10] ^= 1  # the footer's magic
    store = store_of({**PACKS, name: bytes(damaged)})
    with pytest.raises(CorruptObject):
        contents(store)
    done = mended(store)
    assert (done.lost, done.brought) == (frozenset(), 0)
    assert done.salvaged > 0
    assert contents(store) == OBJECTS
    assert len(store.backend.list("damaged/")) == 1


def test_condemned_packs_are_checked_and_mended_as_well() -> None:
    store = store_of(PACKS)
    for name in list(PACKS):
        store.backend.move(name, name.replace("packs/", "condemned/"))
    assert store.fsck(full=True).problems == ()
    assert contents(store) == OBJECTS
    store = store_of({name.replace("packs/", "condemned/"): data for name, data in flipped(100, 0).items()})
    assert store.fsck().problems != ()
    assert mended(store, [store_of(PACKS)]).lost == frozenset()
    assert contents(store) == OBJECTS


def test_packs_put_aside_never_replace_one_another() -> None:
    name = min(PACKS)
    damaged = bytearray(PACKS[name])
    damaged[-10] ^= 1
    store = store_of(PACKS)
    for number in range(1, 4):
        store.backend.delete(name)
        store.backend.put_if_absent(name, [bytes(damaged)])
        store = ObjectStore(store.backend, threads=1)
        mended(store)
        assert len(store.backend.list("damaged/")) == number
