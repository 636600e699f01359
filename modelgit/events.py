"""What the core says while it works.

The core never prints. It sends events to a *listener*, a plain function; the command line turns them into
progress bars or JSON lines, tests collect them in a list, and by default nobody listens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Unit = Literal["bytes", "objects", "steps", "tensors", "versions", "images", "examples", "jobs", "evaluations"]


@dataclass(frozen=True, slots=True)
class Started:
    """A piece of work has begun; `total` is None when its length is unknown."""

    task: str
    total: int | None
    unit: Unit


@dataclass(frozen=True, slots=True)
class Advanced:
    """`n` more units of `task` are done; `note` is a short status such as `loss 0.43`."""

    task: str
    n: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What `task` measured when it had done `step` units: numbers by name.

    Trainings say `loss`, `learning_rate`, `samples_per_second`, `val_accuracy`, `val_loss`, `val_accuracy/DOMAIN`.
    """

    task: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """`task` is over; `note` says in a few words how it ended."""

    task: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Noted:
    """Something a person would want to know that belongs to no task."""

    message: str


Event = Started | Advanced | Measured | Finished | Noted
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""


def both(one: Listener, other: Listener) -> Listener:
    """Returns what tells two listeners."""

    def tell(event: Event) -> None:
        one(event)
        other(event)

    return tell


def announced(items: Sequence[T], task: str, unit: Unit, listener: Listener) -> Iterator[T]:
    """Yields the items; the listener hears of each one when it is done with."""
    listener(Started(task, len(items), unit))
    for item in items:
        yield item
        listener(Advanced(task, 1))
    listener(Finished(task))
