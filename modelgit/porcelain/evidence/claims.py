"""The claims of the paper, each a statement about one figure and its 95 % interval.

Ramé et al. 2022, arXiv:2212.10445, section 3 and figure 3. A claim holds where the whole interval lies within what it
says, does not hold where the whole interval lies outside, and is undecided in between. Accuracies are fractions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelgit.errors import DataError
from modelgit.train.measuring.diversity import Agreement
from modelgit.train.measuring.intervals import Interval, bootstrap, tabulated, wilson
from modelgit.train.measuring.paired import Cell, accuracy_of, difference, slope

Verdict = Literal["holds", "does not hold", "undecided"]
Cells = Sequence[Cell]
POINT = 0.01
CONNECTED = 0.9  # the share of pairs without a barrier that is asked for


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement, the figure it is about (`least` to `most` is what it says), and what came out."""

    name: str
    statement: str
    figure: str
    found: Interval
    least: float = -math.inf
    most: float = math.inf
    detail: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies within what the claim says, outside, or across."""
        if self.least <= self.found.low and self.found.high <= self.most:
            return "holds"
        return "does not hold" if self.found.high < self.least or self.found.low > self.most else "undecided"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of one cell (`cell` names it): where each came from, how they differ, what lies between them.

    `barrier` is how far accuracy falls on the straight path below what its ends promise, at the worst point; `gain` is
    the accuracy of their average less the mean of theirs.
    """

    cell: str
    starts: tuple[str, str]
    agreement: Agreement
    barrier: float
    gain: float

    @property
    def apart(self) -> bool:
        """Whether the runs began from different models."""
        return self.starts[0] != self.starts[1]


def over_cells(values: Sequence[float], cells: Sequence[str]) -> Interval:
    """Returns the mean of values with an interval in which whole cells are drawn anew."""
    return bootstrap(tabulated(np.asarray(values, dtype=np.float64), cells, ["all"] * len(values)), domains=False)


def connected(pairs: Sequence[Pair]) -> Claim:
    """Returns claim 1: no barrier between runs that began from different auxiliary models."""
    apart = [pair for pair in pairs if pair.apart]
    found = over_cells([pair.barrier for pair in apart], [pair.cell for pair in apart])
    free = wilson(sum(pair.barrier <= POINT for pair in apart), len(apart))
    ends = f"95 % interval {100 * free.low:.0f} to {100 * free.high:.0f} %"
    return Claim(
        "connected",
        "Runs from different auxiliary models are linearly mode connected: on average the worst point between two "
        "falls short of what they promise by less than one point of accuracy.",
        "mean barrier",
        found,
        most=POINT,
        detail=f"{100 * free.mean:.0f} % of {len(apart)} pairs have a barrier of at most one point ({ends}); "
        f"{100 * CONNECTED:.0f} % were asked for",
    )


def more_diverse(pairs: Sequence[Pair]) -> Claim:
    """Returns claim 2: runs that began apart err more differently than runs that began together."""
    both = {pair.cell for pair in pairs if pair.apart} & {pair.cell for pair in pairs if not pair.apart}
    cells = sorted(both)
    if not cells:
        raise DataError("diversity of starts: no cell has both pairs that began together and pairs that began apart")

    def mean(cell: str, *, apart: bool) -> float:
        return float(np.mean([p.agreement.q_diversity for p in pairs if p.cell == cell and p.apart == apart]))

    differences = [mean(cell, apart=True) - mean(cell, apart=False) for cell in cells]
    return Claim(
        "more diverse",
        "Runs from different auxiliary models err more differently than runs from one model.",
        "q-diversity, different starts less same start",
        over_cells(differences, cells),
        least=0,
    )


def ordering(erm: Cells, soup: Cells, recycling: Cells, *, domains: bool) -> tuple[Claim, Claim]:
    """Returns claim 3 in two parts: recycling is at least as good as a soup, and a soup as a single run."""
    return (
        Claim(
            "recycling ≥ soup",
            "Averaging recycled runs is better out of distribution than averaging as many runs of one start.",
            "accuracy, recycling less soup",
            difference(recycling, soup, domains=domains),
            least=0,
        ),
        Claim(
            "soup ≥ single run",
            "Averaging runs is better out of distribution than one run.",
            "accuracy, soup less the mean of its runs",
            difference(soup, erm, domains=domains),
            least=0,
        ),
    )


def diversity_pays(pairs: Sequence[Pair]) -> Claim:
    """Returns claim 4: the more two runs differ, the more their average gains."""
    x = np.array([pair.agreement.q_diversity for pair in pairs])
    y = np.array([pair.gain for pair in pairs])
    correlation = float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else math.nan
    return Claim(
        "diversity pays",
        "The more differently two runs err, the more their average gains over them.",
        "gain in accuracy per unit of q-diversity",
        slope(x, y, [pair.cell for pair in pairs]),
        least=0,
        detail=f"correlation {correlation:.2f} over {len(pairs)} pairs",
    )


def mixture(shares: Mapping[float, Cells]) -> Claim:
    """Returns claim 5: a mixture of inter-trained and plain members is better than all of one kind."""
    ends = shares[min(shares)], shares[max(shares)]
    inner = [share for share in sorted(shares) if min(shares) < share < max(shares)]
    if not inner:
        raise DataError("share of inter-trained members: expected shares between none and all")
    middle = min(inner, key=lambda share: (abs(share - 0.5), share))
    found = [difference(shares[middle], end) for end in ends]
    lower = min(found, key=lambda interval: interval.low)
    means = {share: accuracy_of(cells).mean for share, cells in sorted(shares.items())}
    accuracies = ", ".join(f"{share:g}: {100 * mean:.1f} %" for share, mean in means.items())
    return Claim(
        "best share inside",
        "An average of inter-trained and plain runs, about half of each, is better than one of either kind alone.",
        f"accuracy at share {middle:g}, less the better end",
        lower,
        least=0,
        detail=f"by share of inter-trained members: {accuracies}",
    )


def like_ensemble(average: Cells, ensemble: Cells) -> Claim:
    """Returns claim 6: averaging weights is worth as much as averaging outputs, within a point."""
    return Claim(
        "average ≈ ensemble",
        "The average of weights is as accurate as the ensemble of the same runs, which costs as many networks.",
        "accuracy, average of weights less ensemble",
        difference(average, ensemble),
        least=-POINT,
        most=POINT,
    )


def no_cure_for_correlation(erm: Cells, recycling: Cells) -> Claim:
    """Returns claim 7: where a spurious correlation flips, averaging does not help."""
    return Claim(
        "no cure for correlation",
        "Where a spurious correlation flips between training and test, averaging gains less than one point.",
        "accuracy, recycling less single run, on the flipped domain",
        difference(recycling, erm),
        most=POINT,
    )


def one_stranger(with_stranger: Cells, without: Cells) -> Claim:
    """Returns claim 8, a negative control: one member from another initialisation destroys the average."""
    return Claim(
        "a stranger destroys it",
        "One member that began from random weights destroys the average.",
        "accuracy, average with the stranger less without",
        difference(with_stranger, without),
        most=-10 * POINT,
    )
