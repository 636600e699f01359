"""Garbage collection of a store: what is needed stays, what is not goes, in two phases."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CorruptObject, MissingObject, StoreError
from modelgit.store.backend import MemoryBackend
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.objects import ObjectStore
from modelgit.store.upkeep import copying, gc
from modelgit.store.upkeep.deepen import deepen
from modelgit.store.upkeep.gc import DAY_S, Collected, Rules, collect
from modelgit.store.upkeep.survey import survey

YEAR = 365 * DAY_S


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "modelgit", threads=2)


def weights(count: int, seed: int = 0, steps: int = 0) -> bytes:
    """Return float32 weights, moved a little `steps` times."""
    values = np.random.default_rng(seed).normal(0, 0.02, count)
    for step in range(steps):
        values = values + np.random.default_rng(1000 + step).normal(0, 1e-5, count)
    return values.astype("<f4").tobytes()


def put(store: ObjectStore, *tensors: bytes, parents: Iterable[str | None] = ()) -> list[str]:
    """Store tensors in one pack."""
    above = [*parents, *[None] * len(tensors)]
    with store.begin() as pack:
        oids = [pack.add_tensor(data, "F32", parent) for data, parent in zip(tensors, above, strict=False)]
        pack.commit()
    return oids


def run(store: ObjectStore, *roots: str, grace_s: float = 14 * DAY_S, later_s: float = YEAR) -> Collected:
    """Collect as if it were `later_s` from now."""
    return collect(store, lambda: map(bytes.fromhex, roots), Rules(time.time() + later_s, grace_s))


def packs(store: ObjectStore, folder: str = "packs/") -> list[str]:
    return store.backend.list(folder)


def test_a_pack_goes_in_two_phases(store: ObjectStore) -> None:
    kept, gone = put(store, weights(50_000), weights(50_000, seed=1))
    done = run(store, kept)
    assert (done.packs_before, done.packs_after, done.condemned_packs, done.deleted_packs) == (1, 1, 1, 0)
    assert done.bytes_after < 0.6 * done.bytes_before
    assert (len(packs(store)), len(packs(store, "condemned/"))) == (1, 1)
    assert store.read(gone) == weights(50_000, seed=1)  # readers still find it
    assert store.fsck(full=True).problems == ()
    assert run(store, kept, later_s=DAY_S).deleted_packs == 0
    done = run(store, kept, later_s=15 * DAY_S)
    assert (done.deleted_packs, done.waiting_bytes, done.condemned_packs) == (1, 0, 0)
    assert store.read(kept) == weights(50_000)
    with pytest.raises(MissingObject):
        store.read(gone)
    assert store.fsck(full=True).problems == ()


def test_young_packs_are_left_alone(store: ObjectStore) -> None:
    (gone,) = put(store, weights(50_000))
    done = run(store, later_s=13 * DAY_S)
    assert (done.condemned_packs, done.copied_bytes) == (0, 0)
    assert run(store, later_s=15 * DAY_S).condemned_packs == 1
    assert packs(store) == []
    assert store.read(gone) == weights(50_000)


def test_what_others_are_stored_by_reference_to_stays(store: ObjectStore) -> None:
    (base,) = put(store, weights(50_000))
    (child,) = put(store, weights(50_000, steps=1), parents=[base])
    (mean,) = put_mean(store, base, child)
    assert store.info(child).codec == "delta"
    run(store, mean, grace_s=0)
    assert packs(store, "condemned/") == []
    assert {base, child, mean} <= set(store.oids())
    run(store, child, grace_s=0)
    assert set(store.oids()) == {base, child}
    assert store.read(child) == weights(50_000, steps=1)


def put_mean(store: ObjectStore, *terms: str) -> list[str]:
    with store.begin() as pack:
        oid = pack.add_linear([(term, 1.0) for term in terms], float(len(terms)), "F32", 200_000)
        pack.commit()
    return [oid]


def test_a_small_tensor_takes_its_bundle_along_and_what_that_hangs_on(store: ObjectStore) -> None:
    base = put(store, *(weights(500, seed=i) for i in range(20)))
    child = put(store, *(weights(500, seed=i, steps=1) for i in range(20)), parents=base)
    put(store, weights(90_000, seed=99))
    run(store, child[3], grace_s=0)
    assert store.read(child[3]) == weights(500, seed=3, steps=1)
    assert set(store.oids()) == {*base, *child}
    assert store.fsck(full=True).problems == ()


def test_a_dead_object_in_a_pack_that_stays_keeps_its_parent(store: ObjectStore) -> None:
    (base,) = put(store, weights(20_000))
    child, kept = put(store, weights(20_000, steps=1), weights(400_000, seed=5), parents=[base])
    assert store.info(child).codec == "delta"
    run(store, kept, grace_s=0)
    assert store.fsck(full=True).problems == ()
    assert store.read(child) == weights(20_000, steps=1)


def test_many_small_packs_become_one_whatever_their_age(store: ObjectStore) -> None:
    oids = [put(store, weights(100 + i))[0] for i in range(gc.MANY_PACKS + 1)]
    done = run(store, *oids[:3], later_s=0)
    assert (done.packs_before, done.packs_after) == (gc.MANY_PACKS + 1, 1)
    assert sorted(oids) == list(store.oids())  # young ones lose nothing
    (name,) = packs(store)
    assert store.backend.changed_at(name) < time.time()
    assert run(store, *oids, later_s=0).condemned_packs == 0
    assert store.fsck(full=True).problems == ()


def test_a_pack_has_a_limit(store: ObjectStore) -> None:
    put(store, *(weights(50_000, seed=i) for i in range(8)))
    records = [record for found in survey(store).live.values() for record in found]
    limit = 3 * max(record.length for record in records)
    assert [len(batch) for batch in copying.batches(records, limit)] == [3, 3, 2]


def test_copies_are_byte_for_byte(store: ObjectStore) -> None:
    (base,) = put(store, weights(3 * FRAME_BYTES // 4 // 2))
    kept, _ = put(store, weights(3 * FRAME_BYTES // 4 // 2, steps=1), weights(700_000, seed=2), parents=[base])
    before = store.info(kept)
    run(store, kept, grace_s=0)
    assert store.info(kept) == before
    assert len(packs(store)) == 2
    assert store.fsck(full=True).problems == ()


def test_an_object_needed_again_comes_out_of_a_condemned_pack(store: ObjectStore) -> None:
    (oid,) = put(store, weights(50_000))
    run(store)
    assert packs(store) == []
    done = run(store, oid, grace_s=0)
    assert (done.deleted_packs, len(packs(store)), packs(store, "condemned/")) == (1, 1, [])
    assert store.read(oid) == weights(50_000)


def test_a_need_that_comes_up_meanwhile_stops_the_deletion(store: ObjectStore) -> None:
    (oid,) = put(store, weights(50_000))
    run(store)
    asked = iter([(), (bytes.fromhex(oid),)])
    done = collect(store, lambda: next(asked), Rules(time.time() + YEAR, 0))
    assert (done.deleted_packs, done.postponed) == (0, True)
    assert store.read(oid) == weights(50_000)


def test_a_writer_at_work_stops_the_deletion_and_counts_on_nothing_condemned(store: ObjectStore) -> None:
    (base,) = put(store, weights(50_000))
    other = ObjectStore(store.backend)
    with other.begin() as pack:
        child = pack.add_tensor(weights(50_000, steps=1), "F32", base)
        done = run(store, grace_s=0)
        assert (done.condemned_packs, done.deleted_packs, done.postponed) == (1, 0, True)
        pack.commit()
    run(store, child, grace_s=0)
    assert store.read(child) == weights(50_000, steps=1)
    run(store, child, grace_s=0)
    assert set(store.oids()) == {base, child}
    run(store)
    with ObjectStore(store.backend).begin() as pack:
        oid = pack.add_tensor(weights(50_000, steps=2), "F32", child)
        again = pack.add_tensor(weights(50_000), "F32")
        pack.commit()
    assert again == base
    assert store.info(oid).parents == ()
    run(store, oid, again, grace_s=0)
    assert set(store.oids()) == {oid, base}


def test_a_dry_run_changes_nothing(store: ObjectStore) -> None:
    kept, _ = put(store, weights(50_000), weights(50_000, seed=1))
    before = [(name, store.backend.changed_at(name)) for name in packs(store)]
    done = collect(store, lambda: [bytes.fromhex(kept)], Rules(time.time(), 0, dry_run=True))
    assert (done.condemned_packs, done.deleted_packs) == (1, 1)
    assert [(name, store.backend.changed_at(name)) for name in packs(store)] == before
    assert done == collect(store, lambda: [bytes.fromhex(kept)], Rules(time.time(), 0))


def test_only_one_collects_at_a_time(store: ObjectStore) -> None:
    put(store, weights(50_000))
    with copying.alone(store.backend), pytest.raises(StoreError, match="another gc"):
        run(store)


def test_a_damaged_store_is_not_touched(store: ObjectStore, tmp_path: Path) -> None:
    kept, _ = put(store, weights(50_000), weights(50_000, seed=1))
    (path,) = (tmp_path / "modelgit" / "packs").iterdir()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObject):
        run(ObjectStore(store.backend), kept)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    path.write_bytes(data[:-3])
    with pytest.raises(CorruptObject):
        run(ObjectStore(store.backend), kept)


def test_a_crash_after_the_copy_leaves_duplicates_that_the_next_run_removes(store: ObjectStore) -> None:
    kept, _ = put(store, weights(50_000), weights(50_000, seed=1))
    records = [
        record for found in survey(store).live.values() for record in found if bytes.fromhex(kept) in record.entries
    ]
    copying.copy_records(store, records, lambda _: None)
    assert len(packs(store)) == 2
    done = run(store, kept, grace_s=0)
    assert (done.packs_after, done.deleted_packs) == (1, 1)
    assert list(store.oids()) == [kept]
    assert run(store, kept, grace_s=0).condemned_packs == 0


def test_a_store_in_memory_is_collected_as_well() -> None:
    store = ObjectStore(MemoryBackend(), threads=1)
    kept, _ = put(store, weights(50_000), weights(50_000, seed=1))
    run(store, kept, grace_s=0)
    assert list(store.oids()) == [kept]


def lineage(*chain: str) -> dict[bytes, tuple[bytes, ...]]:
    ids = [bytes.fromhex(oid) for oid in chain]
    return {oid: tuple(reversed(ids[:i])) for i, oid in enumerate(ids)}


def test_relatives_stored_alone_become_differences(store: ObjectStore) -> None:
    data = [weights(2 * FRAME_BYTES // 4 + 500, steps=n) for n in range(4)]
    oids = [put(store, one)[0] for one in data]
    small = put(store, *(weights(300, seed=i) for i in range(5)))
    before = store.size_on_disk()
    assert {store.info(oid).codec for oid in oids} == {"full"}
    done = deepen(store, map(bytes.fromhex, [*oids, *small]), lineage(*oids), Rules(time.time() + YEAR))
    assert [store.info(oid).depth for oid in oids] == [0, 1, 2, 3]
    assert [store.read(oid) for oid in oids] == data
    assert [store.read(oid) for oid in small] == [weights(300, seed=i) for i in range(5)]
    assert store.size_on_disk() < 0.75 * before
    assert (done.encoded, len(packs(store)), len(packs(store, "condemned/"))) == (3, 1, 5)
    assert store.fsck(full=True).problems == ()
    assert run(store, *oids, *small, grace_s=0).deleted_packs == 5
    again = deepen(store, map(bytes.fromhex, [*oids, *small]), lineage(*oids), Rules(time.time() + YEAR))
    assert (again.encoded, again.saved_bytes) == (0, 0)


def test_long_chains_replace_short_ones_and_no_chain_is_endless(store: ObjectStore) -> None:
    data, oids = [weights(40_000, steps=n) for n in range(24)], list[str]()
    for one in data:
        oids += put(store, one, parents=oids[-1:])
    assert max(store.info(oid).depth for oid in oids) == 4
    done = deepen(store, map(bytes.fromhex, oids), lineage(*oids), Rules(time.time() + YEAR))
    assert done.saved_bytes >= 0
    assert 4 < max(store.info(oid).depth for oid in oids) <= 20
    assert [store.read(oid) for oid in oids] == data
    late = put(store, weights(40_000, steps=25), parents=oids[-1:])  # on top of a long chain: its root is taken
    assert store.info(late[0]).depth == 1
    assert store.fsck(full=True).problems == ()


def test_deepening_keeps_recipes_bundles_blobs_and_what_is_young(store: ObjectStore) -> None:
    small = put(store, *(weights(300, seed=i) for i in range(5)), b"")
    tuned = put(store, *(weights(300, seed=i, steps=1) for i in range(5)), parents=small)
    (base,) = put(store, weights(50_000))
    (child,) = put(store, weights(50_000, steps=1))
    (mean,) = put_mean(store, base, child)
    with store.begin() as pack:
        blob = pack.add_blob(b"{}" * 400)
        pack.commit()
    expected = {oid: store.read(oid) for oid in [*small, *tuned, base, child, mean, blob]}
    deepen(store, map(bytes.fromhex, [mean, blob]), lineage(base, child), Rules(time.time()))
    assert {oid: store.read(oid) for oid in expected} == expected
    assert store.info(child).codec == "delta"
    assert (store.info(mean).codec, store.info(mean).depth) == ("linear", 2)
    assert store.fsck(full=True).problems == ()
    run(store, mean, blob, grace_s=0)
    assert {base, child, mean, blob} <= set(store.oids())


def test_an_object_stored_on_an_older_form_of_its_parent_is_read(store: ObjectStore) -> None:
    first, second = (put(store, weights(50_000, steps=n))[0] for n in (0, 1))
    other = ObjectStore(store.backend)
    with other.begin() as pack:
        third = pack.add_tensor(weights(50_000, steps=2), "F32", second)
        deepen(store, map(bytes.fromhex, [first, second]), lineage(first, second), Rules(time.time() + YEAR))
        pack.commit()
    assert store.info(second).depth == 1
    assert store.info(third).depth == 2
    assert store.read(third) == weights(50_000, steps=2)
    assert store.fsck(full=True).problems == ()


def test_two_forms_of_one_object_do_not_disturb_those_that_hang_on_it(store: ObjectStore, tmp_path: Path) -> None:
    base = put(store, *(weights(500, seed=i) for i in range(3)))
    child = put(store, *(weights(500, seed=i, steps=1) for i in range(3)), parents=base)
    grand = put(store, *(weights(500, seed=i, steps=2) for i in range(3)), parents=child)
    for number in range(4):  # whatever the order of the packs' names
        there = ObjectStore(tmp_path / f"there{number}", threads=1)
        put(there, *(weights(500, seed=i, steps=1) for i in range(3)), weights(200 + number, seed=77))
        extra = next(oid for oid in there.oids() if oid not in store)
        there.copy_to(store, [extra])
        fresh = ObjectStore(store.backend, threads=1)
        assert [fresh.read(oid) for oid in grand] == [weights(500, seed=i, steps=2) for i in range(3)]
    assert store.fsck(full=True).problems == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another member of the group")
def test_another_member_of_the_group_may_collect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of another's file cannot be set: a copy of one's own is condemned, and its grace period begins then."""
    group, first, second = 4711, 4712, 4713
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o2770)
    monkeypatch.chdir(tmp_path)  # the folders above are root's alone
    store = ObjectStore(Path("modelgit"), threads=1)

    def member(user: int, work: Callable[[], object]) -> None:
        child = os.fork()
        if not child:
            try:
                os.umask(0o077)
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
                work()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    member(first, lambda: put(store, weights(50_000), weights(50_000, seed=1)))
    (name,) = packs(store)
    theirs = Path("modelgit") / name
    os.utime(theirs, (0, 0))
    kept = min(store.oids())
    member(second, lambda: run(store, kept))
    (condemned,) = packs(store, "condemned/")
    assert not theirs.exists()
    found = (Path("modelgit") / condemned).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (second, 0o440)
    assert time.time() - found.st_mtime < 600
    member(first, lambda: run(store, kept))
    assert (len(packs(store)), packs(store, "condemned/")) == (1, [])
    assert store.fsck(full=True).problems == ()
