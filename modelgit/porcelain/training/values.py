"""What a training is asked for."""

from dataclasses import dataclass
from typing import Literal

from modelgit.train.config import DataConfig, FineTune


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Fine-tune (or probe) a commit. In a pipeline `step` has a name, and the result is kept by the ref of its `key`.

    `threads` are those of the CPU that take part, `processes` carry it out together: the bits depend on both numbers.
    `message` is what the commit says, if not the usual.
    """

    step: str
    kind: Literal["probe", "train"]
    key: str
    architecture: str
    start: str  # commit
    head: str | None  # commit whose head is taken, None for the start's own
    data: DataConfig
    config: FineTune
    threads: int = 1
    processes: int = 1
    message: str | None = None
