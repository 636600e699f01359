"""Methods that drop elements of task vectors by their magnitude before adding them up.

Notation: heads x_i, base b, task vectors d_i = x_i - b, weights w_i, n elements. Two passes over the inputs: the first
finds the magnitudes where each d_i is cut (`blocks.ranking`), the second merges block by block. Of equal magnitudes
the first by place count as larger: half precision has many, and results must be reproducible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelgit.errors import UsageError
from modelgit.merge.blocks.ranking import Cut, keep, largest, largest_of_all
from modelgit.merge.blocks.sums import Array, tree_sum
from modelgit.merge.blocks.tensors import Inputs, Tensor
from modelgit.merge.blocks.vectors import square_sum, vectors
from modelgit.merge.methods.registry import call_elementwise, method, setting, spread, together, within


def added(block: Inputs, scale: float, vector: Array) -> Array:
    """Return the base plus `scale` times the merged task vector."""
    return np.asarray(block.origin() + scale * vector)


def joined(parts: Sequence[Array], weights: Sequence[float], *, signs: bool, normalize: bool) -> Array:
    """Return sum w_i v_i, with `signs` over those with the elected sign; `normalize` divides by their weights."""
    if signs:
        return vectors().elect(parts, weights, normalize=normalize)
    total = math.fsum(weights)
    summed = vectors().mix(parts, weights)
    return summed / total if normalize and total != 0 else summed


def density_count(density: float, size: int) -> int:
    """Return how many of `size` elements are kept: at least one."""
    return min(size, max(1, int(density * size)))


@dataclass(frozen=True, slots=True)
class Trims:
    """What is known of a tensor before its blocks are merged: a cut and a factor for each head."""

    cuts: tuple[Cut, ...]
    factors: tuple[float, ...]
    even: float = 1.0  # the sign that a sum of zero elects


@method("ties", "Yadav et al. 2023, arXiv:2306.01708")
@dataclass(frozen=True)
class Ties:
    """Trim, elect, merge: keep the largest part of each d_i, take the majority sign, average what has it.

    With scope `model`, as in the paper, one threshold holds for all tensors: the (int(density n) + 1)-th largest
    magnitude, with all its equals, and where a sum is zero the majority over the model decides. With scope `tensor`
    each tensor has its own threshold and keeps int(density n) elements, as most implementations do. Means are by
    weight: equal weights give the paper's mean by count. `rescale` keeps the sum of magnitudes of each d_i.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    density: float | tuple[float, ...] = setting(0.2, "share of each task vector that is kept, largest first")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the weights of those that agree")
    scope: str = setting("tensor", "what is trimmed together: `tensor` by tensor, or the whole `model`")
    rescale: bool = setting(False, "stretch what is kept of a d_i in a tensor to the sum of magnitudes that d_i had")

    def __post_init__(self) -> None:
        within("ties: density", self.density, 0, 1)
        if self.scope not in ("tensor", "model"):
            raise UsageError(f"ties: scope: expected tensor or model, got {self.scope!r}.")
        if self.scope == "model" and isinstance(self.density, tuple):
            raise UsageError("ties: scope model has one density for all models.", hint="Use --set scope=tensor.")

    def survey(self, tensors: Sequence[Tensor]) -> Trims | None:
        """Return the thresholds over the whole model, if that is the scope."""
        counts = {len(tensor.weights) for tensor in tensors if not tensor.unchanged}
        if self.scope == "tensor" or not counts:
            return None
        if len(counts) > 1:
            hint = "Use --set scope=tensor, or leave such tensors out (--on-missing drop)."
            raise UsageError("ties with scope model needs every tensor in every model.", hint=hint)
        count = counts.pop()
        size = sum(math.prod(tensor.shape) for tensor in tensors)
        rank = min(size, int(spread(self.density, 1)[0] * size) + 1)
        values = largest_of_all(tensors, Inputs.deltas, rank, count)
        trims = Trims(tuple(Cut(value, 1 << 63, 0) for value in values), (1.0,) * count)
        balance = sum(sum(tensor.each(lambda block: self._balance(block, trims))) for tensor in tensors)
        return Trims(trims.cuts, trims.factors, 1.0 if balance >= 0 else -1.0)

    def _balance(self, block: Inputs, trims: Trims) -> int:
        """Return how many more sums are positive than negative."""
        total = vectors().mix(self._trimmed(block, trims), block.weights)
        return int(np.count_nonzero(total > 0)) - int(np.count_nonzero(total < 0))

    def facts(self, tensor: Tensor) -> Trims:
        """Return where each d_i is cut, and what is left is multiplied with."""
        trims: Trims | None = tensor.model
        if trims is None:
            size, densities = math.prod(tensor.shape), spread(self.density, len(tensor.weights))
            found = largest(tensor, Inputs.deltas, [[density_count(density, size)] for density in densities])
            trims = Trims(tuple(cuts[0] for cuts in found), (1.0,) * len(found))
        return Trims(trims.cuts, self._factors(tensor, trims), trims.even) if self.rescale else trims

    def _factors(self, tensor: Tensor, trims: Trims) -> tuple[float, ...]:
        """Return the sum of magnitudes before the cut over that after it."""

        def look(block: Inputs) -> list[tuple[float, float]]:
            before = [tree_sum(np.abs(whole)) for whole in block.deltas()]
            after = [tree_sum(np.abs(kept)) for kept in self._trimmed(block, trims)]
            return list(zip(before, after, strict=True))

        sums = np.sum([*tensor.each(look), [(0.0, 0.0)] * len(trims.cuts)], axis=0)
        return tuple(float(before / after) if after else 1.0 for before, after in sums)

    def _trimmed(self, block: Inputs, trims: Trims) -> list[Array]:
        parts = block.deltas()
        for part, cut, factor in zip(parts, trims.cuts, trims.factors, strict=True):
            keep(part, block.start, cut)
            if factor != 1:
                part *= factor
        return parts

    def block(self, block: Inputs, facts: Trims) -> Array:
        """Return b + scale * elected mean of the trimmed d_i."""
        parts = self._trimmed(block, facts)
        elected = vectors().elect(parts, block.weights, normalize=self.normalize, even=facts.even)
        return added(block, self.scale, elected)

    __call__ = call_elementwise


@method("breadcrumbs", "Davari and Belilovsky 2023, arXiv:2312.06795")
@dataclass(frozen=True)
class Breadcrumbs:
    """The sum of task vectors without their outliers and smallest elements: b + scale * sum w_i masked d_i."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    density: float | tuple[float, ...] = setting(0.9, "share of each task vector that is kept")
    gamma: float | tuple[float, ...] = setting(0.01, "share of the largest elements that is dropped")
    scale: float = setting(1.0, "factor on the merged task vector")
    signs: bool = setting(False, "let the majority elect signs, as in ties")

    def __post_init__(self) -> None:
        within("breadcrumbs: density", self.density, 0, 1)
        within("breadcrumbs: gamma", self.gamma, 0, 1)
        both = together("breadcrumbs: density, gamma", self.density, self.gamma)
        within("breadcrumbs: density + gamma", tuple(map(sum, both)), 0, 1)

    def facts(self, tensor: Tensor) -> list[list[Cut]]:
        """Return for each d_i what belongs to it with its outliers, and these."""
        size = math.prod(tensor.shape)
        both = together("breadcrumbs", self.density, self.gamma, heads=len(tensor.weights))
        counts = [(int(density * size), int(gamma * size)) for density, gamma in both]
        return largest(tensor, Inputs.deltas, [[min(size, large + kept), large] for kept, large in counts])

    def block(self, block: Inputs, facts: list[list[Cut]]) -> Array:
        """Return b + scale * sum of the masked d_i."""
        parts = block.deltas()
        for part, (kept, dropped) in zip(parts, facts, strict=True):
            keep(part, block.start, kept, dropped)
        return added(block, self.scale, joined(parts, block.weights, signs=self.signs, normalize=False))

    __call__ = call_elementwise


@method("sce", "Wan et al. 2024, FuseChat, arXiv:2408.07990")
@dataclass(frozen=True)
class Sce:
    """Select, calculate, erase: elements where models differ most, weighted by the energy of each d_i, minority erased.

    Kept are the int(top * m) elements whose variance over the models is largest, of the m where it is not zero.
    Weights are the mean squares of the kept d_i; the sign of their plain sum is elected, and what has it is averaged.
    However small the updates, weights are never replaced by equal ones: only where all are zero nothing moves.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    top: float = setting(1.0, "share of the elements with a variance that is kept, largest first")
    scale: float = setting(1.0, "factor on the merged task vector")

    def __post_init__(self) -> None:
        within("sce: top", self.top, 0, 1)

    def facts(self, tensor: Tensor) -> tuple[Cut | None, tuple[float, ...]]:
        """Return where variances are cut, if they are, and the weights."""
        cut = None
        if self.top < 1:
            nonzero = sum(tensor.each(lambda block: int(np.count_nonzero(variance(block.deltas())))))
            cut = largest(tensor, lambda block: [variance(block.deltas())], [[int(self.top * nonzero)]])[0][0]

        def look(block: Inputs) -> list[float]:
            return [square_sum(part) for part in selected(block, cut)]

        energies = [math.fsum(column) for column in zip(*tensor.each(look), strict=True)]
        total = math.fsum(energies)
        return cut, tuple(energy / total if total else 0.0 for energy in energies)

    def block(self, block: Inputs, facts: tuple[Cut | None, tuple[float, ...]]) -> Array:
        """Return b + scale * weighted mean of what has the elected sign."""
        cut, weights = facts
        parts = selected(block, cut)
        return added(block, self.scale, vectors().elect(parts, weights, [1.0] * len(parts), normalize=True))

    __call__ = call_elementwise


def variance(parts: Sequence[Array]) -> Array:
    """Return the variance of each element over the models: the mean squared distance to their mean."""
    equal = [1.0] * len(parts)
    mean = vectors().mix(parts, equal) / len(parts)
    return vectors().mix([(part - mean) ** 2 for part in parts], equal) / len(parts)


def selected(block: Inputs, cut: Cut | None) -> list[Array]:
    """Return the task vectors of a block, zero where their variance is not among the largest."""
    parts = block.deltas()
    if cut is not None:
        mask = cut.mask(variance(parts), block.start)
        parts = [np.where(mask, part, 0.0) for part in parts]
    return parts
