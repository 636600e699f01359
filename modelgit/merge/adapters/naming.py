"""Which tensors are factors of LoRA, by their names in PEFT's files."""

from collections.abc import Iterable
from dataclasses import dataclass

PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
UNKNOWN = (".lora_magnitude_vector", ".lora_B.bias", ".lora_A.bias")
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one module: the names of A and B."""

    module: str
    a: str
    b: str


def pair_of(name: str) -> Pair | None:
    """Returns the pair that a tensor is a factor of, None if it is none."""
    for a, b in PAIRS:
        for suffix in (a, b):
            if name.endswith(suffix):
                stem = name[: -len(suffix)]
                return Pair(stem.removeprefix(PREFIX), stem + a, stem + b)
    return None


def is_adapter(names: Iterable[str]) -> bool:
    """Returns whether tensors of these names are an adapter's."""
    return any(pair_of(name) is not None for name in names)
