"""How sure a figure is: intervals that know which examples belong together.

The same thing drawn by four vendors is one thing, and three seeds tested on the same pictures have seen one set of
pictures. So things and domains are what is drawn anew, not single answers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError

DRAWS, LEVEL = 10_000, 0.95
AT_ONCE = 1 << 24  # numbers looked at together, at most
REMEMBERED = 1 << 25  # numbers of one table of draws that are kept, at most: 128 MiB
Z = 1.959963984540054  # of the 95 % interval
Numbers = npt.NDArray[np.float64]
Times = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval at the level asked for."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the interval lies "above" 0, "below" it, or is "undecided"."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"


def wilson(correct: int, n: int) -> Interval:
    """Returns the 95 % interval of a share (Wilson 1927): never outside 0 to 1, right for small n too.

    Raises:
        DataError: no examples, or more correct ones than there are.
    """
    if not 0 <= correct <= n or n == 0:
        raise DataError(f"{correct} correct of {n}: expected 0 to n of at least 1")
    share, spread = correct / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True, slots=True)
class Table:
    """Values summed by domain and thing: `sums` and `counts` (domains, things)."""

    sums: Numbers
    counts: Numbers


def tabulated(values: npt.NDArray[np.floating], things: Sequence[str], domains: Sequence[str]) -> Table:
    """Returns values (n,), one of each example (and seed), by the domain and the thing they belong to.

    Raises:
        DataError: not one thing and one domain for every value, or none at all.
    """
    if not len(values) == len(things) == len(domains) > 0:
        raise DataError(f"{len(values)} values, {len(things)} things, {len(domains)} domains: expected one for each")
    rows, row = np.unique(np.asarray(domains, dtype=str), return_inverse=True)
    columns, column = np.unique(np.asarray(things, dtype=str), return_inverse=True)
    sums, counts = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    np.add.at(sums, (row, column), values)
    np.add.at(counts, (row, column), 1)
    return Table(sums, counts)


def bootstrap(table: Table, *, domains: bool, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Returns the mean over domains of the mean in each, with a percentile interval.

    Things are drawn with replacement; with `domains` the domains too, independently (the pigeonhole bootstrap, Owen
    2007, arXiv:0711.1080): what holds for other domains of the same kind, and not for these alone. A domain in which
    a draw has no value is left out of that draw.
    """

    def means(drawn: Numbers, stream: np.random.Generator) -> Numbers:
        return over_domains(table, drawn, stream if domains else None)

    count = table.sums.shape[1]
    low, high = np.nanquantile(resampled(count, means, seed, draws), [(1 - level) / 2, (1 + level) / 2])
    whole = over_domains(table, np.ones((1, count)), None)
    return Interval(float(whole[0]), float(low), float(high))


def resampled(
    count: int, statistic: Callable[[Numbers, np.random.Generator], Numbers], seed: int = 0, draws: int = DRAWS
) -> Numbers:
    """Returns a statistic (draws, …) of so many things, drawn with replacement.

    It is given how often each thing was drawn (some draws, things), and a stream for what else is drawn.
    """
    stream = np.random.default_rng([seed, 1])
    return np.concatenate([statistic(drawn.astype(np.float64), stream) for drawn in times_drawn(count, seed, draws)])


def times_drawn(count: int, seed: int, draws: int) -> Iterator[Times]:
    """Yields how often each of so many things is drawn, (some draws, things), the same for every figure they are of."""
    size = max(1, AT_ONCE // count)
    if count * draws <= REMEMBERED:
        whole = remembered(count, seed, draws)
        yield from (whole[start : start + size] for start in range(0, draws, size))
        return
    stream = np.random.default_rng(seed)
    for start in range(0, draws, size):
        yield multinomial(stream, count, min(size, draws - start))


@lru_cache(maxsize=2)
def remembered(count: int, seed: int, draws: int) -> Times:
    """Returns all draws of so many things: drawing is what takes time, and most figures are of the same things."""
    return multinomial(np.random.default_rng(seed), count, draws)


def multinomial(stream: np.random.Generator, count: int, draws: int) -> Times:
    """Returns how often each of so many things comes up, (draws, things), in so many draws of as many as there are."""
    found = np.empty((draws, count), np.uint32)
    step = max(1, (AT_ONCE >> 4) // count)
    for start in range(0, draws, step):
        some = found[start : start + step]
        some[:] = stream.multinomial(count, np.full(count, 1 / count), size=len(some))
    return found


def over_domains(table: Table, drawn: Numbers, stream: np.random.Generator | None) -> Numbers:
    """Returns the mean over domains for each draw of things (draws, things); with a stream domains are drawn too."""
    counts = drawn @ table.counts.T  # (draws, domains)
    means = np.divide(drawn @ table.sums.T, counts, out=np.zeros_like(counts), where=counts > 0)
    weights = (counts > 0).astype(np.float64)
    if stream is not None:
        size = table.sums.shape[0]
        weights *= stream.multinomial(size, np.full(size, 1 / size), size=len(drawn))
    total = weights.sum(1)
    found = np.full(len(drawn), np.nan)
    np.divide((weights * means).sum(1), total, out=found, where=total > 0)
    return found
