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

from modelgit.errors import TrainingError
from modelgit.train.choices import Coral, Ema, Irm, Sma
from modelgit.train.config import BatchNorm, DataConfig, FineTune
from modelgit.train.fitting.crews import SOLO, Crew, part_of, refuse_in_crews
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Workbench, fine_tune

MakeZip = Callable[..., Path]
CONFIG = FineTune(steps=4, lr=1e-3, batch=9, warmup_steps=2, frozen_stages=1, views=2, eval_every=2, dropout=0.2)
COPIED = {
    "sma": replace(CONFIG, averaging=Sma(start=1), reprobe_steps=1),
    "coral": replace(CONFIG, objective=Coral(), accumulate=2, averaging=Ema(decay=0.7), checkpoint=True),
    "irm": replace(CONFIG, objective=Irm(2.0, 1), clip=0.3, optimiser="sgd"),
}
CONFIGS = {**COPIED, **{f"{name}-split": replace(config, shard_weights=True) for name, config in COPIED.items()}}
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


def crew(told: dict[str, object]) -> None:
    """Runs two processes that meet in a file; they end well, and without a warning."""
    members = [
        subprocess.Popen(
            [*MEMBER, json.dumps(told)],
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [member.communicate(timeout=300)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0], said
    assert not any("Warning" in text for text in said), said


def test_two_processes_end_where_one_does_also_when_stopped(
    data: DataConfig, init: dict[str, Tensor], tmp_path: Path
) -> None:
    tables = {name: asdict(config) for name, config in CONFIGS.items()}
    places = {"init": str(tmp_path / "init.safetensors"), "out": str(tmp_path), "place": f"file://{tmp_path}/meet"}
    crew({**places, "data": asdict(data), "configs": tables})
    for name, config in CONFIGS.items():
        alone = fine_tune(Workbench("cpu"), init, "cnn", data, replace(config, shard_weights=False), fresh_head=True)
        found, other = (load_file(tmp_path / f"{name}.{rank}.safetensors") for rank in range(2))
        again = load_file(tmp_path / f"{name}.again.0.safetensors")
        for tensor in alone.state:
            assert torch.equal(found[tensor], other[tensor]), (name, tensor)  # whole, in every process
            assert torch.equal(found[tensor], again[tensor]), (name, tensor)
            apart, way = found[tensor] - alone.state[tensor], alone.state[tensor] - init[tensor]
            assert float(apart.float().norm()) <= TOLERANCE * float(way.float().norm()), (name, tensor)
        curve, accuracy, resumed = json.loads((tmp_path / f"{name}.0.json").read_text())
        assert resumed == 1
        assert [point[:2] for point in curve] == [[p.step, pytest.approx(p.loss, rel=1e-2)] for p in alone.history[1:]]
        assert accuracy == alone.scores.val_accuracy


def test_rows_are_shared_out_whole() -> None:
    parts = [part_of(7, Crew(rank, 3)) for rank in range(3)]
    assert [list(range(7))[part] for part in parts] == [[0, 1], [2, 3], [4, 5, 6]]


def test_several_processes_do_not_compile() -> None:
    with pytest.raises(TrainingError, match="for one process"):
        refuse_in_crews(replace(CONFIG, compile=True), Crew(0, 2))


@pytest.mark.parametrize("policy", ["train", "re-estimate"])
def test_statistics_follow_the_data_in_one_process_alone(policy: BatchNorm) -> None:
    config = replace(CONFIG, batch_norm=policy)
    refuse_in_crews(config, SOLO)
    with pytest.raises(TrainingError, match=f"batch_norm = '{policy}' is for one process"):
        refuse_in_crews(config, Crew(0, 2))
