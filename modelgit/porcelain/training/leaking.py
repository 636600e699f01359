"""Leaks: what is tested now must not have been trained on before.

A commit's ancestors say in their records which data they were trained on, and how it was split.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Leak:
    """So many of the examples asked about were trained on, by a version whose data was split otherwise."""

    count: int
    commit: str
    theirs: DataConfig

    @property
    def said(self) -> str:
        """Who trained on them."""
        before = f"held_out = {self.theirs.held_out!r}" if self.theirs.held_out else "nothing held out"
        return f"commit {self.commit[:10]}, with {before}, fold {self.theirs.fold}, trial {self.theirs.trial}"


def leak(repo: Repository, rev: str, dataset: Dataset, asked: Collection[int], *, validated: bool) -> Leak | None:
    """Returns the newest version in a history that was trained on some of the examples; None if there is none.

    With `validated` those that it was validated on count as well.
    """
    for entry in repo.log([rev]):
        if dataset.digest not in entry.trailers.get("Data-Digest", ()):
            continue
        record = read_record(repo, entry.commit)
        theirs = recorded_data(record) if record is not None else None
        if theirs is None:
            continue
        parts = split(dataset, theirs)
        known = seen(parts if validated else replace(parts, validation={}))
        if count := len(known.intersection(asked)):
            return Leak(count, entry.commit, theirs)
    return None


def refuse_leaks(repo: Repository, start: str, dataset: Dataset, config: DataConfig) -> None:
    """Refuses to test on examples that an ancestor was trained on.

    Raises:
        DataError: naming the ancestor.
    """
    tested = split(dataset, config).test.tolist()
    found = leak(repo, start, dataset, tested, validated=True) if tested else None
    if found is not None:
        told = f"{found.count} of the {len(tested)} examples of '{config.held_out}' to be tested on"
        hint = f"that was {found.said}; begin before it, or hold out what it did"
        raise DataError(f"{told} were trained on before", hint=hint)


def known_before(repo: Repository, rev: str, dataset: Dataset, parts: Split) -> Leak | None:
    """Returns who trained on examples that a version is to be scored on by a split; None if nobody did."""
    inside = {int(i) for group in parts.validation.values() for i in group}
    return leak(repo, rev, dataset, parts.test.tolist(), validated=True) or leak(
        repo, rev, dataset, inside, validated=False
    )
