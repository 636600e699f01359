"""Tensors as float64, a frame at a time: widening, and the search for values that are not numbers."""

import math

import numpy as np

from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.sums import Array
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, peak_bits, widen

LAYOUTS = {  # the type of the bits, and those of the exponent, all set in what is not finite
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def widened(frame: memoryview, dtype: str) -> Array:
    """Return the values of a raw frame, (n,) float64."""
    values = np.empty(frame.nbytes // ARITHMETIC_WIDTHS[dtype], np.float64)
    widen(np.frombuffer(frame, np.uint8), dtype, values)
    return values


def whole(source: TensorSource, entry: TensorEntry) -> Array:
    """Return a whole tensor as float64, in its shape."""
    values, start = np.empty(math.prod(entry.shape), np.float64), 0
    for frame in source.frames(entry.name):
        part = widened(frame, entry.dtype)
        values[start : start + part.size] = part
        start += part.size
    return values.reshape(entry.shape)


def frame_peak(frame: memoryview, dtype: str) -> float:
    """Return the largest magnitude in a raw frame, infinity if any value is infinite or not a number."""
    kind, _ = LAYOUTS[dtype]
    top = peak_bits(np.frombuffer(frame, np.uint8), dtype)
    if not finite(top, dtype):
        return math.inf
    return float(widened(memoryview(np.array([top], kind).tobytes()), dtype)[0])


def finite(top: int, dtype: str) -> bool:
    """Return whether values are, of which `top` is the largest magnitude's bit pattern."""
    return top < LAYOUTS[dtype][1]


def peak(source: TensorSource, entry: TensorEntry) -> float:
    """Return the largest magnitude of a tensor, infinity if any value is infinite or not a number."""
    return max((frame_peak(frame, entry.dtype) for frame in source.frames(entry.name)), default=0.0)
