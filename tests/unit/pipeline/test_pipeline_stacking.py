"""Which of the fine-tunings that are ready go to one worker."""

from collections import deque
from dataclasses import replace

import pytest

from modelgit.pipeline.messages import Request, ScoreRequest, StackRequest
from modelgit.pipeline.stacking import Stacking, can_share, taken
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
