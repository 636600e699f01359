"""Arithmetic on blocks of float64, in one order on every machine: inner products, selection, trimming, sign election.

There are two implementations that give the same bytes: `NumpyVectors`, and the compiled kernel (`vectors.c`).
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelgit.merge.blocks.sums import BLOCK, Array, folded
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, sums
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.compiled import TYPES, guarded, load_library, pointers

KERNEL_VERSION = 7
SCRATCH_BYTES = 8 * 4 * BLOCK  # of inner products
ITEM_BYTES, SPREAD = 16, 2  # of a row's element while it is ranked; buckets for each
Draws = npt.NDArray[np.uint32]


class Vectors(Protocol):
    """What is done to blocks: contiguous float64 arrays of one size, but for the raw inputs of `products`."""

    @property
    def guarded(self) -> bool:
        """Whether `products` may be given what lies in mapped files."""

    def products(self, inputs: Sequence[Bytes], dtype: str, base: Bytes | None = None) -> Array:
        """Return the inner products of each `BLOCK` elements in turn (n / BLOCK, M, M), summed as `folded` does.

        Inputs are raw and aligned; with `base`, products are those of what they are less it. What is not finite in an
        input is not finite on the diagonal either; where a mapped file was cut short, no product is a number.
        """

    def band(self, values: Array, low: float, high: float) -> tuple[int, Array]:
        """Return how many magnitudes are above `high`, and those from `low` to `high`, in order."""

    def trim(self, values: Array, low: float, high: float) -> None:
        """Set to 0 what has no magnitude from `low` to `high`."""

    def drop(self, values: Array, draws: Draws, density: float) -> None:
        """Divide by `density` where the draw is below it, as a fraction of 2**32; set the rest to 0."""

    def ranks(self, values: Array) -> Array:
        """Return the ranks of the magnitudes in each row of (rows, n), 0 for the smallest; equals share their mean."""

    def drop_ranked(self, values: Array, draws: Draws, ranks: Array, line: tuple[float, float]) -> None:
        """As `drop`, with a density for each: line[0] + line[1] * rank."""

    def mix(self, vectors: Sequence[Array], weights: Sequence[float]) -> Array:
        """Return sum w_i v_i, terms in order."""

    def elect(
        self,
        vectors: Sequence[Array],
        weights: Sequence[float],
        votes: Sequence[float] | None = None,
        *,
        normalize: bool,
        even: float = 1.0,
    ) -> Array:
        """Return the sum of w_i v_i over the entries with the sign of the whole sum; `normalize` divides by their w_i.

        `votes` are other weights for the sum that elects. A sum of exactly 0 elects the sign of `even`; zeros never
        take part (Yadav et al. 2023, sections 3.2 and 3.3).
        """


class NumpyVectors:
    """The arithmetic in numpy: the reference, and what is used without the kernel."""

    guarded = False

    def products(self, inputs: Sequence[Bytes], dtype: str, base: Bytes | None = None) -> Array:
        count, given = len(inputs), [*inputs] if base is None else [*inputs, base]
        rows = np.empty((len(given), len(inputs[0]) // ARITHMETIC_WIDTHS[dtype]))
        sums().spread(given, dtype, rows, minus=base is not None)
        rows = rows[:count]
        parts = [rows[:, start : start + BLOCK] for start in range(0, rows.shape[1], BLOCK)]
        result = np.zeros((len(parts), count, count))
        for part, products in zip(parts, result, strict=True):
            for i in range(count):
                products[i, i:] = folded(part[i:] * part[i])
        return mirrored(result)

    def band(self, values: Array, low: float, high: float) -> tuple[int, Array]:
        sizes = np.abs(values.reshape(-1))
        return int(np.count_nonzero(sizes > high)), sizes[(sizes >= low) & (sizes <= high)]

    def trim(self, values: Array, low: float, high: float) -> None:
        sizes = np.abs(values)
        values[~((sizes >= low) & (sizes <= high))] = 0.0

    def drop(self, values: Array, draws: Draws, density: float) -> None:
        values[:] = np.where(draws.reshape(values.shape) < limit_of(density), values / density, 0.0)

    def ranks(self, values: Array) -> Array:
        result = np.empty(values.shape)
        for row, into in zip(np.abs(values), result, strict=True):
            _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
            ends = np.cumsum(counts)
            into[:] = (0.5 * (2 * ends - counts - 1))[places]
        return result

    def drop_ranked(self, values: Array, draws: Draws, ranks: Array, line: tuple[float, float]) -> None:
        density = line[0] + line[1] * ranks
        with np.errstate(divide="ignore", invalid="ignore"):
            values[:] = np.where(draws.reshape(values.shape) * 2.0**-32 < density, values / density, 0.0)

    def mix(self, vectors: Sequence[Array], weights: Sequence[float]) -> Array:
        total = weights[0] * vectors[0]
        for weight, vector in zip(weights[1:], vectors[1:], strict=True):
            total = total + weight * vector
        return total

    def elect(
        self,
        vectors: Sequence[Array],
        weights: Sequence[float],
        votes: Sequence[float] | None = None,
        *,
        normalize: bool,
        even: float = 1.0,
    ) -> Array:
        total = self.mix(vectors, votes or weights)
        positive = np.where(total == 0, even, total) > 0
        summed, share = np.zeros(positive.shape), np.zeros(positive.shape)
        for weight, vector in zip(weights, vectors, strict=True):
            term = weight * vector
            agrees = np.where(positive, term > 0, term < 0)
            summed += np.where(agrees, term, 0.0)
            share += np.where(agrees, weight, 0.0)
        return summed / np.where(share == 0, 1.0, share) if normalize else summed


class Products(ctypes.Structure):
    """What `modelgit_gram` works on."""

    _fields_ = (
        ("inputs", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("products", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("elements", ctypes.c_size_t),
        ("type", ctypes.c_int),
    )


class CompiledVectors:
    """The arithmetic of the kernel."""

    def __init__(self, library: ctypes.CDLL) -> None:
        place, number, real, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double, ctypes.c_uint64
        several = [number, place, place, number]
        self._library, codec = library, load_library()
        self.guarded, self._guarded = codec is not None, guarded(codec)
        for name, kinds in {
            "band": [place, number, real, real, place, place],
            "trim": [place, number, real, real],
            "drop": [place, number, place, count, real],
            "ranks": [place, number, number, place, place, place],
            "drop_ranked": [place, number, place, place, real, real],
            "mix": [*several, place],
            "elect": [number, place, place, place, number, real, ctypes.c_int, place],
        }.items():
            getattr(library, f"modelgit_{name}").argtypes = kinds
        library.modelgit_band.restype = number

    def products(self, inputs: Sequence[Bytes], dtype: str, base: Bytes | None = None) -> Array:
        count, n = len(inputs), len(inputs[0]) // ARITHMETIC_WIDTHS[dtype]
        result, scratch = np.zeros((-(-n // BLOCK), count, count)), TOOLS.buffer("products", SCRATCH_BYTES)
        places, origin = pointers(inputs), None if base is None else base.ctypes.data
        ends = ctypes.addressof(places), origin, scratch.ctypes.data, result.ctypes.data
        done = self._guarded(self._library.modelgit_gram, Products(*ends, count, n, TYPES[dtype]))
        return mirrored(result if done else np.full_like(result, np.nan))

    def band(self, values: Array, low: float, high: float) -> tuple[int, Array]:
        found, above = TOOLS.buffer("band", 8 * (values.size + 1)).view(np.float64), ctypes.c_size_t()
        places = found.ctypes.data, ctypes.addressof(above)
        count = self._library.modelgit_band(values.ctypes.data, values.size, low, high, *places)
        return above.value, found[:count].copy()

    def trim(self, values: Array, low: float, high: float) -> None:
        self._library.modelgit_trim(values.ctypes.data, values.size, low, high)

    def drop(self, values: Array, draws: Draws, density: float) -> None:
        limit = limit_of(density)
        self._library.modelgit_drop(values.ctypes.data, values.size, draws.ctypes.data, limit, density)

    def ranks(self, values: Array) -> Array:
        rows, n = values.shape
        result, items = np.empty(values.shape), np.empty(n * ITEM_BYTES, np.uint8)
        counts = np.empty(SPREAD * n + 2, np.uint32)
        places = items.ctypes.data, counts.ctypes.data, result.ctypes.data
        self._library.modelgit_ranks(values.ctypes.data, rows, n, *places)
        return result

    def drop_ranked(self, values: Array, draws: Draws, ranks: Array, line: tuple[float, float]) -> None:
        places = draws.ctypes.data, ranks.ctypes.data
        self._library.modelgit_drop_ranked(values.ctypes.data, values.size, *places, *line)

    def mix(self, vectors: Sequence[Array], weights: Sequence[float]) -> Array:
        result, shares = np.empty(vectors[0].shape), np.array(weights, np.float64)
        self._library.modelgit_mix(
            len(vectors), addresses(vectors), shares.ctypes.data, result.size, result.ctypes.data
        )
        return result

    def elect(
        self,
        vectors: Sequence[Array],
        weights: Sequence[float],
        votes: Sequence[float] | None = None,
        *,
        normalize: bool,
        even: float = 1.0,
    ) -> Array:
        result, shares = np.empty(vectors[0].shape), np.array(weights, np.float64)
        ballot = np.array(votes or weights, np.float64)
        places = len(vectors), addresses(vectors), shares.ctypes.data, ballot.ctypes.data, result.size
        self._library.modelgit_elect(*places, even, int(normalize), result.ctypes.data)
        return result


def mirrored(products: Array) -> Array:
    """Return matrices (n, M, M) with the upper triangle repeated below."""
    if products.shape[1] > 1:
        rows, columns = below(products.shape[1])
        products[:, rows, columns] = products[:, columns, rows]
    return products


@cache
def below(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the places below the diagonal of a matrix."""
    rows, columns = np.tril_indices(count, -1)
    return rows, columns


def gram(values: Sequence[Array]) -> Array:
    """Return the inner products of contiguous float64 arrays as `Vectors.products` does, (n / BLOCK, M, M)."""
    return vectors().products([each.reshape(-1).view(np.uint8) for each in values], "F64")


def square_sum(values: Array) -> float:
    """Return the sum of squares, in the order of `tree_sum`."""
    return float(sum(gram([values])[:, 0, 0]))


def limit_of(density: float) -> int:
    """Return the number that draws of 32 bits are below with this probability."""
    return round(density * 2**32)


def addresses(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    """Return a C array of where the arrays begin."""
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


@cache
def vectors() -> Vectors:
    """Return the fastest arithmetic there is here."""
    library = load_library(Path(__file__).parent, KERNEL_VERSION)
    return NumpyVectors() if library is None else CompiledVectors(library)
