"""How small differences between real checkpoints are stored, beside the entropy that bounds it.

    python -m benchmarks.storage_codec_bound [--dtype bf16] [--work build/bench-minilm] [--pair PARENT CHILD ...]

Stored sizes are those of the store's own objects. The bound is the order-0 entropy of the residual given the parent's
exponent, H(child - parent | exponent of parent): one table for all of a pair's matrices, bits below the four leading
ones counted as they are. A coder with local tables may get below it. "dense" are the matrices of the encoder that have
changed. Makes the checkpoints at the first call (some minutes, see storage_minilm.py); `--pair` looks at any two
safetensors files.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.vcs.measuring import machine
from benchmarks.vcs.tables import table
from modelgit.formats.manifest import Manifest
from modelgit.formats.safetensors import read_header
from modelgit.store.files.intake import store_file
from modelgit.store.objects import ObjectStore

MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}
UNSIGNED = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
SIGNED = {2: np.int16, 4: np.int32}
LEADING = 4  # bits of a residual that count for the entropy
SYMBOLS = 64 << LEADING
# Child and parent, by step; what to reach for bf16, in percent of raw; what it is.
PAIRS = (
    (200, 0, 26.0, "fine-tune of 200 steps against base"),
    (100, 0, None, "fine-tune of 100 steps against base"),
    (200, 100, None, "checkpoints 100 steps apart"),
    (200, 190, 9.0, "checkpoints 10 steps apart"),
    (200, 199, None, "checkpoints 1 step apart"),
)
BOUND_GOAL = 1.05
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stored:
    """One pair: bytes raw and stored, the bound as a share of raw, and how many elements are as before."""

    label: str
    raw_bytes: int
    stored_bytes: int
    bound: float
    same: float
    goal: float | None

    @property
    def share(self) -> float:
        """Stored bytes as a part of raw."""
        return self.stored_bytes / self.raw_bytes


def entropy_bits(counts: Integers) -> float:
    """Return the sum over all symbols of their code lengths, in bits."""
    found = counts[counts > 0].astype(np.float64)
    return float(-(found * np.log2(found / found.sum())).sum())


def symbols(residual: npt.NDArray[np.unsignedinteger]) -> tuple[Integers, Integers]:
    """Return for each residual its length with its leading bits, and how many bits follow."""
    values = residual.astype(np.int64)
    length = np.zeros(values.shape, np.int64)
    length[values > 0] = np.floor(np.log2(values[values > 0])).astype(np.int64) + 1
    below = np.maximum(length - LEADING, 0)
    return (length << LEADING) + (values >> below), below


def difference_bound(child: bytes, parent: bytes, dtype: str) -> tuple[float, float]:
    """Return the bound as a share of raw, and the share of elements that are the same."""
    kind = UNSIGNED[dtype]
    a, b = np.frombuffer(child, kind), np.frombuffer(parent, kind)
    step, width = a - b, a.dtype.itemsize
    sign = (step.view(SIGNED[width]) >> (8 * width - 1)).view(kind)
    symbol, below = symbols((step << kind(1)) ^ sign)
    exponent = ((b >> kind(MANTISSA[dtype])) & kind(0xFF if dtype != "F16" else 0x1F)).astype(np.int64)
    joint = np.bincount(exponent * SYMBOLS + symbol, minlength=256 * SYMBOLS).reshape(256, SYMBOLS)
    bits = sum(entropy_bits(row) for row in joint if row.any())
    return (bits + float(below.sum())) / (8 * len(child)), float((a == b).mean())


def full_bound(data: bytes, dtype: str) -> float:
    """Return the order-0 entropy of the byte planes, sign rotated to the end, as a share of raw."""
    kind = UNSIGNED[dtype]
    x = np.frombuffer(data, kind)
    rotated = (x << kind(1)) | (x >> kind(8 * x.dtype.itemsize - 1))
    planes = rotated.view(np.uint8).reshape(len(x), -1).T
    return sum(entropy_bits(np.bincount(plane, minlength=256)) for plane in planes) / (8 * len(data))


def dense_names(path: Path) -> list[str]:
    """Return the matrices of the encoder; in a file without one, all matrices."""
    matrices = [span.name for span in read_header(path).tensors if len(span.shape) == 2 and span.dtype in MANTISSA]
    return [name for name in matrices if "encoder.layer" in name] or matrices


def read_tensors(path: Path, names: Sequence[str]) -> tuple[bytes, str]:
    """Return the raw bytes of tensors one after another, and their type."""
    header = read_header(path)
    spans = {span.name: span for span in header.tensors}
    with path.open("rb") as file:
        parts = []
        for name in names:
            file.seek(header.data_start + spans[name].start)
            parts.append(file.read(spans[name].end - spans[name].start))
    return b"".join(parts), spans[names[0]].dtype


def commit(store: ObjectStore, path: Path, parent: Manifest | None) -> Manifest:
    """Store a file as one pack."""
    with store.begin() as pack:
        manifest = store_file(pack, path, parent)
        pack.commit()
    return manifest


def stored_bytes(store: ObjectStore, manifest: Manifest, names: set[str]) -> int:
    """Return what the named tensors take in the store."""
    return sum(store.info(oid).stored_bytes for oid in {e.oid for e in manifest.tensors if e.name in names})


def look(parent: Path, child: Path, label: str, goal: float | None = None) -> list[Stored]:
    """Return how a child is stored behind its parent: the dense matrices that have changed, and the whole file."""
    with tempfile.TemporaryDirectory(dir=child.parent) as folder:
        store = ObjectStore(Path(folder))
        base = commit(store, parent, None)
        before = store.size_on_disk()
        manifest = commit(store, child, base)
        known = {entry.oid for entry in base.tensors}
        changed = {entry.name for entry in manifest.tensors if entry.oid not in known}
        names = [name for name in dense_names(child) if name in changed]
        size, whole = stored_bytes(store, manifest, set(names)), store.size_on_disk() - before
    (new, dtype), (old, _) = read_tensors(child, names), read_tensors(parent, names)
    bound, same = difference_bound(new, old, dtype)
    dense = Stored(f"{label}, dense", len(new), size, bound, same, goal)
    return [dense, Stored(f"{label}, whole file", child.stat().st_size, whole, 0.0, 0.0, None)]


def look_alone(path: Path) -> Stored:
    """Return how a model is stored that has no parent."""
    names = dense_names(path)
    data, dtype = read_tensors(path, names)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        store = ObjectStore(Path(folder))
        size = stored_bytes(store, commit(store, path, None), set(names))
    return Stored("base alone, dense", len(data), size, full_bound(data, dtype), 0.0, None)


def results_table(rows: Sequence[Stored]) -> str:
    """Return everything as Markdown."""
    lines = []
    for row in rows:
        percent, bound = 100 * row.share, 100 * row.bound
        ratio = f"{row.share / row.bound:.3f}" if row.bound else ""
        goal = "" if row.goal is None else f"{row.goal:g} %: {'yes' if percent <= row.goal else 'no'}"
        if row.goal is not None and row.bound:
            goal += f"; {BOUND_GOAL} of the bound: {'yes' if row.share <= BOUND_GOAL * row.bound else 'no'}"
        same = f"{100 * row.same:.1f} %" if row.same else ""
        size = f"{row.raw_bytes / 1e6:.1f}"
        lines.append([row.label, size, same, f"{percent:.2f} %", f"{bound:.2f} %" if bound else "", ratio, goal])
    return table(["pair", "raw MB", "elements unchanged", "stored", "entropy bound", "stored / bound", "goal"], lines)


def real_pairs(work: Path, dtype: str) -> list[Stored]:
    """Return all pairs of the fine-tuned model."""
    import torch

    from benchmarks.storage_minilm import cast, checkpoints

    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    work.mkdir(parents=True, exist_ok=True)
    paths = {step: cast(path, work / f"{path.stem}-{dtype}.safetensors", kinds[dtype])
             for step, path in checkpoints(work).items()}  # fmt: skip
    rows = [look_alone(paths[0])]
    for child, parent, goal, label in PAIRS:
        rows += look(paths[parent], paths[child], label, goal if dtype == "bf16" else None)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--work", type=Path, default=Path("build/bench-minilm"))
    parser.add_argument("--pair", type=Path, nargs=2, action="append", metavar=("PARENT", "CHILD"))
    parser.add_argument("--out", type=Path, default=Path("build/bench-codec-bound.json"))
    options = parser.parse_args(arguments)
    if options.pair:
        rows = [row for parent, child in options.pair for row in look(parent, child, f"{child.stem} / {parent.stem}")]
    else:
        rows = real_pairs(options.work, options.dtype)
    facts = machine()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": facts, "dtype": options.dtype, "rows": [asdict(row) for row in rows]}
    options.out.write_text(json.dumps(report, indent=1))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\n{results_table(rows)}")


if __name__ == "__main__":
    main()
