"""Merges whose matrices a GPU decomposes agree with the processor's; skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modelgit
from modelgit.cli.app import main
from modelgit.merge.blocks.linalg import using
from modelgit.merge.methods import METHODS, Inputs, make

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
TOLERANCE = 1e-9  # of the largest value, as the documentation says; before rounding
DEVICE, SPECTRAL = "cuda", ("iso_c", "iso_cts", "tsvm")
SHAPES = {"square": (96, 96), "tall": (300, 40), "wide": (40, 300), "vector": (64,)}


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_values_agree_before_they_are_rounded(name: str, shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(3)
    base = draws.standard_normal(shape)
    inputs = Inputs([base + 0.1 * draws.standard_normal(shape) for _ in range(3)], (1.0, 1.0, 1.0), base)
    wanted = make(name, {})(inputs)
    with using(DEVICE):
        found = make(name, {})(inputs)
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_merge_agrees_with_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stored values differ by their own rounding at most; where no matrix is decomposed, not at all."""
    method: Any = make(name, {})
    if hasattr(method, "adapters") or hasattr(method, "statistics"):
        pytest.skip("never uses a device")
    repo, draws = modelgit.Repository.init(tmp_path / "models"), torch.Generator().manual_seed(3)
    base = {key: torch.randn(shape, generator=draws) for key, shape in SHAPES.items()}
    repo.commit(base, message="base")
    heads = [f"h{i}" for i in range(2 if method.heads[1] == 2 else 3)]
    for head in heads:
        state = {key: value + 0.1 * torch.randn(value.shape, generator=draws) for key, value in base.items()}
        repo.commit(state, message=head, branch=head, parents=["main"])
    monkeypatch.chdir(repo.path)
    found = {}
    for device in ("cpu", DEVICE):
        assert main(["switch", "--quiet", "-c", device.replace(":", "-"), "main"]) == 0
        assert main(["merge", *heads, "--method", name, "--device", device, "--quiet"]) == 0
        found[device] = load_file("model.safetensors")
    most = 2.0**-22 if name in SPECTRAL else 0.0
    for key, wanted in found["cpu"].items():
        assert np.abs(found[DEVICE][key] - wanted).max() <= most * np.abs(wanted).max(), key
