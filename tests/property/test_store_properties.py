"""Whatever goes in comes out; whatever is damaged is noticed; two writers and a killed one leave a sound store."""

import multiprocessing
import os
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import ModelgitError
from modelgit.store.backend import MemoryBackend
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import Directory, parse_directory, write_directory

MODERATE = settings(max_examples=40, deadline=None, derandomize=True)
WIDTHS = {"BF16": 2, "F32": 4, "F64": 8, "U8": 1, "F16": 2, "I64": 8, "C64": 8, "F8_E5M2": 1}


def normal(count: int, seed: int) -> bytes:
    return np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32).tobytes()


def drifted(data: bytes, share: float, seed: int) -> bytes:
    """Return `data` with the lowest bits of a share of its bytes changed."""
    array = np.frombuffer(data, np.uint8).copy()
    chosen = np.random.default_rng(seed).random(len(array)) < share
    array[chosen] ^= np.uint8(1)
    return array.tobytes()


@MODERATE
@given(
    dtype=st.sampled_from(sorted(WIDTHS)),
    lengths=st.lists(st.sampled_from([0, 1, 3, 8, 1000, 16_000, 70_000]), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.001, 0.3, 1.0]),
    links=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_chains_of_any_type_and_length_come_back(
    dtype: str, lengths: list[int], share: float, links: int, seed: int
) -> None:
    store = ObjectStore(MemoryBackend(), threads=2)
    versions = [
        [
            normal(length * WIDTHS[dtype] // 4 + 1, seed + i)[: length * WIDTHS[dtype]]
            for i, length in enumerate(lengths)
        ]
    ]
    for link in range(links):
        versions.append([drifted(data, share, link) for data in versions[-1]])
    oids: list[list[str]] = []
    for tensors in versions:
        with store.begin() as pack:
            parents = oids[-1] if oids else [None] * len(tensors)
            pending = [pack.enter_tensor(data, dtype, parent) for data, parent in zip(tensors, parents, strict=True)]
            oids.append([one.oid() for one in pending])
            pack.commit()
    fresh = ObjectStore(store.backend, threads=1)
    for tensors, names in zip(versions, oids, strict=True):
        assert [fresh.read(oid) for oid in names] == tensors
    assert fresh.fsck(full=True).problems == ()


def sample_pack() -> tuple[bytes, dict[str, bytes]]:
    """Return a pack that has a record of every kind, and what is in it."""
    backend = MemoryBackend()
    base = normal(20_000, 1)
    expected = {}
    with ObjectStore(backend, threads=1).begin() as pack:
        first = pack.add_tensor(base, "F32")
        expected[first] = base
        expected[pack.add_tensor(drifted(base, 0.2, 1), "F32", first)] = drifted(base, 0.2, 1)
        small = pack.add_tensor(base[:400], "F32")
        expected[small] = base[:400]
        expected[pack.add_tensor(drifted(base[:400], 0.1, 2), "F32", small)] = drifted(base[:400], 0.1, 2)
        expected[pack.add_linear([(first, 1.0)], 1.0, "F32", len(base))] = base
        expected[pack.add_linear([(first, 2.0)], 1.0, "F32", len(base))] = (np.frombuffer(base, "<f4") * 2).tobytes()
        expected[pack.add_blob(b"{}" * 5000)] = b"{}" * 5000
        pack.commit()
    (name,) = backend.list("packs/")
    return backend.read(name, 0, backend.size(name)), expected


PACK, EXPECTED = sample_pack()


def store_of(data: bytes) -> ObjectStore:
    backend = MemoryBackend()
    backend.put_if_absent("packs/" + "a" * 64 + ".pack", [data])
    return ObjectStore(backend, threads=1)


def readable_and_right(data: bytes) -> bool:
    """Tell whether everything comes back right; what does not must be refused, never be wrong."""
    store, right = store_of(data), True
    for oid, expected in EXPECTED.items():
        try:
            assert store.read(oid) == expected
        except ModelgitError:
            right = False
    return right


def test_the_sample_is_sound() -> None:
    assert readable_and_right(PACK)
    assert store_of(PACK).fsck(full=True).problems == ()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(position=st.integers(0, len(PACK) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(position: int, bit: int) -> None:
    data = bytearray(PACK)
    data[position] ^= 1 << bit
    assert store_of(bytes(data)).fsck().problems != ()
    readable_and_right(bytes(data))


@MODERATE
@given(length=st.integers(0, len(PACK) - 1))
def test_every_cut_is_noticed(length: int) -> None:
    assert store_of(PACK[:length]).fsck().problems != ()
    assert not readable_and_right(PACK[:length])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    codec=st.sampled_from(["raw", "zstd", "full", "delta", "linear"]),
    width=st.sampled_from([1, 2, 4, 8]),
    depth=st.integers(0, 255),
    cost=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0, 8, 4096, 1 << 22, 1 << 40, (1 << 64) - 8]),
    members=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    parents=st.integers(0, 3),
)
def test_hostile_directories_are_refused_or_consistent(
    codec: str, width: int, depth: int, cost: int, size: int, members: list[int], parents: int
) -> None:
    count = -(-size // (1 << 22))
    if count > 4:  # more frames than the bytes that follow
        count = 2
    record = Directory(
        codec,  # type: ignore[arg-type]
        "tensor",
        width,
        depth,
        cost,
        size,
        (10,) * (count if codec != "linear" else 0),
        (0,) * (count if codec != "linear" else 0),
        b"" if members else bytes(32 * count),
        tuple(members),
        (bytes(32),) * parents,
        "F32",
        1.0,
        (1.0,) * parents,
    )
    try:
        data = write_directory(record)
    except struct.error:  # a number that its field cannot hold
        return
    try:
        assert write_directory(parse_directory(data, "test")) == data
    except ModelgitError as error:
        assert error.message.startswith("test: ")


def add_many(root: Path, seed: int, rounds: int) -> None:
    store = ObjectStore(root, threads=1)
    for number in range(rounds):
        with store.begin() as pack:
            pack.add_tensor(normal(30_000, number), "F32")  # the same for all writers
            pack.add_tensor(normal(30_000, 1000 * seed + number), "F32")
            pack.commit()


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_many, args=(tmp_path / "s", seed, 8)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = ObjectStore(tmp_path / "s")
    assert len(list(store.oids())) == 8 * 3
    assert store.fsck(full=True).problems == ()
    assert [p.name for p in (tmp_path / "s" / "packs").iterdir() if p.name.startswith("tmp-")] == []


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_a_killed_writer_leaves_a_clean_store(tmp_path: Path, delay_s: float) -> None:
    root = tmp_path / "s"
    with ObjectStore(root, threads=1).begin() as pack:
        kept = pack.add_tensor(normal(30_000, 1), "F32")
        pack.commit()
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=add_many, args=(root, 5, 10_000))
    writer.start()
    deadline = time.monotonic() + 60
    while len(list((root / "packs").iterdir())) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay_s)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join(60)
    store = ObjectStore(root)
    assert store.fsck(full=True).problems == ()
    assert store.read(kept) == normal(30_000, 1)
    with store.begin() as pack:
        pack.add_blob(b"after")
        pack.commit()
    left = [p for p in (root / "packs").iterdir() if p.name.startswith("tmp-")]
    assert [p.name for p in left if p.stat().st_size] == []  # one that was just made, empty, may have an owner yet


def test_peak_memory_does_not_grow_with_the_tensor() -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            small, large = pool.starmap(peak_kib, [(Path(folder), 8), (Path(folder), 40)])
    assert large < small + 32 * 1024  # KiB; the second tensor is 128 MiB longer


def peak_kib(folder: Path, frames: int) -> int:
    """Return the process's peak memory in KiB after storing and reading a tensor of that many frames."""
    import resource

    store = ObjectStore(folder / str(frames), threads=1)
    frame = bytearray(normal(1 << 20, 0))

    def changing() -> Iterator[memoryview]:
        for number in range(frames):
            frame[number] ^= 1
            yield memoryview(frame)

    with store.begin() as pack:
        oid = pack.add_frames(changing(), frames * len(frame), "F32")
        pack.commit()
    for _ in store.frames(oid):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
