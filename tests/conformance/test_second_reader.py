"""A reader written from the text of the format alone agrees with ours: on packs of today, and on damaged ones."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import second_reader

from modelgit.formats.manifest import write
from modelgit.store.backend import MemoryBackend
from modelgit.store.files.intake import store_file
from modelgit.store.objects import ObjectStore

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
SPECIAL = (0.0, -0.0, 1.0, -1e30, np.inf, -np.inf, np.nan, 6e-5, 3e-8, 1e-45, 65519.9, 3.39e38, 1e300)


def weights(dtype: str, count: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).normal(0, 0.02, count)
    values[: len(SPECIAL)] = SPECIAL
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            return (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
        return values.astype(FLOATS[dtype]).tobytes()


def drifted(data: bytes, share: float, seed: int) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    chosen = np.random.default_rng(seed).random(len(array)) < share
    array[chosen] += np.uint8(1)
    return array.tobytes()


def fill(store: ObjectStore) -> dict[str, bytes]:
    """Store objects of every codec, width and form, and return what each holds."""
    expected: dict[str, bytes] = {}
    with store.begin() as pack:
        for (dtype, count), share in itertools.product(
            [("F64", 8200), ("F32", 16_401), ("F16", 32_800), ("BF16", 32_803), ("U8", 70_000), ("F32", 13), ("U8", 5)],
            [0.0005, 0.2],
        ):
            data = weights(dtype, count, 1) if dtype in FLOATS else bytes(range(5)) * (count // 5)
            base = pack.add_tensor(data, dtype)
            child = pack.add_tensor(drifted(data, share, 2), dtype, base)
            grandchild = pack.add_tensor(drifted(data, share, 3), dtype, child)
            expected |= {base: data, child: drifted(data, share, 2), grandchild: drifted(data, share, 3)}
            if dtype in FLOATS and count > 13:
                soup = pack.add_linear([(base, 0.3), (grandchild, 1.1), (base, -0.4)], 1.7, dtype, len(data))
                pack.add_linear([(soup, 1.0), (child, 1.0)], 2.0, dtype, len(data))
        long = drifted(bytes(4_400_000), 0.0002, 4)
        expected[first := pack.add_tensor(long, "BF16")] = long
        expected[pack.add_tensor(long[:-1] + b"\7", "BF16", first)] = long[:-1] + b"\7"
        expected[pack.add_tensor(bytes(80_000), "I64")] = bytes(80_000)
        for blob in (b"", b"{}", b"text " * 1000, bytes(4_200_000)):
            expected[pack.add_blob(blob)] = blob
        expected[pack.add_tensor(b"", "F32")] = b""
        pack.commit()
    return expected


def test_every_object_reads_the_same(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, threads=1)
    expected = fill(store)
    second = second_reader.Store(tmp_path / "packs")
    assert {oid.hex() for oid in second.entries} == set(store.oids())
    for oid in store.oids():
        raw = second.read(bytes.fromhex(oid))
        assert raw == store.read(oid)
        assert raw == expected.get(oid, raw)
    assert {word for word in second.seen if word.startswith("codec")} == {
        "codec 0", "codec 1", "codec 2", "codec 2 bundle", "codec 3", "codec 3 bundle", "codec 4"
    }  # fmt: skip
    assert {"plane 0", "plane 1", "plane 2", "plane 3", "same", "different"} <= set(second.seen)


def test_a_file_is_put_together_from_its_manifest(tmp_path: Path) -> None:
    table = '{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
    text = (table + '"a \\"é":{"dtype":"F32","shape":[],"data_offsets":[3,7]}} ').encode()
    file = struct.pack("<Q", len(text)) + text + b"abc" + struct.pack("<f", 1.5)
    (tmp_path / "in.safetensors").write_bytes(file)
    store = ObjectStore(tmp_path / "store", threads=1)
    with store.begin() as pack:
        manifest = store_file(pack, tmp_path / "in.safetensors")
        pack.commit()
    assert second_reader.weight_file(second_reader.Store(tmp_path / "store" / "packs"), write(manifest)) == file


def test_damage_is_noticed_by_both(tmp_path: Path) -> None:
    backend = MemoryBackend()
    with ObjectStore(backend, threads=1).begin() as pack:
        base = pack.add_tensor(weights("F32", 17_000, 1), "F32")
        pack.add_tensor(drifted(weights("F32", 17_000, 1), 0.01, 2), "F32", base)
        pack.add_tensor(bytes(40), "BF16")
        pack.commit()
    (name,) = backend.list("packs/")
    data = backend.read(name, 0, backend.size(name))
    place = tmp_path / Path(name).name
    rng = np.random.default_rng(5)
    for at in [*rng.integers(8, len(data), 20).tolist(), 3, len(data) - 1, len(data) - 20]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        place.write_bytes(damaged)
        other = MemoryBackend()
        other.put_if_absent(name, [damaged])
        assert ObjectStore(other, threads=1).fsck().problems
        with pytest.raises((second_reader.Malformed, struct.error)):
            second = second_reader.Store(tmp_path)
            for oid in second.entries:
                second.read(oid)
