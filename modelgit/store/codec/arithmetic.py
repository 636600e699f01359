"""Weighted sums of tensors that give the same bytes on every machine.

Each input is widened to float64 (exact), multiplied, added and divided one IEEE operation at a time, in the
order given, never fused; the result is rounded once, to nearest even. Every NaN becomes the one quiet NaN of its
type, since processors disagree on its sign. No library sum, norm or dot product is used: their order is not ours.

There are two implementations that give the same bytes: `NumpySums`, and the compiled kernel (`sums.c`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import numpy as np

from modelgit.errors import UsageError
from modelgit.store.codec.arrays import Array, Bytes
from modelgit.store.codec.transforms import aligned

ARITHMETIC_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
BLOCK = 1 << 15  # elements worked on at once: float64 scratch stays in the second-level cache

Floats = Array[np.float64]
Frame = Bytes | bytes | bytearray | memoryview


def round_to_odd(values: Floats) -> Array[np.uint32]:
    """Return the float32 bits of `values` cut towards zero, last bit set where anything was cut off.

    Rounding such a number again to a type at least two bits narrower equals one rounding of the exact value
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums", theorem 3).
    """
    near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= np.abs(back) > np.abs(values)
    bits |= back != values
    return bits


def narrow_bf16(values: Floats) -> Array[np.uint16]:
    """Return the bfloat16 bits nearest to `values`, ties to even, overflow to infinity."""
    bits = round_to_odd(values)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    narrow = (bits >> np.uint32(16)).astype(np.uint16)
    narrow[np.isnan(values)] = 0x7FC0
    return narrow


def narrow_f16(values: Floats) -> Array[np.uint16]:
    """Return the binary16 bits nearest to `values`, ties to even, overflow to infinity."""
    narrow = round_to_odd(values).view(np.float32).astype(np.float16).view(np.uint16)
    narrow[np.isnan(values)] = 0x7E00
    return narrow


def narrow_f32(values: Floats) -> Array[np.uint32]:
    """Return the binary32 bits nearest to `values`, ties to even."""
    narrow = values.astype(np.float32).view(np.uint32)
    narrow[np.isnan(values)] = 0x7FC00000
    return narrow


def narrow_f64(values: Floats) -> Array[np.uint64]:
    """Return the bits of `values` themselves, NaN made uniform."""
    narrow = values.copy().view(np.uint64)
    narrow[np.isnan(values)] = 0x7FF8000000000000
    return narrow


NARROW: dict[str, Callable[[Floats], Array[np.unsignedinteger]]] = {
    "F64": narrow_f64,
    "F32": narrow_f32,
    "F16": narrow_f16,
    "BF16": narrow_bf16,
}


def element_width(dtype: str) -> int:
    """Return the bytes of one element. Raises UsageError for a type without arithmetic here."""
    if dtype not in ARITHMETIC_WIDTHS:
        known = ", ".join(ARITHMETIC_WIDTHS)
        raise UsageError(f"no arithmetic for dtype {dtype}: expected one of {known}")
    return ARITHMETIC_WIDTHS[dtype]


class Sums(Protocol):
    """Weighted sums. Raw inputs are (n * width,) and aligned, `total` and `into` contiguous; sizes agree."""

    def peak(self, data: Bytes, dtype: str) -> int:
        """Return the bit pattern of the largest magnitude; infinity and what is no number are the largest."""

    def widen(self, data: Bytes, dtype: str, into: Floats) -> None:
        """Write the values of the raw little-endian `data` (n * width bytes) into `into` (n,); always exact."""

    def spread(self, inputs: Sequence[Bytes], dtype: str, into: Floats, *, minus: bool) -> int | None:
        """Write the values of each input to a row of `into` (inputs, n); with `minus`, less those of the last.

        The last row itself are then the last input's values, as they are. Returns the `peak` of all inputs; None where
        one of them, in a mapped file, was cut short.
        """

    def accumulate(
        self, total: Floats, inputs: Sequence[Bytes], coefficients: Floats, dtype: str, *, first: bool
    ) -> None:
        """Add coefficient times input to `total` (n,), one input after another.

        With `first`, `total` is overwritten by the first of them (so -0.0 survives).
        """

    def finish(self, total: Floats, divisor: float, dtype: str, into: Bytes) -> None:
        """Write `total / divisor`, rounded once to `dtype`, as little-endian bytes into `into` (n * width,)."""

    def combine(self, inputs: Sequence[Bytes], coefficients: Floats, divisor: float, dtype: str, into: Bytes) -> bool:
        """Accumulate and finish in one go; return whether all inputs were there: mapped files may be cut short."""


class NumpySums:
    """The sums in numpy: the reference, and what is used without the kernel."""

    def peak(self, data: Bytes, dtype: str) -> int:
        bits = data.view(f"<u{ARITHMETIC_WIDTHS[dtype]}")
        magnitude = bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
        return int(np.max(bits & magnitude, initial=0))

    def widen(self, data: Bytes, dtype: str, into: Floats) -> None:
        with np.errstate(invalid="ignore"):  # of what is no number in the narrow type
            if dtype == "BF16":
                bits = data.view("<u2").astype(np.uint32)
                np.left_shift(bits, np.uint32(16), out=bits)
                into[:] = bits.view(np.float32)
            else:
                into[:] = data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])

    def spread(self, inputs: Sequence[Bytes], dtype: str, into: Floats, *, minus: bool) -> int | None:
        for data, row in zip(inputs, into, strict=True):
            self.widen(data, dtype, row)
        if minus:
            with np.errstate(invalid="ignore"):
                into[:-1] -= into[-1]
        return max(self.peak(data, dtype) for data in inputs)

    def accumulate(
        self, total: Floats, inputs: Sequence[Bytes], coefficients: Floats, dtype: str, *, first: bool
    ) -> None:
        width, scratch = ARITHMETIC_WIDTHS[dtype], np.empty(BLOCK, np.float64)
        with np.errstate(all="ignore"):
            for start in range(0, len(total), BLOCK):
                part = total[start : start + BLOCK]
                for number, (data, coefficient) in enumerate(zip(inputs, coefficients, strict=True)):
                    value = part if first and number == 0 else scratch[: len(part)]
                    self.widen(data[start * width : (start + len(part)) * width], dtype, value)
                    np.multiply(value, coefficient, out=value)
                    if value is not part:
                        np.add(part, value, out=part)

    def finish(self, total: Floats, divisor: float, dtype: str, into: Bytes) -> None:
        width = ARITHMETIC_WIDTHS[dtype]
        with np.errstate(all="ignore"):
            for start in range(0, len(total), BLOCK):
                bits = NARROW[dtype](total[start : start + BLOCK] / divisor)
                little = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
                into[start * width : start * width + little.nbytes] = little.view(np.uint8)

    def combine(self, inputs: Sequence[Bytes], coefficients: Floats, divisor: float, dtype: str, into: Bytes) -> bool:
        total = np.empty(len(into) // ARITHMETIC_WIDTHS[dtype], np.float64)
        self.accumulate(total, inputs, coefficients, dtype, first=True)
        self.finish(total, divisor, dtype, into)
        return True


@cache
def sums() -> Sums:
    """Return the fastest sums there are here."""
    from modelgit.store.codec.compiled import CompiledSums, load_library

    library = load_library()
    return NumpySums() if library is None else CompiledSums(library)


def ready(data: Bytes, dtype: str) -> Bytes:
    """Return raw bytes as the sums want them: themselves, or a copy when they lie at an odd place."""
    return aligned(data, ARITHMETIC_WIDTHS[dtype])


def peak_bits(data: Bytes, dtype: str) -> int:
    """Return the bit pattern of the largest magnitude in raw `data`; infinity and what is no number are the largest."""
    return sums().peak(ready(data, dtype), dtype)


def widen(data: Bytes, dtype: str, into: Floats) -> None:
    """Write the values of the raw little-endian `data` (n * width bytes) into `into` (n,); always exact."""
    sums().widen(ready(data, dtype), dtype, into)


def spread(inputs: Sequence[Bytes], dtype: str, into: Floats, *, minus: bool) -> int | None:
    """Write the values of each raw input to a row of `into` (inputs, n); see `Sums.spread`."""
    return sums().spread([ready(data, dtype) for data in inputs], dtype, into, minus=minus)


def finish(total: Floats, divisor: float, dtype: str, into: Bytes) -> None:
    """Write `total / divisor`, rounded once to `dtype`, as little-endian bytes into `into` (n * width,)."""
    width = ARITHMETIC_WIDTHS[dtype]
    if into.ctypes.data % width or not (into.flags.c_contiguous and total.flags.c_contiguous):
        raise UsageError("rounded values are written to a contiguous, aligned place")
    sums().finish(total, divisor, dtype, into)


def check(inputs: Sequence[Frame], coefficients: Sequence[float], divisor: float, dtype: str) -> None:
    """Raise UsageError unless inputs and coefficients pair up, lengths agree and the divisor is not zero."""
    width = element_width(dtype)
    if not inputs or len(inputs) != len(coefficients):
        raise UsageError(
            f"a linear combination needs one coefficient an input: got {len(coefficients)} for {len(inputs)}"
        )
    sizes = {len(np.frombuffer(frame, np.uint8)) for frame in inputs}
    if len(sizes) != 1 or next(iter(sizes)) % width:
        raise UsageError(f"inputs must be equally long and whole {dtype} elements: got {sorted(sizes)} bytes")
    if divisor == 0 or not np.isfinite([divisor, *coefficients]).all():
        raise UsageError(
            f"coefficients and divisor must be finite, divisor not zero: got {list(coefficients)} / {divisor}"
        )


def linear(inputs: Sequence[Frame], coefficients: Sequence[float], divisor: float, dtype: str) -> bytearray:
    """Return round_dtype((c0*x0 + c1*x1 + ...) / divisor) as raw little-endian bytes, summed in the order given.

    Raises:
        UsageError: unequal lengths, an unknown dtype, a coefficient that is not finite, a divisor of zero.
    """
    check(inputs, coefficients, divisor, dtype)
    data = [ready(np.frombuffer(frame, np.uint8), dtype) for frame in inputs]
    result = bytearray(len(data[0]))
    sums().combine(data, np.array(coefficients, np.float64), divisor, dtype, np.frombuffer(result, np.uint8))
    return result
