"""Which of the fine-tunings that are ready go to one worker."""

from collections import deque
from dataclasses import replace
from typing import Any, cast

import pytest

from modelgit.events import Event, Noted
from modelgit.pipeline.messages import Request, ScoreRequest, StackRequest
from modelgit.pipeline.run import Coordinator
from modelgit.pipeline.stacking import Stacking, can_share, left_alone, taken
from modelgit.porcelain.training.values import TrainRequest
from modelgit.train.config import DataConfig, FineTune

DATA = DataConfig(path="target.zip")
CONFIG = FineTune(steps=5, lr=0.1)


def training(step: str, config: FineTune = CONFIG, data: DataConfig = DATA) -> TrainRequest:
    return TrainRequest(step, "train", step, "cnn", "c" * 40, None, data, config)


def steps(request: Request) -> list[str]:
    return [member.step for member in request.members] if isinstance(request, StackRequest) else [request.step]


def all_taken(requests: list[Request], stacking: Stacking) -> list[list[str]]:
    waiting, found = deque(requests), list[list[str]]()
    while waiting:
        found.append(steps(taken(waiting, stacking, len(found))))
    return found


def test_those_that_go_together_are_taken_past_those_that_do_not() -> None:
    other = training("other", data=DataConfig(path="other.zip"))
    score = ScoreRequest("score", "c" * 40, DATA)
    ready: list[Request] = [training("a"), score, other, training("b", replace(CONFIG, lr=0.2, seed=3)), training("c")]
    assert all_taken(ready, Stacking(4)) == [["a", "b", "c"], ["score"], ["other"]]
    assert all_taken(ready, Stacking(2)) == [["a", "b"], ["score"], ["other"], ["c"]]
    assert all_taken(ready, Stacking(1)) == [["a"], ["score"], ["other"], ["b"], ["c"]]


@pytest.mark.parametrize(("devices", "sizes"), [(1, [4, 1]), (2, [3, 2]), (3, [2, 2, 1]), (8, [1, 1, 1, 1, 1])])
def test_no_device_is_left_without(devices: int, sizes: list[int]) -> None:
    ready: list[Request] = [training(str(number)) for number in range(5)]
    assert [len(found) for found in all_taken(ready, Stacking(4, devices))] == sizes


@pytest.mark.parametrize(
    "apart",
    [
        replace(training("b"), kind="probe"),
        replace(training("b"), architecture="mlp"),
        training("b", replace(CONFIG, steps=6)),
        training("b", replace(CONFIG, deterministic=True)),
    ],
)
def test_what_wants_other_kernels_or_its_own_bits_goes_alone(apart: TrainRequest) -> None:
    assert can_share(training("a"), training("b"))
    assert not can_share(training("a"), apart)


def test_those_that_could_share_and_have_a_worker_each_are_noticed() -> None:
    one, two = training("a"), training("b")
    assert left_alone(one, [two], Stacking(2, 2))
    assert not left_alone(one, [], Stacking(2, 2)) and not left_alone(one, [two], Stacking(1, 2))
    assert not left_alone(one, [training("b", replace(CONFIG, steps=6))], Stacking(2, 2))


class Silent:
    """A pool of which nothing is asked but to take requests."""

    def __init__(self, size: int) -> None:
        self.free, self.busy = size, 0

    def submit(self, _request: Request) -> None:
        self.free, self.busy = self.free - 1, self.busy + 1


@pytest.mark.parametrize(("ready", "said"), [(1, []), (2, [Noted("spread")]), (3, [])])
def test_that_is_said_once(ready: int, said: list[Event]) -> None:
    heard, nothing = list[Event](), cast(Any, None)
    coordinator = Coordinator(nothing, nothing, cast(Any, Silent(2)), Stacking(2, 2, "spread"), heard.append)
    coordinator._books.waiting.extend(training(str(number)) for number in range(ready))
    coordinator._dispatch()
    assert heard == said
