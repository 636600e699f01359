import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.paired import Cell, accuracy_of, difference, harmonic_fit, mean_of_models, slope

THINGS = tuple(f"thing-{i}" for i in range(60))


def cells(shares: dict[str, float], seed: int, seeds: tuple[str, ...] = ("0", "1")) -> list[Cell]:
    draws = np.random.default_rng(seed)
    return [
        Cell(domain, name, THINGS, (draws.uniform(size=len(THINGS)) < share).astype(np.float64))
        for domain, share in shares.items()
        for name in seeds
    ]


def test_accuracy_is_the_mean_over_domains() -> None:
    found = accuracy_of([Cell("a", "0", ("x", "y"), np.array([1.0, 1.0])), Cell("b", "0", ("x",), np.zeros(1))])
    assert found.mean == 0.5


def test_a_strategy_is_no_better_than_itself() -> None:
    found = difference(cells({"a": 0.5}, 0), cells({"a": 0.5}, 0))
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_strategy_that_is_better_everywhere_is_found_to_be() -> None:
    better, worse = cells({"a": 0.9, "b": 0.8}, 1), cells({"a": 0.5, "b": 0.4}, 2)
    found = difference(better, worse)
    assert found.verdict == "above"
    expected = np.mean([b.accuracy for b in better]) - np.mean([w.accuracy for w in worse])
    assert found.mean == pytest.approx(expected)
    assert difference(worse, better).verdict == "below"


def test_order_of_cells_does_not_matter() -> None:
    first, second = cells({"a": 0.9, "b": 0.8}, 1), cells({"a": 0.5, "b": 0.4}, 2)
    assert difference(first, second).mean == pytest.approx(difference(first[::-1], second).mean)


def test_comparing_what_was_tested_apart_is_refused() -> None:
    with pytest.raises(DataError, match="different cells"):
        difference(cells({"a": 0.5}, 0), cells({"b": 0.5}, 0))
    other = [Cell("a", "0", ("x",), np.ones(1))]
    with pytest.raises(DataError, match="cell a, 0: the strategies were tested on different examples"):
        difference(other, [Cell("a", "0", ("y",), np.ones(1))])


def test_models_of_one_cell_are_averaged() -> None:
    found = mean_of_models([Cell("a", "0", ("x", "y"), np.array([1.0, 0.0])), Cell("a", "0", ("x", "y"), np.ones(2))])
    assert found.right.tolist() == [1.0, 0.5]
    with pytest.raises(DataError, match="different cells"):
        mean_of_models([Cell("a", "0", ("x",), np.ones(1)), Cell("a", "1", ("x",), np.ones(1))])


def test_a_slope_is_found_with_its_interval() -> None:
    draws = np.random.default_rng(0)
    x = draws.uniform(0, 1, 200)
    found = slope(x, 3 * x + draws.normal(0, 0.2, 200), [str(i % 20) for i in range(200)])
    assert found.mean == pytest.approx(3, abs=0.2)
    assert found.low < 3 < found.high
    assert found.verdict == "above"


def test_no_trend_is_undecided() -> None:
    draws = np.random.default_rng(1)
    found = slope(draws.uniform(size=100), draws.normal(size=100), [str(i % 10) for i in range(100)])
    assert found.verdict == "undecided"


def test_a_trend_over_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="two groups"):
        slope(np.arange(3.0), np.arange(3.0), ["a"] * 3)
    with pytest.raises(DataError, match="varies"):
        slope(np.ones(4), np.arange(4.0), ["a", "a", "b", "b"])


def test_the_law_of_one_over_k_is_recovered() -> None:
    found = harmonic_fit([0.7 - 0.1 / k for k in range(1, 9)])
    assert found.limit == pytest.approx(0.7)
    assert found.gain == pytest.approx(0.1)
    assert found.at(2) == pytest.approx(0.65)
    with pytest.raises(DataError, match="at least two means, got 1"):
        harmonic_fit([0.5])
