"""Small honest inputs for each target, to begin from; made here, so that no binary files lie about."""

import io
import itertools
import json
import struct
from collections.abc import Iterator

import numpy as np
import torch

from modelgit.store.backend import MemoryBackend
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.objects import ObjectStore

OID = "0123456789abcdef" * 4


def seeds(target: str) -> list[bytes]:
    """Return the seeds of a target."""
    return list(SEEDS[target]())


def headers() -> Iterator[bytes]:
    table = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F4", "shape": [2], "data_offsets": [12, 13], "later": [1, {"x": "y"}]},
        "e": {"dtype": "F32", "shape": [0], "data_offsets": [13, 13]},
    }
    for text in (json.dumps(table).encode() + b"   ", b"{}", b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}'):
        size = 13 if b"BF16" in text else 1 if b"U8" in text else 0
        yield b"\0" + struct.pack("<Q", len(text)) + text + bytes(range(size))
        yield b"\1" + text + b"\0" + bytes(range(size))


def manifests() -> Iterator[bytes]:
    rows = f'"a" F32 [1,2] {OID}\n"b\\"" F4 [2] {OID}\n"c" U8 [] {OID}\n'
    yield f"modelgit manifest 1\nsize 50\nheader {OID} 40\n{rows}".encode()
    yield f"modelgit manifest 1\nsize 40\nheader {OID} 40\n".encode()


def packs() -> Iterator[bytes]:
    base = (np.arange(20_000) // 50).astype("<u4")
    for flag in (b"\0", b"\1"):
        backend = MemoryBackend()
        with ObjectStore(backend, threads=1).begin() as pack:
            first = pack.add_tensor(base.tobytes(), "F32")
            pack.add_tensor((base + (np.arange(20_000) % 997 == 0)).astype("<u4").tobytes(), "F32", first)
            small = pack.add_tensor(base[:50].tobytes(), "BF16")
            pack.add_tensor(base[1:51].tobytes(), "BF16", small)
            pack.add_tensor(b"", "U8")
            pack.add_linear([(first, 1.0), (first, 0.5)], 2.0, "F32", 80_000)
            pack.add_blob(b'{"a":1}')
            pack.add_blob(b"{}" * 500)
            pack.commit()
        (name,) = backend.list("packs/")
        yield flag + backend.read(name, 0, backend.size(name))


def stored_frames() -> Iterator[bytes]:
    for number, width in enumerate((1, 2, 4, 8)):
        count = 4104
        parent = (np.arange(count * width) * 7 // 16 % 256).astype(np.uint8)
        child = parent.copy()
        child[::40] += 1
        noise = np.random.default_rng(0).integers(0, 4, 80 * width, np.uint8)
        for data, n, delta in ((child, count, 0), (child, count, 4), (noise, 80, 0), (child[:width], 1, 0)):
            old = parent[: len(data)]
            encoded = differences.encode_delta(data, old, width) if delta else codec.encode_full(data, width)
            yield bytes([number | delta]) + (n - 1).to_bytes(2, "little") + b"\0" + b"".join(encoded)


def tree_paths() -> Iterator[bytes]:
    for path in ("model.safetensors", "a/b c/d.json", "..", "a/../b", "a\u200c", "/a", "a//b", "C:\\a"):
        yield path.encode()
    for part in (".git", ".GIT ", ".git.", ".git:x", "git~1", "GIT~10:x", ".g\u0131t", ".ｇｉｔ", ".git~x"):
        yield f"a/{part}/b".encode()


def records() -> Iterator[bytes]:
    yield b'{"kind":"train","architecture":"x","classes":["a"],"head":["w"],"details":{"a":[1,{"b":null}]}}'
    yield b"Merge\n\nMerge-Method: linear\nMerge-Input: 12\n"


def checkpoints() -> Iterator[bytes]:
    state = {"w": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    for value, modern in itertools.product((state, {"state_dict": state, "epoch": 3}), (True, False)):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=modern)
        yield buffer.getvalue()


def pickles() -> Iterator[bytes]:
    import zipfile

    for whole in checkpoints():
        if whole.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(whole)) as archive:
                yield next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    yield b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b]q\x01(K\x01K\x02eu."
    yield b"\x80\x02ccollections\nOrderedDict\n)R}b."


SEEDS = {
    "header": headers,
    "manifest": manifests,
    "pack": packs,
    "frames": stored_frames,
    "paths": tree_paths,
    "records": records,
    "scan": pickles,
    "checkpoint": checkpoints,
}
