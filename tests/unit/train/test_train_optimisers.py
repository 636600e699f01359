"""Optimisers: the steps are PyTorch's, bit for bit, and the compiler is not loaded for them."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from tiny_encoder import encoder_files
from torch import nn

from modelgit.train.config import FineTune, Optimiser
from modelgit.train.fitting.optimisers import LBFGS, MOMENTUM, optimiser_for

THEIRS: dict[Optimiser, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM),
}


def layer() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 3), torch.randn(7, 5)


def steps(optimiser: torch.optim.Optimizer, network: nn.Linear, inputs: torch.Tensor) -> None:
    for _ in range(4):
        optimiser.zero_grad(set_to_none=True)
        network(inputs).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("name", THEIRS)
def test_steps_and_state_are_pytorchs(name: Optimiser) -> None:
    (ours, inputs), (theirs, _) = layer(), layer()
    config = FineTune(4, lr=0.1, weight_decay=0.01, optimiser=name)
    optimiser = optimiser_for(list(ours.parameters()), config)
    other = THEIRS[name](theirs.parameters(), 0.1, weight_decay=0.01, fused=True)
    steps(optimiser, ours, inputs)
    steps(other, theirs, inputs)
    assert torch.equal(ours.weight, theirs.weight)
    state, expected = optimiser.state_dict(), other.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    again = optimiser_for(list(ours.parameters()), config)
    again.load_state_dict(deepcopy(expected))
    steps(again, ours, inputs)
    steps(other, theirs, inputs)
    assert torch.equal(ours.weight, theirs.weight)


def test_lbfgs_is_pytorchs() -> None:
    (ours, inputs), (theirs, _) = layer(), layer()
    for network, kind in ((ours, LBFGS), (theirs, torch.optim.LBFGS)):
        solver = kind(network.parameters(), line_search_fn="strong_wolfe")

        def closure(network: nn.Linear = network, solver: torch.optim.Optimizer = solver) -> torch.Tensor:
            solver.zero_grad()
            loss: torch.Tensor = (network(inputs) - 1).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)  # type: ignore[no-untyped-call]
    assert torch.equal(ours.weight, theirs.weight) and not torch.equal(ours.weight, layer()[0].weight)


def test_a_training_loads_neither_the_compiler_nor_transformers() -> None:
    code = (
        f"files = {encoder_files()!r}"
        + """
import sys, torch
from modelgit.train.config import FineTune
from modelgit.train.fitting.optimisers import optimiser_for
from modelgit.train.fitting.probe import linear_probe
from modelgit.train.networks.network import Design
from modelgit.train.networks.registry import build_network
build_network(Design("transformers", files, 10**6), 2).prepare(["a good day"], "text")
linear_probe(torch.randn(8, 3), torch.arange(8) % 2, 2)
for name in ("adamw", "adam", "sgd"):
    layer = torch.nn.Linear(3, 3)
    optimiser = optimiser_for(list(layer.parameters()), FineTune(4, 0.1, optimiser=name))
    layer(torch.ones(3, 3)).sum().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    optimiser.load_state_dict(optimiser.state_dict())
heavy = {"sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "transformers"}
print(sorted(sys.modules.keys() & heavy))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
