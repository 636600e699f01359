"""Low-rank adaptation: of a linear layer y = W x + b only a change of low rank is trained, (alpha / r) B A x.

A (r, inputs) begins Kaiming-uniform, B (outputs, r) at zero, so training begins at the start's very outputs (Hu et al.
2021, arXiv:2106.09685, section 4.1). Tensors are named as PEFT names them in its files.
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import RecipeError
from modelgit.train.choices import Lora
from modelgit.train.config import seed_hash
from modelgit.train.features import frozen_modules
from modelgit.train.networks.network import Network, head_tensors

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
State = Mapping[str, Tensor]


class Adapted(nn.Linear):
    """A linear layer whose own weights stay, with its factors."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    scaling: float

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        change: Tensor = self.lora_B(self.lora_A(input)) * self.scaling
        return functional.linear(input, self.weight, self.bias) + change


class Turned(nn.Module):
    """The same for a layer y = x W + b, whose matrix (inputs, outputs) is kept turned: `Conv1D` of transformers."""

    weight: Tensor
    bias: Tensor
    lora_A: nn.Linear
    lora_B: nn.Linear
    scaling: float

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        plain = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)
        change: Tensor = self.lora_B(self.lora_A(x)) * self.scaling
        return plain + change


def adapt(network: Network, lora: Lora, frozen_stages: int, seed: int) -> None:
    """Gives factors to the layers that the recipe names; in place, so that whoever holds a layer sees it adapted.

    Raises:
        RecipeError: a name that no linear layer behind the frozen stages has, or factors as large as the matrix.
    """
    for name, layer in targets(network, lora.targets, frozen_stages).items():
        turned, matrix = is_turned(layer), cast(Tensor, layer.weight)
        outputs, inputs = matrix.shape[::-1] if turned else matrix.shape
        if lora.rank >= min(outputs, inputs):
            what = f"lora.rank = {lora.rank}: expected less than {min(outputs, inputs)}: '{name}' is {outputs}x{inputs}"
            raise RecipeError(what, hint="factors of a lower rank, or other targets")
        layer.__class__ = Turned if turned else Adapted
        adapted = cast(Turned | Adapted, layer)
        adapted.lora_A, adapted.lora_B = (
            nn.Linear(inner, outer, bias=False, device=matrix.device)
            for inner, outer in ((inputs, lora.rank), (lora.rank, outputs))
        )
        adapted.scaling = lora.alpha / lora.rank
        draws = torch.Generator().manual_seed(seed_hash("lora", seed, name))
        with torch.no_grad():
            adapted.lora_A.weight.copy_((2 * torch.rand(lora.rank, inputs, generator=draws) - 1) * inputs**-0.5)
            adapted.lora_B.weight.zero_()


def targets(network: Network, wanted: Sequence[str], frozen_stages: int) -> dict[str, nn.Module]:
    """Returns the linear layers to adapt by name: those whose last parts are wanted; all but the head if none are."""
    frozen = {part for module in frozen_modules(network, frozen_stages) for part in module.modules()}
    known = {
        name: module
        for name, module in network.named_modules()
        if (is_linear(module) or is_turned(module)) and name != network.head_name and module not in frozen
    }
    if absent := [w for w in wanted if not any(f".{name}".endswith(f".{w}") for name in known)]:
        raise RecipeError(f"lora.targets: no layer to adapt is called '{absent[0]}'", hint=hint_of(known))
    found = {n: m for n, m in known.items() if not wanted or any(f".{n}".endswith(f".{w}") for w in wanted)}
    if not found:
        raise RecipeError("lora: there is no linear layer to adapt behind the frozen stages", hint=hint_of(known))
    sorts = {is_turned(module): name for name, module in found.items()}
    if len(sorts) > 1:
        what = (
            f"lora.targets: '{sorts[True]}' keeps its matrix turned, '{sorts[False]}' does not: PEFT knows one for all"
        )
        raise RecipeError(what, hint="name the ones or the others")
    return found


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Tells whether a layer computes y = W x + b, and nothing more: adapted layers, and others' own kinds, do not."""
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return plain and "weight" in dict(module.named_parameters(recurse=False))  # it may be made of others


def is_turned(module: nn.Module) -> bool:
    """Tells whether a layer is y = x W + b of transformers; the library need not be loaded to find out."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def keeps_turned(network: Network) -> bool:
    """Tells whether the layers that were adapted keep their matrices turned."""
    return any(isinstance(module, Turned) for module in network.modules())


def hint_of(known: Mapping[str, nn.Module]) -> str:
    """Returns the names that targets can have, the last parts of layers."""
    names = sorted({name.rpartition(".")[2] if not name.rpartition(".")[2].isdigit() else name for name in known})
    return f"linear layers behind the frozen stages: {', '.join(names[:12]) or 'none; freeze fewer'}"


def leave_to_factors(network: Network) -> None:
    """Leaves gradients to factors and head."""
    head = head_tensors(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith((A, B)) or name in head)


def adapter_of(network: Network) -> dict[str, Tensor]:
    """Returns a copy of the factors and of the head, on the CPU, by PEFT's names."""
    head = head_tensors(network)
    return {
        PREFIX + name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in network.state_dict().items()
        if name.endswith((A, B)) or name in head
    }


def modules_of(adapter: State) -> tuple[str, ...]:
    """Returns the names of the layers that an adapter has factors of, sorted."""
    return tuple(sorted(name.removeprefix(PREFIX).removesuffix(A) for name in adapter if name.endswith(A)))
