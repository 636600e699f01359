"""What every network is to the trainer: an ordered list of stages, then a linear head.

The names of parameters are those of the public checkpoints, so a version can be loaded by anyone's code.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from modelgit.errors import DataError, RecipeError
from modelgit.train.data.dataset import Kind

Stage = Callable[[Tensor], Tensor]
Stages = list[tuple[Stage, Sequence[nn.Module]]]
Takes = Literal["numbers", "text"]
Inputs = Tensor | Sequence[str]


class Network(Protocol):
    """A `torch.nn.Module` with a few promises more."""

    head_name: str  # the linear layer behind the stages, as `get_submodule` knows it
    feature_size: int  # how many numbers the head reads
    takes: Takes  # numbers: images or arrays
    carries: bool  # whether versions may hold tensors that it has no use for: further heads of public checkpoints
    example: tuple[int, ...]  # the shape of an input that it takes, () for texts
    identity: str  # tells networks apart that differ in more than their weights

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns examples as the first stage wants them: one tensor (n, …), row by row independent of each other.

        Images are (n, 3, h, w) from 0 to 255, arrays (n, …) as they lie in the data set.

        Raises:
            DataError: they are of another kind or shape than the network can take.
        """

    def stages(self) -> Stages:
        """Returns the stages in order, each with the modules whose parameters it uses; the last gives (n, features)."""

    # what is used of `torch.nn.Module`

    def state_dict(self) -> dict[str, Tensor]:
        """Returns parameters and buffers by name."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Takes them over."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the parameters with their names."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the buffers with their names."""

    def modules(self) -> Iterator[nn.Module]:
        """Yields all modules."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields all modules with their names."""

    def get_submodule(self, target: str) -> nn.Module:
        """Returns a module by its name."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Says whether gradients are wanted."""

    def eval(self) -> Self:
        """Switches dropout off and statistics to the running ones."""

    def to(self, device: torch.device) -> Self:
        """Moves it."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a network is built from.

    `files` are small files of its version by path: configuration and tokenizer. `room` is how many numbers the version
    holds: more are never allocated for it. `tensors` are the names of what it holds, empty where they are not known.
    """

    architecture: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    room: int | None = None
    tensors: frozenset[str] = frozenset()


class Direct(nn.Module):
    """What a module holds itself, without its parts."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        share(self, of)


def share(holder: nn.Module, of: nn.Module) -> None:
    """Has a holder hold the parameters and buffers that a module holds itself."""
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        holder.__dict__[name] = of.__dict__[name]


def head_tensors(network: Network) -> tuple[str, str]:
    """Returns the names of the head's weight and bias in the state dict."""
    return f"{network.head_name}.weight", f"{network.head_name}.bias"


def numbers_of(inputs: Inputs, what: str) -> Tensor:
    """Returns inputs as the tensor they must be. Raises DataError for texts."""
    if not isinstance(inputs, Tensor):
        raise DataError(f"texts, and a {what} takes images or arrays", hint="for texts: architecture 'transformers'")
    return inputs


def pictures_of(inputs: Inputs, kind: Kind, what: str, channels: int = 3) -> Tensor:
    """Returns pictures (n, channels, h, w) from 0 to 255, in single precision; arrays of floats are from 0 to 1.

    Raises:
        DataError: texts, or arrays of another shape.
    """
    x = numbers_of(inputs, what)
    if x.dim() != 4 or x.shape[1] != channels:
        got = "x".join(map(str, x.shape[1:])) or "numbers"
        hint = "set image_size" if kind == "images" else "arrays need the shape that the network was made for"
        what = f"a {what} takes pictures of {channels} channels, expected shape {channels}xHxW, got {got}"
        raise DataError(what, hint=hint)
    return x * 255.0 if kind == "arrays" and x.is_floating_point() else x.float()


def refuse_odd_size(x: Tensor, multiple: int) -> None:
    """Raises DataError unless both sides of pictures are multiples of a number."""
    if x.shape[-1] % multiple or x.shape[-2] % multiple:
        size = tuple(x.shape[-2:])
        raise DataError(f"images of {size} pixels, expected multiples of {multiple}", hint="set image_size = 64")


def tried(featurizer: Stage, x: Tensor, identity: str, feature_size: int) -> Tensor:
    """Returns the features of one example. Raises DataError unless code that is not ours takes it, and gives them."""
    shape = "x".join(map(str, x.shape[1:]))
    try:
        with torch.no_grad():
            found = featurizer(x)
    except Exception as error:  # whatever it raises
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"the featurizer of {identity} cannot take an example of {shape}: {told}") from error
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if got != (1, feature_size):
        what = f"the featurizer of {identity}: expected (1, {feature_size}) of an example of {shape}, got {got}"
        raise DataError(what, hint="it must give as many numbers as the head reads")
    return found


def check_stages(network: Network, frozen: int) -> None:
    """Raises RecipeError if more stages are to stay as they are than a network has; all of them may."""
    count = len(network.stages())
    if frozen > count:
        hint = f"from 0 to {count}; {count} trains the head alone"
        raise RecipeError(f"frozen_stages = {frozen}: {network.identity} has {count} stages", hint=hint)
