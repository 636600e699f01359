"""The tensors of a version or of a weight file, one at a time (`TensorSource`s)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from modelgit.errors import CorruptObject, FormatError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.safetensors import Header, TensorSpan, parse_header, read_header
from modelgit.store.backend import translated
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.files.opening import file_fill, opened
from modelgit.store.files.prints import tensor_print
from modelgit.store.identity import FRAME_BYTES, frame_count, frame_size, leaf, root
from modelgit.store.mapping import MappedFile
from modelgit.store.objects import ObjectStore, available_threads, piece
from modelgit.store.reading import Link


def stored_header(store: ObjectStore, manifest: Manifest) -> Header:
    """Return a manifest's header, checked against it. Raises CorruptObject unless they agree, MissingObject."""
    raw = store.read(manifest.header)
    try:
        header = parse_header(raw, manifest.size_bytes, f"header {manifest.header}")
    except FormatError as error:
        raise CorruptObject(f"manifest and header disagree: {error.message}") from error
    described = {span.name: (span.dtype, span.shape) for span in header.tensors}
    if len(raw) != manifest.header_bytes or described != {e.name: (e.dtype, e.shape) for e in manifest.tensors}:
        raise CorruptObject(f"header {manifest.header} does not describe the tensors of its manifest")
    return header


def open_tensor(store: ObjectStore, entry: TensorEntry) -> Link:
    """Return a tensor's object. Raises MissingObject, and CorruptObject when it is not as long as its shape says."""
    return fitting(store.open(entry.oid), entry)


def fitting(link: Link, entry: TensorEntry) -> Link:
    """Return a tensor's object. Raises CorruptObject when it is not as long as its shape says."""
    expected = size_bytes(entry.dtype, entry.shape)
    if link.size != expected or link.record.directory.kind != "tensor":
        raise CorruptObject(f"tensor {entry.name!r}: expected {expected} bytes, object {entry.oid} has {link.size}")
    return link


class StoredTensors:
    """The tensors of a manifest, read from the store (a `TensorSource`)."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest

    @cached_property
    def header(self) -> Header | None:
        """The file's header, None of a manifest without one. Raises as `stored_header` does."""
        return stored_header(self._store, self._manifest) if self._manifest.header else None

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return [entry.name for entry in self._manifest.tensors]

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id. Raises FormatError for an unknown name."""
        return self._manifest.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's raw bytes in 4 MiB frames, each valid until the next.

        Raises:
            MissingObject: the object is not here. CorruptObject: it is damaged, or not as long as its shape says.
        """
        open_tensor(self._store, self.entry(name))
        return self._store.frames(self.entry(name).oid)

    def read(self, name: str) -> bytearray:
        """Return a tensor's raw little-endian bytes. Raises as `frames` does."""
        link = open_tensor(self._store, self.entry(name))
        data = bytearray(link.size)
        array = np.frombuffer(data, np.uint8)
        self._store.decode_frames(link, partial(piece, array), lambda _number, _frame: None)
        return data

    def opened(self, name: str) -> tuple[ObjectStore, Link]:
        """Return the store and a tensor's object in it, for `ObjectStore.fill_together`. Raises as `frames` does."""
        return self._store, open_tensor(self._store, self.entry(name))

    def read_part(self, name: str, start: int, stop: int) -> bytearray:
        """Return bytes `start` to `stop` of a tensor; only the frames they lie in are read. Raises as `frames` does."""
        link = open_tensor(self._store, self.entry(name))
        data = bytearray(stop - start)
        for number in range(start // FRAME_BYTES, -(-stop // FRAME_BYTES) if data else 0):
            frame = np.empty(frame_size(link.size, number), np.uint8)
            self._store.fill(link, number, frame)
            begin = number * FRAME_BYTES
            low, high = max(start, begin), min(stop, begin + len(frame))
            data[low - start : high - start] = frame[low - begin : high - begin].data
        return data


class FileTensors:
    """The tensors of a safetensors file (a `TensorSource`); ids are computed when asked for.

    With `quick` the ids are XXH3 prints, no object ids, and several times as fast: they tell tensors of files apart
    that somebody trusted wrote, and order them. Methods that draw random numbers from ids draw others.
    """

    def __init__(self, path: Path, *, quick: bool = False) -> None:
        self.path, self._quick = path, quick
        self.header = read_header(path)
        self._spans: dict[str, TensorSpan] = {span.name: span for span in self.header.tensors}
        self._entries: dict[str, TensorEntry] = {}

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return self._sorted

    @cached_property
    def _file(self) -> MappedFile:
        return opened(self.path)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._spans, key=str.encode)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id. Raises FormatError for an unknown name."""
        if name not in self._entries:
            span = self._span(name)
            if self._quick:
                oid = self._printed(span)
            else:
                leaves = b"".join(leaf(frame) for frame in self.frames(name))
                oid = root("tensor", span.end - span.start, leaves).hex()
            self._entries[name] = TensorEntry(name, span.dtype, span.shape, oid)
        return self._entries[name]

    def _printed(self, span: TensorSpan) -> str:
        with translated(self.path), self.path.open("rb", buffering=0) as file:
            found = tensor_print(file.fileno(), self.header.data_start + span.start, span.end - span.start)
        if found is None:
            raise FormatError(f"{self.path}: became shorter while it was read", hint="wait for its writer to end")
        return found

    def entries(self, listener: Listener = ignore) -> tuple[TensorEntry, ...]:
        """Return all entries, sorted by name, hashed by all processors. Raises FormatError."""
        if self._quick:
            with ThreadPoolExecutor(available_threads()) as pool:
                return tuple(pool.map(self.entry, self._sorted))
        file, start = self._file, self.header.data_start
        fills = {span.name: file_fill(file, self.path, start + span.start) for span in self.header.tensors}
        sizes = {span.name: span.end - span.start for span in self.header.tensors}

        def hashed(name: str, number: int) -> bytes:
            return leaf(fills[name](number, TOOLS.buffer("raw", frame_size(sizes[name], number))).data)

        pieces = [(name, number) for name in self._sorted for number in range(frame_count(sizes[name]))]
        leaves: dict[str, bytes] = dict.fromkeys(self._sorted, b"")
        task = f"read {self.path.name}"
        listener(Started(task, sum(sizes.values()), "bytes"))
        with ThreadPoolExecutor(available_threads()) as pool:
            for (name, number), digest in zip(pieces, pool.map(lambda piece: hashed(*piece), pieces), strict=True):
                leaves[name] += digest
                listener(Advanced(task, frame_size(sizes[name], number), name))
        listener(Finished(task))
        for span in (self._spans[name] for name in self._sorted):
            oid = root("tensor", sizes[span.name], leaves[span.name]).hex()
            self._entries[span.name] = TensorEntry(span.name, span.dtype, span.shape, oid)
        return tuple(self._entries[name] for name in self._sorted)

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's raw bytes in 4 MiB frames, each valid until the next. Raises FormatError."""
        span = self._span(name)
        size = span.end - span.start
        buffer = np.empty(min(size, FRAME_BYTES), np.uint8)
        fill = file_fill(self._file, self.path, self.header.data_start + span.start)
        for number in range(frame_count(size)):
            yield fill(number, buffer[: frame_size(size, number)]).data

    def reader(self, name: str) -> Callable[[int, Bytes], None]:
        """Return what fills a buffer with a tensor's bytes from a given one on. Raises FormatError, as it does."""
        file, start = self._file, self.header.data_start + self._span(name).start

        def fill(first: int, into: Bytes) -> None:
            with translated(self.path):
                complete = file.read_into(start + first, into.data)
            if not complete:
                raise FormatError(f"{self.path}: became shorter while it was read", hint="wait for its writer to end")

        return fill

    def view(self, name: str) -> Bytes | None:
        """Return a tensor's bytes in the mapped file, None where there is no such thing; see `MappedFile.view`."""
        span = self._span(name)
        return self._file.view(self.header.data_start + span.start, span.end - span.start)

    def read(self, name: str) -> bytearray:
        """Return a tensor's raw little-endian bytes. Raises FormatError."""
        return bytearray(b"".join(bytes(frame) for frame in self.frames(name)))

    def _span(self, name: str) -> TensorSpan:
        if name not in self._spans:
            raise FormatError(f"{self.path}: no tensor {name!r}", hint=f"it has {', '.join(self._sorted[:10])}")
        return self._spans[name]
