"""Transforms of one frame of weights: a numpy reference, and compiled ones that must give the same bytes.

A *full* frame has each element's sign rotated to its lowest bit and its bytes dealt out to planes. A *delta* frame
holds the wrapping integer difference to the parent, zigzag coded, sorted by the parent's exponent: a step of one
size moves a small weight by many units in the last place and a large one by none, so the order gathers equals, and
the decoder, who has the parent, can repeat it at no cost. Equal exponents are sorted by lane (position modulo 8),
then position: eight interleaved chains keep a processor busy where one would wait for itself.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
SIGNED: dict[int, np.dtype[np.signedinteger]] = {
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    4: np.dtype("<i4"),
    8: np.dtype("<i8"),
}
ORDER_SHIFT = {1: 0, 2: 7, 4: 23, 8: 52}  # of the parent's bits, to the eight that give the order
LANES = 8
KERNEL_VERSION = 1  # of the functions in kernel.c; another build is not used


class Transforms(Protocol):
    """What a codec needs done to a frame. All arrays are bytes, contiguous and aligned; sizes agree."""

    def full_split(self, width: int, data: Bytes, planes: Bytes) -> None:
        """Write the `width` planes (width, n) of `data` (n * width,)."""

    def full_join(self, width: int, planes: list[Bytes], into: Bytes) -> None:
        """Undo `full_split`: `planes` are `width` arrays (n,)."""

    def delta_split(self, width: int, data: Bytes, parent: Bytes, scratch: Bytes, planes: Bytes) -> None:
        """Write the planes (width, n) of `data` - `parent`, in the parent's order; `scratch` is as long as `data`."""

    def delta_join(self, width: int, planes: list[Bytes], scratch: Bytes, into: Bytes) -> None:
        """Undo `delta_split` in place: `into` holds the parent and becomes the child."""

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        """Write the 8 bit planes (8, n) of `plane` (8 * n,): row k holds bit k, first byte in the lowest bit."""

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        """Undo `bits_split`."""


def order(width: int, parent: Bytes) -> npt.NDArray[np.intp]:
    """Return the positions of the parent's elements, sorted by ordering byte, then lane, then position."""
    elements = parent.view(UNSIGNED[width])
    keys = (elements >> elements.dtype.type(ORDER_SHIFT[width])).astype(np.uint8)
    by_lane = np.concatenate([np.arange(lane, len(keys), LANES) for lane in range(LANES)])
    return by_lane[np.argsort(keys[by_lane], kind="stable")]


def deal(elements: npt.NDArray[np.unsignedinteger], planes: Bytes) -> None:
    """Write byte j of every element to `planes[j]`."""
    planes[:] = elements.view(np.uint8).reshape(len(elements), -1).T


def gather(width: int, planes: list[Bytes]) -> npt.NDArray[np.unsignedinteger]:
    """Return the elements whose byte j is in `planes[j]`."""
    return np.stack(planes, axis=1).reshape(-1).view(UNSIGNED[width])


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

    def delta_split(self, width: int, data: Bytes, parent: Bytes, scratch: Bytes, planes: Bytes) -> None:
        unsigned, signed = UNSIGNED[width], SIGNED[width]
        step = data.view(unsigned) - parent.view(unsigned)
        sign = (step.view(signed) >> signed.type(8 * width - 1)).view(unsigned)
        sorted_steps = scratch.view(unsigned)
        np.take((step << unsigned.type(1)) ^ sign, order(width, parent), out=sorted_steps)
        deal(sorted_steps, planes)

    def delta_join(self, width: int, planes: list[Bytes], scratch: Bytes, into: Bytes) -> None:
        unsigned = UNSIGNED[width]
        zigzag, one = gather(width, planes), unsigned.type(1)
        steps = scratch.view(unsigned)
        steps[order(width, into)] = (zigzag >> one) ^ (unsigned.type(0) - (zigzag & one))
        into.view(unsigned)[:] += steps

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        of_byte = np.unpackbits(plane, bitorder="little").reshape(-1, 8)
        bits[:] = np.packbits(of_byte.T, axis=1, bitorder="little")

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        of_byte = np.unpackbits(bits, axis=1, bitorder="little")
        plane[:] = np.packbits(of_byte.T.reshape(-1), bitorder="little")


def pointer(array: Bytes) -> ctypes.c_void_p:
    """Return the address of a contiguous array's first byte."""
    return ctypes.c_void_p(array.ctypes.data)


def pointers(planes: Bytes | list[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    """Return a C array of the planes' addresses."""
    return (ctypes.c_void_p * len(planes))(*[plane.ctypes.data for plane in planes])


class CompiledTransforms:
    """The functions of `kernel.c`, called through ctypes, which lets other threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def full_split(self, width: int, data: Bytes, planes: Bytes) -> None:
        count = ctypes.c_size_t(len(data) // width)
        self._library.modelgit_full_split(width, pointer(data), count, pointers(planes))

    def full_join(self, width: int, planes: list[Bytes], into: Bytes) -> None:
        count = ctypes.c_size_t(len(into) // width)
        self._library.modelgit_full_join(width, pointers(planes), count, pointer(into))

    def delta_split(self, width: int, data: Bytes, parent: Bytes, scratch: Bytes, planes: Bytes) -> None:
        count = ctypes.c_size_t(len(data) // width)
        self._library.modelgit_delta_split(
            width, pointer(data), pointer(parent), count, pointer(scratch), pointers(planes)
        )

    def delta_join(self, width: int, planes: list[Bytes], scratch: Bytes, into: Bytes) -> None:
        count = ctypes.c_size_t(len(into) // width)
        self._library.modelgit_delta_join(width, pointers(planes), count, pointer(scratch), pointer(into))

    def bits_split(self, plane: Bytes, bits: Bytes) -> None:
        self._library.modelgit_bits_split(pointer(plane), ctypes.c_size_t(len(plane) // 8), pointer(bits))

    def bits_join(self, bits: Bytes, plane: Bytes) -> None:
        self._library.modelgit_bits_join(pointer(bits), ctypes.c_size_t(len(plane) // 8), pointer(plane))


def load_compiled(folder: Path = Path(__file__).parent) -> CompiledTransforms | None:
    """Return the compiled transforms built into `folder`, or None: not built, another version, another byte order."""
    if sys.byteorder != "little":
        return None
    for path in sorted(folder.glob("_kernel*.so")):
        try:
            library = ctypes.CDLL(str(path))
            if library.modelgit_kernel_version() == KERNEL_VERSION:
                return CompiledTransforms(library)
        except (OSError, AttributeError):
            continue
    return None


@cache
def transforms() -> Transforms:
    """Return the fastest transforms there are here."""
    return load_compiled() or NumpyTransforms()


def aligned(data: Bytes, width: int) -> Bytes:
    """Return `data` itself, or a copy when it does not start at a multiple of `width` or is not contiguous."""
    if data.ctypes.data % width == 0 and data.flags.c_contiguous:
        return data
    return np.array(data, copy=True, order="C")
