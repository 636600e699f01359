"""What the frozen first stages of a network make of every image, as the last stages look at it: in their order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.events import Listener
from modelgit.train.config import Augment
from modelgit.train.data.dataset import Integers
from modelgit.train.networks.network import Network

CPU_CHUNK = 16  # what one core's caches hold: a third faster than 64
LOOKED_AT, SEQUENCES = 256, 64  # examples that go through the last stages together
CPU = torch.device("cpu")
NOTHING, EVERY = np.empty(0, np.int64), slice(None)


@dataclass(frozen=True, slots=True)
class Features:
    """`clean` (n, *shape) in single precision, `views` (v, m, *shape) of augmented images in half precision.

    Without augmentation `views` are the clean ones, (1, n, *shape). What is still tokens is integers in both. `padded`
    tells that examples are sequences, filled up to one length.
    """

    clean: Tensor
    views: Tensor
    position: Mapping[int, int]  # example -> row of `clean`
    viewed: Mapping[int, int]  # example -> row of `views`
    device: torch.device = CPU  # where they are wanted; they lie on the host where they do not fit there
    padded: bool = False

    def of(self, indices: Integers) -> Tensor:
        """Returns the clean features of examples, in single precision."""
        rows = torch.tensor([self.position[int(i)] for i in indices], device=self.clean.device)
        return self._laid_out(self.clean[rows].to(self.device))

    def augmented(self, rows: Tensor, send: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the features of augmented examples: `rows` (n,) of all views, one view after another.

        They are rounded to half precision; `send` brings them so to where they are wanted.
        """
        found = self.views.flatten(0, 1).index_select(0, rows)
        return self._laid_out(send(found.half() if found.is_floating_point() else found))

    def _laid_out(self, x: Tensor) -> Tensor:
        x = laid_out(x.float() if x.is_floating_point() else x)
        return shortened(x) if self.padded and x.device.type == "cpu" else x  # elsewhere a look would have to wait


def laid_out(x: Tensor) -> Tensor:
    """Returns images with channels last in memory, which is faster; other shapes as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def shortened(x: Tensor) -> Tensor:
    """Returns sequences without the positions at the end that are empty in all of them.

    Tokens (n, length) are 0 where there is none, hidden states (n, length, d + 1) have a last channel that says so.
    """
    filled = (x if x.dim() == 2 else x[..., -1]).ne(0).any(0).nonzero()
    return x[:, : int(filled[-1]) + 1] if len(filled) else x[:, :1]


def in_chunks(found: Features, indices: Integers) -> Iterator[tuple[Integers, Tensor]]:
    """Yields the clean features of examples, so many as are best looked at together, with their places in `indices`.

    Sequences come in the order of their length, so that few are filled up.
    """
    order = by_length(found, indices)
    step = LOOKED_AT if order is None else SEQUENCES
    places = np.arange(len(indices)) if order is None else order
    for start in range(0, len(indices), step):
        own = places[start : start + step]
        yield own, found.of(indices[own])


def by_length(found: Features, indices: Integers) -> Integers | None:
    """Returns the places of sequences in the order of their length; None for all else."""
    if not found.padded:
        return None
    filled = lengths_of(found.clean, [found.position[int(i)] for i in indices])
    return np.asarray(np.argsort(filled.cpu().numpy(), kind="stable"))


def lengths_of(x: Tensor, rows: list[int] | slice = EVERY) -> Tensor:
    """Returns the lengths of sequences, or of some: of tokens, or of hidden states (see `shortened`)."""
    return (x if x.dim() == 2 else x[..., -1])[rows].ne(0).sum(1)


def frozen_modules(network: Network, stages: int) -> list[nn.Module]:
    """Returns the modules of the first `stages` stages."""
    return [module for _, modules in network.stages()[:stages] for module in modules]


def run_stages(network: Network, x: Tensor, start: int, stop: int | None) -> Tensor:
    """Returns what stages `start` to `stop` make of `x`."""
    for stage, _ in network.stages()[start:stop]:
        x = stage(x)
    return x


@dataclass(frozen=True, slots=True)
class Place:
    """Where features are computed and kept, and behind how many stages."""

    stages: int
    device: torch.device
    folder: Path | None
    listener: Listener


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which images are wanted as they are, which augmented, and in how many views.

    Both sorted; with no views those are among the clean ones, and taken as they are.
    """

    clean: Integers
    viewed: Integers
    views: int
    augment: Augment


def is_pooled(x: Tensor) -> bool:
    """Tells whether sequences have become vectors (n, features)."""
    return x.dim() == 2 and x.is_floating_point()


def even(parts: Sequence[Tensor]) -> list[Tensor]:
    """Returns sequences (n, length, …) filled up to the longest of all."""
    longest = max(part.shape[1] for part in parts)
    return [lengthened(part, longest) for part in parts]


def lengthened(x: Tensor, length: int) -> Tensor:
    """Returns sequences (n, shorter, …) filled up with zeros, (n, length, …)."""
    missing = length - x.shape[1]
    return functional.pad(x, (0, missing) if x.dim() == 2 else (0, 0, 0, missing))


def augment(x: Tensor, amounts: Augment, seeds: Sequence[int]) -> Tensor:
    """Returns images (n, 3, h, w), 0 to 255, each moved and recoloured a little, as its seed says."""
    unit = torch.stack([torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).unbind(1)
    angle, down, across, contrast, brightness = (
        (2 * u - 1) * amount
        for u, amount in zip(
            unit, (amounts.rotation, amounts.shift, amounts.shift, amounts.contrast, amounts.brightness), strict=False
        )
    )
    scale = 1 + (2 * unit[5] - 1) * amounts.scale
    mirror = 1 - 2 * (unit[6] < amounts.mirror).float()
    rows = [
        torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), across], 1),
        torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), down], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x - 255, grid, align_corners=False) + 255  # white outside
    coloured = (moved - 128) * (1 + contrast).view(-1, 1, 1, 1) + 128 + brightness.view(-1, 1, 1, 1)
    grey = (unit[7] < amounts.grey).view(-1, 1, 1, 1)
    return torch.where(grey, coloured.mean(1, keepdim=True), coloured).clamp(0, 255)
