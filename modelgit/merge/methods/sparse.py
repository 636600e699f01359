"""Merge methods that keep only some elements of each task vector: TIES, Breadcrumbs, DARE.

Notation: heads x_i, base b, task vectors d_i = x_i - b, weights w_i. Everything is per tensor. Equal magnitudes
are told apart by their place, random masks are drawn from the tensor's name and the input's id: nothing depends
on the order in which models are named.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from modelgit.merge.methods.linear_form import Array
from modelgit.merge.methods.registry import Inputs, call_combined, method, setting, within

Mask = npt.NDArray[np.bool_]


def rank_mask(values: Array, drop_small: int, drop_large: int) -> Mask:
    """Return True but at the `drop_small` smallest and `drop_large` largest magnitudes; of equals, later is smaller."""
    keep = np.zeros(values.size, np.bool_)
    order = np.argsort(-np.abs(values.reshape(-1)), kind="stable")
    keep[order[drop_large : values.size - drop_small]] = True
    return keep.reshape(values.shape)


def top_mask(values: Array, density: float) -> Mask:
    """Return True at the max(1, int(density * n)) largest magnitudes; of equals the first by place."""
    size = values.size
    keep = min(size, max(1, int(density * size)))
    if keep == size:
        return np.ones(values.shape, np.bool_)
    flat = np.abs(values.reshape(-1))
    threshold = np.partition(flat, size - keep)[size - keep]
    above = flat > threshold
    equal = np.flatnonzero(flat == threshold)[: keep - int(np.count_nonzero(above))]
    above[equal] = True
    mask: Mask = above.reshape(values.shape)
    return mask


def random_mask(shape: tuple[int, ...], density: float, seed: str) -> Mask:
    """Return independent True with probability `density` (to 2**-32), from PCG64's raw stream, which never changes."""
    size = math.prod(shape)
    generator = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little"))
    draws = generator.random_raw((size + 1) // 2).astype("<u8").view("<u4")[:size]
    keep: Mask = draws < round(density * 2**32) if density < 1 else np.ones(size, np.bool_)
    return keep.reshape(shape)


def mix(vectors: Sequence[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """Return sum w_i v_i, over sum w_i with `normalize` (not where that is 0)."""
    total = math.fsum(weights)
    summed = weights[0] * vectors[0]
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        summed = summed + weight * vector
    return summed / total if normalize and total != 0 else summed


def elect(vectors: Sequence[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """Return the sum of w_i v_i over the entries with the sign of the whole sum; `normalize` divides by their w_i.

    A sum of exactly 0 elects plus; zeros never take part (Yadav et al. 2023, sections 3.2 and 3.3).
    """
    positive = mix(vectors, weights, normalize=False) >= 0
    summed, share = np.zeros(positive.shape), np.zeros(positive.shape)
    for weight, vector in zip(weights, vectors, strict=True):
        term = weight * vector
        agrees = np.where(positive, term > 0, term < 0)
        summed += np.where(agrees, term, 0.0)
        share += np.where(agrees, weight, 0.0)
    return summed / np.where(share == 0, 1.0, share) if normalize else summed


def dropped(inputs: Inputs, density: float, seed: int) -> list[Array]:
    """Return the task vectors with random elements set to 0 and the others divided by `density`."""
    pairs = zip(inputs.deltas(), inputs.keys, strict=True)
    masks = ((delta, random_mask(delta.shape, density, f"{seed}\n{inputs.name}\n{key}")) for delta, key in pairs)
    return [np.where(mask, delta / density, 0.0) for delta, mask in masks]


def added(inputs: Inputs, scale: float, vector: Array) -> Array:
    """Return the base plus `scale` times the merged task vector."""
    return np.asarray(inputs.origin() + scale * vector)


@method("ties", "Yadav et al. 2023, arXiv:2306.01708")
@dataclass(frozen=True)
class Ties:
    """Trim, elect, merge: keep the largest part of each d_i, take the majority sign, average what has it.

    With equal weights this is the paper's disjoint mean, except that each tensor has its own trimming threshold,
    where the paper has one for the whole model.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    density: float = setting(0.2, "share of each task vector that is kept, largest first")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the weights of those that agree")

    def __post_init__(self) -> None:
        within("ties: density", self.density, 0, 1)

    def combine(self, inputs: Inputs) -> Array:
        """Return b + scale * elected mean of the trimmed d_i."""
        trimmed = [np.where(top_mask(delta, self.density), delta, 0.0) for delta in inputs.deltas()]
        return added(inputs, self.scale, elect(trimmed, inputs.weights, normalize=self.normalize))

    __call__ = call_combined


@method("breadcrumbs", "Davari and Belilovsky 2023, arXiv:2312.06795")
@dataclass(frozen=True)
class Breadcrumbs:
    """The sum of task vectors without their outliers and smallest elements: b + scale * sum w_i masked d_i."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    density: float = setting(0.9, "share of each task vector that is kept")
    gamma: float = setting(0.01, "share of the largest elements that is dropped")
    scale: float = setting(1.0, "factor on the merged task vector")
    signs: bool = setting(False, "let the majority elect signs, as in ties")

    def __post_init__(self) -> None:
        within("breadcrumbs: density", self.density, 0, 1)
        within("breadcrumbs: gamma", self.gamma, 0, 1)
        within("breadcrumbs: density + gamma", self.density + self.gamma, 0, 1)

    def combine(self, inputs: Inputs) -> Array:
        """Return b + scale * sum of the masked d_i."""
        size = inputs.heads[0].size
        large = int(self.gamma * size)
        small = max(0, size - large - int(self.density * size))
        masked = [np.where(rank_mask(delta, small, large), delta, 0.0) for delta in inputs.deltas()]
        joined = (elect if self.signs else mix)(masked, inputs.weights, normalize=False)
        return added(inputs, self.scale, joined)

    __call__ = call_combined


@method("dare_linear", "Yu et al. 2024, arXiv:2311.03099")
@dataclass(frozen=True)
class DareLinear:
    """Drop and rescale: keep each element of d_i with probability density, times 1 / density; b + scale * sum w_i d_i.

    The masks follow from the seed, the tensor's name and the input's id: not from the order or number of models.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    density: float = setting(0.5, "probability that an element of a task vector is kept")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the sum of the weights")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        within("dare_linear: density", self.density, 2**-32, 1)

    def combine(self, inputs: Inputs) -> Array:
        """Return b + scale * (weighted) mean of the rescaled d_i."""
        sparse = dropped(inputs, self.density, self.seed)
        return added(inputs, self.scale, mix(sparse, inputs.weights, normalize=self.normalize))

    __call__ = call_combined


@method("dare_ties", "Yu et al. 2024, arXiv:2311.03099, with the sign election of arXiv:2306.01708")
@dataclass(frozen=True)
class DareTies:
    """Drop and rescale as dare_linear, then merge the entries that have the elected sign as ties."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    density: float = setting(0.5, "probability that an element of a task vector is kept")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the weights of those that agree")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        within("dare_ties: density", self.density, 2**-32, 1)

    def combine(self, inputs: Inputs) -> Array:
        """Return b + scale * elected mean of the rescaled d_i."""
        sparse = dropped(inputs, self.density, self.seed)
        return added(inputs, self.scale, elect(sparse, inputs.weights, normalize=self.normalize))

    __call__ = call_combined
