"""Where runs begin: batches with room for every domain, and a start that the end is compared with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelgit.errors import RecipeError
from modelgit.events import Event, Noted
from modelgit.train.choices import Irm, Lora, Sma
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.evaluate import Accuracy, Scores
from modelgit.train.fitting.beginnings import fallen, refuse_small_batch
from modelgit.train.fitting.loop import Point
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Model, TrainResult, Workbench, fine_tune, score

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=4, lr=1e-3, batch=8, warmup_steps=0, views=1)


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=16)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("mlp", 2).state_dict()


def trained(init: dict[str, Tensor], data: DataConfig, config: FineTune) -> tuple[TrainResult, list[str]]:
    events: list[Event] = []
    bench = Workbench("cpu", listener=events.append)
    result = fine_tune(bench, init, "mlp", data, config, fresh_head=True)
    return result, [event.message for event in events if isinstance(event, Noted)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 1}, r"batch = 1: expected at least 2, an example of every training domain \(ink, sky\)"),
        ({"batch": 3, "objective": Irm()}, "batch = 3: expected at least 4, two examples of every"),
        ({"batch_per_domain": 1, "objective": Irm()}, "batch_per_domain = 1: expected at least 2 with irm"),
    ],
)
def test_a_batch_without_room_for_every_domain_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        refuse_small_batch(replace(CONFIG, **change), ["ink", "sky"])  # type: ignore[arg-type]


def test_the_smallest_batch_that_has_room_is_accepted() -> None:
    refuse_small_batch(replace(CONFIG, batch=2), ["ink", "sky"])
    refuse_small_batch(replace(CONFIG, batch=4, objective=Irm()), ["ink", "sky"])
    refuse_small_batch(replace(CONFIG, batch=1, batch_per_domain=1), ["ink", "sky"])


def test_it_is_refused_before_features_are_computed(init: dict[str, Tensor], data: DataConfig) -> None:
    events: list[Event] = []
    with pytest.raises(RecipeError, match="batch = 1: expected at least 2"):
        fine_tune(
            Workbench("cpu", listener=events.append), init, "mlp", data, replace(CONFIG, batch=1), fresh_head=True
        )
    assert events == []


@pytest.mark.parametrize("change", [{}, {"averaging": Sma(), "commit_raw": True}, {"lora": Lora(rank=2)}])
def test_the_curve_begins_with_what_the_start_scores(
    init: dict[str, Tensor], data: DataConfig, change: dict[str, object]
) -> None:
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    best, _ = trained(init, data, replace(config, keep="best"))  # which looks at the start before it begins
    result, _ = trained(init, data, config)
    assert [point.step for point in result.history] == [0, 4]
    assert result.history[0] == best.history[0]
    if config.lora is None:  # and what is committed is the end
        found = score(Workbench("cpu"), result.state, Model("mlp", result.classes), data)
        assert found.val_accuracy == result.history[-1].val_accuracy == result.scores.val_accuracy


def test_a_run_that_ends_below_its_start_says_so_and_what_to_try(init: dict[str, Tensor], data: DataConfig) -> None:
    wild = replace(CONFIG, lr=5.0, steps=6, optimiser="sgd", clip=1.0)
    result, notes = trained(init, data, wild)
    before, after = result.history[0].val_accuracy or 0, result.scores.val_accuracy
    assert after < before and result.fell
    assert notes == [
        f"training on bars: validation fell from {100 * before:.1f} % to {100 * after:.1f} %: "
        "try a smaller lr (it was 5), more steps (there were 6), or keep = 'best'"
    ]
    kept, notes = trained(init, data, replace(wild, keep="best", eval_every=2))
    assert not kept.fell and not any("fell" in note for note in notes)


def test_chance_is_no_fall() -> None:
    def ended(correct: int) -> Scores:
        return Scores({"ink": Accuracy(correct, 100)}, None)

    begun = [Point(0, None, 0.9)]
    assert fallen(begun, ended(85)) and not fallen(begun, ended(88)) and not fallen(begun, ended(95))
    assert not fallen([Point(4, 0.1, 0.9)], ended(50))
