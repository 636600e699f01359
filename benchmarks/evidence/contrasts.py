"""Where the difference between two strategies lies: in which domain and seed, on validation, in domains yet to come."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelgit.porcelain.evidence.answers import unpack_answers
from modelgit.porcelain.evidence.strategies import dataset_of, tested_alike
from modelgit.recipe.expanding import Job
from modelgit.train.data.splits import split
from modelgit.train.measuring.intervals import Interval
from modelgit.train.measuring.paired import Cell, difference, mean_of_models

# What is told, where both are rows of a table: the kinds of runs against each other, then other merges and other
# trainings against the plain mean of the same runs.
PAIRS = (
    ("recycling", "diwa"), ("recycling", "erm"), ("diwa", "erm"), ("recycling", "erm-slow"), ("diwa", "erm-slow"),
    ("recycling-ensemble", "diwa-ensemble"), ("ties", "soup-ties"), ("recycling-dagger", "diwa-dagger"),
    ("recycling-12-ensemble", "soup-12-ensemble"), ("recycling-12-ties", "soup-12-ties"),
    ("recycling-dagger", "recycling"), ("diwa-dagger", "diwa"),
    ("ties", "recycling"), ("soup-ties", "diwa"), ("recycling-12-ties", "recycling-dagger"),
    ("soup-12-ties", "diwa-dagger"), ("farther", "recycling"), ("soup-farther", "diwa"),
    ("geometric-median", "recycling"), ("everything", "recycling"), ("model-stock", "recycling"),
    ("wise-ft", "recycling"), ("breadcrumbs", "recycling"), ("averages", "recycling"), ("shrunk", "recycling"),
    ("two-rounds", "recycling"), ("fisher", "recycling"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much more one strategy gets right than another, by their titles.

    `found` draws test examples anew, `domains_drawn` the held-out domains too, None of one alone; `validation` is the
    same on the training domains' validation examples, pooled, None where these have trained a member. `by_domain` and
    `by_seed` are parts of the mean.
    """

    first: str
    other: str
    found: Interval
    domains_drawn: Interval | None
    validation: Interval | None
    by_domain: Mapping[str, float]
    by_seed: Mapping[str, float]


Cells = Callable[[str], Sequence[Cell]]  # of a strategy


def contrasts(titles: Mapping[str, str], tested: Cells, validated: Cells) -> tuple[Contrast, ...]:
    """Returns the contrasts between the strategies of a table, which are called by `titles`.

    `tested` gives what a strategy gets right in each cell of the held-out domain, `validated` of the others', or none.
    """
    pairs = [pair for pair in PAIRS if set(pair) <= set(titles)]
    asked = {name for pair in pairs for name in pair}
    known = {name: (tested(name), validated(name)) for name in titles if name in asked}
    return tuple(
        contrast(titles[a], titles[b], known[a], known[b])
        for a, b in pairs
        if tested_alike(known[a][0], known[b][0]) and not same(known[a][0], known[b][0])
    )


def same(first: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Tells whether two strategies get the same right everywhere: a dagger of one split is its soup."""
    return all(np.array_equal(a.right, b.right) for a, b in zip(first, other, strict=True))


def contrast(
    first: str, other: str, of_first: tuple[Sequence[Cell], ...], of_other: tuple[Sequence[Cell], ...]
) -> Contrast:
    """Returns what stands between two strategies, each told by its cells of the held-out domain and of the others."""
    (tested, inside), (other_tested, other_inside) = of_first, of_other
    other_accuracy = {(cell.domain, cell.seed): cell.accuracy for cell in other_tested}
    gaps = {(c.domain, c.seed): c.accuracy - other_accuracy[c.domain, c.seed] for c in tested}
    return Contrast(
        first,
        other,
        difference(tested, other_tested),
        difference(tested, other_tested, domains=True) if len({cell.domain for cell in tested}) > 1 else None,
        difference(inside, other_inside) if inside and other_inside else None,
        parts(gaps, 0),
        parts(gaps, 1),
    )


def parts(gaps: Mapping[tuple[str, str], float], place: int) -> dict[str, float]:
    """Returns the mean of what cells say, by their domain (`place` 0) or by their seed (1)."""
    names = sorted({cell[place] for cell in gaps})
    return {name: float(np.mean([gap for cell, gap in gaps.items() if cell[place] == name])) for name in names}


def validated(jobs: Sequence[Job], rows: Mapping[str, Mapping[str, object]]) -> list[Cell]:
    """Returns what the models of a strategy get right of each cell's validation; none if one has several such sets."""
    found = dict[tuple[str, str], list[Cell]]()
    for job in jobs:
        config, answers = job.evaluate, rows[job.name].get("answers")
        if config is None or config.held_out is None or not isinstance(answers, Mapping):
            return []
        dataset = dataset_of(config)
        things, right = list[str](), list[float]()
        for domain, places in split(dataset, config).validation.items():
            said = unpack_answers(answers[f"val_accuracy/{domain}"], len(places))
            things += [dataset.names[i] for i in places]
            right += (said == dataset.labels[places]).astype(float).tolist()
        cell = config.held_out, str(job.bindings.get("seed", config.fold))
        found.setdefault(cell, []).append(Cell(*cell, tuple(things), np.array(right)))
    if any(len({cell.things for cell in models}) > 1 for models in found.values()):
        return []
    return [mean_of_models(models) for _, models in sorted(found.items())]
