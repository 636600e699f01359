"""What a codec needs done to a frame of weights: byte planes, bit planes, and differences to a parent.

There are two implementations that give the same bytes: `reference.py` in numpy, and the compiled kernel.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from modelgit.store.codec.arrays import Array, Bytes

Words = Array[np.uint16]
States = Array[np.uint32]
UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
CONTEXT_SHIFT = {1: 0, 2: 7, 4: 23, 8: 52}  # of the parent's bits, to the eight that give the context
BLOCK = 64  # elements that are skipped together when none differs
SMALL = 16  # smaller differences are tokens of their own
PROBABILITY_BITS = 12
ONE = 1 << PROBABILITY_BITS  # what the frequencies of a context add up to
LOWEST = 1 << 15  # of a coder's states


def alphabet(width: int) -> int:
    """Return how many tokens there are for elements of `width` bytes."""
    return 32 * width


@dataclass(frozen=True, slots=True)
class Residuals:
    """What a child has else than its parent.

    `active` (blocks,) tells which blocks of 64 elements differ. `tokens` and `keys` (n,) are of the elements of those
    blocks: the class of each zigzag difference, and eight bits of the parent. `bits` are what the classes leave open.
    """

    active: Bytes
    tokens: Bytes
    keys: Bytes
    bits: Bytes


@dataclass(frozen=True, slots=True)
class Model:
    """Frequencies (last - first + 1, alphabet), each row adding up to 4096; keys beyond the ends share their rows."""

    first: int
    last: int
    frequencies: Words


@dataclass(frozen=True, slots=True)
class Coded:
    """Tokens as words: what each of the coder's `states` is at the end, and the words they shed."""

    states: States
    words: Words


@dataclass(frozen=True, slots=True)
class Difference:
    """A child's difference to its parent as it is stored: active blocks, the coder's model and words, raw bits."""

    active: Bytes
    model: Model
    coded: Coded
    bits: Bytes


class Transforms(Protocol):
    """What a codec needs done to a frame. All arrays are contiguous and aligned; sizes agree.

    What is returned lies in buffers of the thread's, and is gone at the next call.
    """

    def full_split(self, width: int, data: Bytes, planes: Bytes) -> None:
        """Write the `width` planes (width, n) of `data` (n * width,)."""

    def full_join(self, width: int, planes: list[Bytes], into: Bytes) -> None:
        """Undo `full_split`: `planes` are `width` arrays (n,)."""

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        """Write the 8 bit planes (8, n) of `plane` (8 * n,): row k holds bit k, first byte in the lowest bit."""

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        """Undo `bits_split`."""

    def residuals(self, width: int, data: Bytes, parent: Bytes) -> Residuals:
        """Return how `data` (n * width,) differs from `parent`, as long as it."""

    def count(self, width: int, residuals: Residuals) -> Array[np.uint32]:
        """Return how often each token comes with each key (256, alphabet)."""

    def encode(self, width: int, residuals: Residuals, model: Model, lanes: int) -> Coded:
        """Return the tokens coded, by `lanes` states (a power of two) that take turns."""

    def apply(self, width: int, into: Bytes, parent: Bytes, difference: Difference) -> bool:
        """Write the child of `parent`, which may be `into`; return whether words and bits fit. States are used up."""


@cache
def transforms() -> Transforms:
    """Return the fastest transforms there are here."""
    from modelgit.store.codec.compiled import load_compiled
    from modelgit.store.codec.reference import NumpyTransforms

    return load_compiled() or NumpyTransforms()


def aligned(data: Bytes, width: int) -> Bytes:
    """Return `data` itself, or a copy when it does not start at a multiple of `width` or is not contiguous."""
    if data.ctypes.data % width == 0 and data.flags.c_contiguous:
        return data
    return np.array(data, copy=True, order="C")
