"""The k-th largest magnitude of a tensor, exactly, without sorting and in memory that does not depend on its size.

A sample says between which two values it must lie. One pass then counts what is above them and keeps the few that are
within; where the sample was wrong or these are too many, further passes narrow the interval by a histogram of bit
patterns, whose order is that of the magnitudes. Equal magnitudes count in the order of their places.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt

from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import BLOCK_ELEMENTS, Inputs, Tensor
from modelgit.merge.blocks.vectors import vectors

Values = Callable[[Inputs], Sequence[Array]]  # what is ranked in a block: contiguous arrays, always as many
SAMPLE_BLOCKS, SAMPLE = 8, 1 << 14  # how many blocks and elements are looked at first
SAFE = 6.0  # standard deviations of the sample's rank to either side
KEPT_BYTES = 32 << 20  # of magnitudes within all intervals together
BINS = 1 << 12
TOP = 0x7FF0 << 48  # the bit pattern of infinity, which differences of large numbers may be


@dataclass(frozen=True, slots=True)
class Cut:
    """The largest magnitudes of a tensor: all above `value`, and of those equal to it the first ones by place.

    Equal ones are among them in blocks that begin before element `start`; in the block that begins there the first
    `count`.
    """

    value: float
    start: int
    count: int

    def floor(self, start: int) -> float | None:
        """Return the least magnitude that belongs to it in the block that begins at `start`; None if some equals do."""
        if start == self.start and self.count:
            return None
        return self.value if start < self.start else math.nextafter(self.value, math.inf)

    def mask(self, values: Array, start: int) -> npt.NDArray[np.bool_]:
        """Return which magnitudes of the block that begins at `start` belong to it, flat."""
        sizes, floor = np.abs(values.reshape(-1)), self.floor(start)
        if floor is not None:
            return np.asarray(sizes >= floor)
        inside = sizes > self.value
        inside[np.flatnonzero(sizes == self.value)[: self.count]] = True
        return inside


NOTHING, EVERYTHING = Cut(math.inf, 0, 0), Cut(0.0, 1 << 63, 0)


def keep(values: Array, start: int, kept: Cut, dropped: Cut = NOTHING) -> None:
    """Set to 0 what of a block does not belong to `kept`, or does to `dropped`."""
    low, above = kept.floor(start), dropped.floor(start)
    if low is not None and above is not None:
        vectors().trim(values, low, math.nextafter(above, 0.0) if math.isfinite(above) else math.inf)
        return
    inside = kept.mask(values, start) & ~dropped.mask(values, start)
    values.reshape(-1)[~inside] = 0.0


@dataclass(slots=True)
class Search:
    """One wanted order statistic: the `rank`-th largest (from 1), known to lie from `low` to `high` (bit patterns).

    `within` is how many lie in between, about, where that is known; `bins` counts them by their places in the interval.
    """

    row: int
    rank: int
    low: int = 0
    high: int = TOP
    within: int | None = None
    cut: Cut | None = None
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    turn: Lock = field(default_factory=Lock)  # to add to the bins


@dataclass(frozen=True, slots=True)
class Seen:
    """What a block that begins at `start` has for a search: how many above and within, and these where asked for."""

    start: int
    above: int
    count: int
    values: Array | None = None


def largest(tensor: Tensor, values: Values, ranks: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """Return the cuts below the `ranks[i][j]` largest magnitudes of the i-th of `values`, each exact.

    A rank of 0 is nothing, one of all elements everything.
    """
    size = math.prod(tensor.shape)
    cuts = [[NOTHING if k <= 0 else EVERYTHING for k in row] for row in ranks]
    wanted = [(i, j) for i, row in enumerate(ranks) for j, k in enumerate(row) if 0 < k < size]
    searches = [Search(i, ranks[i][j]) for i, j in wanted]
    narrowed_by_sample([tensor], values, searches, size)
    settle([tensor], values, searches)
    for (i, j), search in zip(wanted, searches, strict=True):
        cuts[i][j] = search.cut or NOTHING
    return cuts


def largest_of_all(tensors: Sequence[Tensor], values: Values, rank: int, rows: int) -> list[float]:
    """Return the `rank`-th largest magnitude of each of `values` over all tensors; unchanged ones count as zeros."""
    size = sum(math.prod(tensor.shape) for tensor in tensors)
    changed = [tensor for tensor in tensors if not tensor.unchanged]
    zeros = size - sum(math.prod(tensor.shape) for tensor in changed)
    if rank > size - zeros or not changed:
        return [0.0] * rows
    searches = [Search(row, rank) for row in range(rows)]
    narrowed_by_sample(changed, values, searches, size - zeros)
    settle(changed, values, searches)
    return [search.cut.value if search.cut else 0.0 for search in searches]


# --------------------------------------------------------------------------------------------------- the search


def narrowed_by_sample(tensors: Sequence[Tensor], values: Values, searches: Sequence[Search], size: int) -> None:
    """Guess from a sample between which values each search ends; a wrong guess costs a pass, no more."""
    if not searches:
        return
    sampled = sample(tensors, values, size)
    for search in searches:
        row = sampled[search.row]
        share = 1 - search.rank / size
        spread = SAFE * math.sqrt(share * (1 - share) * len(row)) + 2
        low, high = math.floor(share * len(row) - spread), math.ceil(share * len(row) + spread)
        search.low = bits_of(float(row[low])) if low >= 0 else 0
        search.high = bits_of(float(row[high])) if high < len(row) else TOP
        search.within = math.ceil(size * min(1.0, 2 * spread / len(row)))


def sample(tensors: Sequence[Tensor], values: Values, size: int) -> list[Array]:
    """Return sorted magnitudes of evenly spaced elements of each of `values`."""

    def look(block: Inputs, every: int) -> list[Array]:
        return [np.abs(row.reshape(-1)[::every]) for row in values(block)]

    parts = list[list[Array]]()
    for tensor in tensors:
        elements = math.prod(tensor.shape)
        blocks = max(1, elements // BLOCK_ELEMENTS)
        looked = -(-blocks // SAMPLE_BLOCKS)
        every = max(1, size // SAMPLE // looked)
        parts += tensor.each(lambda block, every=every: look(block, every), looked)  # type: ignore[misc]
    return [np.sort(np.concatenate(row)) for row in zip(*parts, strict=True)]


def settle(tensors: Sequence[Tensor], values: Values, searches: Sequence[Search]) -> None:
    """Pass over the tensors until every search has its cut."""
    while open_ones := [search for search in searches if search.cut is None]:
        expected = [1 if s.low == s.high else s.within or math.inf for s in open_ones]
        collect = 8 * sum(expected) <= KEPT_BYTES
        plans = [(search, collect or search.low == search.high) for search in open_ones]
        seen = list(passed(tensors, values, plans))
        for i, (search, kept) in enumerate(plans):
            conclude(search, [block[i] for block in seen], kept)


def passed(tensors: Sequence[Tensor], values: Values, plans: Sequence[tuple[Search, bool]]) -> Iterator[list[Seen]]:
    """Yield what each block has for each search, whose magnitudes within are kept or counted in bins."""

    def look(block: Inputs) -> list[Seen]:
        rows = values(block)
        return [seen_in(rows[search.row], search, kept, block.start) for search, kept in plans]

    for tensor in tensors:
        yield from tensor.each(look)


def seen_in(row: Array, search: Search, kept: bool, start: int) -> Seen:
    """Return what a block has within a search's interval."""
    above, found = vectors().band(row, float_of(search.low), float_of(search.high))
    if search.low == search.high:
        return Seen(start, above, len(found))
    if kept:
        return Seen(start, above, len(found), found)
    places = (found.view(np.uint64) - np.uint64(search.low)) >> np.uint64(shift_of(search))
    counts = np.bincount(places.astype(np.int64), minlength=BINS)
    with search.turn:
        search.bins += counts
    return Seen(start, above, len(found))


def shift_of(search: Search) -> int:
    """Return how many bits the places in the interval must lose to be numbers of bins."""
    return max(0, (search.high - search.low).bit_length() - BINS.bit_length() + 1)


def conclude(search: Search, seen: Sequence[Seen], kept: bool) -> None:
    """Move a search's interval, or end it, by what was seen of all blocks."""
    above, within = sum(block.above for block in seen), sum(block.count for block in seen)
    if search.rank <= above:
        search.low, search.high, search.within = search.high + 1, TOP, above
    elif search.rank > above + within:
        search.high, search.low, search.within = search.low - 1, 0, None
    elif kept:
        search.cut = cut_of(search, seen, search.rank - above)
    else:
        narrow(search, search.rank - above)
    search.bins[:] = 0
    if search.low > search.high:  # some values are no numbers: they have no rank
        search.cut = EVERYTHING


def narrow(search: Search, rank: int) -> None:
    """Narrow the interval to the bin that holds the `rank`-th largest within."""
    counts = np.cumsum(search.bins[::-1])
    place = BINS - 1 - int(np.searchsorted(counts, rank))
    low, shift = search.low, shift_of(search)
    search.within = int(search.bins[place])
    search.low, search.high = low + (place << shift), min(search.high, low + ((place + 1) << shift) - 1)


def cut_of(search: Search, seen: Sequence[Seen], rank: int) -> Cut:
    """Return the cut below the `rank`-th largest of what is within: how many equals belong to it, and where."""
    if search.low == search.high:
        value, wanted, counts = float_of(search.low), rank, [block.count for block in seen]
    else:
        parts = [block.values for block in seen if block.values is not None]
        together = np.concatenate(parts)
        place = len(together) - rank
        value = float(np.partition(together, place)[place])
        wanted = rank - int(np.count_nonzero(together > value))
        counts = [int(np.count_nonzero(part == value)) for part in parts]
    for block, count in zip(seen, counts, strict=True):
        if wanted <= count:
            return Cut(value, block.start, wanted)
        wanted -= count
    return Cut(value, 1 << 63, 0)


def bits_of(value: float) -> int:
    """Return the bit pattern of a magnitude: as ordered as the magnitudes are."""
    return int(np.float64(value).view(np.uint64))


def float_of(bits: int) -> float:
    """Return the magnitude of a bit pattern."""
    return float(np.uint64(bits).view(np.float64))
