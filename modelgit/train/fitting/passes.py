"""The part of a network that is trained, as one module: what objectives, compilers and process groups see of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelgit.train.config import FineTune, seed_hash
from modelgit.train.features import frozen_modules, lengths_of, run_stages, shortened
from modelgit.train.networks.network import Network

Kept = tuple[Tensor, float | Tensor]  # which features (n, d) dropout keeps, and the share of them that it keeps
TOGETHER = 100  # positions of sequences that go through together: with fewer, products are too small to be fast
Passes = Callable[[Tensor, Kept | None], tuple[Tensor, Tensor]]


class Tail(nn.Module):
    """What lies behind the frozen stages: inputs (n, …) to features (n, d) and class scores (n, classes), in float32.

    With `checkpoint` the gradient computes each stage again instead of keeping what lies inside it. With `parts`
    sequences go in parts of a batch that are alike in length: fewer positions are filled up, the result is the same.
    """

    def __init__(self, network: Network, config: FineTune, *, parts: bool = False) -> None:
        super().__init__()
        self.network = network
        self._start, self._precision, self._checkpoint = config.frozen_stages, config.precision, config.checkpoint
        self._parts = parts

    def forward(self, x: Tensor, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Returns features, after dropout, and class scores; those that are not for a gradient in full precision."""
        with autocast(x.device, self._precision if torch.is_grad_enabled() else "float32"):
            z = self._in_parts(x) if self._parts else self._stages(x)
            if kept is not None:
                which, share = kept
                z = z * which / share
            return z.float(), apply_head(self.network, z).float()

    def _in_parts(self, x: Tensor) -> Tensor:
        lengths = lengths_of(x)
        order = lengths.argsort(stable=True)
        parts = order.tensor_split(min(len(x), max(1, int(lengths.sum()) // TOGETHER)))
        return torch.cat([self._stages(shortened(x[own])) for own in parts])[order.argsort()]

    def _stages(self, x: Tensor) -> Tensor:
        if self._checkpoint and torch.is_grad_enabled():
            return self._checkpointed(x)
        return run_stages(self.network, x, self._start, None)

    def _checkpointed(self, x: Tensor) -> Tensor:
        for number in range(self._start, len(self.network.stages())):
            x = checkpoint(run_stages, self.network, x, number, number + 1, use_reentrant=False)
        return x


def scored_by(network: Network, frozen_stages: int) -> Callable[[Tensor], Tensor]:
    """Returns what gives the class scores of what the frozen stages made of examples."""
    return lambda x: apply_head(network, run_stages(network, x, frozen_stages, None))


def compiled(tail: Tail, config: FineTune) -> Passes:
    """Returns how a step runs the tail: as it is, or compiled, on CUDA into graphs that are replayed.

    A graph leaves gradients in memory of its own, over which the next replay writes: none where they are added up.
    """
    if not config.compile:
        return tail
    graphs = next(tail.parameters()).is_cuda and config.accumulate == 1
    passes: Passes = torch.compile(tail, dynamic=False, mode="reduce-overhead" if graphs else None)

    def replayed(x: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # what the last replay left in the graph's memory is not needed
        return passes(x, kept)

    return replayed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Returns a context in which matrix products are done in the precision asked for."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def dropped(config: FineTune, stream: tuple[object, ...], shape: tuple[int, int], device: torch.device) -> Kept | None:
    """Returns what dropout keeps of features (n, d), None for all; `stream` names the draw."""
    if not config.dropout:
        return None
    draws = torch.Generator(device).manual_seed(seed_hash("dropout", config.seed, *stream))
    return torch.rand(shape, generator=draws, device=device) >= config.dropout, 1 - config.dropout


def apply_head(network: Network, z: Tensor) -> Tensor:
    """Returns the class scores of feature vectors (n, feature_size)."""
    result: Tensor = network.get_submodule(network.head_name)(z)
    return result


def freeze(network: Network, stages: int) -> None:
    """Leaves gradients to what comes behind the first `stages` stages."""
    network.eval()
    network.requires_grad_(True)
    for frozen in frozen_modules(network, stages):
        frozen.requires_grad_(False)
