"""The table a pipeline ends in: strategies compared, with their spread."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from modelgit.porcelain.evidence.strategies import differences, examples_of
from modelgit.recipe.expanding import Job
from modelgit.recipe.pipeline import Pipeline, ReportRow
from modelgit.train.measuring.intervals import Interval


@dataclass(frozen=True, slots=True)
class StepScore:
    """What one commit scored: accuracies as fractions, `None` where the data set has no such split."""

    step: str
    commit: str
    kind: str
    val_accuracy: float | None
    ood_accuracy: float | None
    ood_n: int
    row: Mapping[str, object] = field(default_factory=dict)  # all that was noted


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean with its standard error, and over what that error is taken: seeds, runs or test images."""

    mean: float
    stderr: float
    over: str


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy: means over its commits, `runs` of them; accuracies as fractions."""

    strategy: str
    title: str
    runs: int
    ood: Spread | None
    val: Spread | None
    ood_range: tuple[float, float] | None
    commits: tuple[str, ...]
    against: Mapping[str, Interval] = field(default_factory=dict)  # by strategy: how much more is right


def table(pipeline: Pipeline, scores: Mapping[str, StepScore]) -> tuple[Row, ...]:
    """Returns a row for each `[[report]]` of the pipeline; `scores` by step name."""
    return tuple(row_of(pipeline, row, scores) for row in pipeline.report)


def row_of(pipeline: Pipeline, row: ReportRow, scores: Mapping[str, StepScore]) -> Row:
    """Returns the row's means over the commits that match it."""
    jobs = chosen(pipeline, row, scores)
    found = [scores[job.name] for job in jobs]
    oods = [s.ood_accuracy for s in found if s.ood_accuracy is not None]
    return Row(
        strategy=row.strategy,
        title=row.title,
        runs=len(found),
        ood=spread(jobs, [s.ood_accuracy for s in found], found[0].ood_n if found else 0),
        val=spread(jobs, [s.val_accuracy for s in found], 0),
        ood_range=(min(oods), max(oods)) if oods else None,
        commits=tuple(s.commit for s in found),
    )


def chosen(pipeline: Pipeline, row: ReportRow, scores: Mapping[str, StepScore]) -> list[Job]:
    """Returns the jobs that a row is the mean over."""
    jobs = [pipeline.job(name) for name in pipeline.matching(row.of) if name in scores]
    return best_by_cell(jobs, standings(pipeline, row, jobs, scores)) if row.pick == "best" else jobs


def compared(pipeline: Pipeline, scores: Mapping[str, StepScore], rows: Sequence[Row]) -> tuple[Row, ...]:
    """Returns the rows with their differences to the strategies that the pipeline compares with."""
    if not pipeline.info.compare:
        return tuple(rows)
    jobs = {row.strategy: chosen(pipeline, row, scores) for row in pipeline.report}
    noted = {name: score.row for name, score in scores.items()}
    found = differences(jobs, pipeline.info.compare, noted, examples_of)
    return tuple(replace(row, against=found[row.strategy]) for row in rows)


def standings(
    pipeline: Pipeline, row: ReportRow, jobs: Sequence[Job], scores: Mapping[str, StepScore]
) -> dict[str, float]:
    """Returns what jobs are chosen by: validation of their own, or the mean of that of the steps that `by` names."""
    if not row.by:
        return {job.name: scores[job.name].val_accuracy or 0.0 for job in jobs}
    found: dict[object, list[float]] = {}
    for judge in (pipeline.job(name) for name in pipeline.matching(row.by) if name in scores):
        found.setdefault(run_of(judge), []).append(scores[judge.name].val_accuracy or 0.0)
    return {job.name: statistics.fmean(found[run_of(job)]) for job in jobs if run_of(job) in found}


def run_of(job: Job) -> tuple[object, object]:
    """Returns seed and run of a job."""
    return job.bindings.get("seed"), job.bindings.get("run")


def best_by_cell(jobs: Sequence[Job], standing: Mapping[str, float]) -> list[Job]:
    """Returns the job of each cell, a held-out domain in a seed, that stands highest, the first of equals."""
    best: dict[object, Job] = {}
    for job in jobs:
        cell = job.bindings.get("seed"), job.evaluate.held_out if job.evaluate is not None else None
        if job.name in standing and (cell not in best or standing[job.name] > standing[best[cell].name]):
            best[cell] = job
    return list(best.values())


def spread(jobs: Sequence[Job], values: Sequence[float | None], n: int) -> Spread | None:
    """Returns the mean over runs and its standard error.

    With several seeds the seeds are the units (runs of one seed are averaged first): s / sqrt(seeds), s with n-1.
    With one seed the runs are. With one run only sampling error of the `n` test images is known: sqrt(p(1-p)/n).
    """
    by_seed: dict[object, list[float]] = {}
    for job, value in zip(jobs, values, strict=True):
        if value is not None:
            by_seed.setdefault(job.bindings.get("seed"), []).append(value)
    if not by_seed:
        return None
    seeds = [statistics.fmean(group) for group in by_seed.values()]
    units, over = (seeds, "seeds") if len(seeds) > 1 else (next(iter(by_seed.values())), "runs")
    mean = statistics.fmean(units)
    if len(units) > 1:
        return Spread(mean, statistics.stdev(units) / math.sqrt(len(units)), over)
    return Spread(mean, math.sqrt(mean * (1 - mean) / n) if n else math.nan, "test images")


def as_json(row: Row) -> dict[str, object]:
    """Returns the row as it stands in the report file; absent numbers are null."""
    return {
        "strategy": row.strategy,
        "title": row.title,
        "runs": row.runs,
        "ood_accuracy": row.ood.mean if row.ood else None,
        "ood_stderr": finite(row.ood),
        "stderr_over": row.ood.over if row.ood else None,
        "ood_range": list(row.ood_range) if row.ood_range else None,
        "val_accuracy": row.val.mean if row.val else None,
        "val_stderr": finite(row.val),
        "commits": list(row.commits),
        "against": {name: asdict(found) for name, found in row.against.items()},
    }


def finite(value: Spread | None) -> float | None:
    """Returns the standard error, None where it is unknown (JSON has no NaN)."""
    return value.stderr if value and math.isfinite(value.stderr) else None
