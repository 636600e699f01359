"""One tensor of every model as blocks of float64, for methods, and as weighted sums of raw bytes, for recipes.

Both go frame by frame in several threads. The first look at the inputs also finds what is not finite in them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs, grid
from modelgit.merge.blocks.vectors import vectors
from modelgit.merge.engine.reading import finite, frame_peak, whole
from modelgit.merge.engine.windows import CHUNK_BYTES, Reading, Window, Workshop
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, finish, spread, sums
from modelgit.store.codec.arrays import Bytes
from modelgit.store.identity import FRAME_BYTES, frame_count
from modelgit.store.writing import Fill

T = TypeVar("T")


class NotFinite(Exception):
    """An input or a result of a tensor holds an infinity or what is no number; the engine finds out where."""

    def __init__(self, tensor: str) -> None:
        super().__init__(tensor)
        self.tensor = tensor


@dataclass(frozen=True, slots=True)
class Subject:
    """What is merged: a tensor's name, type and shape, and for each input where it is; the base is the last.

    `statistics` are where those of each head are, `sizes` their norms over whole models.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[TensorSource, TensorEntry], ...]
    weights: tuple[float, ...]
    has_base: bool
    statistics: tuple[tuple[TensorSource, TensorEntry], ...] = ()
    sizes: tuple[float, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The ids of the heads."""
        return tuple(entry.oid for _, entry in self.inputs[: len(self.weights)])

    def known(self) -> "Subject | None":
        """The statistics of the heads, as a subject of their own; None if there are none."""
        if not self.statistics:
            return None
        entry = self.statistics[0][1]
        return Subject(self.name, entry.dtype, entry.shape, self.statistics, self.weights, has_base=False)


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """What asks for blocks of differences to the base, where there is one."""

    task_vectors: bool = True


class Stream:
    """One tensor of every model (a `Tensor`), read in several threads."""

    def __init__(self, shop: Workshop, subject: Subject, method: object = None, model: Any = None) -> None:
        self.subject, self.model = subject, model
        whole_rows, task_vectors = (getattr(method, name, False) for name in ("whole_rows", "task_vectors"))
        self._deltas = task_vectors and subject.has_base
        self._shop, self.checked = shop, False
        self._step, self._row = grid(subject.shape, whole_rows=whole_rows)
        self._width, self._count = ARITHMETIC_WIDTHS[subject.dtype], math.prod(subject.shape)
        self._reading: Reading | None = None
        self._keys = subject.keys
        known = subject.known()
        self._known = Stream(shop.beside, known) if known is not None else None

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.subject.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self.subject.shape

    @property
    def weights(self) -> Sequence[float]:
        """Return a weight for each head."""
        return self.subject.weights

    @property
    def keys(self) -> Sequence[str]:
        """Return the ids of the heads."""
        return self.subject.keys

    @property
    def unchanged(self) -> bool:
        """Return that there is something to look at."""
        return False

    def close(self) -> None:
        """Forget what was kept of the inputs."""
        self._reading = None
        if self._known is not None:
            self._known.close()

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of each block, or of one in `every`, in order. Raises NotFinite."""
        self._shop.hold(self._opened())
        length = FRAME_BYTES // self._width

        def frame(number: int) -> list[T]:
            first, last = (-(-at // self._step) * self._step for at in (number * length, (number + 1) * length))
            with self._shop.window() as window:
                return [look(block) for block in self._blocks(window, first, min(last, self._count), every)]

        frames = range(frame_count(size_bytes(self.subject.dtype, self.shape)))
        found = [result for results in self._shop.each(frame, frames) for result in results]
        self.checked = self.checked or every == 1
        return found

    def merged(self, merge: Callable[[Inputs], Array]) -> Fill:
        """Return a fill that gives the frames of what `merge` makes of the blocks, rounded. It raises NotFinite."""
        width = self._width
        self._opened()

        def fill(number: int, into: Bytes) -> Bytes:
            first = number * FRAME_BYTES // width
            last = first + len(into) // width
            with self._shop.window() as window:
                for block in self._blocks(window, first // self._step * self._step, last):
                    values = merge(block).reshape(-1)
                    low, high = max(first, block.start), min(last, block.start + values.size)
                    place = into[(low - first) * width : (high - first) * width]
                    finish(values[low - block.start : high - block.start], 1.0, self.subject.dtype, place)
            return self.finite(into)

        return fill

    def summed(self, used: Sequence[int], coefficients: Sequence[float], divisor: float) -> Fill:
        """Return a fill that gives the frames of a weighted sum of some inputs. It raises NotFinite."""
        reading, factors, dtype = self._opened(), np.array(coefficients, np.float64), self.subject.dtype
        step = CHUNK_BYTES if reading.copied else FRAME_BYTES

        def fill(number: int, into: Bytes) -> Bytes:
            start = number * FRAME_BYTES
            with self._shop.window() as window:
                for at in range(0, len(into), step):
                    part = into[at : at + step]
                    for guarded in (True, False):  # again where a mapped file was cut short: reading tells which one
                        raw = reading.read(window, start + at, start + at + len(part), guarded=guarded)
                        if sums().combine([raw[i] for i in used], factors, divisor, dtype, part):
                            break
            return self.finite(into)

        return fill

    def products(self) -> list[Array]:
        """Return the heads' inner products for each `BLOCK` elements, (n, M, M), frame by frame. Raises NotFinite.

        They are of head - base where the stream is one of task vectors.
        """
        reading, size = self._opened(), size_bytes(self.subject.dtype, self.shape)
        self._shop.hold(reading)
        step = FRAME_BYTES if reading.framed else CHUNK_BYTES

        def stretch(start: int) -> Array:
            with self._shop.window() as window:
                return self._products(window, start, min(start + step, size))

        found = self._shop.each(stretch, range(0, size, step))
        self.checked = True
        per_frame = FRAME_BYTES // step
        return [np.concatenate(found[at : at + per_frame]) for at in range(0, len(found), per_frame)]

    def _products(self, window: Window, start: int, stop: int) -> Array:
        """Return those of a stretch. What is not finite, or was cut short, shows on the diagonal; then look again."""
        heads, dtype = len(self.weights), self.subject.dtype
        for guarded in (vectors().guarded, False):
            raw = self._opened().read(window, start, stop, guarded=guarded)
            found = vectors().products(raw[:heads], dtype, raw[heads] if self._deltas else None)
            if np.isfinite(found.diagonal(0, 1, 2)).all():
                return found
        if any(frame_peak(data.data, dtype) == math.inf for data in raw):
            raise NotFinite(self.name)
        return found

    def finite(self, raw: Bytes) -> Bytes:
        """Return a raw frame of the result. Raises NotFinite if it holds what is not finite."""
        if frame_peak(raw.data, self.subject.dtype) == math.inf:
            raise NotFinite(self.name)
        return raw

    @property
    def held(self) -> bool:
        """Whether all inputs are in memory, decoded."""
        return self._reading is not None and len(self._reading.held) == len(self.subject.inputs)

    def _opened(self) -> Reading:
        if self._reading is None:
            self._reading = self._shop.open(self.subject.inputs)
        return self._reading

    def _blocks(self, window: Window, first: int, last: int, every: int = 1) -> Iterator[Inputs]:
        """Yield the blocks from element `first`, where one begins, to the one that holds the element before `last`."""
        chunk = max(1, CHUNK_BYTES // self._width // self._step) * self._step if every == 1 else self._step
        for start in range(first, last, chunk):
            if every == 1 or start // self._step % every == 0:
                stop = min(start + chunk, -(-last // self._step) * self._step, self._count)
                yield from self._chunk(window, start, stop)

    def _chunk(self, window: Window, start: int, stop: int) -> Iterator[Inputs]:
        ends = start * self._width, stop * self._width
        raw = self._opened().read(window, *ends, guarded=True)
        for begin in range(start, stop, self._step):
            end = min(begin + self._step, stop)
            values = window.values(len(raw), end - begin)
            parts = slice((begin - start) * self._width, (end - start) * self._width)
            top = spread([data[parts] for data in raw], self.subject.dtype, values, minus=self._deltas)
            if top is None:  # reading tells which file was cut short
                raw = self._opened().read(window, *ends)
                top = spread([data[parts] for data in raw], self.subject.dtype, values, minus=self._deltas)
            if top is None or not finite(top, self.subject.dtype):
                raise NotFinite(self.name)
            rows = [row.reshape(-1, self._row) if self._row else row for row in values]
            base = rows.pop() if self.subject.has_base else None
            heads, differences = ([], rows) if self._deltas else (rows, None)
            block = Inputs(heads, self.weights, base, self.name, self._keys, begin, differences)
            if self._known is None:
                yield block
            else:
                with self._known.window() as window_beside:
                    known = self._known.values(window_beside, begin, end)
                    yield replace(block, statistics=known, sizes=self.subject.sizes)

    def window(self) -> AbstractContextManager[Window]:
        """Return a window of the workshop, when one is free."""
        return self._shop.window()

    def values(self, window: Window, start: int, stop: int) -> list[Array]:
        """Return the values of some elements in every input, valid until the window is used again."""
        raw = self._opened().read(window, start * self._width, stop * self._width)
        values = window.values(len(raw), stop - start)
        spread(raw, self.subject.dtype, values, minus=False)
        return list(values)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A tensor that is in all heads as in the base (a `Tensor`): there is nothing to look at."""

    name: str
    shape: tuple[int, ...]
    weights: Sequence[float] = ()
    keys: Sequence[str] = ()
    model: Any = None
    unchanged: bool = True

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return nothing."""
        return []


class Passing(Stream):
    """A tensor that is looked at before its turn: nothing of it is kept when the look is over."""

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of the blocks."""
        try:
            return super().each(look, every)
        finally:
            self.close()


def products(stream: Stream) -> Array:
    """Return the inner products of the heads, (M, M), of head - base where there is a base: block by block, in order.

    Each frame is summed by itself, then the frames.
    """
    total = np.zeros((len(stream.weights),) * 2)
    for parts in stream.products():
        frame = np.zeros_like(total)
        for part in parts:
            frame += part
        total += frame
    return total


class LazyHeads(Sequence[Array]):
    """The heads of a tensor, each loaded whole when it is asked for, and not kept."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __len__(self) -> int:
        return len(self._subject.weights)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return loaded(self._subject, index % len(self))


def loaded(subject: Subject, number: int) -> Array:
    """Return all of one input as float64, in its shape. Raises NotFinite."""
    source, entry = subject.inputs[number]
    values = whole(source, entry)
    if not np.isfinite(values).all():
        raise NotFinite(subject.name)
    return values


def combined_inputs(subject: Subject) -> Inputs:
    """Return a tensor's inputs for a method that must see all values: heads one after another, the base at hand."""
    base = loaded(subject, len(subject.weights)) if subject.has_base else None
    known = subject.known()
    told: Sequence[Array] = LazyHeads(known) if known is not None else ()
    keys = subject.keys
    return Inputs(LazyHeads(subject), subject.weights, base, subject.name, keys, statistics=told, sizes=subject.sizes)


def raw_of(values: Array, dtype: str, size: int) -> bytearray:
    """Return the values rounded once to `dtype`, as raw bytes."""
    raw = bytearray(size)
    finish(np.ascontiguousarray(values).reshape(-1), 1.0, dtype, np.frombuffer(raw, np.uint8))
    return raw
