"""The midpoint rule: the largest learning rate at which, on validation, averaging two recycled runs costs nothing.

A cell's held-out examples are not asked for. One rate for all cells is judged by validation in which a domain that is
held out in one cell validates in others; so what each held-out domain's own cells say stands beside it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.evidence.measuring import Place, shared_out
from modelgit.events import Listener
from modelgit.merge.selection.paths import between
from modelgit.merge.selection.states import Raw, read_state
from modelgit.porcelain.scores import known_model, workbench
from modelgit.porcelain.trials.measuring import as_torch
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.train.answers import asker

ALL = 1_000_000  # more validation examples than there are


@dataclass(frozen=True, slots=True)
class Midpoint:
    """What the middle of neighbouring runs at one learning rate has beyond the mean of its ends, on validation.

    `gap` is the mean over pairs, `error` its standard error with cells as the units (pairs, of one cell alone; None of
    one pair, which can take no rate), `worst` the lowest of the pairs, `below` how many of them lie below 0; `single`
    is the mean accuracy of the runs; `own` has the gap of the cells in which each domain is held out.
    """

    rate: float
    gap: float
    error: float | None
    worst: float
    below: int
    pairs: int
    single: float
    own: Mapping[str, float]


Middles = tuple[str, Sequence[float], Sequence[float]]  # a cell's held-out domain; accuracies of runs, and of middles


def midpoints(
    repository: Path, rates: Mapping[float, Sequence[Place]], workers: int, listener: Listener
) -> tuple[Midpoint, ...]:
    """Returns what the middles of the runs at each learning rate have, rates in order."""
    work = [(rate, place) for rate in sorted(rates) for place in rates[rate]]
    places = [place for _, place in work]
    found = shared_out(partial(middles, repository), places, workers, ("middles of pairs of runs", listener))
    parts = [(rate, part) for (rate, _), part in zip(work, found, strict=True)]
    return tuple(midpoint(rate, [part for other, part in parts if other == rate]) for rate in sorted(rates))


def middles(repository: Path, place: Place) -> Middles:
    """Returns the validation accuracies of a cell's recycled runs, and of the middles of neighbours."""
    repo = Repository.open(repository)
    model = known_model(repo, place.recycled[0].commit)
    bench = workbench(repo, "cpu", 1)
    examples, ask = asker(bench, model, place.data, place.frozen_stages, splits=True, most=(0, ALL))

    def accuracy(state: dict[str, Raw]) -> float:
        return float(np.mean(ask(as_torch(state)).logits.argmax(1) == examples.labels))

    states = [read_state(weights_of(repo, run.commit), run.step) for run in place.recycled]
    pairs = itertools.pairwise(states)
    single, middle = [accuracy(state) for state in states], [accuracy(between(a, b, 0.5)) for a, b in pairs]
    return place.domain, single, middle


def midpoint(rate: float, cells: Sequence[Middles]) -> Midpoint:
    """Returns what the pairs of all cells say of a rate."""
    gaps = [np.array(middle) - (np.array(runs[1:]) + np.array(runs[:-1])) / 2 for _, runs, middle in cells]
    every, means = np.concatenate(gaps), np.array([gap.mean() for gap in gaps])
    units = means if len(means) > 1 else every
    error = float(units.std(ddof=1) / np.sqrt(len(units))) if len(units) > 1 else None
    single = float(np.mean([runs for _, runs, _ in cells]))
    below = int((every < 0).sum())
    domains = [domain for domain, _, _ in cells]
    own = {name: float(np.mean([m for d, m in zip(domains, means, strict=True) if d == name])) for name in domains}
    return Midpoint(rate, float(every.mean()), error, float(every.min()), below, len(every), single, own)


def rate_taken(found: Sequence[Midpoint]) -> float | None:
    """Returns the largest rate at which middles lie above their ends by at least the error of that, if any."""
    return max((one.rate for one in found if one.error is not None and one.gap >= one.error), default=None)
