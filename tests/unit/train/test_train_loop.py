"""Training: what is frozen stays, the same seed gives the same bits, and what goes wrong is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelgit.errors import RecipeError, TrainingError
from modelgit.events import Advanced, Event, Finished, Measured, Noted, Started
from modelgit.train.choices import Coral, GroupDro, Irm, Mixup, Objective, Sma, Vrex
from modelgit.train.config import DataConfig, FineTune, Trains
from modelgit.train.fitting.averaging import Mean
from modelgit.train.fitting.loop import in_place
from modelgit.train.fitting.optimisers import learning_rate
from modelgit.train.networks.registry import build_network
from modelgit.train.task import TrainResult, Workbench, fine_tune

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=12, lr=3e-3, batch=8, warmup_steps=3, frozen_stages=1, views=2)


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 2).state_dict()


def trained(
    init: dict[str, Tensor], data: DataConfig, config: FineTune = CONFIG, bench: Workbench | None = None
) -> TrainResult:
    return fine_tune(bench or Workbench("cpu"), init, "cnn", data, config, fresh_head=True)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(CONFIG, dropout=0.3)
    first, second, third = (trained(init, data, replace(config, seed=seed)).state for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_frozen_stages_and_running_statistics_stay_bit_for_bit(init: dict[str, Tensor], data: DataConfig) -> None:
    state = trained(init, data).state
    kept = {name for name in state if torch.equal(state[name], init[name])}
    frozen = {name for name in state if name.startswith(("convolutions.0.", "norms.0."))}
    statistics = {name for name in state if "running_" in name or "num_batches" in name}
    assert kept == frozen | statistics
    assert {"norms.1.weight", "norms.2.bias", "convolutions.2.weight", "head.weight"} <= set(state) - kept


def test_the_result_is_a_whole_state_on_the_cpu(init: dict[str, Tensor], data: DataConfig) -> None:
    result = trained(init, data)
    assert {n: t.shape for n, t in result.state.items()} == {n: t.shape for n, t in init.items()}
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in result.state.values())
    assert (result.classes, result.device) == (("lying", "standing"), "cpu")


def test_training_learns(init: dict[str, Tensor], data: DataConfig) -> None:
    result = trained(init, data, replace(CONFIG, steps=60, eval_every=20))
    assert [point.step for point in result.history] == [0, 20, 40, 60]
    assert (result.history[-1].loss or 1) < 0.5 * (result.history[1].loss or 0)
    assert result.history[-1].val_accuracy == result.scores.val_accuracy
    assert result.scores.val_accuracy >= 0.9


def test_sma_is_the_mean_of_the_iterates(init: dict[str, Tensor], data: DataConfig) -> None:
    steps = [trained(init, data, replace(CONFIG, steps=n)).state["head.weight"] for n in (2, 3, 4, 5)]
    averaged = trained(init, data, replace(CONFIG, steps=5, averaging=Sma(start=2)))
    assert torch.allclose(averaged.state["head.weight"], torch.stack(steps).mean(0), atol=1e-3)
    assert averaged.history[-1].val_accuracy == averaged.scores.val_accuracy


def test_the_average_is_in_place_only_while_it_is_looked_at() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    mean = Mean(start=2, every=1)
    for step, value in enumerate([10.0, 20.0, 1.0, 3.0], 1):
        weight.data.fill_(value)
        mean.add([weight], step)
    with in_place([weight], mean.weights()):
        assert weight.tolist() == [8.0, 8.0]  # 20, 1 and 3: from step 2 on
    assert weight.tolist() == [3.0, 3.0]


def test_the_head_alone_is_trained_where_it_is_asked_for(init: dict[str, Tensor], data: DataConfig) -> None:
    state = trained(init, data, replace(CONFIG, trains="head")).state
    assert {name for name in state if not torch.equal(state[name], init[name])} == {"head.weight", "head.bias"}


def test_a_random_head_follows_the_seed(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(CONFIG, steps=1, lr=1e-9, weight_decay=0.0, new_head="random")
    first, again, other = (trained(init, data, replace(config, seed=seed)).state["head.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert 0.1 < float(first.abs().max()) <= 64**-0.5 + 1e-6


def test_probing_again_moves_the_head_first(init: dict[str, Tensor], data: DataConfig) -> None:
    start = {**init, "head.weight": torch.zeros_like(init["head.weight"])}
    short = replace(CONFIG, steps=5, reprobe_steps=4)
    body = "convolutions.2.weight"
    bench = Workbench("cpu")
    result = fine_tune(bench, start, "cnn", data, short, fresh_head=False)
    plain = fine_tune(bench, start, "cnn", data, replace(short, reprobe_steps=0), fresh_head=False)
    moved, plainly = (float((r.state[body] - init[body]).abs().max()) for r in (result, plain))
    assert 0 < moved <= 1.01 * CONFIG.lr  # one step of AdamW
    assert plainly > 1.5 * moved


def test_the_best_weights_are_those_that_validated_best(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(CONFIG, steps=40, eval_every=4, lr=0.3, warmup_steps=0)
    result = trained(init, data, replace(config, keep="best"))
    curve = [point.val_accuracy or 0 for point in result.history]
    assert result.scores.val_accuracy >= max(curve)
    assert min(curve) < max(curve)  # so rough a rate loses what it had: there was something to choose
    assert result.kept_step == 4 * curve.index(max(curve)) and result.history[0].loss is None


def test_more_frozen_stages_than_there_are_are_refused_before_the_first(
    init: dict[str, Tensor], data: DataConfig
) -> None:
    heard = list[Event]()
    with pytest.raises(RecipeError, match=r"frozen_stages = 50: cnn.* has 3 stages"):
        trained(init, data, replace(CONFIG, frozen_stages=50), Workbench("cpu", listener=heard.append))
    assert not heard


def test_weights_that_no_step_betters_are_kept_and_that_is_said(init: dict[str, Tensor], data: DataConfig) -> None:
    heard = list[Event]()
    config = replace(CONFIG, steps=4, eval_every=2, lr=1e-9, keep="best")
    result = trained(init, data, config, Workbench("cpu", listener=heard.append))
    assert (result.kept_step, [point.step for point in result.history]) == (0, [0, 2, 4])
    said = [event.message.partition(": ")[2] for event in heard if isinstance(event, Noted)]
    assert said == ["kept step 0 of 4: no later step validated better"]
    assert trained(init, data, replace(config, keep="last")).kept_step is None


def test_raw_weights_come_beside_their_average(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(CONFIG, averaging=Sma(start=2), commit_raw=True)
    result, raw = trained(init, data, config), trained(init, data)
    assert result.raw is not None and raw.raw is None
    assert all(torch.equal(result.raw[name], raw.state[name]) for name in raw.state)
    assert not torch.equal(result.state["head.weight"], raw.state["head.weight"])


@pytest.mark.parametrize("objective", [Coral(), Mixup(), GroupDro(), Irm(anneal=3), Vrex(1.0, 3)])
def test_every_objective_trains(init: dict[str, Tensor], data: DataConfig, objective: Objective) -> None:
    result = trained(init, data, replace(CONFIG, steps=40, objective=objective))
    assert result.scores.val_accuracy >= 0.8


@pytest.mark.parametrize(
    "change",
    [{"optimiser": "adam"}, {"optimiser": "sgd"}, {"schedule": "cosine"}, {"schedule": "linear"}, {"clip": 0.5}],
)
def test_every_way_to_follow_gradients_trains(
    init: dict[str, Tensor], data: DataConfig, change: dict[str, Any]
) -> None:
    config = replace(CONFIG, steps=60, lr=1e-2, eval_every=20)
    plain, other = trained(init, data, config), trained(init, data, replace(config, **change))
    assert not torch.equal(plain.state["head.weight"], other.state["head.weight"])
    assert (other.history[-1].loss or 1) < 0.9 * (other.history[1].loss or 0)


def test_accumulated_batches_are_one_larger_batch(init: dict[str, Tensor], data: DataConfig) -> None:
    result = trained(init, data, replace(CONFIG, accumulate=3))
    again = trained(init, data, replace(CONFIG, accumulate=3))
    assert all(torch.equal(result.state[name], again.state[name]) for name in result.state)
    assert not torch.equal(result.state["head.weight"], trained(init, data).state["head.weight"])


def test_half_precision_stays_close_to_single(init: dict[str, Tensor], data: DataConfig) -> None:
    single, half = trained(init, data), trained(init, data, replace(CONFIG, precision="bfloat16"))
    apart = (single.state["head.weight"] - half.state["head.weight"]).norm() / single.state["head.weight"].norm()
    assert 0 < float(apart) < 0.1


def test_stages_computed_again_for_their_gradient_give_the_same_bits(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(CONFIG, dropout=0.3)
    plain, again = trained(init, data, config), trained(init, data, replace(config, checkpoint=True))
    assert all(torch.equal(plain.state[name], again.state[name]) for name in plain.state)


def test_a_compiled_network_stays_within_rounding(data: DataConfig) -> None:
    torch.manual_seed(0)
    init = build_network("mlp", 2).state_dict()
    config = replace(CONFIG, steps=5)
    plain, compiled = (
        fine_tune(Workbench("cpu"), init, "mlp", data, replace(config, compile=wanted), fresh_head=True)
        for wanted in (False, True)
    )
    for name, tensor in plain.state.items():
        assert torch.allclose(compiled.state[name], tensor, atol=1e-4), name
    assert compiled.history[1].loss == pytest.approx(plain.history[1].loss, rel=1e-4)


def test_deterministic_operations_are_asked_for_while_a_run_goes_on(init: dict[str, Tensor], data: DataConfig) -> None:
    seen: list[bool] = []
    bench = Workbench("cpu", listener=lambda event: seen.append(torch.are_deterministic_algorithms_enabled()))
    plain, strict = trained(init, data), trained(init, data, replace(CONFIG, deterministic=True), bench)
    assert any(seen) and not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(plain.state[name], strict.state[name]) for name in plain.state)


def test_learning_rates_warm_up_and_come_down() -> None:
    config = FineTune(steps=10, lr=1.0, warmup_steps=4)
    assert [learning_rate(config, n) for n in (1, 2, 4, 10)] == [0.25, 0.5, 1.0, 1.0]
    linear = replace(config, schedule="linear")
    assert [learning_rate(linear, n) for n in (4, 5, 10)] == pytest.approx([1.0, 6 / 7, 1 / 7])
    cosine = replace(config, schedule="cosine", warmup_steps=0)
    assert learning_rate(cosine, 1) < 1 and 0 < learning_rate(cosine, 10) < 0.05


def test_steps_are_told_with_loss_and_rate(init: dict[str, Tensor], data: DataConfig) -> None:
    events: list[Event] = []
    trained(init, data, bench=Workbench("cpu", listener=events.append))
    task = "training on bars"
    mine = [event for event in events if getattr(event, "task", "") == task]
    assert mine[0] == Started(task, 12, "steps")
    assert sum(event.n for event in mine if isinstance(event, Advanced)) == 12
    assert all("loss" in e.note and "samples/s" in e.note for e in mine if isinstance(e, Advanced))
    assert isinstance(mine[-1], Finished) and mine[-1].note.startswith("validation")


def test_what_a_run_measures_is_told_and_kept_domain_by_domain(init: dict[str, Tensor], data: DataConfig) -> None:
    events: list[Event] = []
    result = trained(init, data, replace(CONFIG, eval_every=6), Workbench("cpu", listener=events.append))
    told = [event for event in events if isinstance(event, Measured)]
    assert {event.task for event in told} == {"training on bars"}
    speeds = [event for event in told if "samples_per_second" in event.values]
    assert [event.step for event in speeds] == [10, 12]
    assert all(event.values["samples_per_second"] > 0 and event.values["learning_rate"] == 3e-3 for event in speeds)
    validations = [event for event in told if "val_accuracy" in event.values]
    assert [event.step for event in validations] == [point.step for point in result.history[1:]] == [6, 12]
    for event, point in zip(validations, result.history[1:], strict=True):
        domains = {f"val_accuracy/{name}": value for name, value in point.domains.items()}
        assert set(point.domains) == set(result.scores.validation)
        assert event.values == {"val_accuracy": point.val_accuracy, "val_loss": point.val_loss, **domains}
        assert point.val_accuracy == pytest.approx(sum(domains.values()) / len(domains))


def test_a_loss_that_is_not_finite_names_step_and_tensor(init: dict[str, Tensor], data: DataConfig) -> None:
    broken = {**init, "convolutions.2.weight": torch.full_like(init["convolutions.2.weight"], torch.nan)}
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan, and tensor 'convolutions\.2\.weight'") as caught:
        fine_tune(Workbench("cpu"), broken, "cnn", data, CONFIG, fresh_head=False)
    assert caught.value.hint == "turn the learning rate down"


def test_a_last_step_that_breaks_the_weights_is_noticed(init: dict[str, Tensor], data: DataConfig) -> None:
    huge = {**init, "head.weight": torch.full_like(init["head.weight"], 3e38)}
    config = FineTune(steps=1, lr=9.0, weight_decay=10.0, warmup_steps=0, frozen_stages=1, views=0, batch=2)
    with pytest.raises(TrainingError, match="step 1: the loss is"):
        fine_tune(Workbench("cpu"), huge, "cnn", data, config, fresh_head=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused_at_once() -> None:
    with pytest.raises(TrainingError, match="no GPU that PyTorch can use") as caught:
        Workbench("cuda")
    assert caught.value.hint == "--device cpu"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(TrainingError, match="unknown device 'abacus'"):
        Workbench("abacus")


def test_the_head_alone_or_all_but_the_head_is_trained(init: dict[str, Tensor], data: DataConfig) -> None:
    whole = trained(init, data, replace(CONFIG, steps=1)).state
    ways: tuple[Trains, ...] = ("head", "featurizer")
    for trains in ways:
        config = replace(CONFIG, trains=trains)
        state = fine_tune(Workbench("cpu"), whole, "cnn", data, config, fresh_head=False).state
        changed = {name for name in state if not torch.equal(state[name], whole[name])}
        heads = {name for name in changed if name.startswith("head.")}
        assert changed and (changed == heads if trains == "head" else not heads)
        assert not any(name.startswith("convolutions.0.") for name in changed)


def test_a_batch_can_be_counted_by_domain(init: dict[str, Tensor], data: DataConfig) -> None:
    by_domain = trained(init, data, replace(CONFIG, batch=999, batch_per_domain=4)).state
    in_all = trained(init, data, replace(CONFIG, batch=8)).state
    assert all(torch.equal(by_domain[name], in_all[name]) for name in in_all)
