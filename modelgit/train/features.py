"""What the frozen first stages of a network make of every image: computed once, kept on disk, shared by all runs.

Fine-tunings of one foundation model that leave the same stages alone need them only once for each image and augmented
view. The cache is keyed by the frozen weights, the data and the augmentation; a lock keeps two processes from
computing the same twice.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import StorageFull
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.train.config import Augment, seed_hash
from modelgit.train.data.dataset import Dataset, Integers, arrays_of
from modelgit.train.models import Network

CHUNK = 64
CPU_CHUNK = 16  # what one core's caches hold: a third faster than 64
GENERATION = "2"  # counts changes of the augmentation or of how features are computed
CPU = torch.device("cpu")
FREE_SHARE = 0.5  # of a GPU's free memory that features may take: the rest is for training
Array = npt.NDArray[np.floating[Any]]  # of single or half precision
Arrays = tuple[Array, Array]
Files = tuple[Path, Path]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """`clean` (n, *shape) in single precision, `views` (v, m, *shape) of augmented images in half precision."""

    clean: Tensor
    views: Tensor
    position: dict[int, int]  # image index -> row of `clean`
    viewed: dict[int, int]  # image index -> row of `views`
    device: torch.device = CPU  # where they are wanted; they lie on the host where they do not fit there

    def of(self, indices: Integers) -> Tensor:
        """Returns the clean features of images, in single precision."""
        rows = torch.tensor([self.position[int(i)] for i in indices], device=self.clean.device)
        return laid_out(self.clean[rows].to(self.device).float())

    def augmented(self, rows: Tensor, view: Tensor, send: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the features of an augmented view of each image: `rows` (n,) of `views`, `view` (n,) which.

        `send` brings them to where they are wanted, while they are still in half precision.
        """
        found = self.views[view, rows]
        return laid_out((found if send is None else send(found)).float())


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where features are computed and kept, and behind how many stages."""

    stages: int
    device: torch.device
    folder: Path | None
    listener: Listener


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which images are wanted as they are, which augmented, and in how many views (0: as they are, once)."""

    clean: Integers
    viewed: Integers
    views: int
    augment: Augment

    @property
    def passes(self) -> int:
        """How many rows there are for every viewed image."""
        return max(self.views, 1)


def features_key(network: Network, dataset: Dataset, wanted: Wanted, stages: int) -> str:
    """Returns the name that features are kept under: a digest of all that decides them."""
    frozen = [GENERATION, type(network).__name__, stages, frozen_digest(network, stages)]
    data = [dataset.digest, dataset.shape, wanted.clean.tolist(), wanted.viewed.tolist(), wanted.views]
    return blake3(repr([*frozen, *data, wanted.augment]).encode()).hexdigest()[:32]


def features(network: Network, dataset: Dataset, wanted: Wanted, place: Place) -> Features:
    """Returns the features behind the first `place.stages` stages, from the cache where they are.

    Raises:
        DataError: an image cannot be decoded. StorageFull: the cache cannot be written.
    """
    if place.folder is None:
        arrays = compute(network, dataset, wanted, place, None)
    else:
        arrays = cached(network, dataset, wanted, place, place.folder)
    rows = [{int(index): row for row, index in enumerate(group)} for group in (wanted.clean, wanted.viewed)]
    clean, views = (torch.from_numpy(array) for array in arrays)
    if fits(clean.nbytes + views.nbytes, place.device):
        clean, views = clean.to(place.device), views.to(place.device)
    return Features(clean, views, rows[0], rows[1], place.device)


def fits(size_bytes: int, device: torch.device) -> bool:
    """Tells whether features may lie on the device, and leave it room to train."""
    return device.type != "cuda" or size_bytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]


def cached(network: Network, dataset: Dataset, wanted: Wanted, place: Place, folder: Path) -> Arrays:
    """Returns the features kept in `folder`, computed first if they are not there: once, however many processes ask."""
    key = features_key(network, dataset, wanted, place.stages)
    files = (folder / f"{key}.clean.npy", folder / f"{key}.views.npy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            found = opened(files, wanted)
            if found is None:
                compute(network, dataset, wanted, place, files)
                found = opened(files, wanted)
    except OSError as error:
        raise StorageFull(f"cannot keep features in {folder}: {error}", hint="free some space there") from error
    if found is None:
        raise StorageFull(f"features kept in {folder} cannot be read back", hint=f"remove {folder}")
    return found


def opened(files: Files, wanted: Wanted) -> Arrays | None:
    """Returns the arrays in `files`, mapped into memory; None if they are absent or damaged."""
    try:
        clean, views = (np.load(file, mmap_mode="c") for file in files)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = len(clean) == len(wanted.clean) and views.shape[:2] == (wanted.passes, len(wanted.viewed))
    return (clean, views) if whole else None


def compute(network: Network, dataset: Dataset, wanted: Wanted, place: Place, files: Files | None) -> Arrays:
    """Computes clean and augmented features, each image decoded once; straight into `files` if there are any."""
    task = f"features of {Path(dataset.path).name}"
    everything = np.union1d(wanted.clean, wanted.viewed)
    place.listener(Started(task, len(wanted.clean) + wanted.passes * len(wanted.viewed), "images"))
    first = arrays_of(dataset, everything[:1].tolist())
    shape = embedded(network, torch.from_numpy(first), place).shape[1:]
    shapes = (len(wanted.clean), *shape), (wanted.passes, len(wanted.viewed), *shape)
    with filled(files, shapes) as arrays:
        for start in range(0, len(everything), CHUNK):
            chunk = everything[start : start + CHUNK]
            done = put(network, dataset, wanted, place, (chunk, arrays))
            place.listener(Advanced(task, done))
    place.listener(Finished(task))
    return arrays


def put(network: Network, dataset: Dataset, wanted: Wanted, place: Place, target: tuple[Integers, Arrays]) -> int:
    """Puts the features of a chunk of images where they belong and returns how many there were."""
    chunk, (clean, views) = target
    pixels = torch.from_numpy(arrays_of(dataset, chunk.tolist()))
    plain, seen = np.isin(chunk, wanted.clean), np.isin(chunk, wanted.viewed)
    if plain.any():
        clean[np.searchsorted(wanted.clean, chunk[plain])] = embedded(network, pixels[plain], place).numpy()
    if not seen.any():
        return int(plain.sum())
    rows = np.searchsorted(wanted.viewed, chunk[seen])
    for view in range(wanted.passes):
        x = pixels[seen]
        if wanted.views:
            x = augment(x.float(), wanted.augment, [view_seed(dataset, int(i), view) for i in chunk[seen]])
        views[view, rows] = embedded(network, x, place).half().numpy()
    return int(plain.sum() + wanted.passes * seen.sum())


def view_seed(dataset: Dataset, index: int, view: int) -> int:
    """Returns the seed of one view of one image: which other images are seen changes nothing."""
    return seed_hash("augment", dataset.names[index], int(dataset.domain_ids[index]), view)


def embedded(network: Network, pixels: Tensor, place: Place) -> Tensor:
    """Returns the features of images (n, 3, h, w), 0 to 255, on the CPU."""
    chunk = CPU_CHUNK if place.device.type == "cpu" else CHUNK
    with torch.no_grad():
        rows = [
            run_stages(network, network.prepare(pixels[start : start + chunk].to(place.device)), 0, place.stages).cpu()
            for start in range(0, len(pixels), chunk)
        ]
    return torch.cat(rows)


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock: one process computes, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def filled(files: Files | None, shapes: tuple[Shape, Shape]) -> Iterator[Arrays]:
    """Yields arrays to fill, single then half precision; what is mapped to files gets its name when all is written."""
    kinds: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float16)]
    if files is None:
        yield np.empty(shapes[0], kinds[0]), np.empty(shapes[1], kinds[1])
        return
    scratch = [file.with_name(f"{file.name}.{os.getpid()}.tmp") for file in files]
    try:
        maps = [reserved(*each) for each in zip(scratch, kinds, shapes, strict=True)]
        yield maps[0], maps[1]
        for path, array, file in zip(scratch, maps, files, strict=True):
            array.flush()
            path.replace(file)
    finally:
        for path in scratch:
            path.unlink(missing_ok=True)


def reserved(path: Path, kind: np.dtype[Any], shape: Shape) -> "np.memmap[Any, Any]":
    """Returns an array mapped to a new .npy file whose space is taken: a full disk shows here, not at a later write."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", kind, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
    return array
