"""What coordinator and workers say survives the way as it was."""

import pytest

from modelgit.events import Measured
from modelgit.pipeline.messages import Done, StackDone, StackRequest, decode, encode
from modelgit.porcelain.training.values import TrainRequest
from modelgit.train.choices import Averaging, Ema, Irm, Lawa, Mixup, Objective, Swad
from modelgit.train.config import DataConfig, FineTune


@pytest.mark.parametrize(
    ("objective", "averaging"), [(Irm(2.0, 7), Swad(2, 3, 1.5)), (Mixup(0.4), Ema(0.9)), (Mixup(), Lawa(2, 3))]
)
def test_a_request_with_choices_comes_back_as_it_was(objective: Objective, averaging: Averaging) -> None:
    config = FineTune(steps=30, lr=0.1, eval_every=5, objective=objective, averaging=averaging, keep="best")
    request = TrainRequest("a/b", "train", "k", "cnn", "c" * 40, None, DataConfig(path="x.zip"), config)
    assert decode(encode(request)) == request


def test_stacks_and_what_came_of_them_come_back_as_they_were() -> None:
    config = FineTune(steps=30, lr=0.1, objective=Irm(2.0, 7))
    members = tuple(
        TrainRequest(name, "train", "k", "cnn", "c" * 40, None, DataConfig(path="x.zip"), config) for name in "abc"
    )
    request = StackRequest(members, apart=True)
    assert (decode(encode(request)), request.step) == (request, "a and 2 more")
    done = StackDone(request.step, (Done("a", "1" * 40, {"accuracy": 0.5}), Done("b", "2" * 40, {})))
    assert decode(encode(done)) == done


def test_measurements_come_back_as_they_were() -> None:
    told = Measured("a: training", 20, {"loss": 0.1 + 0.2, "val_accuracy/day": 1.0})
    assert decode(encode(told)) == told
