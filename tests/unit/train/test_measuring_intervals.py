import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.intervals import Interval, bootstrap, tabulated, wilson


def test_wilson_by_the_textbook() -> None:
    found = wilson(8, 10)
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)


def test_wilson_stays_within_bounds() -> None:
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1
    assert 0 < wilson(5, 5).low < 1


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_of_nonsense_is_refused(correct: int, n: int) -> None:
    with pytest.raises(DataError, match=f"{correct} correct of {n}"):
        wilson(correct, n)


def test_verdicts() -> None:
    assert Interval(1, 0.5, 2).verdict == "above"
    assert Interval(-1, -2, -0.5).verdict == "below"
    assert Interval(0.1, -1, 2).verdict == "undecided"


def test_values_are_summed_by_domain_and_thing() -> None:
    table = tabulated(np.array([1.0, 2.0, 4.0, 8.0]), ["cat", "cat", "dog", "cat"], ["x", "y", "y", "x"])
    assert table.sums.tolist() == [[9, 0], [2, 4]]
    assert table.counts.tolist() == [[2, 0], [1, 1]]


def test_the_mean_counts_domains_alike() -> None:
    table = tabulated(np.array([1.0, 1.0, 0.0]), ["a", "b", "c"], ["x", "x", "y"])
    assert bootstrap(table, domains=False).mean == 0.5


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(tabulated(values, [str(i) for i in range(400)], ["x"] * 400), domains=False)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_answers_about_one_thing_are_no_independent_evidence() -> None:
    """Ten seeds tested on the same forty things know no more than one: the interval stays as wide."""
    once = np.random.default_rng(2).normal(0, 1, 40)
    names = [str(i) for i in range(40)]
    one = bootstrap(tabulated(once, names, ["x"] * 40), domains=False)
    ten = bootstrap(tabulated(np.tile(once, 10), names * 10, ["x"] * 400), domains=False)
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=1e-9)


def test_domains_that_differ_widen_the_interval() -> None:
    draws = np.random.default_rng(3)
    values = np.concatenate([draws.normal(shift, 0.1, 50) for shift in (0, 1, 2, 3)])
    things, domains = [str(i) for i in range(50)] * 4, [d for d in "wxyz" for _ in range(50)]
    table = tabulated(values, things, domains)
    these, any_ = bootstrap(table, domains=False), bootstrap(table, domains=True)
    assert these.mean == any_.mean
    assert any_.high - any_.low > 5 * (these.high - these.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    table = tabulated(np.arange(20.0), [str(i) for i in range(20)], ["x"] * 20)
    assert bootstrap(table, domains=True, seed=4) == bootstrap(table, domains=True, seed=4)
    assert bootstrap(table, domains=True, seed=4) != bootstrap(table, domains=True, seed=5)


def test_a_thing_for_every_value() -> None:
    with pytest.raises(DataError, match="2 values, 1 things, 2 domains"):
        tabulated(np.zeros(2), ["a"], ["x", "x"])
