"""Methods that go as far from the base as the models agree.

Notation: heads x_i, base b, differences d_i = x_i - b.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.merge.blocks.tensors import Inputs, Tensor
from modelgit.merge.methods.linear_form import Array, LinearForm, about_base, cosine_of
from modelgit.merge.methods.registry import call_elementwise, call_fitted, method
from modelgit.store.codec.arrays import Array as Typed

Index = Typed[np.int64]


@method("model_stock", "Jang et al. 2024, arXiv:2403.19522")
@dataclass(frozen=True)
class ModelStock:
    """Between base and mean, as far as the models agree: t * mean + (1 - t) b, t = N c / (1 + (N - 1) c).

    c is the mean cosine of the angles between the d_i, tensor by tensor. Cosines are taken in float64 and not
    clamped, so that small tensors are not drawn to the base; where the models do not agree (c <= 0) t is 0.
    """

    heads: ClassVar[tuple[int, int | None]] = (2, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return t / N on each head and 1 - t on the base."""
        n = len(products)
        cosines = [cosine_of(products, i, j) for i in range(n) for j in range(i + 1, n)]
        c = max(0.0, math.fsum(cosines) / len(cosines))
        t = n * c / (1 + (n - 1) * c)
        return about_base(LinearForm((t,) * n, divisor=float(n)))

    __call__ = call_fitted


@method("model_stock_rows", "Jang et al. 2024, arXiv:2403.19522; mergekit, model_stock with filter_wise: true")
@dataclass(frozen=True)
class ModelStockRows:
    """As model_stock, with a t of its own for each filter: each slice along the first axis of a tensor.

    Vectors and scalars have one t. A filter that no model has changed stays at the base.
    """

    heads: ClassVar[tuple[int, int | None]] = (2, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False

    def facts(self, tensor: Tensor) -> tuple[Array, int]:
        """Return t for each filter, (filters,), and the elements of a filter."""
        inner = max(1, math.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else max(1, math.prod(tensor.shape))
        count = max(1, math.prod(tensor.shape) // inner)

        def look(block: Inputs) -> tuple[int, Array]:
            deltas = [delta.reshape(-1) for delta in block.deltas()]
            place = filters_of(block.start, deltas[0].size, inner)
            rows = [np.bincount(place - place[0], a * b) for i, a in enumerate(deltas) for b in deltas[i:]]
            return int(place[0]), np.stack(rows)

        n = len(tensor.weights)
        sums = np.zeros((n * (n + 1) // 2, count))
        for start, part in tensor.each(look):
            sums[:, start : start + part.shape[1]] += part
        return shares(sums, n), inner

    def block(self, block: Inputs, facts: tuple[Array, int]) -> Array:
        """Return b + t * mean(d_i)."""
        t, inner = facts
        deltas = block.deltas()
        mean = sum(deltas[1:], deltas[0].copy()) / len(deltas)
        place = filters_of(block.start, mean.size, inner).reshape(mean.shape)
        return np.asarray(block.origin() + t[place] * mean)

    __call__ = call_elementwise


def filters_of(start: int, count: int, inner: int) -> Index:
    """Return which filter each of `count` elements from `start` on is of."""
    return np.arange(start, start + count) // inner


def shares(sums: Array, n: int) -> Array:
    """Return t for each filter, from the inner products of the upper triangle, (n (n + 1) / 2, filters)."""
    places = {(i, j): k for k, (i, j) in enumerate((i, j) for i in range(n) for j in range(i, n))}
    cosines = np.zeros(sums.shape[1])
    for i in range(n):
        for j in range(i + 1, n):
            length = np.sqrt(sums[places[i, i]]) * np.sqrt(sums[places[j, j]])
            cosines += np.divide(sums[places[i, j]], length, out=np.zeros_like(length), where=length > 0)
    c = np.maximum(0.0, cosines / (n * (n - 1) / 2))
    return np.asarray(n * c / (1 + (n - 1) * c))
