"""Time, memory and disk that a merge takes, beside a plain numpy mean of the same files.

    python benchmarks/merge_linear.py [--megabytes 256] [--models 4] [--dtype BF16] [--method linear]

Prints one JSON object. Models are random, fine-tunes of one base; all files are in the page cache. "merge" plans,
writes the recipes (which means computing every value once, for its id) and commits; "file" decodes the result into a
safetensors file.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from modelgit.formats.manifest import Manifest
from modelgit.formats.safetensors import build_header
from modelgit.merge.engine.execution import execute
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.methods import make
from modelgit.store.codec.arithmetic import finish, widen
from modelgit.store.files.intake import store_file
from modelgit.store.files.materialise import materialise
from modelgit.store.files.tensors import StoredTensors
from modelgit.store.objects import ObjectStore

T = TypeVar("T")
SIDE = 2048
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="size of each model")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--dtype", choices=sorted(WIDTHS), default="BF16")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options), indent=2))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return what was measured; sizes in bytes, times in seconds of the wall clock."""
    files = write_models(folder, options.megabytes, options.models + 1, options.dtype)
    store = ObjectStore(folder / "store", threads=options.threads)
    base, *heads = stored(store, files)
    before, peak_before = store.size_on_disk(), peak_bytes()
    merge_s, manifest = timed(lambda: merged(store, base, heads, options.method))
    peak_merge = peak_bytes()
    file_s, _ = timed(lambda: materialise(store, manifest, folder / "merged.safetensors"))
    mean_s, _ = timed(lambda: plain_mean(files[1:], folder / "mean", options.dtype))
    return {
        "models": options.models,
        "model_bytes": files[0].stat().st_size,
        "dtype": options.dtype,
        "method": options.method,
        "merge_s": round(merge_s, 3),
        "file_s": round(file_s, 3),
        "numpy_mean_s": round(mean_s, 3),
        "merge_stored_bytes": store.size_on_disk() - before,
        "input_bytes_per_s": round(sum(f.stat().st_size for f in files[1:]) / merge_s),
        "peak_rss_bytes": {"before": peak_before, "merge": peak_merge},
    }


def write_models(folder: Path, megabytes: int, count: int, dtype: str) -> list[Path]:
    """Return safetensors files of a base and its fine-tunes: square matrices, updates of 1 % of their size."""
    layers = max(1, megabytes * 2**20 // (SIDE * SIDE * WIDTHS[dtype]))
    header = build_header([(f"layer.{i:04}.weight", dtype, (SIDE, SIDE)) for i in range(layers)], {})
    files = [folder / f"model-{m}.safetensors" for m in range(count)]
    for m, file in enumerate(files):
        with file.open("wb") as out:
            out.write(header.raw)
            out.writelines(layer(i, m, dtype) for i in range(layers))
    return files


def layer(i: int, model: int, dtype: str) -> bytes:
    """Return one matrix of one model; model 0 is the base."""
    size = SIDE * SIDE
    values = np.random.default_rng(i).standard_normal(size, np.float32).astype(np.float64) * 0.02
    if model:
        values += np.random.default_rng((i, model)).standard_normal(size, np.float32) * 0.0002
    data = bytearray(size * WIDTHS[dtype])
    finish(values, 1.0, dtype, np.frombuffer(data, np.uint8))
    return bytes(data)


def stored(store: ObjectStore, files: list[Path]) -> list[StoredTensors]:
    """Return the files as versions in the store, fine-tunes as differences to the base."""
    manifests: list[Manifest] = []
    for file in files:
        with store.begin() as pack:
            manifests.append(store_file(pack, file, manifests[0] if manifests else None))
            pack.commit()
    return [StoredTensors(store, manifest) for manifest in manifests]


def merged(store: ObjectStore, base: StoredTensors, heads: list[StoredTensors], method: str) -> Manifest:
    """Return the merge of the heads, committed to the store."""
    named = [Head(f"model-{i}", head) for i, head in enumerate(heads, 1)]
    with store.begin() as pack:
        result = execute(plan(named, base, make(method, {}), Policy()), pack, store)
        pack.commit()
    return result.manifest


def plain_mean(files: list[Path], out: Path, dtype: str) -> None:
    """Write the mean of memory-mapped files, in float64 blocks: what any tool has to do at least."""
    maps = [np.memmap(file, np.uint8, "r") for file in files]
    with out.open("wb") as stream:
        for start in range(0, len(maps[0]) // 8 * 8, 1 << 20):
            stream.write(block_mean([m[start : start + (1 << 20)] for m in maps], dtype))


def block_mean(blocks: list[npt.NDArray[np.uint8]], dtype: str) -> bytearray:
    """Return the rounded mean of equally long raw blocks."""
    count = len(blocks[0]) // WIDTHS[dtype]
    total, values = np.zeros(count), np.empty(count)
    for block in blocks:
        widen(np.ascontiguousarray(block[: count * WIDTHS[dtype]]), dtype, values)
        total += values
    data = bytearray(count * WIDTHS[dtype])
    finish(total, float(len(blocks)), dtype, np.frombuffer(data, np.uint8))
    return data


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that the work took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
