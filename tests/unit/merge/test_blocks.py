"""Arithmetic on blocks, and the exact search for order statistics: the kernel against numpy, numpy against sorting."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from modelgit.merge.blocks import ranking
from modelgit.merge.blocks.masks import draws
from modelgit.merge.blocks.ranking import Cut, keep, largest, largest_of_all
from modelgit.merge.blocks.sums import Array, folded, tree_sum
from modelgit.merge.blocks.tensors import BLOCK_ELEMENTS, ArrayTensor, Inputs
from modelgit.merge.blocks.vectors import NumpyVectors, Vectors, gram, limit_of, square_sum, vectors
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, finish, spread

SIZES = pytest.mark.parametrize("size", [0, 1, 7, 1001, 8008, 16384, 40_000])
PLAIN = NumpyVectors()


def rows(size: int, count: int = 3) -> list[Array]:
    """Return vectors with many equal magnitudes and zeros."""
    return [row.copy() for row in np.random.default_rng(size).standard_normal((count, size)).round(1)]


def raw(some: Sequence[Array]) -> list[npt.NDArray[np.uint8]]:
    return [row.view(np.uint8) for row in some]


def both(work: Callable[[Vectors], Array]) -> None:
    assert work(PLAIN).tobytes() == work(vectors()).tobytes()


@SIZES
def test_sums_over_vectors_are_the_same_in_the_kernel(size: int) -> None:
    some, weights = rows(size), (0.5, -0.3, 0.4)
    both(lambda tools: tools.products(raw(some), "F64"))
    both(lambda tools: tools.products(raw(rows(size, 9)), "F64"))  # more pairs than are worked on at once
    both(lambda tools: tools.mix(some, weights))
    for normalize in (True, False):
        for even in (1.0, -1.0):
            both(lambda tools, n=normalize, e=even: tools.elect(some, weights, normalize=n, even=e))  # type: ignore[misc]
    both(lambda tools: tools.elect(some, (0.1, 0.2, 0.7), (1.0, 1.0, 1.0), normalize=True))


@SIZES
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_products_of_raw_inputs_are_the_same_in_the_kernel(size: int, dtype: str, count: int) -> None:
    inputs = [np.zeros(size * ARITHMETIC_WIDTHS[dtype], np.uint8) for _ in range(count + 1)]
    for values, into in zip(rows(size, count + 1), inputs, strict=True):
        finish(values, 1.0, dtype, into)
    *heads, base = inputs
    both(lambda tools: tools.products(heads, dtype))
    both(lambda tools: tools.products(heads, dtype, base))
    wide = np.empty((count + 1, size))
    spread(inputs, dtype, wide, minus=True)
    assert np.allclose(vectors().products(heads, dtype, base).sum(0), wide[:-1] @ wide[:-1].T, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 16384, 39_999])
def test_what_is_not_finite_shows_on_the_diagonal(bad: float, place: int) -> None:
    some = [row.astype(np.float32) for row in rows(40_000)]
    some[1][place] = bad
    *heads, base = [row.view(np.uint8) for row in some]
    found = vectors().products([heads[0], heads[1]], "F32", base).diagonal(0, 1, 2)
    assert np.isfinite(found[:, 0]).all() and np.isfinite(found[:, 1]).tolist().index(False) == place // 16384
    assert not np.isfinite(vectors().products([base], "F32", heads[1])).all()


def changed(work: Callable[[Array], None], values: Array) -> Array:
    copy = values.copy()
    work(copy)
    return copy


@SIZES
def test_what_is_kept_is_the_same_in_the_kernel(size: int) -> None:
    (row,) = rows(size, 1)
    numbers = draws("seed", 0, size)
    both(lambda tools: changed(lambda v: tools.trim(v, 0.3, 0.9), row))
    both(lambda tools: changed(lambda v: tools.drop(v, numbers, 0.3), row))
    plain, fast = PLAIN.band(row, 0.3, 0.9), vectors().band(row, 0.3, 0.9)
    assert plain[0] == fast[0] and np.array_equal(plain[1], fast[1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1024), (2, 4096), (0, 4)])
def test_ranks_are_the_same_in_the_kernel(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    numbers = draws("seed", 0, shape[0] * shape[1])
    far = random.standard_normal(shape)
    far[:, :1] *= 1e200  # all others fall into one bucket
    for values in (random.standard_normal(shape), random.standard_normal(shape).round(1), np.zeros(shape), far):
        both(lambda tools, v=values: tools.ranks(v))  # type: ignore[misc]
        ranks = PLAIN.ranks(values)
        both(lambda tools, v=values, r=ranks: changed(lambda x: tools.drop_ranked(x, numbers, r, (0.2, 1e-4)), v))  # type: ignore[misc]


def test_ranks_of_equal_magnitudes_are_their_mean() -> None:
    assert vectors().ranks(np.array([[3.0, -1.0, 1.0, 0.5]])).tolist() == [[3.0, 1.5, 1.5, 0.0]]


def test_sums_are_sums() -> None:
    (row,) = rows(40_000, 1)
    assert tree_sum(row * row) == square_sum(row) == pytest.approx(float(np.sum(row * row)), rel=1e-13)
    assert folded(np.array([[1.0, 2.0, 4.0]])).tolist() == [7.0]
    assert np.allclose(gram([row, 2 * row]).sum(0), square_sum(row) * np.array([[1, 2], [2, 4]]), rtol=1e-13)


def test_masks_are_pinned_and_can_be_had_from_any_place() -> None:
    whole = draws("0\nlayer.weight\nabc", 0, 10_000)
    assert int((whole < limit_of(0.3)).sum()) == 2933
    for start, count in ((0, 1), (1, 5), (4096, 77), (9999, 1)):
        assert np.array_equal(draws("0\nlayer.weight\nabc", start, count), whole[start : start + count])
    assert abs(float((draws("1", 0, 160_000) < limit_of(0.3)).mean()) - 0.3) < 0.004


# ---------------------------------------------------------------------------------------- order statistics


def stable(values: Array, rank: int) -> npt.NDArray[np.bool_]:
    """Return which elements are the `rank` largest magnitudes, of equals the first by place."""
    inside = np.zeros(values.size, np.bool_)
    inside[np.argsort(-np.abs(values), kind="stable")[:rank]] = True
    return inside


def tensor(*heads: Array) -> ArrayTensor:
    return ArrayTensor(Inputs(heads, (1.0,) * len(heads), np.zeros(heads[0].shape), "w", ("a", "b")[: len(heads)]))


def kept(values: Array, cut: Cut, dropped: Cut = ranking.NOTHING) -> npt.NDArray[np.bool_]:
    """Return what is left of the values, block by block; none of them is zero."""
    parts = [values[start : start + BLOCK_ELEMENTS].copy() for start in range(0, values.size, BLOCK_ELEMENTS)]
    for number, part in enumerate(parts):
        keep(part, number * BLOCK_ELEMENTS, cut, dropped)
    return np.asarray(np.concatenate(parts) != 0)


def hard(kind: str, size: int) -> Array:
    random = np.random.default_rng(5)
    values = random.standard_normal(size)
    if kind == "ties":
        values = values.round(1) + 1e-3
    if kind == "sorted":
        values = np.sort(np.abs(values))  # the sample, of a few blocks, is far off
    if kind == "equal":
        values[:] = 2.0
    if kind == "spread":
        values = np.exp(100 * values)
    return values


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "equal", "spread"])
@pytest.mark.parametrize("size", [1, 33, 32768, 700_001])
def test_the_largest_are_found_exactly(kind: str, size: int) -> None:
    values = hard(kind, size)
    ranks = sorted({0, 1, size // 100, size // 2, size - 1, size})
    cuts = largest(tensor(values, -values), Inputs.deltas, [ranks, ranks])
    assert cuts[0] == cuts[1]
    for rank, cut in zip(ranks, cuts[0], strict=True):
        assert np.array_equal(kept(values, cut), stable(values, rank)), rank


def test_the_search_goes_on_without_keeping_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "KEPT_BYTES", 64)
    for kind in ("normal", "ties", "sorted", "spread"):
        values = hard(kind, 100_003)
        (cuts,) = largest(tensor(values), Inputs.deltas, [[30_000]])
        assert np.array_equal(kept(values, cuts[0]), stable(values, 30_000)), kind


def test_both_ends_can_be_dropped() -> None:
    values = hard("ties", 50_000)
    (cuts,) = largest(tensor(values), Inputs.deltas, [[30_000, 500]])
    assert np.array_equal(kept(values, *cuts), stable(values, 30_000) & ~stable(values, 500))


def test_one_threshold_over_several_tensors() -> None:
    parts: Sequence[Array] = [hard("normal", 70_000), hard("ties", 33)]
    together = np.sort(np.abs(np.concatenate(parts)))[::-1]
    for rank in (1, 700, 70_033):
        assert largest_of_all([tensor(part) for part in parts], Inputs.deltas, rank, 1) == [together[rank - 1]]
    assert largest_of_all([tensor(parts[0])], Inputs.deltas, 70_001, 1) == [0.0]
