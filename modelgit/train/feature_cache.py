"""What the frozen first stages of a network make of every image: computed once, kept on disk, shared by all runs.

Fine-tunings of one foundation model that leave the same stages alone need them only once for each image and augmented
view. A data set has one file of them for each network with its frozen weights, a row an example, and one for each
augmentation; whoever needs examples that are not there yet, another split or fold, adds them. A lock keeps two
processes from computing the same twice.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from modelgit.errors import DataError, StorageFull
from modelgit.events import Advanced, Finished, Started
from modelgit.train.config import seed_hash
from modelgit.train.data.dataset import Dataset, Integers, arrays_of
from modelgit.train.features import (
    CPU,
    CPU_CHUNK,
    NOTHING,
    Features,
    Place,
    Wanted,
    augment,
    frozen_modules,
    is_pooled,
    lengthened,
    lengths_of,
    run_stages,
    shortened,
)
from modelgit.train.memory import FEATURES, memory_for, ran_out
from modelgit.train.networks.network import Network

CHUNK = 64
GENERATION = "4"  # counts changes of the augmentation or of how features are computed
FREE_SHARE = 0.5  # of a GPU's free memory that features may take: the rest is for training
Array = npt.NDArray[Any]  # of single or half precision, or integers
Shape = tuple[int, ...]


def features_key(network: Network, dataset: Dataset, wanted: Wanted, stages: int) -> str:
    """Returns a name for features: a digest of all that decides them."""
    indices = wanted.clean.tolist(), wanted.viewed.tolist()
    return digest_of([*decisive(network, dataset, stages), *indices, wanted.views, wanted.augment])


def decisive(network: Network, dataset: Dataset, stages: int) -> list[object]:
    """Returns what decides the clean features of a data set."""
    frozen = [GENERATION, network.identity, stages, frozen_digest(network, stages)]
    return [*frozen, dataset.digest, dataset.shape]


def digest_of(parts: Sequence[object]) -> str:
    """Returns the digest of plain values."""
    return blake3(repr(list(parts)).encode()).hexdigest()[:32]


def frozen_digest(network: Network, stages: int) -> str:
    """Returns the digest of the frozen weights."""
    total = blake3()
    for module in frozen_modules(network, stages):
        for name, tensor in sorted(module.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


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
    whole = Whole(network, dataset, place)
    if place.folder is None:
        clean, *views = held(whole, wanted)
    else:
        clean, *views = cached(whole, wanted, place.folder)
    size = clean.size(wanted.clean) + sum(kept.size(wanted.viewed) for kept in views)
    device = place.device if fits(size, place.device) else CPU
    features, position = clean.brought(wanted.clean, device)
    augmented, viewed = views[0].brought(wanted.viewed, device) if views else (features, position)
    padded = network.takes == "text" and not is_pooled(features[0])
    return Features(features[0], augmented, position, viewed, place.device, padded)


def fits(size_bytes: int, device: torch.device) -> bool:
    """Tells whether features may lie on the device, and leave it room to train."""
    return device.type != "cuda" or size_bytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]


@dataclass(slots=True)
class Kept:
    """Features (views, rows, *shape) of a data set: a row for every example, or for those in `rows`, which are sorted.

    `done` (examples,) tells which are there.
    """

    array: Array
    done: npt.NDArray[np.bool_]
    rows: Integers | None = None

    def at(self, examples: Integers) -> Integers:
        """Returns the rows of examples."""
        return examples if self.rows is None else np.searchsorted(self.rows, examples)

    def missing(self, examples: Integers) -> Integers:
        """Returns which examples are not there yet."""
        return examples[~self.done[examples]]

    def size(self, examples: Integers) -> int:
        """Returns how many bytes examples take."""
        return len(examples) * int(self.array.nbytes // max(self.array.shape[1], 1))

    def brought(self, examples: Integers, device: torch.device) -> tuple[Tensor, dict[int, int]]:
        """Returns features on a device, and the row of each example; for a GPU they are gathered first."""
        rows, names = self.at(examples), examples.tolist()
        if device.type == "cpu":
            return torch.from_numpy(self.array), dict(zip(names, rows.tolist(), strict=True))
        return torch.from_numpy(self.array[:, rows]).to(device), {name: row for row, name in enumerate(names)}


class Whole:
    """A data set with the network that is to look at it, and where. Texts are turned into tokens at the first look."""

    def __init__(self, network: Network, dataset: Dataset, place: Place) -> None:
        self.network, self.dataset, self.place = network, dataset, place
        self._tokens: Tensor | None = None
        self._known: Integers = NOTHING

    def know(self, examples: Integers) -> None:
        """Reads texts: all that will be asked for, since they are filled up to the longest of them."""
        if self.dataset.kind == "text" and self._tokens is None:
            texts = self.dataset.inputs(examples.tolist())
            assert isinstance(texts, list)  # as the kind says
            self._tokens, self._known = self.network.prepare(texts, "text"), examples

    def ordered(self, examples: Integers) -> Integers:
        """Returns examples in the order they are best worked on: of texts that of their length."""
        if self._tokens is None:
            return examples
        lengths = lengths_of(self._tokens[np.searchsorted(self._known, examples)])
        order: Integers = lengths.argsort(stable=True).numpy()
        return examples[order]

    def read(self, examples: Integers) -> Tensor:
        """Returns examples: tokens, or images and arrays as they are."""
        if self._tokens is not None:
            return self._tokens[np.searchsorted(self._known, examples)]
        return torch.from_numpy(arrays_of(self.dataset, examples.tolist()))

    def embedded(self, inputs: Tensor) -> Tensor:
        """Returns what the frozen stages make of what was read."""
        return embedded(self.network, ready(self.network, self.dataset, inputs), self.place)

    def layout(self, example: int) -> tuple[Shape, tuple[npt.DTypeLike, npt.DTypeLike]]:
        """Returns the shape of the features of one example, and of what numbers they are: clean ones, and of views."""
        first = self.embedded(self.read(np.array([example])))
        return first.shape[1:], (np.float32, np.float16) if first.is_floating_point() else (np.int32, np.int32)


def held(whole: Whole, wanted: Wanted) -> list[Kept]:
    """Returns clean features, and those of views where there are any, in memory."""
    whole.know(np.union1d(wanted.clean, wanted.viewed))
    shape, numbers = whole.layout(int(wanted.clean[0]))
    parts = [(1, wanted.clean), (wanted.views, wanted.viewed)][: 2 if wanted.views else 1]
    found = [
        Kept(np.empty((count, len(rows), *shape), number), np.zeros(len(whole.dataset.labels), bool), rows)
        for (count, rows), number in zip(parts, numbers, strict=False)
    ]
    compute(whole, wanted, found)
    return found


def cached(whole: Whole, wanted: Wanted, folder: Path) -> list[Kept]:
    """Returns features kept in `folder`; what is not there is computed first: once, however many processes ask."""
    known = decisive(whole.network, whole.dataset, whole.place.stages)
    files = [folder / f"{digest_of(known)}.clean.npy"]
    if wanted.views:
        files.append(folder / f"{digest_of([*known, wanted.views, wanted.augment])}.views.npy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = opened(files, whole, wanted)
        if found is None:
            with ExitStack() as locks:
                for file in files:
                    locks.enter_context(locked(file.with_suffix(".lock")))
                found = opened(files, whole, wanted)
                if found is None:
                    extend(files, whole, wanted)
                    found = opened(files, whole, wanted)
    except OSError as error:
        if ran_out(error):  # a file that cannot be mapped
            raise
        raise StorageFull(f"cannot keep features in {folder}: {error}", hint="free some space there") from error
    if found is None:
        raise StorageFull(f"features kept in {folder} cannot be read back", hint=f"remove {folder}")
    return found


def opened(files: Sequence[Path], whole: Whole, wanted: Wanted) -> list[Kept] | None:
    """Returns what is kept in files, mapped into memory; None unless all that is wanted is there."""
    found = [mapped(file, len(whole.dataset.labels), "c") for file in files]
    there = [kept for kept in found if kept is not None]
    wanted_of = (wanted.clean, wanted.viewed)
    lacking = any(len(kept.missing(examples)) for kept, examples in zip(there, wanted_of, strict=False))
    return None if lacking or len(there) < len(files) else there


def mapped(file: Path, examples: int, mode: Literal["c", "r+"]) -> Kept | None:
    """Returns the features in a file; None if it is absent or damaged."""
    try:
        array, done = np.load(file, mmap_mode=mode), np.load(done_of(file))
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = array.ndim > 1 and array.shape[1] == examples and done.shape == (examples,) and done.dtype == np.bool_
    return Kept(array, done) if whole else None


def done_of(file: Path) -> Path:
    """Returns the file that tells which rows of another are there; it is written last."""
    return file.with_suffix(".done.npy")


def extend(files: Sequence[Path], whole: Whole, wanted: Wanted) -> None:
    """Adds what is not there to files; those that are absent are made, with room for all examples."""
    count = len(whole.dataset.labels)
    whole.know(np.arange(count))
    found, views = [mapped(file, count, "r+") for file in files], (1, wanted.views)
    for i in [i for i, kept in enumerate(found) if kept is None]:
        shape, numbers = whole.layout(int(wanted.clean[0]))
        found[i] = made(files[i], np.dtype(numbers[i]), (views[i], count, *shape))
    there = [kept for kept in found if kept is not None]  # all of them are, now
    lacking = [kept.missing(examples) for kept, examples in zip(there, (wanted.clean, wanted.viewed), strict=False)]
    for file, kept, examples in zip(files, there, lacking, strict=True):
        take_room(file, kept.array, examples)
    compute(whole, replace(wanted, clean=lacking[0], viewed=lacking[1] if wanted.views else NOTHING), there)
    for file, kept, examples in zip(files, there, lacking, strict=True):
        assert isinstance(kept.array, np.memmap)
        kept.array.flush()
        kept.done[examples] = True
        with scratch_for(done_of(file)) as scratch:
            np.save(scratch, kept.done)


def made(file: Path, kind: np.dtype[Any], shape: Shape) -> Kept:
    """Returns room for features in a new file, of which nothing is there yet; none of it is taken on the disk."""
    with scratch_for(file) as scratch:
        np.lib.format.open_memmap(scratch, "w+", kind, shape).flush()
        done_of(file).unlink(missing_ok=True)
    return Kept(np.load(file, mmap_mode="r+"), np.zeros(shape[1], bool))


@contextmanager
def scratch_for(file: Path) -> Iterator[Path]:
    """Yields where to write what then takes the name of `file`."""
    scratch = file.with_name(f"{file.stem}.{os.getpid()}.tmp.npy")
    try:
        yield scratch
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def take_room(file: Path, array: Array, rows: Integers) -> None:
    """Takes space on the disk for rows of an array mapped to a file: a full disk shows here, not at a later write."""
    assert isinstance(array, np.memmap)
    row = array[0, :1].nbytes
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    with file.open("r+b") as opened_file:
        for view in range(len(array)):
            for run in runs:
                if len(run):
                    place = array.offset + view * array.shape[1] * row + int(run[0]) * row
                    os.posix_fallocate(opened_file.fileno(), place, len(run) * row)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock: one process computes, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_kind(network: Network, dataset: Dataset) -> None:
    """Raises DataError unless the data is of a kind that the network takes."""
    if (dataset.kind == "text") == (network.takes == "text"):
        return
    wanted = "texts" if network.takes == "text" else "images or arrays"
    hint = "an architecture for texts: 'transformers'" if dataset.kind == "text" else "another architecture, or texts"
    raise DataError(f"{dataset.path} holds {dataset.kind}, and {network.identity} takes {wanted}", hint=hint)


def compute(whole: Whole, wanted: Wanted, into: Sequence[Kept]) -> None:
    """Computes clean and augmented features, each example read once, and puts them where they belong."""
    dataset, listener = whole.dataset, whole.place.listener
    task, viewed = f"features of {Path(dataset.path).name}", wanted.viewed if wanted.views else NOTHING
    total = len(wanted.clean) + wanted.views * len(viewed)
    listener(Started(task, total, "images" if dataset.kind == "images" else "examples"))
    order = whole.ordered(np.union1d(wanted.clean, viewed))
    for start in range(0, len(order), CHUNK):
        listener(Advanced(task, put(whole, wanted, order[start : start + CHUNK], into)))
    listener(Finished(task))


def put(whole: Whole, wanted: Wanted, chunk: Integers, into: Sequence[Kept]) -> int:
    """Puts the features of a chunk of examples where they belong and returns how many there were."""
    inputs = whole.read(chunk)
    plain = np.isin(chunk, wanted.clean)
    if plain.any():
        into[0].array[0, into[0].at(chunk[plain])] = whole.embedded(inputs[plain]).numpy()
    seen = np.isin(chunk, wanted.viewed) if wanted.views else np.zeros(len(chunk), bool)
    if not seen.any():
        return int(plain.sum())
    rows, pictures = into[1].at(chunk[seen]), inputs[seen].float()
    for view in range(wanted.views):
        seeds = [view_seed(whole.dataset, int(i), view) for i in chunk[seen]]
        found = whole.embedded(augment(pictures, wanted.augment, seeds))
        into[1].array[view, rows] = found.numpy()  # single precision is rounded to half
    return int(plain.sum() + wanted.views * seen.sum())


def view_seed(dataset: Dataset, index: int, view: int) -> int:
    """Returns the seed of one view of one image: which other images are seen changes nothing."""
    return seed_hash("augment", dataset.names[index], int(dataset.domain_ids[index]), view)


def ready(network: Network, dataset: Dataset, inputs: Tensor) -> Tensor:
    """Returns examples as the first stage wants them; texts are tokens already. Raises DataError."""
    if dataset.kind == "text":
        return inputs
    try:
        return network.prepare(inputs, dataset.kind)
    except DataError as error:
        raise DataError(f"{dataset.path}: {error.message}", hint=error.hint) from error


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
