"""Strategies side by side on the same test examples, and trends across models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError
from modelgit.train.measuring.intervals import DRAWS, LEVEL, Interval, bootstrap, tabulated

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a strategy got right in one cell of a protocol: a held-out domain in one seed.

    `right` (n,) is 0 or 1 for each example, or the share of the strategy's models that had it right; `things` (n,) are
    the examples' names, which may come again in other cells.
    """

    domain: str
    seed: str
    things: tuple[str, ...]
    right: Floats

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())


def accuracy_of(cells: Sequence[Cell], *, domains: bool = False) -> Interval:
    """Returns the mean over domains of the accuracy in each, seeds pooled, with its interval (see `bootstrap`)."""
    return bootstrap(tabulated(*pooled(cells, [cell.right for cell in cells])), domains=domains)


def difference(first: Sequence[Cell], second: Sequence[Cell], *, domains: bool = False) -> Interval:
    """Returns how much more the first strategy gets right than the second, example by example, with its interval.

    Raises:
        DataError: the strategies were not tested in the same cells on the same examples.
    """
    others = {(cell.domain, cell.seed): cell for cell in second}
    if len(others) != len(second) or sorted(others) != sorted((cell.domain, cell.seed) for cell in first):
        raise DataError("strategies tested in different cells cannot be compared example by example")
    values = []
    for cell in first:
        other = others[cell.domain, cell.seed]
        if cell.things != other.things:
            raise DataError(f"cell {cell.domain}, {cell.seed}: the strategies were tested on different examples")
        values.append(cell.right - other.right)
    return bootstrap(tabulated(*pooled(first, values)), domains=domains)


def pooled(cells: Sequence[Cell], values: Sequence[Floats]) -> tuple[Floats, list[str], list[str]]:
    """Returns the values of all cells, with the thing and the domain of each."""
    things = [thing for cell in cells for thing in cell.things]
    return np.concatenate(values), things, [cell.domain for cell in cells for _ in cell.things]


def mean_of_models(cells: Sequence[Cell]) -> Cell:
    """Returns what models of one cell get right on average. Raises DataError unless all were tested alike."""
    first = cells[0]
    if any((c.domain, c.seed, c.things) != (first.domain, first.seed, first.things) for c in cells):
        raise DataError("models of different cells have no common mean")
    return Cell(first.domain, first.seed, first.things, np.mean([cell.right for cell in cells], axis=0))


def slope(x: Floats, y: Floats, groups: Sequence[str], *, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Returns the slope of y over x by least squares; what is drawn anew for the interval is whole groups (cells).

    Raises:
        DataError: fewer than two groups, or an x that does not vary.
    """
    names = sorted(set(groups))
    if len(names) < 2 or np.ptp(x) == 0:
        raise DataError(f"a trend needs two groups and an x that varies, got {len(names)} groups")
    of = np.array([names.index(group) for group in groups])
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    found = weighted_slope(x, y, drawn[:, of].astype(np.float64))
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(weighted_slope(x, y, np.ones((1, len(x))))[0]), float(low), float(high))


def weighted_slope(x: Floats, y: Floats, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the slopes under several rows of weights (draws, n); NaN where x does not vary."""
    total = weights.sum(1)
    middle, height = weights @ x / total, weights @ y / total
    spread = weights @ (x * x) / total - middle**2
    shared = weights @ (x * y) / total - middle * height
    found = np.full(len(weights), np.nan)
    np.divide(shared, spread, out=found, where=spread > 1e-12)
    return found


@dataclass(frozen=True, slots=True)
class HarmonicFit:
    """score(k) = limit - gain / k: what averaging ever more models tends to, and what one model lacks of it."""

    limit: float
    gain: float

    def at(self, k: float) -> float:
        """The score of the mean of k models."""
        return self.limit - self.gain / k


def harmonic_fit(scores: Sequence[float]) -> HarmonicFit:
    """Returns the least-squares fit to the scores of means of 1, 2, … models.

    The variance part of the error falls as 1 / k (Ramé et al. 2022, arXiv:2205.09739, eq. 4).

    Raises:
        DataError: fewer than two scores.
    """
    if len(scores) < 2:
        raise DataError(f"a curve needs the scores of at least two means, got {len(scores)}")
    inverse = 1 / np.arange(1, len(scores) + 1)
    gradient, limit = np.polyfit(inverse, np.asarray(scores, dtype=np.float64), 1)
    return HarmonicFit(float(limit), -float(gradient))
