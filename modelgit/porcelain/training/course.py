"""How a training went, as its record tells it: from where, on what, by which seeds and libraries, and its curve.

Records come from other people, and from other versions of modelgit: what is not of the kind expected is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelgit.porcelain.records import Record

TRAINED = ("train", "probe")
LARGEST = 1e300  # neither infinity nor NaN lies below
MOST = 100_000  # points, domains or libraries that a record may name


@dataclass(frozen=True, slots=True)
class Seen:
    """A validation after a step: accuracy and loss, accuracy on each domain, and the mean loss in training before."""

    step: int
    loss: float | None
    accuracy: float | None
    val_loss: float | None
    domains: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Course:
    """What is known of a training; None, or empty, where the record does not say.

    `seed` is that of the run, `trial` that of the validation split, `digest` the data's.
    """

    start: str | None
    steps: int | None
    lr: float | None
    seed: int | None
    trial: int | None
    precision: str | None
    device: str | None
    cpu: str | None
    threads: int | None
    seconds: float | None
    data: str | None
    digest: str | None
    trained_on: Mapping[str, int]
    held_out: str | None
    versions: Mapping[str, str]
    points: tuple[Seen, ...]
    kept_step: int | None


def course_of(record: Record) -> Course | None:
    """Returns how a training went; None for versions that were not trained here."""
    if record.kind not in TRAINED:
        return None
    details = record.details
    data, config = table_in(details, "data"), table_in(details, "config")
    history = details.get("history")
    rows = history[:MOST] if isinstance(history, list) else []
    machine, trained_on = table_in(details, "machine"), table_in(data, "trained_on")
    return Course(
        start=word_in(details, "start"),
        steps=whole_in(config, "steps") if record.kind == "train" else None,
        lr=number_in(config, "lr") if record.kind == "train" else None,
        seed=whole_in(config, "seed"),
        trial=whole_in(data, "trial"),
        precision=word_in(config, "precision"),
        device=word_in(details, "device"),
        cpu=word_in(machine, "cpu"),
        threads=whole_in(machine, "threads"),
        seconds=number_in(details, "seconds"),
        data=word_in(data, "path"),
        digest=word_in(data, "digest"),
        trained_on={name: count for name in trained_on if (count := whole_in(trained_on, name)) is not None},
        held_out=word_in(data, "held_out"),
        versions={k: v for k, v in table_in(details, "versions").items() if isinstance(v, str)},
        points=tuple(seen for row in rows if isinstance(row, dict) and (seen := seen_in(row)) is not None),
        kept_step=whole_in(details, "kept_step"),
    )


def seen_in(row: Mapping[str, Any]) -> Seen | None:
    """Returns a point of the curve; None for what is none."""
    step = whole_in(row, "step")
    if step is None:
        return None
    names = table_in(row, "domains")
    domains = {name: value for name in names if (value := number_in(names, name)) is not None}
    return Seen(step, number_in(row, "loss"), number_in(row, "val_accuracy"), number_in(row, "val_loss"), domains)


def table_in(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a table of not too many rows; an empty one for anything else."""
    found = table.get(key)
    return found if isinstance(found, dict) and len(found) <= MOST else {}


def word_in(table: Mapping[str, Any], key: str) -> str | None:
    """Returns a text, None for anything else."""
    found = table.get(key)
    return found if isinstance(found, str) else None


def whole_in(table: Mapping[str, Any], key: str) -> int | None:
    """Returns a whole number of 64 bits, None for anything else."""
    found = table.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 1 << 63 else None


def number_in(table: Mapping[str, Any], key: str) -> float | None:
    """Returns a finite number, None for anything else."""
    found = table.get(key)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    return float(found) if abs(found) < LARGEST else None
