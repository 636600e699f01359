"""Methods that drop elements of task vectors at random and stretch the others.

Notation: heads x_i, base b, task vectors d_i = x_i - b, weights w_i. What is kept with probability p is divided by p,
as the papers have it, so that the expected task vector stays what it was. (A factor that keeps the sum of magnitudes
instead, as mergekit has it, is far off for small tensors: on 64 values at density 0.1 it ranges from 4 to 148.) Masks
follow from the seed, the tensor's name and the input's id: not from the order or number of models, nor from threads.
"""

from dataclasses import dataclass
from typing import ClassVar

from modelgit.merge.blocks.masks import draws, seed_of
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.blocks.vectors import vectors
from modelgit.merge.methods.registry import (
    PerHead,
    call_elementwise,
    method,
    no_facts,
    setting,
    spread,
    together,
    within,
)
from modelgit.merge.methods.sparse import added, joined


def dropped(block: Inputs, densities: PerHead, seed: int) -> list[Array]:
    """Return the task vectors with random elements set to 0 and the others divided by their density."""
    parts = block.deltas()
    for head, (part, density) in enumerate(zip(parts, spread(densities, len(parts)), strict=True)):
        if density < 1:
            vectors().drop(part, draws(seed_of(block, seed, head), block.start, part.size), density)
    return parts


@method("dare_linear", "Yu et al. 2024, arXiv:2311.03099")
@dataclass(frozen=True)
class DareLinear:
    """Drop and rescale: keep each element of d_i with probability density, times 1 / density; b + scale * sum w_i d_i.

    The masks follow from the seed, the tensor's name and the input's id: not from the order or number of models.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    density: float | tuple[float, ...] = setting(0.5, "probability that an element of a task vector is kept")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the sum of the weights")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        within("dare_linear: density", self.density, 2**-32, 1)

    def block(self, block: Inputs, facts: None) -> Array:
        """Return b + scale * (weighted) mean of the rescaled d_i."""
        parts = dropped(block, self.density, self.seed)
        return added(block, self.scale, joined(parts, block.weights, signs=False, normalize=self.normalize))

    facts = no_facts
    __call__ = call_elementwise


@method("dare_ties", "Yu et al. 2024, arXiv:2311.03099, with the sign election of arXiv:2306.01708")
@dataclass(frozen=True)
class DareTies:
    """Drop and rescale as dare_linear, then merge the entries that have the elected sign as ties."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    density: float | tuple[float, ...] = setting(0.5, "probability that an element of a task vector is kept")
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the weights of those that agree")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        within("dare_ties: density", self.density, 2**-32, 1)

    def block(self, block: Inputs, facts: None) -> Array:
        """Return b + scale * elected mean of the rescaled d_i."""
        parts = dropped(block, self.density, self.seed)
        return added(block, self.scale, joined(parts, block.weights, signs=True, normalize=self.normalize))

    facts = no_facts
    __call__ = call_elementwise


# ------------------------------------------------------------------------------------------------------- DELLA


def check_probabilities(name: str, densities: PerHead, epsilons: PerHead) -> None:
    """Raise UsageError unless all probabilities from density - epsilon to density + epsilon make sense."""
    within(f"{name}: density", densities, 2**-32, 1)
    within(f"{name}: epsilon", epsilons, 0, 1)
    for density, epsilon in together(f"{name}: density, epsilon", densities, epsilons):
        if density < 1:
            within(f"{name}: density - epsilon", density - epsilon, 2**-32, 1)
            within(f"{name}: density + epsilon", density + epsilon, 0, 1)


def pruned(block: Inputs, densities: PerHead, epsilons: PerHead, seed: int) -> list[Array]:
    """Return the task vectors with elements kept by a probability that grows with their rank in the row, over it.

    From density - epsilon for the smallest magnitude of a row to density + epsilon for the largest; equal magnitudes
    have the same. A row of one element has the density itself.
    """
    parts = [part.reshape(-1, part.shape[-1]) if part.ndim else part.reshape(1, 1) for part in block.deltas()]
    length, shares = parts[0].shape[-1], together("della", densities, epsilons, heads=len(parts))
    for head, (part, (density, epsilon)) in enumerate(zip(parts, shares, strict=True)):
        if density >= 1:
            continue
        line = (density - epsilon, 2 * epsilon / (length - 1)) if length > 1 else (density, 0.0)
        numbers = draws(seed_of(block, seed, head), block.start, part.size)
        vectors().drop_ranked(part, numbers, vectors().ranks(part), line)
    return parts


@method("della", "Deep et al. 2024, arXiv:2406.11617")
@dataclass(frozen=True)
class Della:
    """Drop by magnitude, elect, fuse: elements are kept the likelier the larger they are in their row; then as ties."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True
    density: float | tuple[float, ...] = setting(0.5, "mean probability that an element of a task vector is kept")
    epsilon: float | tuple[float, ...] = setting(
        0.15, "how far the probabilities of a row reach below and above the density"
    )
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(True, "divide by the weights of those that agree")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        check_probabilities("della", self.density, self.epsilon)

    def block(self, block: Inputs, facts: None) -> Array:
        """Return b + scale * elected mean of the pruned d_i."""
        parts = pruned(block, self.density, self.epsilon, self.seed)
        elected = joined(parts, block.weights, signs=True, normalize=self.normalize)
        return added(block, self.scale, elected.reshape(block.origin().shape))

    facts = no_facts
    __call__ = call_elementwise


@method("della_linear", "Deep et al. 2024, arXiv:2406.11617, without the sign election")
@dataclass(frozen=True)
class DellaLinear:
    """Drop by magnitude as della, then the sum of task vectors: b + scale * sum w_i pruned d_i."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True
    density: float | tuple[float, ...] = setting(0.5, "mean probability that an element of a task vector is kept")
    epsilon: float | tuple[float, ...] = setting(
        0.15, "how far the probabilities of a row reach below and above the density"
    )
    scale: float = setting(1.0, "factor on the merged task vector")
    normalize: bool = setting(False, "divide by the sum of the weights")
    seed: int = setting(0, "where the random masks start from")

    def __post_init__(self) -> None:
        check_probabilities("della_linear", self.density, self.epsilon)

    def block(self, block: Inputs, facts: None) -> Array:
        """Return b + scale * (weighted) sum of the pruned d_i."""
        parts = pruned(block, self.density, self.epsilon, self.seed)
        summed = joined(parts, block.weights, signs=False, normalize=self.normalize)
        return added(block, self.scale, summed.reshape(block.origin().shape))

    facts = no_facts
    __call__ = call_elementwise
