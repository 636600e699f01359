"""How fast single frames are coded and decoded, by the compiled kernel and by its NumPy reference.

    python -m benchmarks.storage_codec_speed [--out build/bench-codec-speed.json]

Frames of 4 MiB of N(0, 0.02) weights, alone and as differences after a drift of N(0, r * 0.02). GB of raw data per CPU
second of this process, the best of several rounds, hashes and checksums left out.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.vcs.measuring import machine
from benchmarks.vcs.models import rounded
from benchmarks.vcs.tables import table
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.compiled import load_compiled
from modelgit.store.codec.differences import decode_delta, encode_delta
from modelgit.store.codec.frames import decode_full, encode_full
from modelgit.store.codec.reference import NumpyTransforms
from modelgit.store.codec.transforms import Transforms
from modelgit.store.identity import FRAME_BYTES

ROUNDS_S = 0.5  # of CPU time for each figure
DRIFTS = (1e-2, 1e-3, 1e-4)
WIDTHS = {"bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True)
class Speed:
    """One frame: what it is, who codes it, its stored share, GB a CPU second both ways."""

    frame: str
    kernel: str
    share: float
    encode: float
    decode: float


def speed(work: Callable[[], object]) -> float:
    """Return GB of raw data a CPU second, in the best round."""
    best, spent = float("inf"), 0.0
    while spent < ROUNDS_S:
        start = time.process_time()
        work()
        took = time.process_time() - start
        best, spent = min(best, took), spent + took
    return FRAME_BYTES / best / 1e9


def kernels() -> dict[str, Transforms]:
    """Return the implementations there are here."""
    found: dict[str, Transforms | None] = {"C": load_compiled(), "C, portable": load_compiled(wide=False)}
    return {**{name: tools for name, tools in found.items() if tools}, "NumPy": NumpyTransforms()}


def measured(label: str, kernel: tuple[str, Transforms], data: Bytes, parent: Bytes | None, width: int) -> Speed:
    """Return the figures of one frame."""
    name, tools = kernel
    into = np.empty_like(data)

    def encode() -> bytes:
        parts = encode_full(data, width, tools) if parent is None else encode_delta(data, parent, width, tools)
        return b"".join(parts)

    stored = memoryview(encode())

    def decode() -> None:
        if parent is None:
            decode_full(stored, width, into, tools)
        else:
            into[:] = parent
            decode_delta(stored, width, into, tools)

    rates = speed(encode), speed(decode)
    if not np.array_equal(into, data):
        raise SystemExit(f"{label}, {name}: decoded to other bytes")
    return Speed(label, name, len(stored) / len(data), *rates)


def frames() -> Iterator[tuple[str, Bytes, Bytes | None, int]]:
    """Yield a name, a frame, its parent if it has one, and the width of an element."""
    rng = np.random.default_rng(0)
    for dtype, width in WIDTHS.items():
        weights = rng.standard_normal(FRAME_BYTES // width, np.float32) * np.float32(0.02)
        base = rounded(weights, dtype).view(np.uint8)
        yield f"{dtype}, alone", base, None, width
        for drift in DRIFTS:
            moved = weights + np.float32(drift * 0.02) * rng.standard_normal(len(weights), np.float32)
            yield f"{dtype}, drift {drift:g}", rounded(moved, dtype).view(np.uint8), base, width


def main(arguments: list[str] | None = None) -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench-codec-speed.json"))
    options = parser.parse_args(arguments)
    rows = [measured(label, kernel, data, parent, width)
            for label, data, parent, width in frames() for kernel in kernels().items()]  # fmt: skip
    facts = machine()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    lines = [[r.frame, r.kernel, f"{100 * r.share:.2f} %", f"{r.encode:.2f}", f"{r.decode:.2f}"] for r in rows]
    print(f"\n{table(['frame of 4 MiB', 'kernel', 'stored', 'encode GB/CPU s', 'decode GB/CPU s'], lines)}")


if __name__ == "__main__":
    main()
