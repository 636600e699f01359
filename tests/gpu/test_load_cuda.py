"""Tensors of a version read to a GPU; skipped where there is none."""

from pathlib import Path

import pytest
import torch

import modelgit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")], ids=str)
def test_tensors_arrive_on_the_device(tmp_path: Path, device: str | torch.device) -> None:
    repo = modelgit.Repository.init(tmp_path / "models")
    state = {"w": torch.randn(300, 200), "b": torch.arange(5, dtype=torch.bfloat16), "s": torch.tensor(2)}
    first = repo.commit({name: tensor.cuda() for name, tensor in state.items()}, message="from the GPU")
    weights = repo.load(first, device=device)
    for name, tensor in state.items():
        assert weights[name].device.type == "cuda"
        assert torch.equal(weights[name].cpu(), tensor)
    assert torch.equal(weights.rows("w", 10, 20).cpu(), state["w"][10:20])
