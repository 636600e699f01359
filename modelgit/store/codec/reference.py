"""The transforms in numpy: the reference that the compiled kernel is held against, and what is used without it.

Coding is rANS (Duda 2013, arXiv:1311.2540): frequencies of 12 bits, states of 31 that shed and take words of 16. Many
states take turns, element k being coded by state k modulo their number, and share one stream of words; so one step
here does all of them, and the kernel eight at once. Encoding goes from the last element to the first.
"""

import numpy as np

from modelgit.store.codec.arrays import Array, Bytes
from modelgit.store.codec.transforms import (
    BLOCK,
    CONTEXT_SHIFT,
    LOWEST,
    ONE,
    PROBABILITY_BITS,
    SMALL,
    UNSIGNED,
    Coded,
    Difference,
    Model,
    Residuals,
    Words,
    alphabet,
)

Integers = Array[np.int64]
Unsigned = Array[np.uint64]


def deal(elements: Array[np.unsignedinteger], planes: Bytes) -> None:
    """Write byte j of every element to `planes[j]`."""
    planes[:] = elements.view(np.uint8).reshape(len(elements), -1).T


def gather(width: int, planes: list[Bytes]) -> Array[np.unsignedinteger]:
    """Return the elements whose byte j is in `planes[j]`."""
    return np.stack(planes, axis=1).reshape(-1).view(UNSIGNED[width])


def in_blocks(active: Bytes, count: int) -> Array[np.bool_]:
    """Return which of `count` elements (count,) lie in active blocks."""
    return np.repeat(active.astype(bool), BLOCK)[:count]


def highest_bit(values: Unsigned) -> Integers:
    """Return the position of each value's highest set bit; the values are not 0."""
    high = values >> np.uint64(32)
    part = np.where(high > 0, high, values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.frexp(part)[1].astype(np.int64) - 1 + 32 * (high > 0)


def tokens_of(zigzag: Unsigned) -> Bytes:
    """Return each difference's token: itself if small, else the place of its highest bit and the two below."""
    large = zigzag >= SMALL
    tokens = np.where(large, 0, zigzag).astype(np.int64)
    high = highest_bit(zigzag[large])
    tokens[large] = SMALL + 4 * (high - 4) + (zigzag[large] >> (high - 2).astype(np.uint64) & np.uint64(3))
    return tokens.astype(np.uint8)


def raw_counts(tokens: Bytes) -> Integers:
    """Return how many raw bits follow each token."""
    found: Integers = np.where(tokens < SMALL, 0, (tokens.astype(np.int64) - SMALL) // 4 + 2)
    return found


def pack_bits(values: Unsigned, counts: Integers) -> Bytes:
    """Return the lowest `counts` bits of each value, one after another, the lowest bit first."""
    owner = np.repeat(np.arange(len(values)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.packbits((values[owner] >> place.astype(np.uint64) & np.uint64(1)).astype(np.uint8), bitorder="little")


def unpack_bits(bits: Bytes, counts: Integers) -> Unsigned:
    """Return the values whose lowest `counts` bits `pack_bits` has packed; `bits` are enough."""
    single = np.unpackbits(bits, bitorder="little").astype(np.uint64)
    starts, values = np.cumsum(counts) - counts, np.zeros(len(counts), np.uint64)
    for place in range(int(counts.max(initial=0))):
        longer = counts > place
        values[longer] |= single[starts[longer] + place] << np.uint64(place)
    return values


def values_of(tokens: Bytes, bits: Bytes) -> Unsigned | None:
    """Return the differences of tokens and their raw bits, None if those are not as many as the tokens want."""
    counts = raw_counts(tokens)
    if (int(counts.sum()) + 7) // 8 != len(bits):
        return None
    lead = np.where(counts > 0, SMALL // 4 + (tokens & 3), tokens).astype(np.uint64)
    return (lead << counts.astype(np.uint64)) | unpack_bits(bits, counts)


def context_rows(keys: Bytes, model: Model) -> Integers:
    """Return the row of the model's frequencies for each key."""
    return np.clip(keys.astype(np.int64), model.first, model.last) - model.first


def sums_before(model: Model) -> Integers:
    """Return for each frequency the sum of those before it in its row."""
    wide = model.frequencies.astype(np.int64)
    return np.cumsum(wide, axis=1) - wide


class NumpyTransforms:
    """The reference."""

    def full_split(self, width: int, data: Bytes, planes: Bytes) -> None:
        x = data.view(UNSIGNED[width])
        one, last = x.dtype.type(1), x.dtype.type(8 * width - 1)
        deal((x << one) | (x >> last), planes)

    def full_join(self, width: int, planes: list[Bytes], into: Bytes) -> None:
        x = gather(width, planes)
        one, last = x.dtype.type(1), x.dtype.type(8 * width - 1)
        into.view(UNSIGNED[width])[:] = (x >> one) | (x << last)

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        of_byte = np.unpackbits(plane, bitorder="little").reshape(-1, 8)
        bits[:] = np.packbits(of_byte.T, axis=1, bitorder="little")

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        of_byte = np.unpackbits(bits, axis=1, bitorder="little")
        plane[:] = np.packbits(of_byte.T.reshape(-1), bitorder="little")

    def residuals(self, width: int, data: Bytes, parent: Bytes) -> Residuals:
        unsigned = UNSIGNED[width]
        base, steps = parent.view(unsigned), data.view(unsigned) - parent.view(unsigned)
        starts = np.arange(0, len(steps), BLOCK)
        active = np.bitwise_or.reduceat(steps != 0, starts).astype(np.uint8) if len(steps) else np.empty(0, np.uint8)
        chosen = in_blocks(active, len(steps))
        step, one = steps[chosen], unsigned.type(1)
        negative = unsigned.type(0) - (step >> unsigned.type(8 * width - 1))
        zigzag = ((step << one) ^ negative).astype(np.uint64)
        tokens = tokens_of(zigzag)
        keys = (base[chosen] >> unsigned.type(CONTEXT_SHIFT[width])).astype(np.uint8)
        large = tokens >= SMALL
        return Residuals(active, tokens, keys, pack_bits(zigzag[large], raw_counts(tokens[large])))

    def count(self, width: int, residuals: Residuals) -> Array[np.uint32]:
        cells = residuals.keys.astype(np.int64) * alphabet(width) + residuals.tokens
        return np.bincount(cells, minlength=256 * alphabet(width)).astype(np.uint32).reshape(256, -1)

    def encode(self, width: int, residuals: Residuals, model: Model, lanes: int) -> Coded:
        rows, tokens = context_rows(residuals.keys, model), residuals.tokens
        frequency = model.frequencies.astype(np.int64)[rows, tokens]
        before = sums_before(model)[rows, tokens]
        states, shed = np.full(lanes, LOWEST, np.int64), list[Words]()
        for start in range((len(tokens) - 1) // lanes * lanes, -1, -lanes):
            f, c = frequency[start : start + lanes], before[start : start + lanes]
            x = states[: len(f)]
            full = x >= f << (31 - PROBABILITY_BITS)
            shed.append((x[full] & 0xFFFF).astype(np.uint16))
            x = np.where(full, x >> 16, x)
            states[: len(f)] = (x // f << PROBABILITY_BITS) + x % f + c
        words = np.concatenate([np.empty(0, np.uint16), *reversed(shed)])
        return Coded(states.astype(np.uint32), words)

    def apply(self, width: int, into: Bytes, parent: Bytes, difference: Difference) -> bool:
        into[:] = parent
        elements, model = into.view(UNSIGNED[width]), difference.model
        chosen = in_blocks(difference.active, len(elements))
        keys = (elements[chosen] >> elements.dtype.type(CONTEXT_SHIFT[width])).astype(np.uint8)
        tokens = decode(context_rows(keys, model), model, difference.coded)
        zigzag = None if tokens is None else values_of(tokens, difference.bits)
        if zigzag is None:
            return False
        step = (zigzag >> np.uint64(1)) ^ (np.uint64(0) - (zigzag & np.uint64(1)))
        elements[chosen] += step.astype(elements.dtype)
        return True


def decode(rows: Integers, model: Model, coded: Coded) -> Bytes | None:
    """Return the tokens of elements whose contexts are `rows`, None if the words are too few, too many or wrong."""
    count = len(rows)
    frequencies, before = model.frequencies.astype(np.int64), sums_before(model)
    of_slot = np.concatenate([np.repeat(np.arange(len(row)), row) for row in frequencies]).reshape(-1, ONE)
    states, words, used = coded.states.astype(np.int64), coded.words.astype(np.int64), 0
    tokens = np.empty(count, np.uint8)
    for start in range(0, count, len(states)):
        row = rows[start : start + len(states)]
        x = states[: len(row)]
        token = of_slot[row, x & (ONE - 1)]
        x = frequencies[row, token] * (x >> PROBABILITY_BITS) + (x & (ONE - 1)) - before[row, token]
        hungry = x < LOWEST
        fed = words[used : used + int(hungry.sum())]
        if len(fed) < hungry.sum():
            return None
        x[hungry] = x[hungry] << 16 | fed
        used += len(fed)
        states[: len(row)], tokens[start : start + len(row)] = x, token
    return tokens if used == len(words) and bool((states == LOWEST).all()) else None
