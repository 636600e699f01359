"""Batch normalisation: what becomes of running statistics, as a recipe says."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelgit.errors import RecipeError, TrainingError
from modelgit.pipeline.keys import LATER, training_settings
from modelgit.train.choices import Ema, Sma
from modelgit.train.config import BatchNorm, DataConfig, FineTune
from modelgit.train.features import run_stages
from modelgit.train.fitting.norms import CHUNK, estimate, norms_of
from modelgit.train.fitting.together import go_together
from modelgit.train.networks.registry import build_network
from modelgit.train.task import TrainResult, Workbench, fine_tune, loaded

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=8, lr=3e-3, batch=12, warmup_steps=2, frozen_stages=1, views=2, eval_every=4)


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 2).state_dict()


def trained(init: dict[str, Tensor], data: DataConfig, **settings: Any) -> TrainResult:
    return fine_tune(Workbench("cpu"), init, "cnn", data, replace(CONFIG, **settings), fresh_head=True)


def statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if "running_" in name or "num_batches" in name}


def changed(state: dict[str, Tensor], init: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in statistics(state).items() if not torch.equal(tensor, init[name])}


def measured(state: dict[str, Tensor], data: DataConfig) -> dict[str, Tensor]:
    """Returns the statistics that the definition gives for the weights of a state, as one batch."""
    bench = Workbench("cpu")
    network = loaded(bench, "cnn", state, 2)
    ready = bench.prepare(network, data, CONFIG)
    images = np.concatenate(list(ready.split.train.values()))
    assert len(images) < 2 * CHUNK  # so that there is one batch
    norms = norms_of(network, replace(CONFIG, batch_norm="train"))
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        run_stages(network, ready.features.of(images), 1, None)
    return statistics(network.state_dict())


def assert_measured(state: dict[str, Tensor], data: DataConfig) -> None:
    for name, tensor in measured(state, data).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


TRAINED = {f"norms.{n}.{name}" for n in (1, 2) for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_statistics_follow_the_batches_behind_frozen_stages(init: dict[str, Tensor], data: DataConfig) -> None:
    state = trained(init, data, batch_norm="train").state
    assert changed(state, init) == TRAINED
    assert int(state["norms.1.num_batches_tracked"]) == CONFIG.steps
    assert int(state["norms.0.num_batches_tracked"]) == 0
    again = trained(init, data, batch_norm="train", reprobe_steps=5).state
    assert int(again["norms.1.num_batches_tracked"]) == CONFIG.steps - 5  # none while the head alone is trained


@pytest.mark.parametrize("averaging", [Sma(start=2), Ema(decay=0.5)])
def test_an_average_gets_statistics_of_its_own(init: dict[str, Tensor], data: DataConfig, averaging: Any) -> None:
    found = trained(init, data, batch_norm="train", averaging=averaging, commit_raw=True)
    assert_measured(found.state, data)
    assert found.history[-1].val_accuracy == found.scores.val_accuracy
    assert found.raw is not None
    assert int(found.raw["norms.1.num_batches_tracked"]) == CONFIG.steps
    alone = trained(init, data, batch_norm="train").state  # looking at averages has changed nothing in the run
    assert all(torch.equal(found.raw[name], tensor) for name, tensor in alone.items())


def test_re_estimating_changes_statistics_alone_and_once(init: dict[str, Tensor], data: DataConfig) -> None:
    frozen, found = trained(init, data), trained(init, data, batch_norm="re-estimate")
    assert changed(frozen.state, init) == set()
    different = {name for name in init if not torch.equal(frozen.state[name], found.state[name])}
    assert different == TRAINED
    assert found.history == frozen.history
    assert_measured(found.state, data)
    raw = trained(init, data, batch_norm="re-estimate", averaging=Sma(), commit_raw=True).raw
    assert raw is not None
    assert all(torch.equal(raw[name], tensor) for name, tensor in found.state.items())


def test_the_best_weights_keep_the_statistics_they_were_judged_by(init: dict[str, Tensor], data: DataConfig) -> None:
    found = trained(init, data, batch_norm="train", keep="best", averaging=Sma())
    judged = [point.val_accuracy for point in found.history]
    assert found.scores.val_accuracy >= max(value for value in judged if value is not None)


def test_untrained_networks_learn_where_statistics_follow(init: dict[str, Tensor], data: DataConfig) -> None:
    found = trained(init, data, batch_norm="train", steps=60, frozen_stages=0, eval_every=0)
    assert found.scores.val_accuracy >= 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_norm": "on"}, "expected one of 'frozen', 'train', 're-estimate'"),
        ({"batch_norm": "train", "trains": "head"}, "the featurizer stays as it is"),
        ({"batch_norm": "train", "compile": True}, "compile = false"),
        ({"batch_norm": "train", "checkpoint": True}, "checkpoint = false"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(CONFIG, **settings)


def test_a_network_without_such_layers_is_refused(init: dict[str, Tensor], data: DataConfig) -> None:
    with pytest.raises(RecipeError, match="no batch normalisation with statistics is trained here"):
        trained(init, data, batch_norm="train", frozen_stages=3)


def test_a_batch_that_has_no_statistics_is_said(init: dict[str, Tensor], data: DataConfig) -> None:
    tiny = replace(data, image_size=8, domains=("ink",))
    with pytest.raises(TrainingError, match="step 1: Expected more than 1 value"):
        trained(init, tiny, batch_norm="train", batch=1)


def test_estimates_are_the_same_each_time_and_leave_the_layers_as_they_were(
    init: dict[str, Tensor], data: DataConfig
) -> None:
    bench, config = Workbench("cpu"), replace(CONFIG, batch_norm="re-estimate")
    network = loaded(bench, "cnn", init, 2)
    ready = bench.prepare(network, data, config)
    norms = norms_of(network, config)
    found = []
    for _ in range(2):
        estimate(network, norms, (ready.features, ready.split.train), config)
        found.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [(layer.momentum, layer.training) for layer in layers] == [(0.01, False)] * 3


@pytest.mark.parametrize("policy", ["frozen", "train", "re-estimate"])
def test_keys_of_steps_name_the_policy_only_where_it_is_not_the_usual(policy: BatchNorm) -> None:
    settings = training_settings(replace(CONFIG, batch_norm=policy))
    assert settings.get("batch_norm", "frozen") == policy
    assert ("batch_norm" in settings) == (policy != "frozen")
    before = {key: value for key, value in asdict(CONFIG).items() if key not in LATER}
    assert before == {key: value for key, value in settings.items() if key not in LATER}


def test_keys_of_steps_name_split_weights_only_where_they_are_wanted() -> None:
    assert "shard_weights" not in training_settings(CONFIG)
    assert training_settings(replace(CONFIG, shard_weights=True))["shard_weights"] is True


def test_runs_whose_statistics_follow_do_not_share_their_passes() -> None:
    both = replace(CONFIG, batch_norm="re-estimate")
    assert go_together(both, both) and not go_together(CONFIG, both)
    moving = replace(CONFIG, batch_norm="train")
    assert not go_together(moving, moving)
