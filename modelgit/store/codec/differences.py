"""Frames of a child as what differs from its parent's.

An absolute step moves a small weight by many units in the last place and a large one by none: so the parent's
exponent tells how large a difference is likely to be. It is the context in which the differences are entropy coded,
at no cost, since the decoder has the parent. Blocks of elements without any difference are skipped.
"""

import struct
from itertools import pairwise

import numpy as np

from modelgit.errors import CorruptObject
from modelgit.store.codec.arrays import Array, Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.frames import Parts, inflate, pieces, sampled_entropy
from modelgit.store.codec.transforms import (
    BLOCK,
    ONE,
    Coded,
    Difference,
    Model,
    Residuals,
    Transforms,
    aligned,
    alphabet,
    transforms,
)

SAME, CODED = 0, 1  # forms of a frame
HEAD = struct.Struct("<BBBBIII")  # form, first and last key, log2 of the states, words, bytes of raw bits, of the model
MAX_STATES_LOG = 8
HIGHEST = 1 << 31  # no state is as high
FEW = 1024  # elements that are too few for a context of their own at either end
MANY = 16384  # elements from which on the states do not weigh
PAYS = 0.95  # the share of the bytes alone that a difference may take

Counts = Array[np.int64]


def encode_delta(data: Bytes, parent: Bytes, width: int, tools: Transforms | None = None) -> Parts:
    """Return the bytes that give `data` to one who has `parent`, as long as it."""
    chosen = tools or transforms()
    residuals = chosen.residuals(width, aligned(data, width), aligned(parent, width))
    if not len(residuals.tokens):
        return encode_same()
    model = model_of(chosen.count(width, residuals))
    states_log = MAX_STATES_LOG if len(residuals.tokens) >= MANY else 3
    coded = chosen.encode(width, residuals, model, 1 << states_log)
    told = TOOLS.general.compress(packed(residuals.active) + model.frequencies.tobytes())
    head = HEAD.pack(CODED, model.first, model.last, states_log, len(coded.words), len(residuals.bits), len(told))
    return [head, coded.states.tobytes(), coded.words.tobytes(), residuals.bits.tobytes(), told]


def encode_same() -> Parts:
    """Return the frame of a child that equals its parent."""
    return [bytes([SAME])]


def packed(active: Bytes) -> bytes:
    """Return one bit a block, the first in the lowest bit."""
    return np.packbits(active, bitorder="little").tobytes()


def model_of(counts: Array[np.uint32]) -> Model:
    """Return frequencies for tokens that were counted by key (256, alphabet); rare keys share with their neighbours."""
    of_key = counts.sum(axis=1, dtype=np.int64)
    below, above = np.cumsum(of_key), np.cumsum(of_key[::-1])[::-1]
    enough = min(FEW, int(below[-1]))
    first, last = int(np.argmax(below >= enough)), int(255 - np.argmax(above[::-1] >= enough))
    last = max(first, last)
    rows = counts[first : last + 1].astype(np.int64)
    rows[0] += counts[:first].sum(axis=0, dtype=np.int64)
    rows[-1] += counts[last + 1 :].sum(axis=0, dtype=np.int64)
    return Model(first, last, frequencies_of(rows))


def frequencies_of(rows: Counts) -> Array[np.uint16]:
    """Return each row in proportion, adding up to 4096; no token that comes has none. Rounding is the commonest's."""
    scaled = rows * ONE // np.maximum(rows.sum(axis=1, keepdims=True), 1)
    scaled[(rows > 0) & (scaled == 0)] = 1
    commonest = (np.arange(len(rows)), scaled.argmax(axis=1))
    scaled[commonest] += ONE - scaled.sum(axis=1)
    found: Array[np.uint16] = scaled.astype("<u2")
    return found


def decode_delta(
    stored: memoryview, width: int, into: Bytes, tools: Transforms | None = None, *, parent: Bytes | None = None
) -> None:
    """Undo `encode_delta`: `into` becomes the child of `parent`, of what it holds without. Raises CorruptObject."""
    if len(stored) == 1 and stored[0] == SAME:
        if parent is not None:
            into[:] = parent
        return
    difference = parse_frame(stored, width, len(into) // width)
    if not (tools or transforms()).apply(width, into, into if parent is None else parent, difference):
        raise CorruptObject("the words of a difference do not fit its parent")


def parse_frame(stored: memoryview, width: int, count: int) -> Difference:
    """Return the difference in a frame of `count` elements. Raises CorruptObject."""
    if len(stored) < HEAD.size:
        raise CorruptObject(f"a frame of {len(stored)} bytes is too short for a difference")
    form, first, last, states_log, words, bits, told = HEAD.unpack_from(stored)
    if form != CODED or first > last or states_log > MAX_STATES_LOG:
        raise CorruptObject(f"a difference of form {form}, keys {first} to {last}, 2^{states_log} states")
    lengths = np.cumsum([HEAD.size, 4 << states_log, 2 * words, bits, told]).tolist()
    if lengths[-1] != len(stored) or words > count or bits > count * width:
        raise CorruptObject(f"{words} words and {bits} bytes do not fill a frame of {len(stored)} for {count} elements")
    parts = [np.frombuffer(stored[start:end], np.uint8) for start, end in pairwise(lengths)]
    active, model = parse_model(parts[3].data, width, count, (first, last))
    states = parts[0].copy().view("<u4")
    if (states >> np.uint32(31)).any():
        raise CorruptObject("a state of a difference is beyond 2^31")
    if (states >= HIGHEST).any():
        raise CorruptObject("a state of a difference is too high")
    return Difference(active, model, Coded(states, aligned(parts[1], 2).view("<u2")), parts[2])


def parse_model(told: memoryview, width: int, count: int, keys: tuple[int, int]) -> tuple[Bytes, Model]:
    """Return active blocks and frequencies. Raises CorruptObject."""
    first, last = keys
    blocks, cells = -(-count // BLOCK), (last - first + 1) * alphabet(width)
    raw = TOOLS.buffer("model", -(-blocks // 8) + 2 * cells)
    inflate(told, raw)
    active = np.unpackbits(raw[: -(-blocks // 8)], count=blocks, bitorder="little")
    frequencies = raw[-(-blocks // 8) :].copy().view("<u2").reshape(-1, alphabet(width))
    if (frequencies.sum(axis=1, dtype=np.int64) != ONE).any():
        raise CorruptObject(f"the frequencies of a difference do not add up to {ONE}")
    return active, Model(first, last, frequencies)


def delta_pays(data: Bytes, parent: Bytes, width: int, tools: Transforms | None = None) -> bool:
    """Tell from a few stretches whether a delta takes fewer bytes than `data` alone."""
    chosen = tools or transforms()
    full = delta = 0.0
    for child, base in zip(pieces(data), pieces(parent), strict=True):
        child, base = aligned(child, width), aligned(base, width)
        delta += bits_of(chosen.residuals(width, child, base))
        planes = TOOLS.buffer("planes", len(child)).reshape(width, -1)
        chosen.full_split(width, child, planes)
        full += sum(sampled_entropy(plane) * len(plane) for plane in planes)
    return delta < PAYS * full


def bits_of(residuals: Residuals) -> float:
    """Return about how many bits residuals take, without contexts."""
    counts = np.bincount(residuals.tokens)
    share = counts[counts > 0] / max(1, len(residuals.tokens))
    return float(-(share * np.log2(share)).sum()) * len(residuals.tokens) + 8 * len(residuals.bits)
