"""What the frozen first stages of a network make of every image: computed once, kept on disk, shared by all runs.

Fine-tunings of one foundation model that leave the same stages alone need them only once for each image and augmented
view. The cache is keyed by the frozen weights, the data and the augmentation; a lock keeps two processes from
computing the same twice.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.nn import functional

from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.train.config import seed_hash
from modelgit.train.datasets import Dataset, Integers
from modelgit.train.models import Network

CHUNK = 64
GENERATION = "1"  # counts changes of the augmentation or of how features are computed


@dataclass(frozen=True, slots=True)
class Features:
    """`clean` (n, *shape) in single precision, `views` (v, m, *shape) of augmented images in half precision."""

    clean: Tensor
    views: Tensor
    position: dict[int, int]  # image index -> row of `clean`
    viewed: dict[int, int]  # image index -> row of `views`

    def of(self, indices: Integers) -> Tensor:
        """Returns the clean features of images, in single precision."""
        rows = torch.tensor([self.position[int(i)] for i in indices], device=self.clean.device)
        return laid_out(self.clean[rows].float())

    def augmented(self, indices: Sequence[int], view: Tensor) -> Tensor:
        """Returns the features of one augmented view of each image; `view` (n,) picks which."""
        rows = torch.tensor([self.viewed[i] for i in indices], device=self.views.device)
        return laid_out(self.views[view.to(self.views.device), rows].float())


def laid_out(x: Tensor) -> Tensor:
    """Returns images with channels last in memory, which is faster; other shapes as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def frozen_modules(network: Network, stages: int) -> list[nn.Module]:
    """Returns the modules of the first `stages` stages."""
    return [module for _, modules in network.stages()[:stages] for module in modules]


def run_stages(network: Network, x: Tensor, start: int, stop: int | None) -> Tensor:
    """Returns what stages `start` to `stop` make of `x`."""
    for stage, _ in network.stages()[start:stop]:
        x = stage(x)
    return x


def frozen_digest(network: Network, stages: int) -> str:
    """Returns the digest of the frozen weights."""
    total = blake3()
    for module in frozen_modules(network, stages):
        for name, tensor in sorted(module.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def features(
    network: Network, dataset: Dataset, clean: Integers, viewed: Integers, views: int, place: "Place"
) -> Features:
    """Returns the features behind the first `place.stages` stages, from the cache where they are.

    Raises:
        DataError: an image cannot be decoded.
    """
    parts = [GENERATION, frozen_digest(network, place.stages), dataset.digest, dataset.image_size, views]
    key = blake3(repr([*parts, clean.tolist(), viewed.tolist()]).encode()).hexdigest()[:32]
    if place.folder is None:
        arrays = compute(network, dataset, clean, viewed, views, place)
    else:
        place.folder.mkdir(parents=True, exist_ok=True)
        with locked(place.folder / f"{key}.lock"):
            files = [place.folder / f"{key}.clean.npy", place.folder / f"{key}.views.npy"]
            if not all(file.exists() for file in files):
                for file, array in zip(files, compute(network, dataset, clean, viewed, views, place), strict=True):
                    save(file, array)
            arrays = tuple(torch.from_numpy(np.load(file, mmap_mode="c")) for file in files)
    rows = [{int(index): row for row, index in enumerate(group)} for group in (clean, viewed)]
    return Features(arrays[0].to(place.device), arrays[1].to(place.device), rows[0], rows[1])


@dataclass(frozen=True, slots=True)
class Place:
    """Where features are computed and kept, and behind how many stages."""

    stages: int
    device: torch.device
    folder: Path | None
    listener: Listener


def compute(
    network: Network, dataset: Dataset, clean: Integers, viewed: Integers, views: int, place: Place
) -> tuple[Tensor, ...]:
    """Returns the clean features and the augmented ones (one clean pass where there are no views), on the CPU."""
    task = f"features of {Path(dataset.path).name}"
    passes = max(views, 1)
    place.listener(Started(task, len(clean) + passes * len(viewed), "images"))
    plain = embed(network, dataset, clean, None, place, task)
    others = [embed(network, dataset, viewed, view if views else None, place, task).half() for view in range(passes)]
    place.listener(Finished(task))
    return plain, torch.stack(others)


def embed(network: Network, dataset: Dataset, indices: Integers, view: int | None, place: Place, task: str) -> Tensor:
    """Returns one pass over the images, (n, *shape) on the CPU."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            pixels = torch.from_numpy(dataset.pixels(chunk.tolist()))
            if view is not None:
                pixels = augment(pixels.float(), seed_hash("augment", dataset.digest, view, start))
            rows.append(run_stages(network, network.prepare(pixels.to(place.device)), 0, place.stages).cpu())
            place.listener(Advanced(task, len(chunk)))
    return torch.cat(rows) if rows else torch.empty(0)


def augment(x: Tensor, seed: int) -> Tensor:
    """Returns images (n, 3, h, w), 0 to 255, each moved and recoloured a little."""
    draws = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return torch.rand(len(x), generator=draws) * (high - low) + low

    angle, scale, mirror = between(-0.25, 0.25), between(0.8, 1.2), between(0, 1).round() * 2 - 1
    rows = [
        torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), between(-0.15, 0.15)], 1),
        torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), between(-0.15, 0.15)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x - 255, grid, align_corners=False) + 255  # white outside
    contrast, brightness = between(0.7, 1.3).view(-1, 1, 1, 1), between(-25, 25).view(-1, 1, 1, 1)
    coloured = (moved - 128) * contrast + 128 + brightness
    grey = (between(0, 1) < 0.1).view(-1, 1, 1, 1)
    return torch.where(grey, coloured.mean(1, keepdim=True), coloured).clamp(0, 255)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock: one process computes, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def save(path: Path, array: Tensor) -> None:
    """Writes an array through a temporary name."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as file:
        np.save(file, array.numpy())
    scratch.replace(path)
