"""Where merged tensors go: into a pack, as recipes where they are weighted sums, or into a safetensors file."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os import urandom
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.safetensors import build_header
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.plan import Step
from modelgit.merge.engine.windows import Workshop
from modelgit.store.backend import sync_folder, translated
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.draft import Pending, Pipeline
from modelgit.store.files.materialise import reserve
from modelgit.store.identity import FRAME_BYTES, frame_count, frame_size
from modelgit.store.mapping import flush_ahead
from modelgit.store.objects import ObjectStore, write_at
from modelgit.store.writing import Fill, PackWriter

Done = str | Pending | None  # the result's id, if it has one
Given = tuple[TensorSource, TensorEntry]
AHEAD = 3  # frames a thread that are computed and not yet written


@dataclass(frozen=True, slots=True)
class Sum:
    """A weighted sum to be written: its inputs, a coefficient for each, the divisor; `fill` computes its frames.

    `ready` says that the inputs are decoded already, so `fill` is the cheapest way to it.
    """

    terms: Sequence[Given]
    coefficients: Sequence[float]
    divisor: float
    fill: Fill
    ready: bool


class Sink(Protocol):
    """Takes the tensors of a merge, one after another."""

    def copy(self, step: Step, given: Given) -> Done:
        """Take an input as it is."""

    def sum(self, step: Step, total: Sum, look: "Look") -> Done:
        """Take a weighted sum; `look` sees every frame of it, in any thread."""

    def values(self, step: Step, fill: Fill) -> Done:
        """Take what `fill` computes, frame by frame, in any thread and order."""

    def again(self, step: Step, earlier: str, done: Done) -> Done:
        """Take what an earlier tensor came to."""


class Look(Protocol):
    """Sees a raw frame of the result of a tensor, and raises what speaks against it."""

    def __call__(self, raw: Bytes) -> Bytes:
        """Return the frame as it is."""


class PackSink:
    """A pack of a store (a `Sink`): ids come out, and inputs that are in no store yet go in where they are needed."""

    def __init__(self, pack: PackWriter, store: ObjectStore) -> None:
        self._pack, self._store = pack, store

    def copy(self, step: Step, given: Given) -> Done:
        """Return the id of an input, stored now if it is not yet."""
        return self._stored(given)

    def sum(self, step: Step, total: Sum, look: Look) -> Done:
        """Return the id of a new recipe."""
        stored = [self._stored(given) for given in total.terms]

        def using(fill: Fill) -> Fill:
            chosen = total.fill if total.ready else fill
            return lambda number, into: look(chosen(number, into))

        terms = list(zip(stored, total.coefficients, strict=True))
        return self._pack.enter_linear(terms, total.divisor, step.dtype, size_bytes(step.dtype, step.shape), using)

    def values(self, step: Step, fill: Fill) -> Done:
        """Return the id of the values, stored as a difference to a stored input: the base where it takes part."""
        parent = next((entry.oid for entry in reversed(step.inputs) if entry.oid in self._store), None)
        return self._pack.enter(fill, size_bytes(step.dtype, step.shape), step.dtype, parent)

    def again(self, step: Step, earlier: str, done: Done) -> Done:
        """Return the same id."""
        return done

    def _stored(self, given: Given) -> str:
        source, entry = given
        if entry.oid in self._store:
            return entry.oid
        return self._pack.add_frames(source.frames(entry.name), size_bytes(entry.dtype, entry.shape), entry.dtype)


class FileSink:
    """A safetensors file (a `Sink`), replaced at once when all of it is on disk. Use as a context; `finish` it."""

    def __init__(self, path: Path, steps: Sequence[Step], metadata: Mapping[str, str], shop: Workshop) -> None:
        self._path = path
        self._header = build_header([(step.name, step.dtype, step.shape) for step in steps], metadata)
        self._places = {span.name: self._header.data_start + span.start for span in self._header.tensors}
        self._temporary = path.parent / f".{path.name[:100]}.{urandom(8).hex()}.tmp"
        self._pipeline = Pipeline(shop.pool, shop.threads * AHEAD)
        self._steps = {step.name: step for step in steps}
        self._handle = -1

    def __enter__(self) -> "FileSink":
        with translated(self._path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handle = os.open(self._temporary, flags, 0o666)
        reserve(self._handle, self._path, self._header.size_bytes)
        write_at(self._handle, memoryview(self._header.raw), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipeline.abandon()
        os.close(self._handle)
        with suppress(OSError):
            self._temporary.unlink()

    def copy(self, step: Step, given: Given) -> Done:
        """Copy an input's bytes."""
        at = self._places[step.name]
        for frame in given[0].frames(given[1].name):
            write_at(self._handle, frame, at)
            at += frame.nbytes
        return None

    def sum(self, step: Step, total: Sum, look: Look) -> Done:
        """Write a weighted sum's values."""
        return self.values(step, lambda number, into: look(total.fill(number, into)))

    def values(self, step: Step, fill: Fill) -> Done:
        """Write values, in the threads that compute them."""
        size, at = size_bytes(step.dtype, step.shape), self._places[step.name]

        def work(number: int) -> None:
            data = fill(number, TOOLS.buffer("merged", frame_size(size, number)))
            write_at(self._handle, data.data, at + number * FRAME_BYTES)
            flush_ahead()(self._handle, at + number * FRAME_BYTES, len(data))

        for number in range(frame_count(size)):
            self._pipeline.submit(partial(work, number), lambda _: None)
        return None

    def again(self, step: Step, earlier: str, done: Done) -> Done:
        """Copy what was written for an earlier tensor."""
        self._pipeline.drain()
        size, start = size_bytes(step.dtype, step.shape), self._places[earlier]
        for number in range(frame_count(size)):
            data = np.empty(frame_size(size, number), np.uint8)
            os.preadv(self._handle, [data.data], start + number * FRAME_BYTES)
            write_at(self._handle, data.data, self._places[step.name] + number * FRAME_BYTES)
        return None

    def finish(self) -> None:
        """Put the file in its place, on disk. Raises what the work raised, and StorageFull."""
        self._pipeline.drain()
        with translated(self._path):
            os.fsync(self._handle)
            self._temporary.replace(self._path)
            sync_folder(self._path.parent)
