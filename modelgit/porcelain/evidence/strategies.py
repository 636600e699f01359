"""Strategies of a pipeline against each other, example by example; nothing is run, the answers are in notes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from modelgit.errors import DataError
from modelgit.porcelain.evidence.gathering import Answered, Examples, answered, strategy_cells
from modelgit.recipe.expanding import Job
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import split
from modelgit.train.measuring.intervals import Interval
from modelgit.train.measuring.paired import Cell, difference

Rows = Mapping[str, Mapping[str, object]]  # a note's row for each step
ExamplesOf = Callable[[Job], Examples]


def differences(
    strategies: Mapping[str, Sequence[Job]], references: Sequence[str], rows: Rows, examples: ExamplesOf
) -> dict[str, dict[str, Interval]]:
    """Returns, for each strategy, how much more it gets right than each reference, with 95 % intervals.

    Where a strategy was tested in other cells than a reference there is no difference to tell.
    """
    cells = {name: cells_of(jobs, rows, examples) for name, jobs in strategies.items()}
    return {
        name: {
            other: difference(own, cells[other])
            for other in references
            if other != name and own and tested_alike(own, cells[other])
        }
        for name, own in cells.items()
    }


def cells_of(jobs: Sequence[Job], rows: Rows, examples: ExamplesOf) -> list[Cell]:
    """Returns what a strategy gets right in each cell, the mean over its models there; none if nothing is held out."""
    models: list[Answered] = []
    for job in jobs:
        if job.evaluate is None or job.evaluate.held_out is None:
            return []
        models.append(answered(job.name, job.needs[0] if job.needs else "", examples(job), rows[job.name]))
    return strategy_cells(models)


def tested_alike(first: Sequence[Cell], second: Sequence[Cell]) -> bool:
    """Tells whether two strategies were tested in the same cells."""
    one, other = ({(cell.domain, cell.seed) for cell in cells} for cells in (first, second))
    return one == other


def examples_of(job: Job) -> Examples:
    """Returns the test examples of a job's evaluation.

    Raises:
        DataError: the data set cannot be read, or nothing is held out.
    """
    config = job.evaluate
    if config is None or config.held_out is None:
        raise DataError(f"step '{job.name}': nothing is held out to be tested on")
    return tested_on(config, str(job.bindings.get("seed", config.fold)))


@lru_cache(maxsize=64)
def tested_on(config: DataConfig, seed: str) -> Examples:
    """Returns the held-out examples of a split."""
    dataset = dataset_of(config)
    test = split(dataset, config).test
    names = tuple(dataset.names[i] for i in test)
    return Examples(str(config.held_out), seed, names, dataset.labels[test])


def dataset_of(config: DataConfig) -> Dataset:
    """Returns the data set that a split is of, the same for all its splits."""
    return loaded(replace(config, held_out=None, fold=0, trial=0, domains=(), shard=None, validate_on=None))


@lru_cache(maxsize=4)
def loaded(config: DataConfig) -> Dataset:
    """Returns a data set; its splits share it."""
    return load_dataset(config)
