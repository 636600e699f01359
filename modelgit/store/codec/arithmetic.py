"""Weighted sums of tensors that give the same bytes on every machine.

Each input is widened to float64 (exact), multiplied, added and divided one IEEE operation at a time, in the
order given, never fused; the result is rounded once, to nearest even. Every NaN becomes the one quiet NaN of its
type, since processors disagree on its sign. No library sum, norm or dot product is used: their order is not ours.
"""

from collections.abc import Callable, Sequence

import numpy as np

from modelgit.errors import UsageError
from modelgit.store.codec.arrays import Array, Bytes

ARITHMETIC_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
BLOCK = 1 << 15  # elements worked on at once: float64 scratch stays in the second-level cache

Floats = Array[np.float64]
Frame = Bytes | bytes | bytearray | memoryview


def widen(data: Bytes, dtype: str, into: Floats) -> None:
    """Write the values of the raw little-endian `data` (n * width bytes) into `into` (n,); always exact."""
    if dtype == "BF16":
        bits = data.view("<u2").astype(np.uint32)
        np.left_shift(bits, np.uint32(16), out=bits)
        into[:] = bits.view(np.float32)
    else:
        into[:] = data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])


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


def accumulate(total: Floats, frame: Frame, coefficient: float, dtype: str, *, first: bool) -> None:
    """Add `coefficient` times `frame` to `total` (n,); with `first`, `total` is overwritten (so -0.0 survives)."""
    data, width = np.frombuffer(frame, np.uint8), ARITHMETIC_WIDTHS[dtype]
    scratch = np.empty(BLOCK, np.float64)
    with np.errstate(all="ignore"):
        for start in range(0, len(total), BLOCK):
            part = total[start : start + BLOCK]
            value = part if first else scratch[: len(part)]
            widen(data[start * width : (start + len(part)) * width], dtype, value)
            np.multiply(value, coefficient, out=value)
            if not first:
                np.add(part, value, out=part)


def finish(total: Floats, divisor: float, dtype: str, into: Bytes) -> None:
    """Write `total / divisor`, rounded once to `dtype`, as little-endian bytes into `into` (n * width,)."""
    width = ARITHMETIC_WIDTHS[dtype]
    with np.errstate(all="ignore"):
        for start in range(0, len(total), BLOCK):
            bits = NARROW[dtype](total[start : start + BLOCK] / divisor)
            little = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
            into[start * width : start * width + little.nbytes] = little.view(np.uint8)


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
    result = bytearray(len(np.frombuffer(inputs[0], np.uint8)))
    total = np.empty(len(result) // ARITHMETIC_WIDTHS[dtype], np.float64)
    for number, (frame, coefficient) in enumerate(zip(inputs, coefficients, strict=True)):
        accumulate(total, frame, coefficient, dtype, first=number == 0)
    finish(total, divisor, dtype, np.frombuffer(result, np.uint8))
    return result
