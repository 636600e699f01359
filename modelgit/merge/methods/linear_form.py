"""A merge of one tensor as a weighted sum: what most methods come down to, and what the store keeps as a recipe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array, tree_sum
from modelgit.merge.blocks.vectors import gram as pinned

__all__ = ["Array", "LinearForm", "about_base", "cosine_of", "gram", "small_dot", "tree_sum", "weighted_mean"]


@dataclass(frozen=True, slots=True)
class LinearForm:
    """The value (sum_i heads[i] * x_i + base * b) / divisor; `base` is 0 where there is none."""

    heads: tuple[float, ...]
    base: float = 0.0
    divisor: float = 1.0

    def __call__(self, heads: Sequence[Array], base: Array | None) -> Array:
        """Return the sum in float64, terms in the order given, the base last."""
        total = self.heads[0] * heads[0]
        for coefficient, head in zip(self.heads[1:], heads[1:], strict=True):
            total = total + coefficient * head
        if base is not None and self.base != 0:
            total = total + self.base * base
        return total / self.divisor


def weighted_mean(weights: Sequence[float], *, normalize: bool) -> LinearForm:
    """Return sum w_i x_i, divided by sum w_i with `normalize`; equal weights become 1s: M equal inputs give themselves.

    Raises: UsageError when the weights to normalize by add up to zero.
    """
    if normalize and len(set(weights)) == 1 and weights[0] != 0:
        return LinearForm((1.0,) * len(weights), divisor=float(len(weights)))
    total = math.fsum(weights)
    if normalize and total == 0:
        hint = "Give weights with another sum, or set normalize to false."
        raise UsageError(f"weights {list(weights)} add up to 0 and cannot be normalized.", hint=hint)
    return LinearForm(tuple(weights), divisor=total if normalize else 1.0)


def about_base(form: LinearForm) -> LinearForm:
    """Return b + form(x - b): the same combination of the task vectors, written on the weights themselves."""
    return LinearForm(form.heads, form.divisor - math.fsum(form.heads), form.divisor)


# ----------------------------------------------------------------------------------- sums in a pinned order


def gram(vectors: Sequence[Array]) -> Array:
    """Return the matrix of inner products of the flattened vectors, shape (M, M), summed as `tree_sum` does."""
    parts = pinned([np.ascontiguousarray(vector) for vector in vectors])
    total = np.zeros((len(vectors), len(vectors)))
    for part in parts:
        total += part
    return total


def small_dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the inner product of two short vectors, exactly rounded but for the products."""
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def cosine_of(products: Array, i: int, j: int) -> float:
    """Return the cosine of the angle between inputs i and j; 0 where one of them is zero."""
    size = math.sqrt(products[i, i]) * math.sqrt(products[j, j])
    return min(1.0, max(-1.0, float(products[i, j]) / size)) if size else 0.0
