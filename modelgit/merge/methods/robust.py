"""Methods that a few odd models cannot lead astray: medians and trimmed means.

Notation: heads x_i, weights w_i. They need no base, and are the same about any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.methods.linear_form import LinearForm, small_dot, weighted_mean
from modelgit.merge.methods.registry import call_elementwise, call_fitted, method, no_facts, setting, within


@method("geometric_median", "Weiszfeld 1937; on models: Pillutla et al. 2022, arXiv:1912.13445, algorithm 2")
@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least (weighted) sum of distances to the models, found tensor by tensor.

    Every iterate lies in the span of the models, so inner products are all that is needed (smoothed Weiszfeld steps).
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    iterations: int = setting(100, "most Weiszfeld steps")
    tolerance: float = setting(1e-9, "change of a coefficient below which it stops")
    smoothing: float = setting(1e-6, "least distance, as a share of the mean distance: keeps steps off the models")

    def __post_init__(self) -> None:
        within("geometric_median: smoothing", self.smoothing, 1e-12, 1)

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return the median's coefficients on the models."""
        mean = weighted_mean(weights, normalize=True)
        shares = [c / mean.divisor for c in mean.heads]
        centre = list(shares)
        distances = self._distances(products, centre)
        least = self.smoothing * math.fsum(distances) / len(distances)
        if least == 0:
            return mean
        for _ in range(self.iterations):
            pulls = [share / max(distance, least) for share, distance in zip(shares, distances, strict=True)]
            total = math.fsum(pulls)
            moved = [pull / total for pull in pulls]
            change = max(abs(a - b) for a, b in zip(moved, centre, strict=True))
            centre = moved
            if change < self.tolerance:
                break
            distances = self._distances(products, centre)
        return LinearForm(tuple(centre))

    def _distances(self, products: Array, centre: Sequence[float]) -> list[float]:
        """Return the distance of every model to the point with these coefficients, which add up to 1."""
        rows = [small_dot(centre, row) for row in products]
        own = small_dot(centre, rows)
        return [math.sqrt(max(0.0, products[i, i] - 2 * rows[i] + own)) for i in range(len(rows))]

    __call__ = call_fitted


@method("coordinate_median", "Yin et al. 2018, arXiv:1803.01498, definition 1")
@dataclass(frozen=True)
class CoordinateMedian:
    """The median of the models' values, element by element; of an even number the mean of the middle two."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False

    def block(self, block: Inputs, facts: None) -> Array:
        """Return the median of a block."""
        middle = (len(block.heads) - 1) // 2
        return trimmed(block.heads, middle)

    facts = no_facts
    __call__ = call_elementwise


@method("trimmed_mean", "Yin et al. 2018, arXiv:1803.01498, definition 2")
@dataclass(frozen=True)
class TrimmedMean:
    """The mean of the models' values without the smallest and largest, element by element."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    trim: float = setting(0.2, "share of the models that is left out at either end; at least one model stays")

    def __post_init__(self) -> None:
        within("trimmed_mean: trim", self.trim, 0, 0.5)

    def block(self, block: Inputs, facts: None) -> Array:
        """Return the trimmed mean of a block."""
        count = len(block.heads)
        return trimmed(block.heads, min(int(self.trim * count), (count - 1) // 2))

    facts = no_facts
    __call__ = call_elementwise


def trimmed(values: Sequence[Array], ends: int) -> Array:
    """Return the mean over arrays, element by element, without the `ends` smallest and largest."""
    if ends == 0:
        kept = list(values)
    else:
        ordered = np.sort(np.stack(values), axis=0)
        kept = list(ordered[ends : len(values) - ends])
    total = kept[0].copy()
    for value in kept[1:]:
        total += value
    return np.asarray(total / len(kept))
