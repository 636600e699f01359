"""CUDA trains as the CPU does, within rounding, however a step is carried out; skipped where there is no GPU."""

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

from modelgit.train import features
from modelgit.train.choices import Coral, GroupDro, Irm, Mixup, Sma
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.fitting.loop import Run, Task, start, take_step
from modelgit.train.fitting.resuming import Resume
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Model, Start, TrainResult, Workbench, fine_tune, fine_tune_many, score

MakeZip = Callable[..., Path]
DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
CONFIG = FineTune(steps=12, lr=1e-4, batch=9, warmup_steps=2, frozen_stages=1, views=2, eval_every=4, optimiser="sgd")
STRICT = replace(CONFIG, deterministic=True)
TOLERANCE = 1e-2  # of the way that a tensor went; SGD, for Adam turns rounding in a gradient near 0 into whole steps
MEMBER = [sys.executable, str(Path(__file__).parents[1] / "unit" / "train" / "crew_member.py")]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has convolutions not use TF32, which PyTorch allows them unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def data(make_zip: MakeZip) -> DataConfig:
    return DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=32)


@pytest.fixture
def init() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network("cnn", 2).state_dict()


def trained(
    init: dict[str, Tensor], data: DataConfig, config: FineTune, device: str = DEVICE, resume: Path | None = None
) -> TrainResult:
    bench = Workbench(device)
    bench.resume = resume
    return fine_tune(bench, init, "cnn", data, config, fresh_head=True)


def assert_close(found: TrainResult, wanted: TrainResult, init: dict[str, Tensor], most: float = TOLERANCE) -> None:
    for name, tensor in wanted.state.items():
        apart, way = (found.state[name] - tensor).float().norm(), (tensor - init[name]).float().norm()
        assert float(apart) <= most * float(way), name
    losses = [[p.loss for p in result.history if p.loss is not None] for result in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=most)


def assert_same_bits(found: TrainResult, wanted: TrainResult) -> None:
    assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items())
    assert found.history == wanted.history


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_pretrained_network_ends_where_the_cpu_does(make_zip: MakeZip, device: str) -> None:
    data = DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=64)
    config = FineTune(steps=5, lr=1e-4, frozen_stages=6, views=2)
    torch.manual_seed(0)
    init = build_network("efficientnet-lite0", 2).state_dict()
    cpu, cuda = (
        fine_tune(Workbench(place), init, "efficientnet-lite0", data, config, fresh_head=True)
        for place in ("cpu", device)
    )
    assert cuda.device == device and all(tensor.device.type == "cpu" for tensor in cuda.state.values())
    assert all(torch.allclose(cpu.state[n].float(), cuda.state[n].float(), atol=5e-3) for n in cpu.state)
    model = Model("efficientnet-lite0", ("lying", "standing"))
    assert score(Workbench(device), cuda.state, model, data) == cuda.scores


AS_ON_A_CPU = {
    "plain": CONFIG,
    "parts of a batch": replace(CONFIG, accumulate=3, clip=0.5),
    "average": replace(CONFIG, averaging=Sma(start=3), keep="best", reprobe_steps=2),
    "coral": replace(CONFIG, objective=Coral()),
    "mixup": replace(CONFIG, objective=Mixup()),
    "groupdro": replace(CONFIG, objective=GroupDro(eta=0.5)),
    "irm": replace(CONFIG, objective=Irm(2.0, 5)),
    "statistics": replace(CONFIG, batch_norm="train"),
}


@pytest.mark.parametrize("case", AS_ON_A_CPU)
def test_both_devices_agree(init: dict[str, Tensor], data: DataConfig, case: str) -> None:
    config = AS_ON_A_CPU[case]
    cpu, cuda = trained(init, data, config, "cpu"), trained(init, data, config)
    assert_close(cuda, cpu, init)


AS_PLAIN = {
    "compiled, with graphs": ({}, {"compile": True}),
    "compiled, in parts": ({"accumulate": 2}, {"accumulate": 2, "compile": True}),
    "stages computed again": ({}, {"checkpoint": True}),
    "deterministic": ({}, {"deterministic": True}),
}


@pytest.mark.parametrize("case", AS_PLAIN)
def test_how_a_step_is_carried_out_changes_rounding_alone(init: dict[str, Tensor], data: DataConfig, case: str) -> None:
    usual, change = AS_PLAIN[case]
    dropped = replace(CONFIG, dropout=0.3)
    plain, other = (trained(init, data, replace(dropped, **each)) for each in (usual, change))  # type: ignore[arg-type]
    assert_close(other, plain, init)


def test_half_precision_stays_close_to_single(init: dict[str, Tensor], data: DataConfig) -> None:
    single, half = trained(init, data, CONFIG), trained(init, data, replace(CONFIG, precision="bfloat16"))
    assert all(tensor.dtype == init[name].dtype for name, tensor in half.state.items())
    assert not torch.equal(half.state["head.weight"], single.state["head.weight"])
    assert_close(half, single, init, most=0.2)


def test_deterministic_runs_have_the_same_bits(init: dict[str, Tensor], data: DataConfig) -> None:
    config = replace(STRICT, dropout=0.3, optimiser="adamw", lr=1e-3)
    assert_same_bits(trained(init, data, config), trained(init, data, config))


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_run_that_was_stopped_ends_in_the_same_bits(
    init: dict[str, Tensor], data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(STRICT, dropout=0.3, optimiser="adamw", lr=1e-3, averaging=Sma(start=3))
    whole, path, real = trained(init, data, config), tmp_path / "run", Resume.save

    def save(self: Resume, run: Run) -> None:
        real(self, run)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Resume, "save", save)
        with pytest.raises(Killed):
            trained(init, data, config, resume=path)
    assert_same_bits(trained(init, data, config, resume=path), whole)


def test_features_that_stay_on_the_host_give_the_same_bits(
    init: dict[str, Tensor], data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gathered, pinned and sent for each step, beside the kernels."""
    there = trained(init, data, STRICT)
    asked: list[int] = []

    def too_large(size_bytes: int, _device: torch.device) -> bool:
        asked.append(size_bytes)
        return False

    monkeypatch.setattr(features, "fits", too_large)
    assert_same_bits(trained(init, data, STRICT), there)
    assert asked


def test_stacked_runs_end_where_single_ones_do(init: dict[str, Tensor], data: DataConfig) -> None:
    configs = [replace(CONFIG, seed=1), replace(CONFIG, seed=2, dropout=0.3, objective=Coral(), accumulate=1)]
    starts = [Start(init, config, fresh_head=True) for config in configs]
    found = fine_tune_many(Workbench(DEVICE), "cnn", data, starts)
    for result, config in zip(found, configs, strict=True):
        assert_close(result, trained(init, data, config), init)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_waits_for_nothing_and_its_optimiser_is_fused(compiled: bool) -> None:
    """PyTorch raises an error where the host would wait for the GPU."""
    import numpy as np

    device, count = torch.device(DEVICE), 60
    torch.manual_seed(0)
    network = build_network("mlp", 5).to(device)
    views, rows = torch.randn(2, count, 768, device=device).half(), {i: i for i in range(count)}
    known = features.Features(views[0].float(), views, rows, rows, device)
    train = {"a": np.arange(20), "b": np.arange(20, count)}
    task = Task("sync", known, torch.arange(count, device=device) % 5, train)
    run = start(network, task, FineTune(steps=20, lr=1e-3, batch=8, frozen_stages=0, compile=compiled))
    assert run.optimiser.defaults["fused"] is True
    for _ in range(4):  # compiles, warms up, records
        take_step(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            take_step(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.pending) == 7 and bool(torch.stack(run.pending).isfinite().all())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL has one process on each")
@pytest.mark.parametrize("split", [False, True], ids=["whole weights", "weights split over the GPUs"])
def test_two_gpus_end_where_one_does(init: dict[str, Tensor], data: DataConfig, tmp_path: Path, split: bool) -> None:
    save_file(init, tmp_path / "init.safetensors")
    told = {
        "init": str(tmp_path / "init.safetensors"), "out": str(tmp_path), "place": f"file://{tmp_path}/meet",
        "data": asdict(data), "configs": {"run": asdict(replace(CONFIG, shard_weights=split))}, "device": DEVICE,
    }  # fmt: skip
    members = [
        subprocess.Popen(
            [*MEMBER, json.dumps(told)],
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [member.communicate(timeout=600)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0], said
    alone = trained(init, data, CONFIG)
    found = load_file(tmp_path / "run.0.safetensors")
    assert_close(replace(alone, state=found), alone, init)
