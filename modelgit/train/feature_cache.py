"""What the frozen first stages of a network make of every image: computed once, kept on disk, shared by all runs.

Fine-tunings of one foundation model that leave the same stages alone need them only once for each image and augmented
view. A data set has one file of them for each network with its frozen weights, a row an example, and one for each
augmentation; whoever needs examples that are not there yet, another split or fold, adds them. A lock keeps two
processes from computing the same twice.
"""

import errno
import fcntl
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from modelgit.errors import DataError, StorageFull
from modelgit.events import Advanced, Finished, Started
from modelgit.train.config import Augment, seed_hash
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
UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # sets no memory aside for copies
SENT = 4096  # examples that are sent to a GPU at a time
GENERATION = "5"  # counts changes of the augmentation or of how features are computed
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

    `done` (examples,) is 1 for those that are there. Both may lie in a file, then `lying` is it, as it is mapped.
    """

    array: Array
    done: npt.NDArray[np.uint8]
    rows: Integers | None = None
    lying: mmap.mmap | None = None

    def missing(self, examples: Integers) -> Integers:
        """Returns which examples are not there yet."""
        lacking: Integers = examples[self.done[examples] != 1]
        return lacking

    def put(self, view: int, examples: Integers, found: Tensor) -> None:
        """Enters a view of examples, those that have a row; single precision is rounded to half where that is kept."""
        if self.rows is None:
            self.array[view, examples] = found.numpy()
            return
        own = np.isin(examples, self.rows)
        self.array[view, np.searchsorted(self.rows, examples[own])] = found.numpy()[own]

    def size(self, examples: Integers) -> int:
        """Returns how many bytes examples take."""
        return len(examples) * int(self.array.nbytes // max(self.array.shape[1], 1))

    def brought(self, examples: Integers, device: torch.device) -> tuple[Tensor, dict[int, int]]:
        """Returns features on a device, and which row each example has; a GPU is sent no others."""
        rows, names = examples if self.rows is None else np.searchsorted(self.rows, examples), examples.tolist()
        if device.type == "cpu":
            return torch.from_numpy(self.array), dict(zip(names, rows.tolist(), strict=True))
        kind = torch.from_numpy(self.array[:, :0]).dtype
        sent = torch.empty((len(self.array), len(rows), *self.array.shape[2:]), dtype=kind, device=device)
        for start in range(0, len(rows), SENT):
            some = rows[start : start + SENT]
            sent[:, start : start + len(some)] = torch.from_numpy(self.array[:, some]).to(device)
        return sent, {name: row for row, name in enumerate(names)}


class Whole:
    """A data set with the network that is to look at it, and where.

    Examples go through the network in blocks that are the same whoever asks for which of them: what is made of one
    depends, in the last bits, on those beside it. Of texts a block is alike in length.
    """

    def __init__(self, network: Network, dataset: Dataset, place: Place) -> None:
        self.network, self.dataset, self.place = network, dataset, place
        self.count = len(dataset.labels)

    @cached_property
    def tokens(self) -> Tensor | None:
        """All texts as tokens, filled up to the longest; None for all else."""
        if self.dataset.kind != "text":
            return None
        texts = self.dataset.inputs(range(self.count))
        assert isinstance(texts, list)  # as the kind says
        return self.network.prepare(texts, "text")

    @cached_property
    def blocks(self) -> list[Integers]:
        """All examples, in the blocks that they go through the network in."""
        order: Integers = np.arange(self.count)
        if self.tokens is not None:
            order = lengths_of(self.tokens).argsort(stable=True).numpy()
        return [order[start : start + CHUNK] for start in range(0, self.count, CHUNK)]

    def around(self, examples: Integers) -> list[Integers]:
        """Returns the blocks that hold any of the examples."""
        asked = np.zeros(self.count, bool)
        asked[examples] = True
        return [block for block in self.blocks if asked[block].any()]

    def read(self, examples: Integers) -> Tensor:
        """Returns examples: tokens, or images and arrays as they are."""
        if self.tokens is not None:
            return self.tokens[examples]
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
    shape, numbers = whole.layout(int(wanted.clean[0]))
    parts = [(1, wanted.clean), (wanted.views, wanted.viewed)][: 2 if wanted.views else 1]
    found = [
        Kept(np.empty((count, len(rows), *shape), number), np.zeros(whole.count, np.uint8), rows)
        for (count, rows), number in zip(parts, numbers, strict=False)
    ]
    compute(whole, wanted.augment, found, [whole.around(rows) for _, rows in parts])
    return found


def cached(whole: Whole, wanted: Wanted, folder: Path) -> list[Kept]:
    """Returns features kept in `folder`; what is not there is computed first: once, however many processes ask."""
    known = decisive(whole.network, whole.dataset, whole.place.stages)
    asked = {folder / f"{digest_of(known)}.clean.npy": wanted.clean}
    if wanted.views:
        asked[folder / f"{digest_of([*known, wanted.views, wanted.augment])}.views.npy"] = wanted.viewed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = opened(asked, whole.count)
        if found is None:
            with ExitStack() as locks:
                for file in asked:
                    locks.enter_context(locked(file.with_suffix(".lock")))
                found = opened(asked, whole.count) or extended(asked, whole, wanted)
    except OSError as error:
        if ran_out(error):  # a file that cannot be mapped
            raise
        raise StorageFull(f"cannot keep features in {folder}: {error}", hint="free some space there") from error
    return found


# ------------------------------------------------------------------------------------------------------- files


def opened(asked: Mapping[Path, Integers], examples: int) -> list[Kept] | None:
    """Returns what is kept in files, mapped into memory; None unless all that is asked of each is there."""
    found = list[Kept]()
    for file, wanted in asked.items():
        try:
            with file.open("rb") as handle:
                kept = mapped(handle, examples, shared=False)
        except FileNotFoundError:
            return None
        if kept is None or len(kept.missing(wanted)):
            return None
        found.append(kept)
    return found


def extended(asked: Mapping[Path, Integers], whole: Whole, wanted: Wanted) -> list[Kept]:
    """Returns what is kept in files after adding what is missing; those that are absent or damaged are made."""
    with ExitStack() as stack:
        kinds = ((0, 1), (1, wanted.views))  # which numbers they are, and how many views
        handles = [usable(file, whole, kind, stack) for file, kind in zip(asked, kinds, strict=False)]
        there = [mapped_whole(handle, whole.count) for handle in handles]
        blocks = [whole.around(kept.missing(each)) for kept, each in zip(there, asked.values(), strict=True)]
        rows = [np.sort(np.concatenate([NOTHING, *some])) for some in blocks]
        for handle, kept, some in zip(handles, there, rows, strict=True):
            take_room(handle, kept.array, some)
        compute(whole, wanted.augment, there, blocks)
        for kept, some in zip(there, rows, strict=True):
            assert kept.lying is not None
            kept.lying.flush()
            kept.done[some] = 1  # in the same file: it speaks of no other
            kept.lying.flush()
        again = [mapped(handle, whole.count, shared=False) for handle in handles]
    return [kept for kept in again if kept is not None]  # all of them are: they are mapped already


def usable(file: Path, whole: Whole, what: tuple[int, int], stack: ExitStack) -> BinaryIO:
    """Returns a file of features, open to be added to: the one that is there, or a new one with nothing done yet."""
    try:
        handle = stack.enter_context(file.open("r+b"))
        if mapped(handle, whole.count, shared=False) is not None:
            return handle
    except FileNotFoundError:
        pass
    (shape, numbers), (number, views) = whole.layout(int(whole.blocks[0][0])), what
    scratch = file.with_name(f"{file.stem}.{os.getpid()}.tmp")
    try:
        made = stack.enter_context(scratch.open("w+b"))
        kind = np.dtype(numbers[number])
        header = {"descr": kind.str, "fortran_order": False, "shape": (views, whole.count, *shape)}
        np.lib.format.write_array_header_1_0(made, header)
        size = views * whole.count * math.prod(shape) * kind.itemsize
        made.truncate(made.tell() + size + whole.count)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return made


def mapped_whole(handle: BinaryIO, examples: int) -> Kept:
    """Returns the features of a file that is known to be whole, to be written to."""
    kept = mapped(handle, examples, shared=True)
    assert kept is not None
    return kept


def mapped(handle: BinaryIO, examples: int, *, shared: bool) -> Kept | None:
    """Returns the features in a file, a .npy with a byte more for each example: 1 where it is there.

    Not shared, nothing is written back. None for a file that is damaged.
    """
    handle.seek(0)
    try:
        if np.lib.format.read_magic(handle) != (1, 0):
            return None
        shape, fortran, kind = np.lib.format.read_array_header_1_0(handle)
    except ValueError:
        return None
    start, size = handle.tell(), math.prod(shape) * kind.itemsize
    whole = len(shape) > 1 and shape[1] == examples and not fortran and not kind.hasobject
    if not whole or handle.seek(0, os.SEEK_END) != start + size + examples:
        return None
    way = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | UNRESERVED
    lying = mmap.mmap(handle.fileno(), 0, flags=way, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    array: Array = np.ndarray(shape, kind, lying, start)
    return Kept(array, np.ndarray((examples,), np.uint8, lying, start + size), None, lying)


def take_room(handle: BinaryIO, array: Array, rows: Integers) -> None:
    """Takes space on the disk for rows of an array in a file: a full disk shows here, not at a later write."""
    if not len(rows):
        return
    row, place = array[0, :1].nbytes, os.fstatvfs(handle.fileno())
    if (needed := len(array) * len(rows) * row) > place.f_bavail * place.f_frsize:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed:,} bytes are needed")
    start = os.fstat(handle.fileno()).st_size - array.shape[1] - array.nbytes  # behind it is what is done
    for view in range(len(array)):
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            os.posix_fallocate(handle.fileno(), start + (view * array.shape[1] + int(run[0])) * row, len(run) * row)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock: one process computes, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------------- computing


def check_kind(network: Network, dataset: Dataset) -> None:
    """Raises DataError unless the data is of a kind that the network takes."""
    if (dataset.kind == "text") == (network.takes == "text"):
        return
    wanted = "texts" if network.takes == "text" else "images or arrays"
    hint = "an architecture for texts: 'transformers'" if dataset.kind == "text" else "another architecture, or texts"
    raise DataError(f"{dataset.path} holds {dataset.kind}, and {network.identity} takes {wanted}", hint=hint)


def compute(whole: Whole, amounts: Augment, into: Sequence[Kept], blocks: Sequence[Sequence[Integers]]) -> None:
    """Puts the features of blocks of examples where they belong: clean ones in the first, views in the second."""
    dataset, listener = whole.dataset, whole.place.listener
    clean, viewed = ({int(block[0]) for block in some} for some in (*blocks, ())[:2])
    task, views = f"features of {Path(dataset.path).name}", len(into[1].array) if viewed else 0
    asked = [block for block in whole.blocks if int(block[0]) in clean | viewed]
    times = {int(block[0]): (int(block[0]) in clean) + views * (int(block[0]) in viewed) for block in asked}
    total = sum(len(block) * times[int(block[0])] for block in asked)
    listener(Started(task, total, "images" if dataset.kind == "images" else "examples"))
    for block in asked:
        inputs = whole.read(block)
        if int(block[0]) in clean:
            into[0].put(0, block, whole.embedded(inputs))
        for view in range(views if int(block[0]) in viewed else 0):
            seeds = [view_seed(dataset, int(i), view) for i in block]
            into[1].put(view, block, whole.embedded(augment(inputs.float(), amounts, seeds)))
        listener(Advanced(task, len(block) * times[int(block[0])]))
    listener(Finished(task))


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
