"""Runs that share their passes through the network end where single runs end, up to rounding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoder import encoder_files
from torch import Tensor

from modelgit.errors import TrainingError
from modelgit.events import Advanced, Event
from modelgit.train.choices import Coral, Ema, GroupDro, Irm, Mixup, Objective, Sma, Swad, Vrex
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.splits import split
from modelgit.train.fitting.together import go_together
from modelgit.train.networks.network import Design
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Start, TrainResult, Workbench, fine_tune, fine_tune_many

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=12, lr=3e-3, batch=8, warmup_steps=3, frozen_stages=1, views=2, eval_every=4)
TOLERANCE = 1e-2  # of the way that a tensor went; Adam turns rounding in a gradient near 0 into whole steps


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 2).state_dict()


def many(init: dict[str, Tensor], data: DataConfig, configs: Sequence[FineTune], **more: Any) -> list[TrainResult]:
    starts = [Start(init, config, fresh_head=True, **more) for config in configs]
    return fine_tune_many(Workbench("cpu"), "cnn", data, starts)


def one(init: dict[str, Tensor], data: DataConfig, config: FineTune) -> TrainResult:
    return fine_tune(Workbench("cpu"), init, "cnn", data, config, fresh_head=True)


def assert_close(found: TrainResult, wanted: TrainResult, init: dict[str, Tensor]) -> None:
    for name, tensor in wanted.state.items():
        apart, way = (found.state[name] - tensor).float().norm(), (tensor - init[name]).float().norm()
        assert float(apart) <= TOLERANCE * float(way), name
    assert [p.step for p in found.history] == [p.step for p in wanted.history]
    losses = [[p.loss for p in result.history if p.loss is not None] for result in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert found.scores.ece == pytest.approx(wanted.scores.ece, abs=1e-4)  # of probabilities, which are rounded
    assert replace(found.scores, ece=wanted.scores.ece) == wanted.scores


OBJECTIVES: list[Objective] = [Coral(), Mixup(), GroupDro(eta=0.5), Irm(2.0, 5), Vrex(2.0, 5)]
CASES: dict[str, list[FineTune]] = {
    "rates, decays, dropout, seeds": [
        replace(CONFIG, lr=1e-3, seed=1),
        replace(CONFIG, weight_decay=0.1, seed=2, dropout=0.5),
        replace(CONFIG, seed=3, dropout=0.1, schedule="cosine", optimiser="sgd", clip=0.5),
    ],
    "averages": [
        replace(CONFIG, averaging=Sma(start=3), commit_raw=True),
        replace(CONFIG, averaging=Ema(decay=0.7), keep="best"),
        replace(CONFIG, averaging=Swad(converge=1, tolerance=1, ratio=1.01), eval_every=2, lr=0.1),
    ],
    "objectives": [replace(CONFIG, objective=choice, seed=seed) for seed, choice in enumerate(OBJECTIVES)],
    "parts": [replace(CONFIG, accumulate=3, reprobe_steps=2, seed=seed, dropout=0.1 * seed) for seed in (0, 1)],
}


@pytest.mark.parametrize("case", CASES)
def test_each_run_ends_where_it_would_alone(init: dict[str, Tensor], data: DataConfig, case: str) -> None:
    configs = CASES[case]
    found = many(init, data, configs)
    for result, config in zip(found, configs, strict=True):
        alone = one(init, data, config)
        assert_close(result, alone, init)
        assert (result.raw is None) == (alone.raw is None)
    assert not torch.allclose(found[0].state["head.weight"], found[1].state["head.weight"], atol=1e-3)


def test_encoders_of_texts_of_many_lengths_go_together() -> None:
    rows = [f"the {noun} is {'very ' * (i % 3)}{word}" for i in range(20) for noun in DAYS for word in ("bad", "good")]
    labels, domains = np.array([0, 1, 0, 1] * 20), np.array([0, 0, 1, 1] * 20)
    names, known = tuple(map(str, range(80))), ("bad", "good")
    read = lambda indices: [rows[i] for i in indices]  # noqa: E731
    texts = Dataset("judgements", "text", known, DAYS, labels, domains, names, "0" * 64, (), read)
    bench, data = Workbench("cpu"), DataConfig("judgements")
    bench._datasets[data] = texts, split(texts, data)
    design = Design("transformers", encoder_files())
    torch.manual_seed(0)
    init = {name: 0.3 * torch.randn(tensor.shape) for name, tensor in build_network(design, 2).state_dict().items()}
    config = FineTune(steps=5, lr=0.02, batch=48, optimiser="sgd", warmup_steps=1)  # alone: parts alike in length
    configs = [replace(config, seed=seed, dropout=0.1 * seed) for seed in (0, 1)]
    found = fine_tune_many(bench, design, data, [Start(init, each, fresh_head=False) for each in configs])
    for result, each in zip(found, configs, strict=True):
        assert_close(result, fine_tune(bench, init, design, data, each, fresh_head=False), init)


DAYS = ("day", "film")


def test_the_same_runs_give_the_same_bits(init: dict[str, Tensor], data: DataConfig) -> None:
    configs = [replace(CONFIG, seed=seed, dropout=0.2) for seed in (1, 2)]
    first, again = many(init, data, configs), many(init, data, configs)
    for one_, other in zip(first, again, strict=True):
        assert all(torch.equal(one_.state[name], other.state[name]) for name in one_.state)


def test_the_results_own_their_memory(init: dict[str, Tensor], data: DataConfig) -> None:
    first, second = many(init, data, [CONFIG, replace(CONFIG, seed=1)])
    assert all(t.is_contiguous() and t.untyped_storage().nbytes() == t.nbytes for t in first.state.values())
    assert not torch.equal(first.state["head.weight"], second.state["head.weight"])


def test_runs_that_were_stopped_apart_catch_up(init: dict[str, Tensor], data: DataConfig, tmp_path: Path) -> None:
    configs = [replace(CONFIG, seed=seed, averaging=Sma(start=2)) for seed in (1, 2, 3)]
    whole = many(init, data, configs)

    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and "loss" in event.note:
            raise Killed  # at step 10: what was kept is step 8

    files = [tmp_path / str(number) for number in range(3)]
    starts = [Start(init, c, True, stop, file) for c, file in zip(configs[:2], files[:2], strict=True)]
    with pytest.raises(Killed):
        fine_tune_many(Workbench("cpu"), "cnn", data, starts)
    notes: list[str] = []
    listener = lambda event: notes.append(event.note) if isinstance(event, Advanced) else None  # noqa: E731
    starts = [Start(init, c, True, listener, file) for c, file in zip(configs, files, strict=True)]
    again = fine_tune_many(Workbench("cpu"), "cnn", data, starts)
    assert notes.count("resumed") == 2
    for result, wanted in zip(again, whole, strict=True):
        assert_close(result, wanted, init)


def test_a_loss_that_is_not_finite_names_the_run(init: dict[str, Tensor], data: DataConfig) -> None:
    broken = {**init, "convolutions.2.weight": torch.full_like(init["convolutions.2.weight"], torch.nan)}
    starts = [Start(state, CONFIG, fresh_head=False) for state in (init, broken)]
    with pytest.raises(TrainingError, match=r"run 2 of 2: step 1: the loss is nan, and tensor 'convolutions\.2"):
        fine_tune_many(Workbench("cpu"), "cnn", data, starts)


@pytest.mark.parametrize("change", [{"steps": 13}, {"batch": 9}, {"precision": "bfloat16"}, {"views": 1}])
def test_runs_of_other_shapes_are_refused(init: dict[str, Tensor], data: DataConfig, change: dict[str, Any]) -> None:
    assert not go_together(CONFIG, replace(CONFIG, **change))
    with pytest.raises(TrainingError, match="cannot go together") as caught:
        many(init, data, [CONFIG, replace(CONFIG, **change)])
    assert caught.value.hint is not None and "steps" in caught.value.hint


def test_what_may_differ_may_differ() -> None:
    other = replace(CONFIG, lr=1.0, seed=9, weight_decay=0.3, dropout=0.5, objective=Coral(), averaging=Sma(start=2))
    assert go_together(CONFIG, other)
    assert not go_together(replace(CONFIG, compile=True), replace(CONFIG, compile=True))
