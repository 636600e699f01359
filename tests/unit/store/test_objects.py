"""The object store: ids, differences, recipes, bundles, and what is refused."""

import errno
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from modelgit.errors import CorruptObject, FormatError, MissingObject, StorageFull, StoreError, UsageError
from modelgit.store.backend import FileStage, MemoryBackend, translated
from modelgit.store.codec.arithmetic import linear
from modelgit.store.codec.reference import NumpyTransforms
from modelgit.store.codec.transforms import transforms
from modelgit.store.identity import FRAME_BYTES, Buffer
from modelgit.store.objects import ObjectStore

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "modelgit", threads=2)


def bf16(count: int, seed: int = 0, steps: int = 0) -> bytes:
    """Return `count` bfloat16 weights; each of `steps` moves all of them a little, as training does."""
    values = np.random.default_rng(seed).normal(0, 0.02, count)
    for step in range(steps):
        values = values + np.random.default_rng(1000 + step).normal(0, 1e-4, count)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def put(store: ObjectStore, data: bytes, parent: str | None = None, dtype: str = "BF16") -> str:
    with store.begin() as pack:
        oid = pack.add_tensor(data, dtype, parent)
        pack.commit()
    return oid


def test_an_id_is_the_hash_of_tag_length_and_frame_hashes(store: ObjectStore) -> None:
    data = bf16(3 * MIB)
    leaves = blake3(data[:FRAME_BYTES]).digest() + blake3(data[FRAME_BYTES:]).digest()
    expected = blake3(b"modelgit tensor 1\n" + len(data).to_bytes(8, "little") + leaves).hexdigest()
    assert put(store, data) == expected
    assert put(store, b"", dtype="F32") == blake3(b"modelgit tensor 1\n" + bytes(8)).hexdigest()


def test_a_missing_root_is_an_empty_store(store: ObjectStore, tmp_path: Path) -> None:
    assert list(store.oids()) == []
    assert store.size_on_disk() == 0
    assert store.missing(["0" * 64]) == {"0" * 64}
    assert not (tmp_path / "modelgit").exists()
    with pytest.raises(MissingObject):
        store.read("0" * 64)


@pytest.mark.parametrize("size", [0, 1, 2, 100, 65535, 65536, 65537, FRAME_BYTES, FRAME_BYTES + 2, 9 * MIB])
def test_bytes_come_back(store: ObjectStore, size: int, tmp_path: Path) -> None:
    data = bf16(size // 2 + 1)[:size]
    oid = put(store, data, dtype="BF16" if size % 2 == 0 else "U8")
    assert store.read(oid) == data
    assert b"".join(bytes(frame) for frame in store.frames(oid)) == data
    with (tmp_path / "out").open("w+b") as file:
        store.write_to(oid, file.fileno(), 3)
    assert (tmp_path / "out").read_bytes()[3:] == data
    assert store.info(oid).size_bytes == size


def test_what_may_not_be_read_is_not_said_to_be_written() -> None:
    with pytest.raises(StorageFull, match=r"^p: Permission denied"), translated(Path("p")):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(StorageFull, match=r"^cannot write to p: No space left"), translated(Path("p")):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("mode", [0o2775, 0o700])
def test_folders_are_as_open_to_the_group_as_the_repository(tmp_path: Path, mode: int) -> None:
    (tmp_path / "hub.git").mkdir()
    (tmp_path / "hub.git").chmod(mode)
    put(ObjectStore(tmp_path / "hub.git" / "modelgit"), bf16(10))
    for folder in ("modelgit", "modelgit/packs"):
        found = (tmp_path / "hub.git" / folder).stat().st_mode
        assert (found & 0o2020 == 0o2020) == (mode == 0o2775)
        assert not found & 0o002


def test_a_fine_tuned_tensor_is_stored_as_a_difference(store: ObjectStore) -> None:
    base, child = bf16(MIB), bf16(MIB, steps=1)
    parent = put(store, base)
    oid = put(store, child, parent)
    info = store.info(oid)
    assert (info.codec, info.depth, info.parents) == ("delta", 1, (parent,))
    assert info.stored_bytes < 0.3 * len(child)
    assert store.read(oid) == child


def test_a_parent_that_does_not_help_is_not_used(store: ObjectStore) -> None:
    parent, data = put(store, bf16(MIB)), bf16(MIB, seed=7)
    assert store.info(put(store, data, parent)).codec == "full"
    assert store.info(put(store, bf16(MIB // 2, seed=8), parent)).codec == "full"  # another length
    assert store.info(put(store, bf16(MIB, seed=9), "f" * 64)).codec == "full"  # not here


def test_a_change_in_a_late_frame_reuses_the_early_ones(store: ObjectStore) -> None:
    base = bf16(6 * MIB)
    child = base[:-2] + bytes([base[-2] ^ 1, base[-1]])
    oid = put(store, child, put(store, base))
    assert store.read(oid) == child
    assert store.info(oid).stored_bytes < 40_000


def test_chains_are_rebased_on_what_they_stand_on(store: ObjectStore) -> None:
    versions = [bf16(64 * 1024, steps=n) for n in range(8)]
    oids: list[str] = []
    for data in versions:
        oids.append(put(store, data, oids[-1] if oids else None))
    assert [store.info(oid).depth for oid in oids] == [0, 1, 2, 3, 4, 1, 2, 3]
    assert store.info(oids[5]).parents == (oids[0],)
    assert [store.read(oid) for oid in oids] == versions


def test_a_late_unchanged_frame_survives_rebasing(store: ObjectStore) -> None:
    versions = [bf16(3 * MIB, steps=n) for n in range(5)]
    changed = versions[4][:FRAME_BYTES] + bf16(MIB, seed=5)
    oids: list[str] = []
    for data in [*versions, changed]:
        oids.append(put(store, data, oids[-1] if oids else None))
    assert store.info(oids[4]).depth == 4
    assert store.read(oids[5]) == changed


def test_small_tensors_share_records_and_differences(store: ObjectStore) -> None:
    base = [bf16(500 + i, seed=i) for i in range(200)]
    child = [bf16(500 + i, seed=i, steps=1) for i in range(200)]
    with store.begin() as pack:
        parents = [pack.add_tensor(data, "BF16") for data in base]
        pack.commit()
    with store.begin() as pack:
        oids = [pack.add_tensor(data, "BF16", parent) for data, parent in zip(child, parents, strict=True)]
        pack.commit()
    assert [store.read(oid) for oid in oids] == child
    info = store.info(oids[7])
    assert (info.codec, info.depth, len(info.parents)) == ("delta", 1, 200)
    assert info.stored_bytes < 0.5 * info.size_bytes
    assert store.closure(oids[:1]) == {oids[0], *parents}


def test_small_children_of_many_recipes_hang_on_what_those_stand_on(store: ObjectStore) -> None:
    base = [bf16(1000, seed=i) for i in range(100)]
    with store.begin() as pack:
        roots = [pack.add_tensor(data, "BF16") for data in base]
        pack.commit()
    with store.begin() as pack:
        soups = [pack.add_linear([(oid, 1.01)], 1.0, "BF16", 2000) for oid in roots]
        pack.commit()
    child = [bf16(1000, seed=i, steps=1) for i in range(100)]
    with store.begin() as pack:
        oids = [pack.add_tensor(data, "BF16", soup) for data, soup in zip(child, soups, strict=True)]
        pack.commit()
    assert [store.read(oid) for oid in oids] == child
    assert set(store.info(oids[0]).parents) == set(roots)


def test_the_same_object_is_stored_once(store: ObjectStore) -> None:
    big, small = bf16(5 * MIB), bf16(100)
    with store.begin() as pack:
        assert pack.add_tensor(big, "BF16") == pack.add_tensor(big, "BF16")
        assert pack.add_tensor(small, "BF16") == pack.add_tensor(small, "BF16")
        assert pack.add_frames(
            [big[:FRAME_BYTES], big[FRAME_BYTES : 2 * FRAME_BYTES], big[2 * FRAME_BYTES :]], 10 * MIB, "BF16"
        )
        pack.commit()
    size = store.size_on_disk()
    assert size < 0.7 * len(big)
    put(store, big)
    put(store, small)
    assert store.size_on_disk() == size
    assert len(list(store.oids())) == 2


def test_the_type_of_the_object_is_in_its_id(store: ObjectStore) -> None:
    with store.begin() as pack:
        tensor, blob = pack.add_tensor(b"{}" * 9, "U8"), pack.add_blob(b"{}" * 9)
        pack.commit()
    assert tensor != blob
    assert (store.info(tensor).kind, store.info(blob).kind) == ("tensor", "blob")
    assert store.read(tensor) == store.read(blob) == b"{}" * 9


@pytest.mark.parametrize("data", [b"", b"x", b"{}" * 50_000, np.random.default_rng(0).bytes(5 * MIB)])
def test_blobs_come_back(store: ObjectStore, data: bytes) -> None:
    with store.begin() as pack:
        oid = pack.add_blob(data)
        pack.commit()
    assert store.read(oid) == data
    assert store.info(oid).stored_bytes < len(data) * 1.001 + 200


def test_a_merge_is_stored_as_its_recipe(store: ObjectStore) -> None:
    inputs = [bf16(3 * MIB, steps=n) for n in range(3)]
    oids = [put(store, inputs[0])]
    oids += [put(store, data, oids[0]) for data in inputs[1:]]
    weights = [0.5, 0.3, 0.2]
    with store.begin() as pack:
        oid = pack.add_linear(list(zip(oids, weights, strict=True)), 1.0, "BF16", 6 * MIB)
        pack.commit()
    info = store.info(oid)
    assert (info.codec, info.depth, info.parents) == ("linear", 2, tuple(oids))
    assert info.stored_bytes < 500
    assert store.read(oid) == linear(inputs, weights, 1.0, "BF16")
    child = bf16(3 * MIB, steps=4)
    assert store.read(put(store, child, oid)) == child


def test_terms_that_hang_on_one_another_are_read_together(store: ObjectStore) -> None:
    versions = [bf16(3 * MIB, steps=step) for step in range(4)]
    oids = [put(store, versions[0])]
    for data in versions[1:]:
        oids.append(put(store, data, oids[-1]))
    chosen = [3, 1, 3, 2, 0, 1, 2, 3, 3, 0]  # more than are read at once, some twice, parents after their children
    assert [store.info(oids[i]).codec for i in range(4)] == ["full", "delta", "delta", "delta"]
    with store.begin() as pack:
        oid = pack.add_linear([(oids[i], 1.0) for i in chosen], 10.0, "BF16", len(versions[0]))
        pack.commit()
    assert store.read(oid) == bytes(linear([versions[i] for i in chosen], [1.0] * 10, 10.0, "BF16"))
    places = [np.empty(2 * MIB, np.uint8) for _ in chosen]
    store.fill_together([store.open(oids[i]) for i in chosen], 1, places)
    assert [place.tobytes() for place in places] == [versions[i][4 * MIB :] for i in chosen]


def test_parents_that_several_hang_on_are_decoded_apart(store: ObjectStore) -> None:
    """Two on a parent, two on its parent: neither is asked for, and both are needed twice."""
    versions = [bf16(64 * 1024, steps=step) for step in range(6)]
    oids = [put(store, versions[0])]
    for data, parent in zip(versions[1:], (0, 1, 1, 0, 0), strict=True):
        oids.append(put(store, data, oids[parent]))
    assert [store.info(oid).parents for oid in oids[1:]] == [(oids[parent],) for parent in (0, 1, 1, 0, 0)]
    places = [np.empty(len(versions[0]), np.uint8) for _ in range(4)]
    store.fill_together([store.open(oid) for oid in oids[2:]], 0, places)
    assert [place.tobytes() for place in places] == versions[2:]


def test_a_recipe_may_use_what_the_same_pack_brings(store: ObjectStore) -> None:
    a, b, small = bf16(MIB), bf16(MIB, steps=1), bf16(50)
    with store.begin() as pack:
        first = pack.add_tensor(a, "BF16")
        second = pack.add_tensor(b, "BF16", first)
        third = pack.add_tensor(small, "BF16")
        soup = pack.add_linear([(first, 1.0), (second, 1.0)], 2.0, "BF16", 2 * MIB)
        twice = pack.add_linear([(third, 2.0)], 1.0, "BF16", 100)
        pack.commit()
    assert store.info(second).codec == "delta"
    assert store.read(soup) == linear([a, b], [1.0, 1.0], 2.0, "BF16")
    assert store.read(twice) == linear([small], [2.0], 1.0, "BF16")


def test_recipes_of_recipes_become_bytes_before_they_cost_too_much(store: ObjectStore) -> None:
    data = bf16(40_000)
    oid = put(store, data)
    for _ in range(8):
        with store.begin() as pack:
            oid = pack.add_linear([(oid, 1.0), (oid, 0.5)], 1.0, "BF16", len(data))
            pack.commit()
        data = bytes(linear([data, data], [1.0, 0.5], 1.0, "BF16"))
        assert store.read(oid) == data
    assert store.fsck(full=True).problems == ()


def test_recipes_that_make_no_sense_are_refused(store: ObjectStore) -> None:
    oid = put(store, bf16(100))
    with store.begin() as pack:
        for terms, divisor, size in [
            ([], 1.0, 200),
            ([(oid, 1.0)], 0.0, 200),
            ([(oid, float("nan"))], 1.0, 200),
            ([(oid, 1.0)], 1.0, 100),
        ]:
            with pytest.raises(UsageError):
                pack.add_linear(terms, divisor, "BF16", size)
        with pytest.raises(UsageError):
            pack.add_linear([(oid, 1.0)], 1.0, "I16", 200)
        with pytest.raises(MissingObject):
            pack.add_linear([("e" * 64, 1.0)], 1.0, "BF16", 200)


def test_frames_that_do_not_fit_are_refused(store: ObjectStore) -> None:
    with store.begin() as pack:
        with pytest.raises(UsageError):
            pack.add_frames([b"x" * 100_000], 100_001, "U8")
        with pytest.raises(FormatError):
            pack.add_tensor(b"x", "F99")


def test_nothing_is_visible_before_commit_and_nothing_remains_without(store: ObjectStore, tmp_path: Path) -> None:
    with store.begin() as pack:
        pack.add_tensor(bf16(MIB), "BF16")
        assert list(ObjectStore(tmp_path / "modelgit").oids()) == []
    assert list((tmp_path / "modelgit" / "packs").iterdir()) == []
    with pytest.raises(StoreError, match="committed or left already"):
        pack.add_blob(b"late")


def test_an_empty_pack_leaves_no_file(store: ObjectStore, tmp_path: Path) -> None:
    with store.begin() as pack:
        pack.commit()
    assert not (tmp_path / "modelgit").exists()


def test_packs_of_other_writers_are_noticed(store: ObjectStore, tmp_path: Path) -> None:
    first = put(store, bf16(100))
    assert store.missing([first]) == set()
    second = put(ObjectStore(tmp_path / "modelgit"), bf16(200))
    assert store.read(second) == bf16(200)


def test_copying_takes_what_is_missing_with_its_closure(store: ObjectStore, tmp_path: Path) -> None:
    base, child = bf16(MIB), bf16(MIB, steps=1)
    parent = put(store, base)
    oid = put(store, child, parent)
    other = put(store, bf16(1000, seed=3))
    target = ObjectStore(tmp_path / "there", threads=1)
    report = store.copy_to(target, [oid])
    assert (report.objects, target.read(oid)) == (2, child)
    assert other not in target
    assert target.info(oid) == store.info(oid)
    assert store.copy_to(target, [oid, other]).objects == 1
    assert store.copy_to(target, [oid, other]).objects == 0
    assert len(list((tmp_path / "there" / "packs").iterdir())) == 2
    assert target.fsck(full=True).problems == ()
    with pytest.raises(MissingObject):
        store.copy_to(target, ["0" * 64])


def test_a_damaged_object_is_not_copied(store: ObjectStore, tmp_path: Path) -> None:
    oid = put(store, bf16(MIB))
    (path,) = (tmp_path / "modelgit" / "packs").iterdir()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    target = ObjectStore(tmp_path / "there")
    with pytest.raises(CorruptObject):
        store.copy_to(target, [oid])
    assert list(target.oids()) == []
    assert list((tmp_path / "there" / "packs").iterdir()) == []


def test_fsck_of_a_sound_store_finds_nothing(store: ObjectStore) -> None:
    oid = put(store, bf16(MIB))
    put(store, bf16(MIB, steps=1), oid)
    assert store.fsck() == store.fsck(full=True)
    assert (store.fsck().objects, store.fsck().problems) == (2, ())


def test_fsck_names_the_pack_that_lost_its_end(store: ObjectStore, tmp_path: Path) -> None:
    put(store, bf16(MIB))
    (path,) = (tmp_path / "modelgit" / "packs").iterdir()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = ObjectStore(tmp_path / "modelgit").fsck().problems
    assert path.name in problem


def test_fsck_finds_a_parent_that_is_gone(store: ObjectStore, tmp_path: Path) -> None:
    parent = put(store, bf16(MIB))
    (first,) = (tmp_path / "modelgit" / "packs").iterdir()
    child = put(store, bf16(MIB, steps=1), parent)
    first.unlink()
    fresh = ObjectStore(tmp_path / "modelgit")
    (problem,) = fresh.fsck().problems
    assert child in problem
    assert parent in problem
    with pytest.raises(MissingObject):
        fresh.read(child)


def test_a_full_disk_leaves_nothing_visible(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_stage: FileStage, _parts: Iterable[Buffer]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modelgit.store.backend.write_all", full)
    with pytest.raises(StorageFull, match="No space left") as caught, store.begin() as pack:
        pack.add_tensor(bf16(MIB), "BF16")
    assert "packs/tmp-" in caught.value.message
    assert list((tmp_path / "modelgit" / "packs").iterdir()) == []


def test_a_store_in_memory_works_the_same() -> None:
    store = ObjectStore(MemoryBackend(), threads=1)
    base = put(store, bf16(MIB))
    oid = put(store, bf16(MIB, steps=1), base)
    assert store.read(oid) == bf16(MIB, steps=1)
    assert store.fsck(full=True).problems == ()


@pytest.mark.parametrize("oid", ["", "xyz", "A" * 64, "0" * 63, "../" + "0" * 61])
def test_what_is_not_an_id_is_refused(store: ObjectStore, oid: str) -> None:
    with pytest.raises(StoreError, match="not an object id"):
        store.read(oid)


def test_a_store_written_without_the_kernel_is_read_with_it_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, child = bf16(300_000), bf16(300_000, steps=1)
    packs: list[list[bytes]] = []
    for chosen in (transforms, NumpyTransforms):
        monkeypatch.setattr("modelgit.store.codec.frames.transforms", chosen)
        monkeypatch.setattr("modelgit.store.codec.differences.transforms", chosen)
        store = ObjectStore(tmp_path / str(len(packs)), threads=1)
        oid = put(store, child, put(store, base))
        packs.append(sorted(path.read_bytes() for path in (tmp_path / str(len(packs)) / "packs").iterdir()))
        assert store.read(oid) == child
    assert packs[0] == packs[1]
    assert ObjectStore(tmp_path / "0").read(oid) == child
