"""The compiled kernel (the C files beside), called through ctypes, which lets other threads run meanwhile."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from modelgit.store.codec.arrays import Array, Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.transforms import BLOCK, ONE, Coded, Difference, Model, Residuals, alphabet

KERNEL_VERSION = 9  # of the functions in the kernel; another build is not used
TYPES = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}  # as the kernel numbers them
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
VECTOR = 8  # words that may be written beyond the last
Floats = Array[np.float64]


def pointer(array: Array[np.generic]) -> ctypes.c_void_p:
    """Return the address of a contiguous array's first byte."""
    return ctypes.c_void_p(array.ctypes.data)


def pointers(planes: Bytes | Sequence[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    """Return a C array of the planes' addresses."""
    return (ctypes.c_void_p * len(planes))(*[plane.ctypes.data for plane in planes])


def size(count: int) -> ctypes.c_size_t:
    """Return a number as the kernel takes sizes."""
    return ctypes.c_size_t(count)


class Combination(ctypes.Structure):
    """What `modelgit_combine` works on."""

    _fields_ = (
        ("inputs", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("into", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("elements", ctypes.c_size_t),
        ("divisor", ctypes.c_double),
        ("type", ctypes.c_int),
    )


class Spreading(ctypes.Structure):
    """What `modelgit_spread` works on."""

    _fields_ = (
        ("inputs", ctypes.c_void_p),
        ("into", ctypes.c_void_p),
        ("peak", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("elements", ctypes.c_size_t),
        ("minus", ctypes.c_int),
        ("type", ctypes.c_int),
    )


def guarded(library: ctypes.CDLL | None) -> Callable[[Callable[..., object], ctypes.Structure], bool]:
    """Return what calls a function of a kernel that reads mapped files, and tells whether all was there to be read.

    Where a file was cut short the function ends at once, and its result is worth nothing. Where the kernel cannot guard
    anything, no file is mapped (`MappedFile.view`), and there is nothing to guard.
    """
    call = getattr(library, "modelgit_safely", None)

    def plainly(work: Callable[..., object], job: ctypes.Structure) -> bool:
        work(ctypes.byref(job))
        return True

    return plainly if call is None else lambda work, job: not call(work, ctypes.byref(job))


class CompiledTransforms:
    """The functions of the kernel; `wide` uses those for eight elements at once, where the processor has them."""

    def __init__(self, library: ctypes.CDLL, *, wide: bool = True) -> None:
        self._library = library
        self._wide = int(wide and bool(library.modelgit_wide()))
        for function in (library.modelgit_residuals, library.modelgit_encode):
            function.restype = ctypes.c_size_t

    def full_split(self, width: int, data: Bytes, planes: Bytes) -> None:
        self._library.modelgit_full_split(width, pointer(data), size(len(data) // width), pointers(planes))

    def full_join(self, width: int, planes: list[Bytes], into: Bytes) -> None:
        self._library.modelgit_full_join(width, pointers(planes), size(len(into) // width), pointer(into))

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        self._library.modelgit_bits_split(pointer(plane), size(len(plane) // 8), pointer(bits))

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        self._library.modelgit_bits_join(pointer(bits), size(len(plane) // 8), pointer(plane))

    def residuals(self, width: int, data: Bytes, parent: Bytes) -> Residuals:
        count, used = len(data) // width, ctypes.c_size_t()
        active = TOOLS.buffer("active", -(-count // BLOCK))
        tokens, keys = TOOLS.buffer("tokens", count), TOOLS.buffer("keys", count)
        bits = TOOLS.buffer("raw bits", len(data) + 16)
        places = (pointer(active), pointer(tokens), pointer(keys), pointer(bits), ctypes.byref(used))
        found = self._library.modelgit_residuals(width, pointer(data), pointer(parent), size(count), *places)
        return Residuals(active, tokens[:found], keys[:found], bits[: used.value])

    def count(self, width: int, residuals: Residuals) -> Array[np.uint32]:
        table = TOOLS.buffer("counts", 2 * 256 * alphabet(width) * 4).view(np.uint32)
        table.fill(0)
        tokens, keys = residuals.tokens, residuals.keys
        self._library.modelgit_count(pointer(tokens), pointer(keys), size(len(tokens)), alphabet(width), pointer(table))
        return table[: 256 * alphabet(width)].reshape(256, -1)

    def encode(self, width: int, residuals: Residuals, model: Model, lanes: int) -> Coded:
        tokens, keys, count = residuals.tokens, residuals.keys, len(residuals.tokens)
        states = np.empty(lanes, np.uint32)
        words = TOOLS.buffer("words", 2 * (count + VECTOR)).view(np.uint16)
        symbols = TOOLS.buffer("symbols", 4 * model.frequencies.size).view(np.uint32)
        ends = ctypes.c_uint8(model.first), ctypes.c_uint8(model.last)
        places = (size(lanes), pointer(states), pointer(words), pointer(symbols), self._wide)
        written = self._library.modelgit_encode(
            pointer(tokens), pointer(keys), size(count), alphabet(width), *ends, pointer(model.frequencies), *places
        )
        return Coded(states, words[len(words) - written :])

    def apply(self, width: int, into: Bytes, parent: Bytes, difference: Difference) -> bool:
        model, coded, bits = difference.model, difference.coded, difference.bits
        slots = TOOLS.buffer("slots", 4 * ONE * len(model.frequencies)).view(np.uint32)
        ends = ctypes.c_uint8(model.first), ctypes.c_uint8(model.last)
        words = (size(len(coded.states)), pointer(coded.words), size(len(coded.words)))
        wrong = self._library.modelgit_apply(
            width,
            pointer(into),
            pointer(parent),
            size(len(into) // width),
            pointer(difference.active),
            alphabet(width),
            *ends,
            pointer(model.frequencies),
            pointer(slots),
            pointer(coded.states),
            *words,
            pointer(bits),
            size(len(bits)),
            self._wide,
        )
        return not wrong


class CompiledSums:
    """The weighted sums of the kernel."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._guarded = library, guarded(library)
        library.modelgit_peak.restype = ctypes.c_uint64

    def peak(self, data: Bytes, dtype: str) -> int:
        count = size(len(data) // WIDTHS[dtype])
        return int(self._library.modelgit_peak(TYPES[dtype], pointer(data), count))

    def widen(self, data: Bytes, dtype: str, into: Floats) -> None:
        self._library.modelgit_widen(TYPES[dtype], pointer(data), size(len(into)), pointer(into))

    def spread(self, inputs: Sequence[Bytes], dtype: str, into: Floats, *, minus: bool) -> int | None:
        places, peak = pointers(inputs), ctypes.c_uint64()
        ends = ctypes.addressof(places), into.ctypes.data, ctypes.addressof(peak)
        job = Spreading(*ends, len(inputs), into.shape[1], int(minus), TYPES[dtype])
        return peak.value if self._guarded(self._library.modelgit_spread, job) else None

    def accumulate(
        self, total: Floats, inputs: Sequence[Bytes], coefficients: Floats, dtype: str, *, first: bool
    ) -> None:
        places = (size(len(inputs)), pointers(inputs), pointer(coefficients))
        self._library.modelgit_accumulate(TYPES[dtype], *places, size(len(total)), pointer(total), int(first))

    def finish(self, total: Floats, divisor: float, dtype: str, into: Bytes) -> None:
        share = ctypes.c_double(divisor)
        self._library.modelgit_finish(TYPES[dtype], pointer(total), share, size(len(total)), pointer(into))

    def combine(self, inputs: Sequence[Bytes], coefficients: Floats, divisor: float, dtype: str, into: Bytes) -> bool:
        places, count = pointers(inputs), len(into) // WIDTHS[dtype]
        ends = ctypes.addressof(places), coefficients.ctypes.data, into.ctypes.data
        job = Combination(*ends, len(inputs), count, divisor, TYPES[dtype])
        return self._guarded(self._library.modelgit_combine, job)


def load_library(folder: Path = Path(__file__).parent, version: int = KERNEL_VERSION) -> ctypes.CDLL | None:
    """Return the kernel built into `folder`, or None: not built, another version, another byte order."""
    if sys.byteorder != "little":
        return None
    for path in sorted(folder.glob("_kernel*.so")):
        try:
            library = ctypes.CDLL(str(path))
            if library.modelgit_kernel_version() == version:
                return library
        except (OSError, AttributeError):
            continue
    return None


def load_compiled(folder: Path = Path(__file__).parent, *, wide: bool = True) -> CompiledTransforms | None:
    """Return the compiled transforms built into `folder`, None if there are none that can be used."""
    library = load_library(folder)
    return CompiledTransforms(library, wide=wide) if library is not None else None
