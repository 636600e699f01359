"""A synthetic model shaped as a transformer, and fine-tunes of it; the same seed gives the same files.

    python -m benchmarks.vcs.models OUT [--mb 400] [--tunes 5] [--dtype bf16] [--seed 0]

Weights are N(0, 0.02), norms N(1, 0.02). Embeddings and output layer, about 30 % of the bytes, are frozen. Fine-tune i
adds N(0, r * 0.02) to every other tensor, r spread evenly on a logarithmic scale from 1e-3 to 1e-2: in bf16 that
changes from a fifth to four fifths of the elements. Tensors are made and written one at a time.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

HIDDEN, FEED_FORWARD, FROZEN = 1024, 2816, 0.30
DRIFT_FROM, DRIFT_TO = 1e-3, 1e-2
WIDTHS = {"bf16": 2, "f16": 2, "f32": 4}
Floats = npt.NDArray[np.float32]
Shape = tuple[str, tuple[int, ...], bool]  # name, shape, frozen


def shapes(elements: float, hidden: int = HIDDEN) -> list[Shape]:
    """Return the tensors of a transformer of about so many elements."""
    wide = hidden * FEED_FORWARD // HIDDEN
    layers = max(1, round(elements * (1 - FROZEN) / (4 * hidden * hidden + 3 * hidden * wide + 2 * hidden)))
    vocabulary = max(256, int(elements * FROZEN / 2 / hidden) // 64 * 64)
    block: list[Shape] = [(f"self_attn.{part}_proj.weight", (hidden, hidden), False) for part in "qkvo"]
    block += [(f"mlp.{part}_proj.weight", (wide, hidden), False) for part in ("gate", "up")]
    block += [("mlp.down_proj.weight", (hidden, wide), False)]
    block += [(f"{part}_layernorm.weight", (hidden,), False) for part in ("input", "post_attention")]
    found: list[Shape] = [("model.embed_tokens.weight", (vocabulary, hidden), True)]
    found += [(f"model.layers.{i}.{name}", shape, frozen) for i in range(layers) for name, shape, frozen in block]
    return [*found, ("model.norm.weight", (hidden,), False), ("lm_head.weight", (vocabulary, hidden), True)]


def many(count: int, elements: int) -> list[Shape]:
    """Return `count` equal vectors: a file of many small tensors."""
    return [(f"experts.{i:06}.weight", (elements,), False) for i in range(count)]


def rounded(values: Floats, dtype: str) -> npt.NDArray[np.generic]:
    """Return values in the given type; bfloat16 as its bits."""
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(data: npt.NDArray[np.generic], dtype: str) -> Floats:
    """Return the numbers that `rounded` gave."""
    if dtype == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


def weights(spec: list[Shape], number: int, drift: float, seed: int, dtype: str) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the tensors of model `number`: the base with 0, else a fine-tune."""
    for i, (name, shape, frozen) in enumerate(spec):
        values = np.random.default_rng((seed, i)).standard_normal(shape, np.float32) * np.float32(0.02)
        base = rounded(values + 1 if "norm" in name else values, dtype)
        if frozen or not number:
            yield base
        else:
            step = np.random.default_rng((seed, i, number)).standard_normal(shape, np.float32)
            yield rounded(widened(base, dtype) + np.float32(drift * 0.02) * step, dtype)


def header(spec: list[Shape], dtype: str) -> bytes:
    """Return the start of a safetensors file that holds such tensors one after another."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape, _ in spec:
        end = start + math.prod(shape) * WIDTHS[dtype]
        table[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_model(path: Path, spec: list[Shape], number: int, *, drift: float, seed: int, dtype: str) -> None:
    """Write one model."""
    with path.open("wb") as file:
        file.write(header(spec, dtype))
        for tensor in weights(spec, number, drift, seed, dtype):
            file.write(tensor.data)


def drifts(tunes: int) -> list[float]:
    """Return the relative size of each fine-tune's update."""
    return [float(drift) for drift in np.geomspace(DRIFT_FROM, DRIFT_TO, tunes)] if tunes else []


def write_models(folder: Path, *, megabytes: float, tunes: int, dtype: str = "bf16", seed: int = 0) -> list[Path]:
    """Write base and fine-tunes, and return their paths; files of an earlier call with the same settings are kept."""
    settings = json.dumps({"megabytes": megabytes, "tunes": tunes, "dtype": dtype, "seed": seed})
    files = [folder / f"{name}.safetensors" for name in ("base", *(f"ft{i}" for i in range(1, tunes + 1)))]
    note = folder / "settings.json"
    if note.exists() and note.read_text() == settings:
        return files
    folder.mkdir(parents=True, exist_ok=True)
    hidden = HIDDEN if megabytes >= 100 else 256
    spec = shapes(megabytes * 1e6 / WIDTHS[dtype], hidden)
    for number, (path, drift) in enumerate(zip(files, [0.0, *drifts(tunes)], strict=True)):
        write_model(path, spec, number, drift=drift, seed=seed, dtype=dtype)
    note.write_text(settings)
    return files


def main() -> None:
    """Write them and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=400)
    parser.add_argument("--tunes", type=int, default=5)
    parser.add_argument("--dtype", choices=sorted(WIDTHS), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for path in write_models(
        options.out, megabytes=options.mb, tunes=options.tunes, dtype=options.dtype, seed=options.seed
    ):
        print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
