"""CUDA does what the CPU does, within rounding; skipped where there is no GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modelgit.train.config import DataConfig, FineTune
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Model, Workbench, fine_tune, score

MakeZip = Callable[..., Path]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_both_devices_agree(make_zip: MakeZip) -> None:
    data = DataConfig(str(make_zip(count=25)), held_out="rose", group="name", image_size=64)
    config = FineTune(steps=5, lr=1e-4, frozen_stages=6, views=2)
    torch.manual_seed(0)
    init = build_network("efficientnet-lite0", 2).state_dict()
    cpu, cuda = (
        fine_tune(Workbench(device), init, "efficientnet-lite0", data, config, fresh_head=True)
        for device in ("cpu", "cuda")
    )
    assert cuda.device == "cuda" and all(tensor.device.type == "cpu" for tensor in cuda.state.values())
    assert all(torch.allclose(cpu.state[n].float(), cuda.state[n].float(), atol=5e-3) for n in cpu.state)
    model = Model("efficientnet-lite0", ("lying", "standing"))
    assert score(Workbench("cuda"), cuda.state, model, data) == cuda.scores
