"""Methods that see models as directions with a length: arcs and centres on the sphere.

Notation: heads x_i, base b, weights w_i. Everything is per tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.errors import UsageError
from modelgit.merge.blocks.tensors import Inputs, Tensor
from modelgit.merge.methods.linear_form import Array, LinearForm, about_base, cosine_of, small_dot, weighted_mean
from modelgit.merge.methods.registry import call_elementwise, call_fitted, method, setting, within

STRAIGHT = 1e-8  # sine of an angle below which the straight line is taken


@method("slerp", "Shoemake 1985; on task vectors: Ramé et al. 2024, WARP, arXiv:2406.16768")
@dataclass(frozen=True)
class Slerp:
    """The arc between two models: (sin((1-t) a) x_0 + sin(t a) x_1) / sin a, t = w_1 / (w_0 + w_1), a their angle.

    Models are seen as vectors, one a tensor. Where they are almost parallel the straight line is taken.
    """

    heads: ClassVar[tuple[int, int | None]] = (2, 2)
    weighted: ClassVar[bool] = True
    deltas: bool = setting(False, "turn the task vectors about the base (as WARP) instead of the weights about zero")
    threshold: float = setting(0.9995, "cosine beyond which the straight line is taken")

    def __post_init__(self) -> None:
        within("slerp: threshold", self.threshold, 0, 1)

    @property
    def needs_base(self) -> bool:
        """The base is where the angle is seen from."""
        return self.deltas

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return the sines over sin a, or 1 - t and t."""
        mean = weighted_mean(weights, normalize=True)
        t = mean.heads[1] / mean.divisor
        cosine = cosine_of(products, 0, 1)
        straight = min(products[0, 0], products[1, 1]) == 0 or abs(cosine) > self.threshold
        angle = math.acos(cosine)
        pair = (1 - t, t) if straight else (math.sin((1 - t) * angle), math.sin(t * angle))
        form = LinearForm(pair, divisor=1.0 if straight else math.sin(angle))
        return about_base(form) if self.deltas else form

    __call__ = call_fitted


@method("nuslerp", "Shoemake 1985; mergekit, nuslerp")
@dataclass(frozen=True)
class NuSlerp:
    """The arc between two models as slerp, and the straight line only where the angle is 0 or 180 degrees."""

    heads: ClassVar[tuple[int, int | None]] = (2, 2)
    weighted: ClassVar[bool] = True
    deltas: bool = setting(False, "turn the task vectors about the base instead of the weights about zero")

    @property
    def needs_base(self) -> bool:
        """The base is where the angle is seen from."""
        return self.deltas

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return the sines over sin a, or 1 - t and t."""
        t = share_of_second(weights)
        angle = math.acos(cosine_of(products, 0, 1))
        straight = min(products[0, 0], products[1, 1]) == 0 or math.sin(angle) < STRAIGHT
        pair = (1 - t, t) if straight else (math.sin((1 - t) * angle), math.sin(t * angle))
        form = LinearForm(pair, divisor=1.0 if straight else math.sin(angle))
        return about_base(form) if self.deltas else form

    __call__ = call_fitted


@method("nuslerp_vectors", "mergekit, nuslerp with nuslerp_flatten: false")
@dataclass(frozen=True)
class NuSlerpVectors:
    """As nuslerp, but with an angle for each vector along the `last` axis of a tensor, or along its `first`."""

    heads: ClassVar[tuple[int, int | None]] = (2, 2)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True
    along: str = setting("last", "axis along which vectors lie: last (each row a vector), or first")

    def __post_init__(self) -> None:
        if self.along not in ("last", "first"):
            raise UsageError(f"nuslerp_vectors: along: expected last or first, got {self.along!r}.")

    def facts(self, tensor: Tensor) -> tuple[Array, Array] | None:
        """Return the factors of both models for every vector along the first axis; rows bring what they need."""
        if self.along == "last" or len(tensor.shape) < 2:
            return None
        inner = math.prod(tensor.shape[1:])

        def look(block: Inputs) -> Array:
            a, b = (head.reshape(-1) for head in block.heads)
            place = (block.start + np.arange(a.size)) % max(1, inner)
            return np.stack([np.bincount(place, value, inner) for value in (a * a, b * b, a * b)])

        sums = sum(tensor.each(look), np.zeros((3, inner)))
        return arcs(sums, share_of_second(tensor.weights))

    def block(self, block: Inputs, facts: tuple[Array, Array] | None) -> Array:
        """Return the merged values of whole rows."""
        a, b = block.heads
        if facts is not None:
            place = (block.start + np.arange(a.size)) % facts[0].size
            return np.asarray(facts[0][place].reshape(a.shape) * a + facts[1][place].reshape(b.shape) * b)
        rows = [head.reshape(-1, head.shape[-1] if head.ndim else 1) for head in (a, b)]
        sums = np.stack([(x * y).sum(-1) for x, y in ((rows[0], rows[0]), (rows[1], rows[1]), (rows[0], rows[1]))])
        first, second = arcs(sums, share_of_second(block.weights))
        return np.asarray((first[:, None] * rows[0] + second[:, None] * rows[1]).reshape(a.shape))

    __call__ = call_elementwise


def share_of_second(weights: Sequence[float]) -> float:
    """Return w_1 / (w_0 + w_1)."""
    mean = weighted_mean(weights, normalize=True)
    return mean.heads[1] / mean.divisor


def arcs(sums: Array, t: float) -> tuple[Array, Array]:
    """Return both factors of the arc for each pair of vectors, from their squares and inner product, (3, k)."""
    length = np.sqrt(sums[0]) * np.sqrt(sums[1])
    cosine = np.clip(np.divide(sums[2], length, out=np.ones_like(length), where=length > 0), -1, 1)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    straight = sine < STRAIGHT
    divisor = np.where(straight, 1.0, sine)
    first = np.where(straight, 1 - t, np.sin((1 - t) * angle) / divisor)
    return first, np.where(straight, t, np.sin(t * angle) / divisor)


@method("multislerp", "mergekit, multislerp")
@dataclass(frozen=True)
class MultiSlerp:
    """The weighted mean direction of the models, with their weighted mean norm."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    deltas: bool = setting(False, "work on the task vectors about the base instead of on the weights about zero")

    @property
    def needs_base(self) -> bool:
        """The base is where directions are seen from."""
        return self.deltas

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return w_i / norm_i, times the mean norm over the norm of the mean."""
        shares = _shares(weights)
        norms = [math.sqrt(products[i, i]) for i in range(len(products))]
        direction = [share / norm if norm else 0.0 for share, norm in zip(shares, norms, strict=True)]
        form = LinearForm(_with_norm(direction, products, small_dot(shares, norms)))
        return about_base(form) if self.deltas else form

    __call__ = call_fitted


@method("karcher", "Karcher 1977, Riemannian center of mass; mergekit, karcher")
@dataclass(frozen=True)
class Karcher:
    """The point of the sphere nearest to all directions (weighted, by squared angle), with the weighted mean norm."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    iterations: int = setting(10, "most steps of the fixed-point iteration")
    tolerance: float = setting(1e-5, "angle in radians of a step below which it stops")

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return the coefficients of the mean on the inputs, in whose span every iterate lies."""
        shares = _shares(weights)
        norms = [math.sqrt(products[i, i]) for i in range(len(products))]
        used = [i for i, norm in enumerate(norms) if norm > 0]
        if not used:
            return LinearForm(tuple(shares))
        unit = np.array([[products[i, j] / (norms[i] * norms[j]) for j in used] for i in used])
        pull = [shares[i] / math.fsum(shares[j] for j in used) for i in used]
        centre = self._centre(unit, pull)
        mean_norm, found = small_dot(shares, norms), dict(zip(used, centre, strict=True))
        return LinearForm(tuple(mean_norm * found[i] / norms[i] if i in found else 0.0 for i in range(len(norms))))

    def _centre(self, unit: Array, pull: Sequence[float]) -> list[float]:
        """Return the centre of unit vectors with inner products `unit`, as coefficients on them."""
        centre = list(_with_norm(pull, unit, 1.0))
        for _ in range(self.iterations):
            step = [0.0] * len(centre)
            for i, share in enumerate(pull):
                cosine = min(1.0, max(-1.0, small_dot(centre, unit[i])))
                stretch = share * _angle_over_sine(math.acos(cosine))
                step = [s - stretch * cosine * c for s, c in zip(step, centre, strict=True)]
                step[i] += stretch
            length = _norm(step, unit)
            if length < self.tolerance:
                break
            moved = [math.cos(length) * c + math.sin(length) * s / length for c, s in zip(centre, step, strict=True)]
            centre = list(_with_norm(moved, unit, 1.0))
        return centre

    __call__ = call_fitted


# --------------------------------------------------------------------------------------- small arithmetic


def _shares(weights: Sequence[float]) -> list[float]:
    mean = weighted_mean(weights, normalize=True)
    return [c / mean.divisor for c in mean.heads]


def _norm(coefficients: Sequence[float], products: Array) -> float:
    rows = [small_dot(coefficients, row) for row in products]
    return math.sqrt(max(0.0, small_dot(coefficients, rows)))


def _with_norm(coefficients: Sequence[float], products: Array, wanted: float) -> tuple[float, ...]:
    """Return the combination rescaled to the norm `wanted`; all zeros where it vanishes."""
    norm = _norm(coefficients, products)
    return tuple(wanted * c / norm if norm else 0.0 for c in coefficients)


def _angle_over_sine(angle: float) -> float:
    return angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0
