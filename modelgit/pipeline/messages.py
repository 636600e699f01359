"""What the coordinator and its workers say to each other: one JSON object a line.

A worker is told *what* to do by value and *on which commit* by id; weights never travel this way, they are read
from and written to the object store. So a worker may die at any moment, and the same lines do through a pipe as through
files of a shared folder.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelgit.events import Advanced, Event, Finished, Measured, Noted, Started
from modelgit.porcelain.training.values import TrainRequest
from modelgit.recipe.binding import bind
from modelgit.recipe.expanding import StatisticsInfo
from modelgit.train.config import DataConfig

EVENTS: dict[str, type[Event]] = {
    "started": Started,
    "advanced": Advanced,
    "measured": Measured,
    "finished": Finished,
    "noted": Noted,
}


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Evaluate a commit on a data set; with `members`, the mean of the class scores of all these commits.

    With `posterior`, members are mixed by how well each explains that data's validation examples.
    """

    step: str
    commit: str
    data: DataConfig
    frozen_stages: int = 0
    members: tuple[str, ...] = ()
    posterior: DataConfig | None = None


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Merge commits, `names` being what they are called, and commit; with `on`, once models were measured on it."""

    step: str
    key: str
    names: tuple[str, ...]
    commits: tuple[str, ...]
    method: str
    settings: dict[str, object]
    weights: tuple[float, ...]  # none: all alike
    base: str | None  # commit
    drop_heads: bool
    outer: bool = False  # an outer optimiser's step, written as the sum that it is
    select: str = ""
    search: str = ""
    evaluations: int = 30
    posterior: bool = False
    on: DataConfig | None = None
    frozen_stages: int = 0
    statistics: StatisticsInfo | None = None


@dataclass(frozen=True, slots=True)
class StackRequest:
    """Fine-tune several commits side by side; `apart`: one after another, since a worker has died of the stack."""

    members: tuple[TrainRequest, ...]
    apart: bool = False

    @property
    def step(self) -> str:
        """What the stack is called."""
        return f"{self.members[0].step} and {len(self.members) - 1} more"


Request = TrainRequest | StackRequest | ScoreRequest | MergeRequest


@dataclass(frozen=True, slots=True)
class Done:
    """A request was carried out: the commit it made or scored, and its scores."""

    step: str
    commit: str
    scores: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A request could not be carried out: `kind` is the error's class, the rest is for people."""

    step: str
    kind: str
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class StackDone:
    """A stack was carried out, each member with a commit of its own."""

    step: str
    members: tuple[Done, ...]


Answer = Done | StackDone | Failed  # the last that is said of a request
Reply = Answer | Event


@dataclass(frozen=True, slots=True)
class Began:
    """The script around a job's worker has begun, on that node of the cluster."""

    node: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The script around a job's worker has seen it end."""

    code: int


Message = Request | Reply | Began | Ended
SHAPES: dict[str, type] = {
    "train": TrainRequest,
    "stack": StackRequest,
    "score": ScoreRequest,
    "merge": MergeRequest,
    "done": Done,
    "stack-done": StackDone,
    "failed": Failed,
    "began": Began,
    "ended": Ended,
    **EVENTS,
}
WORDS = {shape: word for word, shape in SHAPES.items()}


def encode(message: Message) -> str:
    """Returns the message as one line of JSON."""
    return json.dumps({"type": WORDS[type(message)], **dataclasses.asdict(message)}) + "\n"


def decode(line: str) -> Message:
    """Returns the message in `line`.

    Raises:
        RecipeError: it is of no known shape.
    """
    table = json.loads(line)
    shape: type[Message] = SHAPES[table.pop("type")]
    return bind(shape, table, shape.__name__)
