"""Which fine-tunings that are ready at the same time go to one worker, to share their passes through the network."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from modelgit.pipeline.messages import Request, StackRequest
from modelgit.porcelain.training.values import TrainRequest
from modelgit.train.fitting.together import go_together


@dataclass(frozen=True, slots=True)
class Stacking:
    """At most how many fine-tunings go together; those that are ready are divided over the devices that are idle.

    `spread` is what to say where that leaves nothing to stack.
    """

    most: int = 1
    devices: int = 1
    spread: str = ""


def taken(waiting: deque[Request], stacking: Stacking, busy: int) -> Request:
    """Takes the first request, together with those behind it that can share its passes; `busy` workers have theirs."""
    first = waiting.popleft()
    if stacking.most == 1 or not isinstance(first, TrainRequest):
        return first
    alike = [other for other in waiting if isinstance(other, TrainRequest) and can_share(first, other)]
    idle = max(1, stacking.devices - busy)
    others = alike[: min(stacking.most, -(-(1 + len(alike)) // idle)) - 1]
    for other in others:
        waiting.remove(other)
    return StackRequest((first, *others)) if others else first


def left_alone(taken_: Request, waiting: Iterable[Request], stacking: Stacking) -> bool:
    """Tells whether a fine-tuning was taken without those that could share its passes, for there is room for all."""
    if stacking.most == 1 or not isinstance(taken_, TrainRequest):
        return False
    return any(isinstance(other, TrainRequest) and can_share(taken_, other) for other in waiting)


def can_share(one: TrainRequest, other: TrainRequest) -> bool:
    """Tells whether two requests want the same kernels in every step.

    Those that are to give the same bits every time are left alone: what else is ready is a matter of chance.
    """
    trained = one.kind == other.kind == "train" and not one.config.deterministic
    same = one.architecture == other.architecture and one.data == other.data
    return trained and same and go_together(one.config, other.config)
