"""The tensor types that safetensors knows: one row each."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.errors import FormatError

MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class DType:
    """A type by its safetensors name, its width, and its names elsewhere (None where there is none)."""

    name: str
    bits: int
    numpy: str | None
    torch: str | None
    floating: bool


ROWS = (
    DType("BOOL", 8, "bool", "bool", False),
    DType("F4", 4, None, None, True),
    DType("F6_E2M3", 6, None, None, True),
    DType("F6_E3M2", 6, None, None, True),
    DType("U8", 8, "uint8", "uint8", False),
    DType("I8", 8, "int8", "int8", False),
    DType("F8_E5M2", 8, None, "float8_e5m2", True),
    DType("F8_E4M3", 8, None, "float8_e4m3fn", True),
    DType("F8_E8M0", 8, None, "float8_e8m0fnu", True),
    DType("F8_E4M3FNUZ", 8, None, "float8_e4m3fnuz", True),
    DType("F8_E5M2FNUZ", 8, None, "float8_e5m2fnuz", True),
    DType("I16", 16, "<i2", "int16", False),
    DType("U16", 16, "<u2", "uint16", False),
    DType("F16", 16, "<f2", "float16", True),
    DType("BF16", 16, None, "bfloat16", True),
    DType("I32", 32, "<i4", "int32", False),
    DType("U32", 32, "<u4", "uint32", False),
    DType("F32", 32, "<f4", "float32", True),
    DType("C64", 64, "<c8", "complex64", True),
    DType("F64", 64, "<f8", "float64", True),
    DType("I64", 64, "<i8", "int64", False),
    DType("U64", 64, "<u8", "uint64", False),
)
# In the order in which the safetensors package lays tensors out: narrow types last.
DTYPES = {row.name: row for row in ROWS}
RANK = {row.name: rank for rank, row in enumerate(ROWS)}


def dtype_named(name: str) -> DType:
    """Returns the row of that name. Raises FormatError for an unknown one, listing the known."""
    if name not in DTYPES:
        raise FormatError(f"unknown dtype {name!r}", hint=f"known dtypes: {', '.join(sorted(DTYPES))}")
    return DTYPES[name]


def size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Returns how many bytes a tensor takes.

    Raises:
        FormatError: an unknown dtype, a negative dimension, over 2**63 - 1 bytes, or bits that fill no whole bytes.
    """
    bits = dtype_named(dtype).bits
    count = 1
    for dimension in shape:
        if dimension < 0:
            raise FormatError(f"shape {list(shape)}: expected dimensions of 0 or more")
        count *= dimension
        if count * bits > MAX_BYTES * 8:
            raise FormatError(f"shape {list(shape)} of {dtype}: more than {MAX_BYTES} bytes")
    if count * bits % 8:
        raise FormatError(f"shape {list(shape)} of {dtype}: {count * bits} bits fill no whole number of bytes")
    return count * bits // 8
