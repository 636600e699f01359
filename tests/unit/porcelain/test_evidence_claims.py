import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.porcelain.evidence.claims import (
    Claim,
    Pair,
    connected,
    diversity_pays,
    like_ensemble,
    mixture,
    more_diverse,
    no_cure_for_correlation,
    one_stranger,
    ordering,
)
from modelgit.train.measuring.diversity import Agreement
from modelgit.train.measuring.intervals import Interval
from modelgit.train.measuring.paired import Cell

THINGS = tuple(f"thing-{i}" for i in range(200))
CELLS = [f"cell-{i}" for i in range(12)]


def cells(share: float, seed: int = 0) -> list[Cell]:
    """Return cells whose strategies share the hard and the easy things: only the share that is right differs."""
    hardness = np.random.default_rng(seed).permutation(len(THINGS)) / len(THINGS)
    return [Cell(domain, "0", THINGS, (hardness < share).astype(np.float64)) for domain in ("a", "b", "c")]


def agreeing(diversity: float) -> Agreement:
    """Return an agreement of about that diversity: half of each model's errors are its own at 1."""
    apart = round(40 * diversity)
    return Agreement(100, apart, apart, 40, 0)


def pair(cell: str, starts: tuple[str, str], diversity: float, barrier: float = 0.0, gain: float = 0.0) -> Pair:
    return Pair(cell, starts, agreeing(diversity), barrier, gain)


@pytest.mark.parametrize(
    ("found", "least", "most", "expected"),
    [
        (Interval(2, 1, 3), 0, float("inf"), "holds"),
        (Interval(2, -1, 3), 0, float("inf"), "undecided"),
        (Interval(-2, -3, -1), 0, float("inf"), "does not hold"),
        (Interval(0, -0.005, 0.005), -0.01, 0.01, "holds"),
        (Interval(0.05, 0.02, 0.08), -0.01, 0.01, "does not hold"),
        (Interval(0.01, -0.005, 0.025), -0.01, 0.01, "undecided"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(found: Interval, least: float, most: float, expected: str) -> None:
    assert Claim("name", "statement", "figure", found, least, most).verdict == expected


def test_connected_counts_only_pairs_that_began_apart() -> None:
    pairs = [pair(cell, ("x", "y"), 0.5, barrier=0.001) for cell in CELLS]
    pairs += [pair(cell, ("x", "x"), 0.5, barrier=0.3) for cell in CELLS]
    found = connected(pairs)
    assert found.verdict == "holds"
    assert "100 % of 12 pairs" in found.detail
    assert connected([pair(cell, ("x", "y"), 0.5, barrier=0.2) for cell in CELLS]).verdict == "does not hold"


def test_diversity_is_compared_within_cells() -> None:
    """Cells differ far more than starts do; the comparison within cells is not fooled."""
    levels = np.linspace(0.1, 0.6, len(CELLS))
    pairs = [pair(c, ("x", "y"), level + 0.2) for c, level in zip(CELLS, levels, strict=True)]
    pairs += [pair(c, ("x", "x"), level) for c, level in zip(CELLS, levels, strict=True)]
    assert more_diverse(pairs).verdict == "holds"
    assert more_diverse([Pair(p.cell, p.starts, agreeing(0.3), 0, 0) for p in pairs]).found.mean == 0


def test_diversity_needs_pairs_of_both_kinds() -> None:
    with pytest.raises(DataError, match="no cell has both"):
        more_diverse([pair("cell", ("x", "y"), 0.5)])


def test_the_order_of_strategies() -> None:
    recycling, soup = ordering(cells(0.5), cells(0.6), cells(0.7), domains=False)
    assert (recycling.verdict, soup.verdict) == ("holds", "holds")
    assert recycling.found.mean == pytest.approx(0.1)
    backwards, _ = ordering(cells(0.5), cells(0.7), cells(0.6), domains=False)
    assert backwards.verdict == "does not hold"


def test_gain_that_rises_with_diversity() -> None:
    draws = np.random.default_rng(0)
    x = draws.uniform(0, 1, 60)
    pairs = [pair(CELLS[i % 12], ("x", "y"), float(d), gain=0.1 * float(d)) for i, d in enumerate(x)]
    found = diversity_pays(pairs)
    assert found.verdict == "holds"
    assert "over 60 pairs" in found.detail
    flat = [pair(CELLS[i % 12], ("x", "y"), float(d), gain=float(draws.normal())) for i, d in enumerate(x)]
    assert diversity_pays(flat).verdict == "undecided"


def test_a_mixture_is_held_against_the_better_end() -> None:
    inside = mixture({0.0: cells(0.6), 0.5: cells(0.7), 1.0: cells(0.65)})
    assert inside.verdict == "holds"
    assert inside.found.mean == pytest.approx(0.05)
    assert mixture({0.0: cells(0.6), 0.5: cells(0.65), 1.0: cells(0.75)}).verdict == "does not hold"
    with pytest.raises(DataError, match="between none and all"):
        mixture({0.0: cells(0.6), 1.0: cells(0.7)})


def test_equality_is_shown_not_assumed() -> None:
    assert like_ensemble(cells(0.7), cells(0.7)).verdict == "holds"
    assert like_ensemble(cells(0.6), cells(0.7)).verdict == "does not hold"


def test_controls() -> None:
    assert no_cure_for_correlation(cells(0.3), cells(0.3)).verdict == "holds"
    assert no_cure_for_correlation(cells(0.3), cells(0.6)).verdict == "does not hold"
    assert one_stranger(cells(0.1), cells(0.7)).verdict == "holds"
    assert one_stranger(cells(0.7), cells(0.7)).verdict == "does not hold"
