"""From the notes of a pipeline's commits to what each strategy answered, cell by cell. Nothing is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError
from modelgit.porcelain.evidence.answers import unpack_answers
from modelgit.train.measuring.paired import Cell, mean_of_models

HELD_OUT = "ood_accuracy"


@dataclass(frozen=True, slots=True)
class Examples:
    """The test examples of one cell, in the order of the split: names, and numbers of the right classes, (n,)."""

    domain: str
    seed: str
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answered:
    """A model of a strategy in one cell: its step, where it started, what it answered (n,), how it validated."""

    step: str
    start: str
    examples: Examples
    answers: npt.NDArray[np.int64]
    validation: float | None

    @property
    def cell(self) -> Cell:
        """Which test examples the model got right."""
        right = (self.answers == self.examples.labels).astype(np.float64)
        return Cell(self.examples.domain, self.examples.seed, self.examples.names, right)


def answered(step: str, start: str, examples: Examples, row: Mapping[str, object]) -> Answered:
    """Returns what a note's row says a model answered.

    Raises:
        DataError: the row holds no answers to these examples.
    """
    packed = row.get("answers")
    text = packed.get(HELD_OUT) if isinstance(packed, Mapping) else None
    if text is None:
        hint = "score it again: modelgit run the pipeline"
        raise DataError(f"step '{step}': no answers on the held-out domain are noted", hint=hint)
    validation = row.get("val_accuracy")
    found = unpack_answers(text, len(examples.labels))
    return Answered(step, start, examples, found, validation if isinstance(validation, float) else None)


def by_cell(models: Sequence[Answered]) -> dict[tuple[str, str], list[Answered]]:
    """Returns models by the cell they were tested in, cells and models in the order of their names."""
    found: dict[tuple[str, str], list[Answered]] = {}
    for model in sorted(models, key=lambda m: (m.examples.domain, m.examples.seed, m.step)):
        found.setdefault((model.examples.domain, model.examples.seed), []).append(model)
    return found


def strategy_cells(models: Sequence[Answered]) -> list[Cell]:
    """Returns what a strategy gets right in each cell: the mean over its models there."""
    return [mean_of_models([model.cell for model in inside]) for inside in by_cell(models).values()]
