"""What averaging ever more runs brings: the accuracy of the mean of k of a cell's runs, and the law in 1/k through it.

Nothing is trained: weights that are there are averaged, and asked as everything else is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from modelgit.merge.selection.paths import between
from modelgit.merge.selection.states import Raw
from modelgit.train.measuring.intervals import Interval
from modelgit.train.measuring.paired import Cell, accuracy_of, difference, mean_of_models

STARTS = 4  # how many means of k runs are looked at, at most
WANTED = (1, 2, 3, 4, 6, 8, 12, 16, 20)  # numbers of runs, and all there are
Kind = Literal["plain", "recycled"]
Marks = npt.NDArray[np.bool_]
State = dict[str, Raw]


@dataclass(frozen=True, slots=True)
class Growth:
    """Means of k of a cell's runs of one kind: what they get right on the held-out domain, and on validation."""

    kind: Kind
    k: tuple[int, ...]
    held_out: tuple[Cell, ...]
    validation: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracies of means of k runs over all cells, by k, and limit - slope / k through them, each with its interval.

    `more` is how much the mean of all gets right beyond a single run, `error` the root of the mean squared residual.
    """

    kind: Kind
    domains: Literal["held-out", "validation"]
    k: tuple[int, ...]
    accuracy: tuple[Interval, ...]
    limit: Interval
    slope: Interval
    more: Interval
    error: float


def sizes(count: int) -> tuple[int, ...]:
    """Returns of how many of so many runs means are taken."""
    return tuple(sorted({k for k in WANTED if k < count} | {count}))


def windows(count: int, k: int) -> list[list[int]]:
    """Returns which runs the means of k are of: neighbours on a ring, as many of each run as can be.

    Runs are numbered by their draws, so a ring of them is as good as any other, and needs no seed.
    """
    if k == count:
        return [list(range(count))]
    means = count if k == 1 else min(count, STARTS)
    return [[(count * start // means + i) % count for i in range(k)] for start in range(means)]


def growing(
    kind: Kind,
    states: Sequence[State],
    known: Mapping[tuple[int, ...], Marks],
    ask: Callable[[State], Marks],
    parted: Callable[[Marks], tuple[Cell, Cell]],
) -> Growth:
    """Returns how means of runs do. `ask` tells which examples (n,) a model gets right, where that is not `known`.

    By the numbers of runs, those of single ones are known. `parted` parts marks into held-out domain and validation.
    """
    found = list[tuple[Cell, Cell]]()
    for k in sizes(len(states)):
        means = [tuple(window) for window in windows(len(states), k)]
        marks = [known[mean] if mean in known else ask(mean_of([states[i] for i in mean])) for mean in means]
        outside, inside = zip(*map(parted, marks), strict=True)
        found.append((mean_of_models(outside), mean_of_models(inside)))
    held_out, validation = zip(*found, strict=True)
    return Growth(kind, sizes(len(states)), held_out, validation)


def mean_of(states: Sequence[State]) -> State:
    """Returns the mean of models in memory."""
    mean = states[0]
    for k, state in enumerate(states[1:], 2):
        mean = between(mean, state, 1 / k)
    return mean


def curves(growths: Sequence[Growth], *, validation: bool = True) -> tuple[Curve, ...]:
    """Returns the curves of each kind of run, over all cells; of the numbers of runs that every cell has.

    Without `validation` where runs are of several splits: what validates one has trained another.
    """
    found = []
    for kind in dict.fromkeys(growth.kind for growth in growths):
        own = [growth for growth in growths if growth.kind == kind]
        k = tuple(sorted(set.intersection(*(set(growth.k) for growth in own))))
        if len(k) < 2:
            continue
        found.append(curve((kind, "held-out"), k, [[g.held_out[g.k.index(n)] for g in own] for n in k]))
        if validation:
            found.append(curve((kind, "validation"), k, [[g.validation[g.k.index(n)] for g in own] for n in k]))
    return tuple(found)


def curve(
    what: tuple[Kind, Literal["held-out", "validation"]], k: tuple[int, ...], cells: Sequence[Sequence[Cell]]
) -> Curve:
    """Returns a curve through cells by number of runs.

    Limit and slope are sums of the accuracies with fixed weights (least squares), so each has the interval of a mean.
    """
    weights = np.linalg.pinv(np.stack([np.ones(len(k)), -1 / np.array(k)], 1))  # (2, sizes)
    limit, slope = (accuracy_of(weighted(cells, row)) for row in weights)
    found = tuple(map(accuracy_of, cells))
    left = [limit.mean - slope.mean / n - one.mean for n, one in zip(k, found, strict=True)]
    error = float(np.sqrt(np.mean(np.square(left))))
    return Curve(*what, k, found, limit, slope, difference(cells[-1], cells[0]), error)


def weighted(cells: Sequence[Sequence[Cell]], weights: npt.NDArray[np.float64]) -> list[Cell]:
    """Returns in each place of the protocol the sum of what means of several sizes get right, with weights."""
    return [
        Cell(
            some[0].domain,
            some[0].seed,
            some[0].things,
            np.sum([w * c.right for w, c in zip(weights, some, strict=True)], 0),
        )
        for some in zip(*cells, strict=True)
    ]
