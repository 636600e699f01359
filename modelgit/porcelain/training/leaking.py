"""Leaks: what is tested now must not have been trained on before.

A commit's ancestors say in their records which data they were trained on, and how it was split.
"""

from modelgit.errors import DataError, RecipeError
from modelgit.porcelain.records import Record, read_record
from modelgit.recipe.binding import bind
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.splits import Split, split

FOUND_OUT = ("digest", "trained_on")  # what a record says of the data beyond how it was asked for


def seen(parts: Split) -> set[int]:
    """Returns the examples that were trained or validated on."""
    return {int(i) for group in (*parts.train.values(), *parts.validation.values()) for i in group}


def recorded_data(record: Record) -> DataConfig | None:
    """Returns how the data of a training was split, None where the record does not say so."""
    table = record.details.get("data")
    if not isinstance(table, dict):
        return None
    try:
        return bind(DataConfig, {key: value for key, value in table.items() if key not in FOUND_OUT}, "data")
    except RecipeError:
        return None  # by another modelgit, or by hand: nothing can be said of it


def refuse_leaks(repo: Repository, start: str, dataset: Dataset, config: DataConfig) -> None:
    """Refuses to test on examples that an ancestor was trained on.

    Raises:
        DataError: naming the ancestor.
    """
    tested = split(dataset, config).test
    if not len(tested):
        return
    for entry in repo.log([start]):
        if dataset.digest not in entry.trailers.get("Data-Digest", ()):
            continue
        record = read_record(repo, entry.commit)
        theirs = recorded_data(record) if record is not None else None
        count = 0 if theirs is None else len(seen(split(dataset, theirs)).intersection(tested.tolist()))
        if theirs is None or not count:
            continue
        told = f"{count} of the {len(tested)} examples of '{config.held_out}' to be tested on were trained on before"
        before = f"held_out = {theirs.held_out!r}" if theirs.held_out else "nothing held out"
        hint = f"that was commit {entry.commit[:10]}, with {before}; begin before it, or hold out what it did"
        raise DataError(told, hint=hint)
