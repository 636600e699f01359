"""The permutations that bring one model closest to another.

Weight matching: coordinate ascent, each group in turn given the others by linear assignment (Ainsworth et al. 2023,
arXiv:2209.04836, algorithm 1). Activation matching: one assignment for each group, of correlations (section 3.1 there).
A group with groups inside is solved with them, exactly: the gain of a pair of blocks is what its own assignment gives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.merge.align.spec import Group, Indices, Permutations, Place, Spec, identity, source_index

Array = npt.NDArray[np.float64]
Values = Callable[[str], Array]
SWEEPS, GAIN = 100, 1e-12
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # follow the units, say nothing about them


@dataclass(frozen=True, slots=True)
class Family:
    """A group that is inside no other, and those inside it."""

    group: Group
    inner: tuple[Group, ...]

    @property
    def members(self) -> tuple[Group, ...]:
        """All of them."""
        return (self.group, *self.inner)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models: their float64 values by tensor, "ours" and the one to be permuted."""

    ours: Values
    theirs: Values


def families(spec: Spec) -> list[Family]:
    """Return the groups of a spec, each with those inside it."""
    outer = [group for group in spec.groups if group.inside is None]
    return [Family(g, tuple(i for i in spec.groups if i.inside == g.name)) for g in outer]


def match_weights(spec: Spec, pair: Pair, seed: int = 0, listener: Listener = ignore) -> dict[str, Indices]:
    """Return the permutations of "theirs" whose weights have the largest inner product with "ours".

    Groups are visited in an order drawn anew for each sweep, from `seed`; the ascent ends when no group gains.
    """
    found, kin = identity(spec), families(spec)
    draws = np.random.default_rng(seed)
    listener(Started("matching weights", None, "steps"))
    for _ in range(SWEEPS):
        gains = [improve(spec, pair, kin[i], found) for i in draws.permutation(len(kin))]
        listener(Advanced("matching weights", 1))
        if not any(gains):
            break
    listener(Finished("matching weights"))
    return found


def improve(spec: Spec, pair: Pair, family: Family, found: dict[str, Indices]) -> bool:
    """Give a family its best permutation, the others held; return whether that brought the models closer."""
    chosen = assignment(family, scores(spec, pair, family, found))
    if all(np.array_equal(chosen[name], found[name]) for name in chosen):
        return False
    names = sorted({place.tensor for group in family.members for place in group.places})
    before, after = (closeness(spec, pair, names, trial) for trial in (found, {**found, **chosen}))
    if after <= before + GAIN * max(1.0, abs(before)):
        return False
    found.update(chosen)
    return True


def closeness(spec: Spec, pair: Pair, names: Sequence[str], found: Permutations) -> float:
    """Return the inner product of "ours" and the permuted "theirs" over some tensors."""
    tensors = spec.tensors()
    return float(
        sum(np.vdot(pair.ours(name), permuted(pair.theirs(name), tensors[name], found)) for name in names if told(name))
    )


def told(tensor: str) -> bool:
    """Tell whether a tensor's values are matched: statistics of batches are not."""
    return not tensor.endswith(STATISTICS)


def permuted(values: Array, axes: Mapping[int, Sequence[tuple[Group, int]]], found: Permutations) -> Array:
    """Return a tensor with its units in their new order."""
    for axis, groups in axes.items():
        values = values.take(source_index(values.shape[axis], groups, found), axis)
    return values


@dataclass(slots=True)
class Scores:
    """What pairs of units gain: of the outer group (size, size); of each inner one, block by block (a, b, a, b)."""

    outer: Array
    inner: dict[str, Array]

    def add(self, left: Array, right: Array, block: int, below: tuple[Group, int] | None) -> None:
        """Add the gains along axis 0 of two arrays (n, …), `block` long for a unit of the outer group."""
        count = len(self.outer)
        if below is None:
            self.outer += _rows(left, count, block, 1, 1) @ _rows(right, count, block, 1, 1).T
            return
        group, step = below
        sides = (_rows(each, count, block, group.size, step) for each in (left, right))
        one, other = sides
        gains = one @ other.T
        self.inner[group.name] += gains.reshape(count, group.size, count, group.size)


def _rows(values: Array, count: int, block: int, size: int, step: int) -> Array:
    """Return (count * size, …): axis 0 is (?, count, block), and a block is (?, size, step)."""
    apart = values.reshape(-1, count, block // (size * step), size, step, values[0].size)
    return np.ascontiguousarray(apart.transpose(1, 3, 0, 2, 4, 5)).reshape(count * size, -1)


def empty_scores(family: Family) -> Scores:
    """Return scores of nothing."""
    a = family.group.size
    return Scores(np.zeros((a, a)), {g.name: np.zeros((a, g.size, a, g.size)) for g in family.inner})


def scores(spec: Spec, pair: Pair, family: Family, found: Permutations) -> Scores:
    """Return what pairs of units of a family gain, all other groups permuted as they are now."""
    total, tensors = empty_scores(family), spec.tensors()
    still = {**found, **{name: rows for name, rows in identity(spec).items() if name in _names(family)}}
    for place in family.group.places:
        if not told(place.tensor):
            continue
        axes = tensors[place.tensor]
        theirs = pair.theirs(place.tensor)
        for axis, groups in axes.items():
            current = still if axis == place.axis else found
            theirs = theirs.take(source_index(theirs.shape[axis], groups, current), axis)
        left, right = (np.moveaxis(each, place.axis, 0) for each in (pair.ours(place.tensor), theirs))
        total.add(left, right, place.block, below(family, place))
    return total


def _names(family: Family) -> set[str]:
    return {group.name for group in family.members}


def below(family: Family, place: Place) -> tuple[Group, int] | None:
    """Return the inner group along an axis of the outer one, with its block."""
    for group in family.inner:
        for other in group.places:
            if (other.tensor, other.axis) == (place.tensor, place.axis):
                return group, other.block
    return None


def assignment(family: Family, total: Scores) -> dict[str, Indices]:
    """Return the permutations of a family with the largest gain: exact, one within the other."""
    gains, count = total.outer.copy(), family.group.size
    rows: dict[str, Indices] = {g.name: np.zeros((count, count, g.size), np.int64) for g in family.inner}
    for name, table in total.inner.items():
        for i in range(count):
            for j in range(count):
                rows[name][i, j] = best = assigned(table[i, :, j, :])
                gains[i, j] += table[i, np.arange(len(best)), j, best].sum()
    outer = assigned(gains)
    return {family.group.name: outer, **{name: each[np.arange(count), outer] for name, each in rows.items()}}


def assigned(gains: Array) -> Indices:
    """Return for each row the column it is given, so that the sum of gains is largest."""
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(gains, maximize=True)[1], np.int64)
