"""Merge methods that end in a weighted sum of the inputs: means, task arithmetic, interpolation, spherical ones.

Importing this module fills the registry, with the sparse methods of `modelgit.merge.sparse` too.
Notation: heads x_i, base b, differences d_i = x_i - b, weights w_i. Everything is per tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.errors import UsageError
from modelgit.merge import sparse  # noqa: F401  its methods enter the registry
from modelgit.merge.linear_form import Array, LinearForm, about_base, small_dot, weighted_mean
from modelgit.merge.registry import (
    METHODS,
    Combined,
    Fitted,
    Inputs,
    Linear,
    Method,
    call_fitted,
    call_linear,
    make,
    method,
    setting,
    setting_types,
    settings_of,
    within,
)

__all__ = [
    "METHODS",
    "Combined",
    "Fitted",
    "Inputs",
    "Linear",
    "Method",
    "check_arguments",
    "make",
    "setting_types",
    "settings_of",
]


def check_arguments(chosen: Method, weights: Sequence[float], *, has_base: bool) -> None:
    """Raise UsageError unless the method can merge this many heads, with these weights, with or without a base."""
    fewest, most = chosen.heads
    if not fewest <= len(weights) <= (most or len(weights)):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        raise UsageError(f"method {chosen.name} merges {wanted} models, got {len(weights)}.")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"weights must be finite numbers, got {list(weights)}.")
    if not chosen.weighted and len(set(weights)) > 1:
        hint = "Leave weights out, or use the method linear."
        raise UsageError(f"method {chosen.name} treats all models alike, got weights {list(weights)}.", hint=hint)
    if chosen.needs_base and not has_base:
        hint = "Name a common ancestor with --base, or use the method linear."
        raise UsageError(f"method {chosen.name} needs a merge base, and there is none.", hint=hint)
    if isinstance(chosen, Linear):
        chosen.linear_terms(weights)


@method("linear", "Wortsman et al. 2022, arXiv:2203.05482; Ramé et al. 2022, arXiv:2205.09739")
@dataclass(frozen=True)
class LinearMean:
    """The weighted mean of the models: sum w_i x_i / sum w_i. With equal weights, the uniform soup."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    normalize: bool = setting(True, "divide by the sum of the weights")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return w_i over their sum."""
        return weighted_mean(weights, normalize=self.normalize)

    __call__ = call_linear


@method("task_arithmetic", "Ilharco et al. 2023, arXiv:2212.04089")
@dataclass(frozen=True)
class TaskArithmetic:
    """The base plus the scaled sum of task vectors: b + scale * sum w_i d_i. Papers scale many by 0.3 to 0.4."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    scale: float = setting(1.0, "factor on the sum of the task vectors")
    normalize: bool = setting(False, "divide the sum by the sum of the weights")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return scale * w_i, and on the base what is left of 1."""
        return about_base(_scaled(weighted_mean(weights, normalize=self.normalize), self.scale))

    __call__ = call_linear


@method("wise_ft", "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903")
@dataclass(frozen=True)
class WiseFt:
    """A point on the line from the base to the weighted mean of the models: (1 - alpha) b + alpha * mean."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    alpha: float = setting(0.5, "how far to go from the base: 0 is the base, 1 the mean of the models")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return alpha * w_i over their sum, and 1 - alpha on the base."""
        return about_base(_scaled(weighted_mean(weights, normalize=True), self.alpha))

    __call__ = call_linear


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
        cosines = [_cosine(products, i, j) for i in range(n) for j in range(i + 1, n)]
        c = max(0.0, math.fsum(cosines) / len(cosines))
        t = n * c / (1 + (n - 1) * c)
        return about_base(LinearForm((t,) * n, divisor=float(n)))

    __call__ = call_fitted


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
        cosine = _cosine(products, 0, 1)
        straight = min(products[0, 0], products[1, 1]) == 0 or abs(cosine) > self.threshold
        angle = math.acos(cosine)
        pair = (1 - t, t) if straight else (math.sin((1 - t) * angle), math.sin(t * angle))
        form = LinearForm(pair, divisor=1.0 if straight else math.sin(angle))
        return about_base(form) if self.deltas else form

    __call__ = call_fitted


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


def _scaled(form: LinearForm, factor: float) -> LinearForm:
    return LinearForm(tuple(factor * c for c in form.heads), divisor=form.divisor)


def _shares(weights: Sequence[float]) -> list[float]:
    mean = weighted_mean(weights, normalize=True)
    return [c / mean.divisor for c in mean.heads]


def _cosine(products: Array, i: int, j: int) -> float:
    """Return the cosine of the angle between inputs i and j; 0 where one of them is zero."""
    size = math.sqrt(products[i, i]) * math.sqrt(products[j, j])
    return min(1.0, max(-1.0, float(products[i, j]) / size)) if size else 0.0


def _norm(coefficients: Sequence[float], products: Array) -> float:
    rows = [small_dot(coefficients, row) for row in products]
    return math.sqrt(max(0.0, small_dot(coefficients, rows)))


def _with_norm(coefficients: Sequence[float], products: Array, wanted: float) -> tuple[float, ...]:
    """Return the combination rescaled to the norm `wanted`; all zeros where it vanishes."""
    norm = _norm(coefficients, products)
    return tuple(wanted * c / norm if norm else 0.0 for c in coefficients)


def _angle_over_sine(angle: float) -> float:
    return angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0
