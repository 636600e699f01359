"""A run that was stopped goes on with the same bits; a file that is no run is not believed."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from modelgit.events import Event, Noted
from modelgit.train.choices import (
    Averaging,
    Coral,
    Ema,
    Erm,
    GroupDro,
    Irm,
    Lawa,
    Mixup,
    NoAveraging,
    Objective,
    Sma,
    Swa,
    Swad,
    Vrex,
)
from modelgit.train.config import DataConfig, FineTune, Keep, Optimiser
from modelgit.train.fitting.loop import Run
from modelgit.train.fitting.resuming import Resume
from modelgit.train.networks.registry import build_network
from modelgit.train.task import TrainResult, Workbench, fine_tune

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=12, lr=3e-3, batch=8, warmup_steps=3, frozen_stages=1, views=2, eval_every=4, dropout=0.2)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 2).state_dict()


def trained(init: dict[str, Tensor], data: DataConfig, config: FineTune, resume: Path | None = None) -> TrainResult:
    bench = Workbench("cpu")
    bench.resume = resume
    return fine_tune(bench, init, "cnn", data, config, fresh_head=True)


CASES: list[tuple[Objective, Averaging, Keep]] = [
    (GroupDro(eta=0.5), Sma(start=3), "last"),
    (Irm(penalty=2.0, anneal=5), Ema(decay=0.7), "best"),
    (GroupDro(), Lawa(keep=2, every=3), "last"),
    (GroupDro(), Swad(converge=1, tolerance=2), "last"),
]
NORMS: list[tuple[Averaging, Keep]] = [(Sma(start=3), "last"), (Sma(start=3), "best"), (NoAveraging(), "last")]


@pytest.mark.parametrize(("averaging", "keep"), NORMS)
def test_statistics_that_follow_the_data_go_on_too(
    init: dict[str, Tensor],
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    averaging: Averaging,
    keep: Keep,
) -> None:
    config = replace(CONFIG, batch_norm="train", averaging=averaging, keep=keep, reprobe_steps=2)
    whole, path = trained(init, data, config), tmp_path / "run"
    real = Resume.save

    def save(self: Resume, run: Run) -> None:
        real(self, run)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Resume, "save", save)
        with pytest.raises(Killed):
            trained(init, data, config, path)
    again = trained(init, data, config, path)
    assert again.history == whole.history
    assert all(torch.equal(again.state[name], whole.state[name]) for name in whole.state)


@pytest.mark.parametrize(("objective", "averaging", "keep"), CASES)
@pytest.mark.parametrize("saves", [1, 2])
def test_a_run_that_was_stopped_ends_in_the_same_bits(
    init: dict[str, Tensor],
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Objective,
    averaging: Averaging,
    keep: Keep,
    saves: int,
) -> None:
    config = replace(CONFIG, objective=objective, averaging=averaging, keep=keep, reprobe_steps=2)
    whole, path = trained(init, data, config), tmp_path / "run"
    count = 0

    def save(self: Resume, run: Run) -> None:
        nonlocal count
        real(self, run)
        count += 1
        if count == saves:
            raise Killed

    real = Resume.save
    with monkeypatch.context() as patch:
        patch.setattr(Resume, "save", save)
        with pytest.raises(Killed):
            trained(init, data, config, path)
    again = trained(init, data, config, path)
    assert count == saves
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    assert again.history == whole.history
    assert [point.step for point in again.history if point.step] == [4, 8, 12]
    assert again.kept_step == whole.kept_step


OBJECTIVES: list[Objective] = [Erm(), Coral(), Mixup(), GroupDro(eta=0.5), Irm(2.0, 5), Vrex(2.0, 5)]
AVERAGES: list[Averaging] = [NoAveraging(), Sma(start=2), Ema(0.7), Swa(start=2, every=2), Lawa(2, 3), Swad(1, 2)]
OPTIMISERS: tuple[Optimiser, ...] = get_args(Optimiser)


def test_every_objective_average_and_optimiser_goes_on_in_the_same_bits(make_zip: MakeZip, tmp_path: Path) -> None:
    config = FineTune(steps=9, lr=3e-3, batch=8, warmup_steps=3, views=1, eval_every=4, dropout=0.2)
    data = DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=16)
    init, notes = build_network("mlp", 2).state_dict(), list[str]()

    def listener(event: Event) -> None:
        notes.extend([event.message] if isinstance(event, Noted) and "goes on" in event.message else [])

    bench = Workbench("cpu", listener=listener)
    for number, (objective, averaging) in enumerate(itertools.product(OBJECTIVES, AVERAGES), 1):
        optimiser = OPTIMISERS[(number + number // 6) % 3]  # each with each objective, and with each average
        lr = 1e-5 if optimiser == "sgd" else 1e-3
        chosen = replace(config, objective=objective, averaging=averaging, optimiser=optimiser, lr=lr)
        bench.resume = tmp_path / f"{number}"
        whole = fine_tune(bench, init, "mlp", data, chosen, fresh_head=True)
        again = fine_tune(bench, init, "mlp", data, chosen, fresh_head=True)
        assert len(notes) == number and "goes on from step " in notes[-1] and notes[-1].endswith(" of 9"), chosen
        assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state), chosen
        assert again.history == whole.history, chosen


@pytest.mark.parametrize("content", [b"", b"not a run", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_run_is_not_believed(
    init: dict[str, Tensor], data: DataConfig, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "run"
    path.write_bytes(content)
    result = trained(init, data, replace(CONFIG, steps=4), path)
    assert [point.step for point in result.history] == [0, 4]


def test_a_run_of_another_network_is_not_believed(init: dict[str, Tensor], data: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    trained(init, data, replace(CONFIG, frozen_stages=2), path)
    assert path.exists()
    result = trained(init, data, CONFIG, path)
    fresh = trained(init, data, CONFIG)
    assert all(torch.equal(result.state[name], fresh.state[name]) for name in fresh.state)
