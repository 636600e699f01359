"""Two processes that carry out one run end where one process ends, up to rounding, however the weights are held."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelgit.train.choices import Coral, Ema, GroupDro, Irm, Mixup, Sma, Swad, Vrex
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Workbench, fine_tune

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=6, lr=3e-3, batch=9, warmup_steps=2, frozen_stages=1, views=2, eval_every=3, dropout=0.2)
CONFIGS = {
    "plain": CONFIG,
    "coral, ema, again": replace(CONFIG, objective=Coral(), averaging=Ema(decay=0.7), accumulate=2, reprobe_steps=2),
    "irm, sma, clip": replace(CONFIG, objective=Irm(2.0, 3), averaging=Sma(start=2), clip=0.3, commit_raw=True),
    "dro, best, sgd": replace(CONFIG, objective=GroupDro(eta=0.5), keep="best", optimiser="sgd", lr=1e-4),
    "mixup, half": replace(CONFIG, objective=Mixup(), precision="bfloat16", checkpoint=True),
    "vrex, swad": replace(CONFIG, objective=Vrex(2.0, 3), averaging=Swad(converge=1, tolerance=1), trains="head"),
}
TOLERANCE = 1e-2  # of the way that a tensor went; Adam turns rounding in a gradient near 0 into whole steps
MEMBER = [sys.executable, str(Path(__file__).with_name("crew_member.py"))]


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init(tmp_path: Path) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = build_network("cnn", 2).state_dict()
    save_file(state, tmp_path / "init.safetensors")
    return state


def told(folder: Path, data: DataConfig, configs: dict[str, FineTune], **more: object) -> str:
    tables = {name: asdict(config) for name, config in configs.items()}
    places = {"init": str(folder / "init.safetensors"), "out": str(folder), "architecture": "cnn"}
    return json.dumps({**places, "data": asdict(data), "configs": tables, **more})


def crew(text: str, env: dict[str, str] | None = None) -> None:
    """Runs two processes that meet in a file."""
    members = [
        subprocess.Popen([*MEMBER, text], env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank), **(env or {})})
        for rank in range(2)
    ]
    assert [member.wait(timeout=300) for member in members] == [0, 0]


def assert_equal_to_one(folder: Path, data: DataConfig, init: dict[str, Tensor], configs: dict[str, FineTune]) -> None:
    for name, config in configs.items():
        alone = fine_tune(Workbench("cpu"), init, "cnn", data, config, fresh_head=True)
        found, other = (load_file(folder / f"{name}.{rank}.safetensors") for rank in range(2))
        tolerance = 0.1 if config.precision == "bfloat16" else TOLERANCE
        for tensor in alone.state:
            assert torch.equal(found[tensor], other[tensor]), (name, tensor)  # whole, in every process
            apart, way = found[tensor] - alone.state[tensor], alone.state[tensor] - init[tensor]
            assert float(apart.float().norm()) <= tolerance * float(way.float().norm()), (name, tensor)
        curve, accuracy = json.loads((folder / f"{name}.0.json").read_text())
        assert [point[0] for point in curve] == [point.step for point in alone.history]
        assert [point[1] for point in curve] == pytest.approx([p.loss for p in alone.history], rel=1e-2)
        assert accuracy == alone.scores.val_accuracy


def test_two_processes_that_copy_the_weights(data: DataConfig, init: dict[str, Tensor], tmp_path: Path) -> None:
    crew(told(tmp_path, data, CONFIGS, place=f"file://{tmp_path}/meet"))
    assert_equal_to_one(tmp_path, data, init, CONFIGS)


def test_two_processes_that_split_the_weights(data: DataConfig, init: dict[str, Tensor], tmp_path: Path) -> None:
    configs = {name: replace(config, shard=True) for name, config in CONFIGS.items()}
    crew(told(tmp_path, data, configs, place=f"file://{tmp_path}/meet"))
    assert_equal_to_one(tmp_path, data, init, configs)
