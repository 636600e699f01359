"""Matching by what units do: correlations of their activations on data (Li et al. 2016, arXiv:1511.07543).

Looked at are the activations that enter a matrix product or a convolution, of both models on the same inputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.merge.align.graph import Network, State, Tracer, cast, cast_tensor, spec_from, trace
from modelgit.merge.align.matching import Array, Family, Scores, assignment, empty_scores, families
from modelgit.merge.align.spec import Group, Indices, Spec, identity

TASK = "matching activations"


@dataclass(slots=True)
class Moments:
    """Running sums of two models' activations at one place, unit by unit."""

    n: int = 0
    ours: Array = field(default_factory=lambda: np.zeros(0))
    theirs: Array = field(default_factory=lambda: np.zeros(0))
    squares: tuple[Array, Array] = field(default_factory=lambda: (np.zeros(0), np.zeros(0)))
    cross: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, a: Array, b: Array) -> None:
        """Take in activations (units, n)."""
        if not self.n:
            zeros = np.zeros(len(a))
            self.ours, self.theirs, self.squares = zeros, zeros, (zeros, zeros)
            self.cross = np.zeros((len(a), len(b)))
        self.n += a.shape[1]
        self.ours, self.theirs = self.ours + a.sum(1), self.theirs + b.sum(1)
        self.squares = self.squares[0] + (a * a).sum(1), self.squares[1] + (b * b).sum(1)
        self.cross = self.cross + a @ b.T

    def correlation(self) -> Array:
        """Return (units of ours, units of theirs); 0 for a unit that never changes."""
        means = self.ours / self.n, self.theirs / self.n
        covariance = self.cross / self.n - np.outer(*means)
        spread = [np.sqrt(np.maximum(s / self.n - m * m, 0)) for s, m in zip(self.squares, means, strict=True)]
        scale = np.outer(*spread)
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12 * max(scale.max(), 1))


def match_activations(
    network: Network, models: tuple[State, State], batches: Iterable[Tensor], spec: Spec, listener: Listener = ignore
) -> dict[str, Indices]:
    """Return the permutations of the second model whose activations correlate best with the first one's.

    `spec` says which groups are wanted; those that reach no product of activations with weights stay as they are.
    """
    moments: dict[int, Moments] = {}
    listener(Started(TASK, None, "steps"))
    first: Tracer | None = None
    single = tuple(cast(state, torch.float32) for state in models)
    for batch in batches:
        ours, theirs = (trace(network, state, cast_tensor(batch, torch.float32)) for state in single)
        first = first or ours
        for place, (a, b) in enumerate(zip(ours.met, theirs.met, strict=True)):
            moments.setdefault(place, Moments()).add(flat(a[0]), flat(b[0]))
        listener(Advanced(TASK, 1))
    listener(Finished(TASK))
    found = identity(spec)
    if first is not None:
        names = spec_from(first, single[0])[1]
        axes = [[(names.get(leaf), leaf) for leaf in first.atoms.leaves(axis)] for _, axis in first.met]
        for family in families(spec):
            total = empty_scores(family)
            for place, axis in enumerate(axes):
                add_place(total, family, [(name, first.atoms.sizes[leaf]) for name, leaf in axis], moments[place])
            found.update(assignment(family, total))
    return found


def flat(activations: Tensor) -> Array:
    """Return activations (units, n) in float64."""
    return np.asarray(activations.reshape(len(activations), -1).double().numpy(), np.float64)


def add_place(total: Scores, family: Family, axis: Sequence[tuple[str | None, int]], moments: Moments) -> None:
    """Add the correlations at one place; `axis` are its groups with their sizes."""
    blocks: dict[str | None, int] = {}
    length = 1
    for name, size in reversed(axis):
        blocks[name] = length
        length *= size
    if family.group.name not in blocks:
        return
    inner = next(((g, blocks[g.name]) for g in family.inner if g.name in blocks), None)
    add_correlation(total, moments.correlation(), blocks[family.group.name], inner)


def add_correlation(total: Scores, gains: Array, block: int, inner: tuple[Group, int] | None) -> None:
    """Add correlations (n, n) of an axis whose groups are `block` long, summed over what is not permuted."""
    count, n = len(total.outer), len(gains)
    size, step = (inner[0].size, inner[1]) if inner else (1, 1)
    sides = (n // (count * block), count, block // (size * step), size, step)
    table = np.einsum("pambrpAmBr->abAB", gains.reshape(*sides, *sides))  # the same position outside the groups
    if inner is None:
        total.outer += table[:, 0, :, 0]
    else:
        total.inner[inner[0].name] += table
