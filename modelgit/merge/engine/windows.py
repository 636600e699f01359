"""Raw bytes of several models side by side, in memory that is used again and again.

Files are read a stretch at a time, straight from the page cache, or not at all: the kernel takes values where they are
mapped. Objects of a store come in frames, which a window keeps until the next is needed; where all frames of a tensor
are few, they are kept for all passes over it. There are as many windows as threads, fewer where the models are many:
memory is bounded by frames, not by tensors.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from queue import Empty, LifoQueue, SimpleQueue
from threading import Lock
from typing import TypeVar
from weakref import finalize

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.sums import Array
from modelgit.store.codec.arrays import Bytes
from modelgit.store.files.tensors import FileTensors, StoredTensors
from modelgit.store.identity import FRAME_BYTES, frame_count, frame_size
from modelgit.store.objects import ObjectStore
from modelgit.store.reading import Link

T = TypeVar("T")
R = TypeVar("R")
HELD_BYTES = 48 << 20  # of a tensor's inputs, that are kept between passes
SLABS = 3  # for so many tensors at once, whose results are waited for; the others are decoded again
SMALL_BYTES = 1 << 20  # of inputs that need no slab
CHUNK_BYTES = 1 << 20  # of each file that is copied at once; short copies can be five times as slow
ALIGNED = 8  # elements of every type lie at multiples of their own size
WINDOW_BYTES = 128 << 20  # of all windows together; a single one may need more: then it lies in a temporary file


def scratch(count: int) -> Bytes:
    """Return memory; much of it is a temporary file's, which the system may write out."""
    if count <= WINDOW_BYTES:
        return np.empty(count, np.uint8)
    with tempfile.TemporaryFile() as file:
        file.truncate(count)
        return np.memmap(file, np.uint8, "r+", shape=(count,))


class Window:
    """One thread's view of the inputs of a tensor: raw stretches, and float64 for blocks of them."""

    def __init__(self) -> None:
        self.frame: tuple[object, int] = (None, -1)
        self._memory: dict[str, Bytes] = {}

    def memory(self, name: str, count: int) -> Bytes:
        """Return the window's memory of that name, cut to `count` bytes."""
        found = self._memory.get(name)
        if found is None or len(found) < count:
            self._memory.pop(name, None)
            found = self._memory[name] = scratch(count)
        return found[:count]

    def values(self, rows: int, count: int) -> Array:
        """Return float64 (rows, count)."""
        return self.memory("values", 8 * rows * count).view(np.float64).reshape(rows, count)


@dataclass(slots=True)
class Reading:
    """The inputs of one tensor, opened; each has its number.

    `direct` fill a buffer from a given byte on; `mapped` are those of them that lie in memory, for functions that a
    kernel guards. `stored` are objects of `store`; `held` are raw bytes at hand.
    """

    size: int
    direct: dict[int, Callable[[int, Bytes], None]] = field(default_factory=dict)
    mapped: dict[int, Bytes] = field(default_factory=dict)
    stored: dict[int, Link] = field(default_factory=dict)
    held: dict[int, Bytes] = field(default_factory=dict)
    store: ObjectStore | None = None

    @property
    def framed(self) -> bool:
        """Whether some inputs come in frames, to be decoded."""
        return bool(self.stored.keys() - self.held.keys())

    @property
    def copied(self) -> bool:
        """Whether some inputs are copied out of files."""
        return len(self.direct) > len(self.mapped)

    def read(self, window: Window, start: int, stop: int, *, guarded: bool = False) -> list[Bytes]:
        """Return bytes `start` to `stop` of every input, in order; they are valid until the window reads again.

        With `guarded` they are for a function of the kernel that ends safely when a mapped file is cut short.
        """
        at_hand = {**self.held, **self.mapped} if guarded else self.held
        found = {number: data[start:stop] for number, data in at_hand.items()}
        if waiting := [(number, fill) for number, fill in self.direct.items() if number not in found]:
            places = window.memory("direct", len(waiting) * _even(stop - start))
            for row, (number, fill) in enumerate(waiting):
                into = found[number] = places[row * _even(stop - start) :][: stop - start]
                fill(start, into)
        if framed := [number for number in self.stored if number not in self.held]:
            found.update(zip(framed, self._framed(window, framed, start, stop), strict=True))
        return [found[number] for number in range(len(found))]

    def _framed(self, window: Window, waiting: Sequence[int], start: int, stop: int) -> list[Bytes]:
        first, last = start // FRAME_BYTES, max(start, stop - 1) // FRAME_BYTES
        if first == last:
            at = first * FRAME_BYTES
            return [frame[start - at : stop - at] for frame in self._frames(window, waiting, first)]
        joined = window.memory("joined", len(waiting) * _even(stop - start)).reshape(len(waiting), -1)
        for number in range(first, last + 1):
            at = number * FRAME_BYTES
            low, high = max(start, at), min(stop, at + FRAME_BYTES)
            for row, frame in zip(joined, self._frames(window, waiting, number), strict=True):
                row[low - start : high - start] = frame[low - at : high - at]
        return [row[: stop - start] for row in joined]

    def _frames(self, window: Window, waiting: Sequence[int], number: int) -> list[Bytes]:
        """Return a frame of each stored input, decoded now unless the window has it."""
        room, length = min(FRAME_BYTES, _even(self.size)), frame_size(self.size, number)
        rows = window.memory("frames", len(waiting) * room).reshape(len(waiting), -1)
        places = [row[:length] for row in rows]
        if window.frame != (self, number) and self.store is not None:
            window.frame = (None, -1)
            self.store.fill_together([self.stored[i] for i in waiting], number, places)
            window.frame = (self, number)
        return places

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _even(count: int) -> int:
    return -(-count // 64) * 64


class Workshop:
    """The threads and the memory that a merge works with."""

    def __init__(self, pool: Executor, threads: int) -> None:
        self.pool, self.threads = pool, threads
        self._free: LifoQueue[Window] = LifoQueue()
        self._lock, self._made = Lock(), 0
        self._slabs: SimpleQueue[mmap] = SimpleQueue()
        for _ in range(SLABS):
            self._slabs.put(mmap(-1, max(HELD_BYTES, 1)))  # no memory until it is used
        self._beside: Workshop | None = None

    @property
    def beside(self) -> "Workshop":
        """The same threads with windows of its own: for what is read while a window is in hand."""
        with self._lock:
            if self._beside is None:
                self._beside = Workshop(self.pool, self.threads)
        self._beside.limit(0)
        return self._beside

    def limit(self, inputs: int) -> None:
        """Make the windows for this many inputs, before the first is taken."""
        count = max(1, min(self.threads, WINDOW_BYTES // (FRAME_BYTES * max(1, inputs))))
        with self._lock:
            while self._made < count:
                self._free.put(Window())
                self._made += 1

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Lend a window, waiting for one if need be."""
        window = self._free.get()
        try:
            yield window
        finally:
            self._free.put(window)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of pieces of work, done in all threads, in order. Raises the first error."""
        futures = [self.pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                if not future.cancel():
                    future.exception()

    def open(self, inputs: Sequence[tuple[TensorSource, TensorEntry]]) -> Reading:
        """Return the inputs of one tensor, all of one size. Raises MissingObject, CorruptObject, FormatError."""
        entry = inputs[0][1]
        reading = Reading(size_bytes(entry.dtype, entry.shape))
        for number, (source, entry) in enumerate(inputs):
            if isinstance(source, FileTensors):
                reading.direct[number] = source.reader(entry.name)
                view = source.view(entry.name)
                if view is not None and view.ctypes.data % ALIGNED == 0:
                    reading.mapped[number] = view
                continue
            store, link = source.opened(entry.name) if isinstance(source, StoredTensors) else (None, None)
            if link is not None and reading.store in (None, store):
                reading.store, reading.stored[number] = store, link
            else:
                reading.held[number] = _whole(source, entry, reading.size)
        return reading

    def hold(self, reading: Reading) -> None:
        """Decode the stored inputs for good, where there is memory for them."""
        waiting = [number for number in reading.stored if number not in reading.held]
        store, each = reading.store, _even(reading.size)
        place = None if store is None or not waiting else self._lend(each * len(waiting))
        if store is None or place is None:
            return
        held = {number: place[row * each :][: reading.size] for row, number in enumerate(waiting)}

        def decode(number: int) -> None:
            start, length = number * FRAME_BYTES, frame_size(reading.size, number)
            places = [data[start : start + length] for data in held.values()]
            store.fill_together([reading.stored[i] for i in held], number, places)

        self.each(decode, range(frame_count(reading.size)))
        reading.held.update(held)

    def _lend(self, count: int) -> Bytes | None:
        """Return memory, a slab's for as long as any array points into it; None if it is too much, or all are lent."""
        if count <= min(SMALL_BYTES, HELD_BYTES):
            return np.empty(count, np.uint8)
        if count > HELD_BYTES:
            return None
        try:
            slab = self._slabs.get_nowait()
        except Empty:
            return None
        lent = np.frombuffer(slab, np.uint8, count)  # the base of all views of it: it lives as long as any of them
        finalize(lent, self._slabs.put, slab)
        return lent


def _whole(source: TensorSource, entry: TensorEntry, size: int) -> Bytes:
    """Return all of a tensor of a source that can only be read from its beginning."""
    data, start = scratch(size), 0
    for frame in source.frames(entry.name):
        data[start : start + frame.nbytes] = np.frombuffer(frame, np.uint8)
        start += frame.nbytes
    return data
