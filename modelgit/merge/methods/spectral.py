"""Methods that work on the singular values and vectors of task vectors, matrix by matrix.

Notation: base b, task vectors d_i = x_i - b, M models. Matrices only; every other tensor takes the mean of the d_i.
Task vectors are taken one after another, so that a few matrices are in memory, not M. The decompositions are LAPACK's,
in float64 and in one thread: results are the same for any number of threads and order of models, but may differ in the
last bits between kinds of processors, which `verify --rerun` then says. With `--device` they are PyTorch's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.merge.blocks.linalg import Triple, decomposed, polar, product
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.methods.registry import call_combined, method, setting, within


def is_matrix(inputs: Inputs) -> bool:
    """Tell whether a tensor is a matrix with elements."""
    return inputs.origin().ndim == 2 and inputs.origin().size > 0


def mean_moved(inputs: Inputs, scale: float) -> Array:
    """Return the base plus `scale` times the mean of the task vectors."""
    return inputs.origin() + scale * summed(inputs) / len(inputs.heads)


def summed(inputs: Inputs) -> Array:
    """Return the sum of the task vectors, one after another."""
    total = inputs.delta(0)
    for head in range(1, len(inputs.heads)):
        total = total + inputs.delta(head)
    return total


def joined(parts: Sequence[Triple]) -> Array:
    """Return the matrix whose directions are all those of the parts, made orthogonal to each other."""
    left = polar(np.concatenate([u for u, _, _ in parts], axis=1))
    right = polar(np.concatenate([v for _, _, v in parts], axis=0))
    values = np.concatenate([s for _, s, _ in parts])
    return product(left * values, right)


@method("tsvm", "Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081, algorithm 1")
@dataclass(frozen=True)
class TaskSingularVectors:
    """The r / M strongest directions of every d_i side by side, made orthogonal to each other: tasks do not mix.

    r is the smaller side of the matrix. b + scale * sum of the directions with their singular values.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    scale: float = setting(1.0, "factor on the merged task vector")

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged matrix."""
        count = min(inputs.origin().shape, default=0) // len(inputs.heads)
        if not is_matrix(inputs) or count == 0:
            return mean_moved(inputs, self.scale)
        parts = []
        for head in range(len(inputs.heads)):
            u, s, v = decomposed(inputs.delta(head))
            parts.append((u[:, :count].copy(), s[:count].copy(), v[:count].copy()))
        return inputs.origin() + self.scale * joined(parts)

    __call__ = call_combined


@method("iso_c", "Marczak et al. 2025, No task left behind, arXiv:2502.04959, section 4.2")
@dataclass(frozen=True)
class IsoC:
    """The directions of the sum of the d_i, all equally strong: b + scale * U mean(s) V of sum d_i = U s V."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    scale: float = setting(1.0, "factor on the merged task vector")

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged matrix."""
        if not is_matrix(inputs):
            return mean_moved(inputs, self.scale)
        u, s, v = decomposed(summed(inputs))
        return inputs.origin() + self.scale * float(s.mean()) * product(u, v)

    __call__ = call_combined


@method("iso_cts", "Marczak et al. 2025, No task left behind, arXiv:2502.04959, section 4.3")
@dataclass(frozen=True)
class IsoCts:
    """As iso_c, the weakest directions of the sum replaced by those of each d_i outside what they share."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    scale: float = setting(1.0, "factor on the merged task vector")
    common: float = setting(0.8, "share of the directions that are of the sum")

    def __post_init__(self) -> None:
        within("iso_cts: common", self.common, 0, 1)

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged matrix."""
        if not is_matrix(inputs):
            return mean_moved(inputs, self.scale)
        rank, tasks = min(inputs.origin().shape), len(inputs.heads)
        each = round((rank - int(rank * self.common)) / tasks)
        shared = rank - each * tasks
        u, s, v = decomposed(summed(inputs))
        base = u[:, :shared]
        parts: list[Triple] = []
        for head in range(tasks):
            delta = np.ascontiguousarray(inputs.delta(head))  # BLAS rounds by the order in memory on some processors
            left, values, right = decomposed(delta - product(base, base.T, delta))
            parts.append((left[:, :each].copy(), values[:each].copy(), right[:each].copy()))
        parts.append((base, s[:shared], v[:shared]))
        mean = float(np.concatenate([values for _, values, _ in parts]).mean())
        flat = [(left, np.full(len(values), mean), right) for left, values, right in parts]
        return inputs.origin() + self.scale * joined(flat)

    __call__ = call_combined
