"""A merge of one tensor as a weighted sum: what most methods come down to, and what the store keeps as a recipe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import UsageError

BLOCK = 1 << 14  # elements of each vector worked on at once: they stay in the cache
Array = npt.NDArray[np.float64]


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


def tree_sum(values: Array) -> float:
    """Return the sum of all elements, in one order on every machine: blocks as `folded`, then one after another."""
    flat = values.reshape(1, -1)
    return float(sum(folded(flat[:, start : start + BLOCK].copy())[0] for start in range(0, flat.size, BLOCK)))


def folded(rows: Array) -> Array:
    """Return the sum of each row, (k, n) to (k,), halves folded onto each other; `rows` is used up."""
    size = rows.shape[1]
    while size > 1:
        half = (size + 1) // 2
        rows[:, : size - half] += rows[:, half:size]
        size = half
    return rows[:, 0]


def gram(vectors: Sequence[Array]) -> Array:
    """Return the matrix of inner products of the flattened vectors, shape (M, M), summed as `tree_sum` does."""
    count, flat = len(vectors), [vector.reshape(-1) for vector in vectors]
    result = np.zeros((count, count))
    for start in range(0, flat[0].size, BLOCK):
        block = np.stack([vector[start : start + BLOCK] for vector in flat])
        for i in range(count):
            result[i, i:] += folded(block[i:] * block[i])
    return np.triu(result) + np.triu(result, 1).T


def small_dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the inner product of two short vectors, exactly rounded but for the products."""
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def cosine_of(products: Array, i: int, j: int) -> float:
    """Return the cosine of the angle between inputs i and j; 0 where one of them is zero."""
    size = math.sqrt(products[i, i]) * math.sqrt(products[j, j])
    return min(1.0, max(-1.0, float(products[i, j]) / size)) if size else 0.0
