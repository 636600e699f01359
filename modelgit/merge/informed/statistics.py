"""What is known of one model besides its weights: tensors of statistics, by the names of its own tensors.

Two kinds. "fisher": for a tensor, one of its shape, how much each weight matters (the diagonal of the Fisher
information). "gram": for the weight (out, in) of a linear layer, the matrix X^T X / n (in, in) of the n inputs it saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource

Kind = Literal["fisher", "gram"]
KINDS: tuple[Kind, ...] = ("fisher", "gram")


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of one model, checked; `size` is the Euclidean norm of all values, `digest` identifies them."""

    kind: Kind
    source: TensorSource
    names: frozenset[str]
    size: float
    digest: str

    def entry(self, name: str) -> TensorEntry | None:
        """Return what there is for a tensor of that name, None if nothing."""
        return self.source.entry(name) if name in self.names else None


def wanted_shape(kind: Kind, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape of the statistics of a tensor of some shape; None if that kind knows nothing of such a one."""
    if kind == "fisher":
        return tuple(shape)
    return (shape[1], shape[1]) if len(shape) == 2 else None
