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

from modelgit.errors import DataError, StorageFull
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.train.config import Augment, seed_hash
from modelgit.train.data.dataset import Dataset, Integers, arrays_of
from modelgit.train.memory import FEATURES, memory_for, ran_out
from modelgit.train.networks.network import Network

CHUNK = 64
CPU_CHUNK = 16  # what one core's caches hold: a third faster than 64
LOOKED_AT, SEQUENCES = 256, 64  # examples that go through the last stages together
GENERATION = "3"  # counts changes of the augmentation or of how features are computed
CPU = torch.device("cpu")
FREE_SHARE = 0.5  # of a GPU's free memory that features may take: the rest is for training
Array = npt.NDArray[Any]  # of single or half precision, or integers
Arrays = tuple[Array, Array]
Files = tuple[Path, Path]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """`clean` (n, *shape) in single precision, `views` (v, m, *shape) of augmented images in half precision.

    What is still tokens is integers in both. `padded` tells that examples are sequences, filled up to one length.
    """

    clean: Tensor
    views: Tensor
    position: dict[int, int]  # example -> row of `clean`
    viewed: dict[int, int]  # example -> row of `views`
    device: torch.device = CPU  # where they are wanted; they lie on the host where they do not fit there
    padded: bool = False

    def of(self, indices: Integers) -> Tensor:
        """Returns the clean features of examples, in single precision."""
        rows = torch.tensor([self.position[int(i)] for i in indices], device=self.clean.device)
        return self._laid_out(self.clean[rows].to(self.device))

    def augmented(self, rows: Tensor, send: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the features of augmented examples: `rows` (n,) of all views, one view after another.

        `send` brings them to where they are wanted, while they are still in half precision.
        """
        return self._laid_out(send(self.views.flatten(0, 1).index_select(0, rows)))

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
    told = found.clean if found.clean.dim() == 2 else found.clean[..., -1]
    filled = told[[found.position[int(i)] for i in indices]].ne(0).sum(1)
    return np.asarray(np.argsort(filled.cpu().numpy(), kind="stable"))


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
    frozen = [GENERATION, network.identity, stages, frozen_digest(network, stages)]
    data = [dataset.digest, dataset.shape, wanted.clean.tolist(), wanted.viewed.tolist(), wanted.views]
    return blake3(repr([*frozen, *data, wanted.augment]).encode()).hexdigest()[:32]


def features(network: Network, dataset: Dataset, wanted: Wanted, place: Place) -> Features:
    """Returns the features behind the first `place.stages` stages, from the cache where they are.

    Raises:
        DataError: an example cannot be read, or is nothing that the network takes.
        StorageFull: the cache cannot be written. OutOfMemory.
    """
    check_kind(network, dataset)
    with memory_for(f"features of {Path(dataset.path).name}", FEATURES):
        return placed(network, dataset, wanted, place)


def placed(network: Network, dataset: Dataset, wanted: Wanted, place: Place) -> Features:
    """Returns features on the device where they fit there."""
    if place.folder is None:
        arrays = compute(network, dataset, wanted, place, None)
    else:
        arrays = cached(network, dataset, wanted, place, place.folder)
    rows = [{int(index): row for row, index in enumerate(group)} for group in (wanted.clean, wanted.viewed)]
    clean, views = (torch.from_numpy(array) for array in arrays)
    if fits(clean.nbytes + views.nbytes, place.device):
        clean, views = clean.to(place.device), views.to(place.device)
    padded = network.takes == "text" and (clean.dim() == 3 or not clean.is_floating_point())
    return Features(clean, views, rows[0], rows[1], place.device, padded)


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
        if ran_out(error):  # a file that cannot be mapped
            raise
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


def check_kind(network: Network, dataset: Dataset) -> None:
    """Raises DataError unless the data is of a kind that the network takes."""
    if (dataset.kind == "text") == (network.takes == "text"):
        return
    wanted = "texts" if network.takes == "text" else "images or arrays"
    hint = "an architecture for texts: 'transformers'" if dataset.kind == "text" else "another architecture, or texts"
    raise DataError(f"{dataset.path} holds {dataset.kind}, and {network.identity} takes {wanted}", hint=hint)


def compute(network: Network, dataset: Dataset, wanted: Wanted, place: Place, files: Files | None) -> Arrays:
    """Computes clean and augmented features, each example read once; straight into `files` if there are any."""
    task = f"features of {Path(dataset.path).name}"
    everything = np.union1d(wanted.clean, wanted.viewed)
    total = len(wanted.clean) + wanted.passes * len(wanted.viewed)
    place.listener(Started(task, total, "images" if dataset.kind == "images" else "examples"))
    order, read = reader(network, dataset, everything)
    first = embedded(network, ready(network, dataset, read(order[:1])), place)
    shape = first.shape[1:]
    shapes = (len(wanted.clean), *shape), (wanted.passes, len(wanted.viewed), *shape)
    kinds = (np.float32, np.float16) if first.is_floating_point() else (np.int32, np.int32)
    with filled(files, shapes, kinds) as arrays:
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            done = put(network, dataset, wanted, place, (chunk, read(chunk), arrays))
            place.listener(Advanced(task, done))
    place.listener(Finished(task))
    return arrays


def reader(network: Network, dataset: Dataset, indices: Integers) -> tuple[Integers, Callable[[Integers], Tensor]]:
    """Returns examples in the order they are best worked on, and what reads some of them.

    Texts are turned into tokens at once, filled up to the longest, and come in the order of their length.
    """
    if dataset.kind != "text":
        return indices, lambda chunk: torch.from_numpy(arrays_of(dataset, chunk.tolist()))
    texts = dataset.inputs(indices.tolist())
    assert isinstance(texts, list)  # as the kind says
    tokens = network.prepare(texts, "text")
    lengths = tokens.ne(0).sum(1).numpy()
    return indices[np.argsort(lengths, kind="stable")], lambda chunk: tokens[np.searchsorted(indices, chunk)]


def ready(network: Network, dataset: Dataset, inputs: Tensor) -> Tensor:
    """Returns examples as the first stage wants them; texts are tokens already. Raises DataError."""
    if dataset.kind == "text":
        return inputs
    try:
        return network.prepare(inputs, dataset.kind)
    except DataError as error:
        raise DataError(f"{dataset.path}: {error.message}", hint=error.hint) from error


def put(network: Network, dataset: Dataset, wanted: Wanted, place: Place, work: tuple[Integers, Tensor, Arrays]) -> int:
    """Puts the features of a chunk of examples where they belong and returns how many there were."""
    chunk, inputs, (clean, views) = work
    plain, seen = np.isin(chunk, wanted.clean), np.isin(chunk, wanted.viewed)

    def features_of(x: Tensor) -> Tensor:
        return embedded(network, ready(network, dataset, x), place)

    if plain.any():
        clean[np.searchsorted(wanted.clean, chunk[plain])] = features_of(inputs[plain]).numpy()
    if not seen.any():
        return int(plain.sum())
    rows = np.searchsorted(wanted.viewed, chunk[seen])
    for view in range(wanted.passes):
        x = inputs[seen]
        if wanted.views:
            x = augment(x.float(), wanted.augment, [view_seed(dataset, int(i), view) for i in chunk[seen]])
        views[view, rows] = features_of(x).numpy()  # single precision is rounded to half
    return int(plain.sum() + wanted.passes * seen.sum())


def view_seed(dataset: Dataset, index: int, view: int) -> int:
    """Returns the seed of one view of one image: which other images are seen changes nothing."""
    return seed_hash("augment", dataset.names[index], int(dataset.domain_ids[index]), view)


def embedded(network: Network, x: Tensor, place: Place) -> Tensor:
    """Returns what the frozen stages make of prepared examples, on the CPU; sequences keep their length."""
    size = CPU_CHUNK if place.device.type == "cpu" else CHUNK
    rows = []
    with torch.no_grad():
        for part in torch.split(x, size):
            whole = part.shape[1]
            part = shortened(part) if network.takes == "text" else part
            found = run_stages(network, part.to(place.device), 0, place.stages).cpu()
            rows.append(found if network.takes != "text" or is_pooled(found) else lengthened(found, whole))
    return torch.cat(rows)


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock: one process computes, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def filled(
    files: Files | None, shapes: tuple[Shape, Shape], numbers: tuple[npt.DTypeLike, npt.DTypeLike]
) -> Iterator[Arrays]:
    """Yields arrays to fill; what is mapped to files gets its name when all is written."""
    kinds = [np.dtype(number) for number in numbers]
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
