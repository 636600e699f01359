"""A llama-shaped base and fine-tunes of it in bfloat16, each in a folder that mergekit takes: weights and config.

    python -m benchmarks.merging.models OUT [--mb 1000] [--tunes 4]

Weights are N(0, 0.02), norms 1; each fine-tune adds N(0, 0.002) to every element. The same seed gives the same files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelgit.formats.safetensors import build_header

HIDDEN, FEED_FORWARD, VOCABULARY, LAYER_BYTES = 1024, 4096, 32_000, 33_558_528
SMALL = 64  # MB below which everything is a quarter as wide


def sizes(megabytes: float) -> tuple[int, int, int, int]:
    """Return hidden size, feed-forward size, vocabulary and layers of a model of about so many MB."""
    part = 4 if megabytes < SMALL else 1
    hidden, wide, vocabulary = HIDDEN // part, FEED_FORWARD // part, VOCABULARY // part**2
    rest = megabytes * 1e6 - 4 * vocabulary * hidden
    return hidden, wide, vocabulary, max(1, round(rest / (LAYER_BYTES / part**2)))


def shapes(megabytes: float) -> dict[str, tuple[int, ...]]:
    """Return the tensors, sorted by name."""
    hidden, wide, vocabulary, layers = sizes(megabytes)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        layer = {f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        layer |= {f"mlp.{part}_proj.weight": (wide, hidden) for part in ("gate", "up")}
        layer |= {"mlp.down_proj.weight": (hidden, wide)}
        norms = {f"{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
        found |= {f"model.layers.{i}.{name}": shape for name, shape in {**layer, **norms}.items()}
    found |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return dict(sorted(found.items(), key=lambda item: item[0].encode()))


def config(megabytes: float) -> dict[str, object]:
    """Return what transformers and mergekit want to know of the model."""
    hidden, wide, vocabulary, layers = sizes(megabytes)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def narrow(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the nearest bfloat16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def tensor(number: int, shape: tuple[int, ...], model: int) -> bytes:
    """Return one tensor of one model; model 0 is the base."""
    count = int(np.prod(shape))
    base = np.random.default_rng(number).standard_normal(count, np.float32) * np.float32(0.02)
    values = narrow(base if len(shape) > 1 else np.ones(count, np.float32))
    if model:
        moved = np.random.default_rng((number, model)).standard_normal(count, np.float32) * np.float32(0.002)
        values = narrow((values.astype(np.uint32) << 16).view(np.float32) + moved)
    return values.tobytes()


def write(folder: Path, megabytes: float, tunes: int) -> list[Path]:
    """Return the folders of the base and its fine-tunes, made now unless they are there."""
    folders = [folder / name for name in ("base", *(f"ft{i}" for i in range(tunes)))]
    names = shapes(megabytes)
    header = build_header([(name, "BF16", shape) for name, shape in names.items()], {"format": "pt"})
    for model, into in enumerate(folders):
        into.mkdir(parents=True, exist_ok=True)
        (into / "config.json").write_text(json.dumps(config(megabytes), indent=1))
        path = into / "model.safetensors"
        if path.exists() and path.stat().st_size == header.size_bytes:
            continue
        with path.with_suffix(".part").open("wb") as out:
            out.write(header.raw)
            out.writelines(tensor(number, shape, model) for number, shape in enumerate(names.values()))
        path.with_suffix(".part").rename(path)
    return folders


def main() -> None:
    """Write models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=1000)
    parser.add_argument("--tunes", type=int, default=4)
    options = parser.parse_args()
    for folder in write(options.out, options.mb, options.tunes):
        print(folder)


if __name__ == "__main__":
    main()
