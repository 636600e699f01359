"""What averaging does to activations, undone: their means and spreads (Jordan et al. 2022, arXiv:2211.08403).

Networks with batch normalisation get its statistics estimated again. In others each hidden layer's weights and shifts
are scaled so that its outputs have the mean and spread that the averaged models have on average.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelgit.merge.align.graph import Network, State, cast, plain_operations
from modelgit.merge.align.spec import Spec

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
STILL = 1e-8  # a unit that spreads less is left as it is
Moments = tuple[Tensor, Tensor]  # mean and standard deviation of each unit


def normalised(module: nn.Module) -> dict[str, Norm]:
    """Return the batch normalisations of a module that keep statistics."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, Norm)}
    return {name: part for name, part in found.items() if part.running_mean is not None}


def reestimate(module: nn.Module, run: Callable[[Tensor], object], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the running means and variances of a module's batch normalisations over `batches`.

    As in training, each batch normalised by itself; the plain average over batches, which should be of one size. The
    module keeps the new statistics.
    """
    norms = normalised(module)
    momenta = {name: part.momentum for name, part in norms.items()}
    for part in norms.values():
        part.reset_running_stats()
        part.momentum = None  # the plain average
        part.train()
    with plain_operations():
        for batch in batches:
            run(batch)
    found: dict[str, Tensor] = {}
    for name, part in norms.items():
        part.eval()
        part.momentum = momenta[name]
        for kind in ("running_mean", "running_var"):
            found[f"{name}.{kind}"] = part.get_buffer(kind).detach().clone()
    return found


@dataclass(eq=False)
class Layers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the layers with weight and shift among `wanted`; with `targets`, sets what comes out of each in turn."""

    state: State
    wanted: frozenset[str]
    targets: Mapping[str, Moments] | None = None
    moments: dict[str, Moments] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(tensor): name for name, tensor in self.state.items()}
        self._kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; look at, or set, what a layer gives."""
        made, name = func(*args, **(kwargs or {})), str(func).split(".")[1]
        if name == "t" and id(args[0]) in self._names:
            self._kept.append(made)  # so that its id is not used twice
            self._names[id(made)] = self._names[id(args[0])]
        if name == "addmm":
            return self._layer(args[2], args[0], made, made.dim() - 1)
        if name == "convolution" and args[2] is not None:
            return self._layer(args[1], args[2], made, 1)
        return made

    def _layer(self, weight: Tensor, shift: Tensor, made: Tensor, axis: int) -> Tensor:
        name, other = self._names.get(id(weight)), self._names.get(id(shift))
        if name is None or other is None or name not in self.wanted or name in self.moments:
            return made
        units = made.movedim(axis, 0).flatten(1)
        mean, spread = units.mean(1), units.std(1, correction=0)
        self.moments[name] = mean, spread
        if self.targets is None:
            return made
        wanted_mean, wanted_spread = self.targets[name]
        still = (spread <= STILL) | (wanted_spread <= STILL)
        scale = torch.where(still, torch.ones_like(spread), wanted_spread / spread.clamp_min(STILL))
        along = [-1 if i == axis else 1 for i in range(made.dim())]
        rows = [-1] + [1] * (self.state[name].dim() - 1)
        self.changed[name] = self.state[name] * scale.view(rows)
        self.changed[other] = (self.state[other] - mean) * scale + wanted_mean
        return (made - mean.view(along)) * scale.view(along) + wanted_mean.view(along)


def hidden_layers(spec: Spec) -> frozenset[str]:
    """Return the weights whose outputs are units that may change places."""
    found = {place.tensor for group in spec.groups for place in group.places if place.axis == 0}
    return frozenset(name for name in found if not name.endswith("bias"))


def watch(network: Network, state: State, inputs: Tensor, wanted: frozenset[str]) -> dict[str, Moments]:
    """Return mean and spread of each unit of the wanted layers."""
    layers = Layers(cast(state, torch.float32), wanted)
    with plain_operations(), layers:
        network(layers.state, inputs)
    return layers.moments


def restore(
    network: Network, merged: State, heads: Sequence[tuple[State, float]], inputs: Tensor, spec: Spec
) -> dict[str, Tensor]:
    """Return the weights and shifts of a merged network's hidden layers, scaled as the module says.

    `heads` are the models merged with their shares, units aligned; layers are set one after another on the same inputs.
    """
    wanted, total = hidden_layers(spec), sum(share for _, share in heads)
    found = [(watch(network, state, inputs, wanted), share / total) for state, share in heads]
    targets: dict[str, Moments] = {}
    for name in found[0][0]:
        means, spreads = (sum((one[name][i] * share for one, share in found), torch.zeros(())) for i in (0, 1))
        targets[name] = means, spreads
    layers = Layers(cast(merged, torch.float32), wanted, targets)
    with plain_operations(), layers:
        network(layers.state, inputs)
    return {name: tensor.to(merged[name].dtype) for name, tensor in layers.changed.items()}
