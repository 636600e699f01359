"""From a pipeline that was carried out to its table and to the claims of the paper, each with its figure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.evidence.contrasts import Contrast, validated
from benchmarks.evidence.growing import Curve
from benchmarks.evidence.measuring import Line, Place, Run
from benchmarks.evidence.midpoints import Midpoint
from modelgit.pipeline.outcome import chosen
from modelgit.pipeline.start import Carried
from modelgit.porcelain.evidence import claims
from modelgit.porcelain.evidence.claims import Claim, Pair
from modelgit.porcelain.evidence.gathering import Answered, answered, by_cell
from modelgit.porcelain.evidence.strategies import cells_of, examples_of, tested_alike
from modelgit.recipe.expanding import Job
from modelgit.train.config import DataConfig
from modelgit.train.measuring.diversity import agreement
from modelgit.train.measuring.intervals import Interval, bootstrap, tabulated
from modelgit.train.measuring.paired import Cell, accuracy_of, difference, slope

ERM, BEST, INTER, SOUP, RECYCLING = "erm", "erm-best", "inter-training", "diwa", "recycling"
SLOW = "erm-slow"  # single runs at the rate that is best for them, where averages have another
ROUNDING = 1e-9  # of scores that are equal
SHARES = {0.0: SOUP, 0.25: "share-1", 0.5: "share-2", 0.75: "share-3", 1.0: RECYCLING}


@dataclass(frozen=True, slots=True)
class Standing:
    """A strategy: how many models, accuracy by held-out domain, over all with its interval, against others."""

    strategy: str
    title: str
    models: int
    domains: Mapping[str, float]
    mean: Interval
    validation: float | None
    against: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Predictor:
    """How well something measured on training domains foretells the gain of averaging two on the held-out one.

    The correlation over pairs, the slope with an interval over cells, and what is won by it: the held-out accuracy of
    the pair of recycled runs that it picks in each cell, less that of the mean pair.
    """

    correlation: float
    slope: Interval
    picked: Interval | None


@dataclass(frozen=True, slots=True)
class Story:
    """What one pipeline says: its table, the claims it can speak of, the paths and the means that were measured.

    One that tries learning rates has `midpoints`, and neither table nor claims.
    """

    name: str
    title: str
    standings: tuple[Standing, ...]
    claims: tuple[Claim, ...]
    lines: tuple[Line, ...]
    seconds: float
    unseen: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()
    midpoints: tuple[Midpoint, ...] = ()
    contrasts: tuple[Contrast, ...] = ()


@dataclass(frozen=True)
class Told:
    """A pipeline that was carried out, asked for what its steps scored and answered."""

    done: Carried

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names of the rows of its table."""
        return tuple(row.strategy for row in self.done.pipeline.report)

    def jobs(self, strategy: str) -> list[Job]:
        """Returns the steps that a strategy is the mean over."""
        pipeline, scores = self.done.pipeline, self.done.outcome.scores
        return chosen(pipeline, next(row for row in pipeline.report if row.strategy == strategy), scores)

    def cells(self, strategy: str) -> list[Cell]:
        """Returns what a strategy gets right, cell by cell."""
        rows = {name: score.row for name, score in self.done.outcome.scores.items()}
        return cells_of(self.jobs(strategy), rows, examples_of)

    def validated(self, strategy: str) -> list[Cell]:
        """Returns what a strategy gets right of each cell's validation examples; none if they trained a member."""
        row = next(row for row in self.done.outcome.rows if row.strategy == strategy)
        rows = {name: score.row for name, score in self.done.outcome.scores.items()}
        return validated(self.jobs(strategy), rows) if row.val else []

    def answers(self, strategy: str) -> list[Answered]:
        """Returns what each model of a strategy answered."""
        scores = self.done.outcome.scores
        return [
            answered(job.name, start_of(job), examples_of(job), scores[job.name].row) for job in self.jobs(strategy)
        ]

    def places(self, plain: str = ERM, recycled: str = INTER) -> list[Place]:
        """Returns the cells with their runs, of one start and of different ones, of two rows of the table."""
        runs = dict[tuple[str, str], tuple[list[Run], list[Run]]]()
        data = dict[tuple[str, str], DataConfig]()
        for number, strategy in enumerate((plain, recycled)):
            for job in self.jobs(strategy):
                assert job.evaluate is not None and job.evaluate.held_out is not None  # all of them are tested
                cell = job.evaluate.held_out, str(job.bindings.get("seed", 0))
                made = Run(job.name, self.done.outcome.commits[job.name], start_of(job))
                runs.setdefault(cell, ([], []))[number].append(made)
                data[cell] = job.evaluate
        frozen = self.done.pipeline.frozen_stages
        return [Place(*cell, data[cell], frozen, *map(in_turn, both)) for cell, both in runs.items()]

    def rates(self) -> dict[float, list[Place]]:
        """Returns the cells of each row of the table by its learning rate, where every row has one of its own."""
        rows = {name: self.jobs(name)[0].bindings["rate"] for name in self.strategies}
        return {float(str(rate)): self.places(name, name) for name, rate in rows.items()}


def in_turn(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Returns runs split by split in turn, told by how their steps are called: so that neighbours are of several."""
    splits = dict[str, list[Run]]()
    for run in runs:
        splits.setdefault(run.step.rpartition("/")[0], []).append(run)
    rounds = itertools.zip_longest(*splits.values())
    return tuple(run for some in rounds for run in some if run is not None)


def start_of(job: Job) -> str:
    """Returns the step whose featurizer a run began with."""
    return job.needs[0] if job.needs else ""


def standings(told: Told) -> tuple[Standing, ...]:
    """Returns the table: every strategy, and how it stands against single runs and the soup."""
    cells = {name: told.cells(name) for name in told.strategies}
    rows = {row.strategy: row for row in told.done.outcome.rows}
    others = [name for name in (ERM, SLOW, BEST, SOUP, RECYCLING) if name in cells]
    return tuple(
        Standing(
            name,
            rows[name].title,
            rows[name].runs,
            by_domain(own),
            accuracy_of(own),
            val.mean if (val := rows[name].val) else None,
            {o: difference(own, cells[o]) for o in others if o != name and tested_alike(own, cells[o])},
        )
        for name, own in cells.items()
    )


def by_domain(cells: Sequence[Cell]) -> dict[str, float]:
    """Returns the mean accuracy on each held-out domain."""
    names = sorted({cell.domain for cell in cells})
    return {name: float(np.mean([c.accuracy for c in cells if c.domain == name])) for name in names}


def all_pairs(told: Told) -> list[Pair]:
    """Returns how any two runs of a cell and of a kind err; what lies between them is not measured."""
    found = list[Pair]()
    for strategy in (ERM, INTER):
        for (domain, seed), models in by_cell(told.answers(strategy)).items():
            for one, other in itertools.combinations(models, 2):
                unlike = agreement(one.answers, other.answers, one.examples.labels)
                found.append(Pair(f"{domain}/{seed}", (one.start, other.start), unlike, float("nan"), float("nan")))
    return found


def measured_pairs(lines: Sequence[Line]) -> list[Pair]:
    """Returns the pairs between which paths were measured."""
    return [
        Pair(line.cell, line.starts, line.unlike, line.barrier(line.held_out), line.gain(line.held_out))
        for line in lines
    ]


def claims_of(told: Told, lines: Sequence[Line], *, flipped: bool) -> tuple[Claim, ...]:
    """Returns the claims that a pipeline can speak of; of a spurious correlation that is `flipped`, one alone."""
    erm, soup, recycling = (told.cells(name) for name in (ERM, SOUP, RECYCLING))
    if flipped:
        return (claims.no_cure_for_correlation(erm, recycling),)
    pairs = measured_pairs(lines)
    found = [claims.connected(pairs), claims.more_diverse(all_pairs(told))]
    found += claims.ordering(erm, soup, recycling, domains=False)
    found.append(claims.diversity_pays(pairs))
    if set(SHARES.values()) <= set(told.strategies):
        found.append(claims.mixture({share: told.cells(name) for share, name in SHARES.items()}))
    found.append(claims.like_ensemble(recycling, told.cells("recycling-ensemble")))
    if "with-stranger" in told.strategies:
        found.append(claims.one_stranger(told.cells("with-stranger"), told.cells("without-stranger")))
    return tuple(found)


def predictors(lines: Sequence[Line]) -> dict[str, Predictor]:
    """Returns what, measured on the training domains alone, may foretell the gain on the held-out one."""
    gain = np.array([line.gain(line.held_out) for line in lines])
    candidates = {
        "q-diversity on validation": [line.unlike_inside.q_diversity for line in lines],
        "gain on validation": [line.gain(line.validation) for line in lines],
        "barrier on validation": [line.barrier(line.validation) for line in lines],
        "1 - CKA of features": [1 - line.cka_inside for line in lines],
        "accuracy of the middle on validation": [line.middle(line.validation) for line in lines],
    }
    cells = [line.cell for line in lines]
    return {
        name: Predictor(
            float(np.corrcoef(values, gain)[0, 1]),
            slope(np.array(values), gain, cells),
            picked(lines, [-v for v in values] if name.startswith("barrier") else values),
        )
        for name, values in candidates.items()
        if np.ptp(values) > 0 and np.ptp(gain) > 0
    }


def picked(lines: Sequence[Line], scores: Sequence[float]) -> Interval | None:
    """Returns how much better on the held-out domain than the mean pair the one is that has the highest score.

    Of the pairs of a cell that began apart, the accuracy of the middle; of equal scores the mean. What is drawn anew is
    whole cells. None if no cell has two such pairs.
    """
    cells = dict[str, list[tuple[float, float]]]()
    for line, score in zip(lines, scores, strict=True):
        if line.starts[0] != line.starts[1]:
            cells.setdefault(line.cell, []).append((score, line.middle(line.held_out)))
    if not any(len(pairs) > 1 for pairs in cells.values()):
        return None
    best = list[float]()
    for pairs in cells.values():
        top = max(score for score, _ in pairs) - ROUNDING
        chosen = [right for score, right in pairs if score >= top]
        best.append(float(np.mean(chosen) - np.mean([right for _, right in pairs])))
    return bootstrap(tabulated(np.array(best), list(cells), ["all"] * len(cells)), domains=False)
