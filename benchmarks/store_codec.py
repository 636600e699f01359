"""How fast the codec and the store are, and how small their output, on synthetic weights.

    python benchmarks/store_codec.py [MIB]

Speeds are raw bytes a CPU second of this process, so other work on the machine disturbs them little.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelgit.formats.manifest import Manifest
from modelgit.formats.safetensors import build_header
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.compiled import load_compiled
from modelgit.store.codec.reference import NumpyTransforms
from modelgit.store.codec.transforms import Transforms
from modelgit.store.files.intake import store_file
from modelgit.store.files.materialise import materialise
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.objects import ObjectStore

Floats = npt.NDArray[np.float64]


def as_bf16(values: Floats) -> Bytes:
    """Return values rounded to bfloat16, as bytes."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)


def as_f32(values: Floats) -> Bytes:
    """Return values rounded to float32, as bytes."""
    return values.astype(np.float32).view(np.uint8)


def speed(work: Callable[[], object], size_bytes: int, repeats: int) -> float:
    """Return the best of several runs, in GB of raw data a CPU second."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return size_bytes / best / 1e9


def frame_row(label: str, data: Bytes, parent: Bytes | None, width: int, tools: Transforms) -> None:
    """Print share and speeds of one frame."""
    repeats = 2 if isinstance(tools, NumpyTransforms) else 7
    into = np.empty_like(data)

    def encode() -> codec.Parts:
        if parent is None:
            return codec.encode_full(data, width, tools)
        return differences.encode_delta(data, parent, width, tools)

    stored = memoryview(b"".join(encode()))

    def decode() -> None:
        if parent is None:
            codec.decode_full(stored, width, into, tools)
        else:
            into[:] = parent
            differences.decode_delta(stored, width, into, tools)

    fast, back = speed(encode, len(data), repeats), speed(decode, len(data), repeats)
    name = "C" if repeats == 7 else "numpy"
    print(f"{label:28s} {name:6s} {100 * len(stored) / len(data):6.2f} %  encode {fast:5.2f}  decode {back:5.2f} GB/s")


def frames() -> None:
    """Print a row for each kind of frame."""
    rng = np.random.default_rng(0)
    compiled = load_compiled()
    for name, width, cast in (("bf16", 2, as_bf16), ("fp32", 4, as_f32)):
        base = rng.normal(0, 0.02, FRAME_BYTES // width)
        for label, drift in (("full", None), ("drift 1e-4", 1e-4), ("drift 1e-5", 1e-5)):
            data = cast(base if drift is None else base + rng.normal(0, drift, len(base)))
            for tools in [t for t in (compiled, NumpyTransforms()) if t]:
                frame_row(f"{name} {label}", data, None if drift is None else cast(base), width, tools)


def save(path: Path, mebibytes: int, drift: float) -> None:
    """Write a bfloat16 model of 8 MiB matrices and small biases."""
    tensors = [(f"layer.{i}.{kind}", "BF16", shape) for i in range(mebibytes // 8) for kind, shape in SHAPES]
    header = build_header(tensors, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header.raw)
        for number, span in enumerate(header.tensors):
            values = np.random.default_rng(number).normal(0, 0.02, span.shape)
            moved = values + np.random.default_rng(number + 10**6).normal(0, 1, span.shape) * drift
            file.write(as_bf16(moved).data)


SHAPES: list[tuple[str, tuple[int, ...]]] = [("weight", (2048, 2048)), ("bias", (2048,))]


def commit(store: ObjectStore, path: Path, parent: Manifest | None) -> Manifest:
    """Store a file as one pack."""
    with store.begin() as pack:
        manifest = store_file(pack, path, parent)
        pack.commit()
    return manifest


def whole_files(mebibytes: int) -> None:
    """Print the speed of each thing a store does with a file."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        store = ObjectStore(root / "store", threads=2)
        base, child, out = root / "base", root / "child", root / "out"
        save(base, mebibytes, 0.0)
        save(child, mebibytes, 1e-4)
        size, found = base.stat().st_size, dict[str, Manifest]()

        def first() -> None:
            found["base"] = commit(store, base, None)

        def delta() -> None:
            found["child"] = commit(store, child, found["base"])

        steps: list[tuple[str, Callable[[], object]]] = [
            ("first commit", first),
            ("delta commit", delta),
            ("unchanged commit", lambda: commit(store, child, found["child"])),
            ("checkout full", lambda: materialise(store, found["base"], out)),
            ("checkout delta", lambda: materialise(store, found["child"], out)),
            ("fsck full", lambda: store.fsck(full=True)),
        ]
        for label, work in steps:
            before, wall = store.size_on_disk(), time.perf_counter()
            rate = speed(work, size, 1)
            wall = size / (time.perf_counter() - wall) / 1e9
            grown = 100 * (store.size_on_disk() - before) / size
            print(f"{label:28s} {rate:5.2f} GB/s a CPU second, {wall:5.2f} wall, store grew by {grown:5.2f} %")


if __name__ == "__main__":
    frames()
    whole_files(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
