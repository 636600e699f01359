"""Looking for the coefficients that score best, with a budget of evaluations. Pure: points in, scores out.

Every strategy is deterministic: a grid refined by golden sections for one coefficient, an evolution strategy with a
fixed seed for weights that add up to 1, coordinate ascent for many. Higher is better; a score that is not a number
loses. Coefficients are rounded before they are measured, so that what a commit records is what was tried.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, ...]
Score = Callable[[Point], float]
DIGITS = 4
GOLDEN = (math.sqrt(5) - 1) / 2
GRID = 11  # points of a first look at one coefficient
FIRST_STEP, LAST_STEP = 0.5, 0.01


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A point that was measured."""

    point: Point
    score: float


@dataclass(slots=True)
class Log:
    """All evaluations in order, no point measured twice, never more than the budget."""

    score: Score
    budget: int
    seen: dict[Point, float] = field(default_factory=dict)

    def __call__(self, point: Sequence[float]) -> float:
        """Return the score of a point, rounded to what can be recorded; minus infinity once the budget is spent."""
        rounded = tuple(round(value, DIGITS) + 0.0 for value in point)
        if rounded not in self.seen:
            if self.spent:
                return -math.inf
            self.seen[rounded] = self.score(rounded)
        found = self.seen[rounded]
        return -math.inf if math.isnan(found) else found

    @property
    def spent(self) -> bool:
        """Whether nothing may be measured any more."""
        return len(self.seen) >= self.budget

    def rows(self) -> tuple[Evaluated, ...]:
        """Return what was measured, in order."""
        return tuple(Evaluated(point, score) for point, score in self.seen.items())

    def best(self) -> Evaluated:
        """Return the best point; the first of equal ones."""
        return max(self.rows(), key=lambda row: -math.inf if math.isnan(row.score) else row.score)


def line(score: Score, low: float, high: float, budget: int) -> Log:
    """Return the search of one coefficient: an even grid, then golden sections about its best point.

    Equal scores go to the smaller coefficient.
    """
    log, count = Log(score, budget), max(2, min(GRID, budget))
    step = (high - low) / (count - 1)
    grid = [low + i * step for i in range(count)]
    scores = [log([value]) for value in grid]
    middle = grid[scores.index(max(scores))]
    a, b = max(low, middle - step), min(high, middle + step)
    while not log.spent and b - a > 10**-DIGITS:
        left, right = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
        a, b = (a, right) if log([left]) >= log([right]) else (left, b)
    return log


def simplex(score: Score, count: int, budget: int, seed: int) -> Log:
    """Return the search of weights that add up to 1, by a (1+1)-evolution strategy with the one-fifth rule.

    It begins at the best of equal weights and, where the budget allows, of each alone; a child replaces its parent
    unless it scores less (Rechenberg 1973).
    """
    log, stream, sigma = Log(score, budget), np.random.RandomState(seed), 1.0 / count
    parent = np.full(count, 1.0 / count)
    best = log(parent.tolist())
    for corner in np.eye(count) if budget > 2 * (count + 1) else ():
        found = log(corner.tolist())
        if found > best:
            parent, best = corner, found
    for _ in range(100 * budget):  # children that were seen before cost nothing, but must not go on for ever
        if log.spent:
            break
        child = np.maximum(parent + sigma * stream.randn(count), 0.0)
        if child.sum() <= 0:
            continue
        child /= child.sum()
        found = log(child.tolist())
        if found >= best:
            sigma = min(1.0, sigma * 1.5)
            parent, best = child, found
        else:
            sigma = max(LAST_STEP / count, sigma * 1.5**-0.25)
    return log


def ascent(score: Score, start: Point, bounds: tuple[float, float], budget: int) -> Log:
    """Return the search of many coefficients, one after another: a step up or down stays if it scores more.

    The step is halved after a round in which nothing did.
    """
    log, point, step = Log(score, budget), list(start), FIRST_STEP
    best = log(point)
    while step >= LAST_STEP and not log.spent:
        before = best
        for place in range(len(point)):
            for change in (step, -step):
                moved = min(bounds[1], max(bounds[0], point[place] + change))
                trial = [*point[:place], moved, *point[place + 1 :]]
                if (found := log(trial)) > best:
                    point, best = trial, found
                    break
        if best == before:
            step /= 2
    return log
