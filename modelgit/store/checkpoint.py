"""Whole weight files: into objects and a manifest, and back, byte for byte, a few frames at a time."""

import errno
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from modelgit.errors import CorruptObject, FormatError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.safetensors import Header, TensorSpan, build_header, parse_header, read_header
from modelgit.store.backend import read_all, sync_folder, translated
from modelgit.store.codec import TOOLS
from modelgit.store.identity import FRAME_BYTES, Oid, frame_count, frame_size, leaf, root
from modelgit.store.objects import ObjectStore, piece, write_at
from modelgit.store.reading import Link
from modelgit.store.transforms import Bytes
from modelgit.store.writing import Fill, PackWriter, Pending

WAITING = 256  # tensors entered whose ids were not asked for yet
Stat = tuple[int, int, int, int]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file for reading. Raises StoreError when it cannot be."""
    with translated(path):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def stamp(handle: int) -> Stat:
    """Return what changes when an open file does."""
    found = os.fstat(handle)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def file_fill(handle: int, path: Path, start: int) -> Fill:
    """Return a fill that reads frames of a tensor which begins at `start` of an open file."""

    def fill(number: int, into: Bytes) -> Bytes:
        with translated(path):
            got = read_all(handle, start + number * FRAME_BYTES, into.data)
        if got != len(into):
            raise FormatError(f"{path}: became shorter while it was read", hint="wait until its writer has finished")
        return into

    return fill


def parents_of(parent: Manifest | None) -> Mapping[str, TensorEntry]:
    """Return the tensors that differences may be stored to, by name."""
    return {entry.name: entry for entry in parent.tensors} if parent is not None else {}


def delta_parent(parents: Mapping[str, TensorEntry], name: str, dtype: str, shape: Sequence[int]) -> Oid | None:
    """Return the id of the tensor of that name, if its type and size are the same."""
    found = parents.get(name)
    if found is None or found.dtype != dtype or size_bytes(dtype, found.shape) != size_bytes(dtype, shape):
        return None
    return found.oid


class Collected:
    """The tensors of a manifest in the making, some of whose ids are not known yet."""

    def __init__(self, parent: Manifest | None, listener: Listener, total: int) -> None:
        self._parents, self._listener = parents_of(parent), listener
        self._waiting: deque[tuple[str, str, tuple[int, ...], Pending]] = deque()
        self._entries: list[TensorEntry] = []
        listener(Started("store weights", total, "bytes"))

    def parent(self, name: str, dtype: str, shape: Sequence[int]) -> Oid | None:
        """Return the id to store a difference to."""
        return delta_parent(self._parents, name, dtype, shape)

    def add(self, name: str, dtype: str, shape: Sequence[int], pending: Pending) -> None:
        """Note a tensor; the listener hears of it now."""
        self._waiting.append((name, dtype, tuple(shape), pending))
        self._listener(Advanced("store weights", size_bytes(dtype, shape), name))
        if len(self._waiting) > WAITING:
            self._settle()

    def manifest(self, pack: PackWriter, header: Header) -> Manifest:
        """Return the manifest of all that was added, the header stored beside."""
        self._settle()
        oid = pack.add_blob(header.raw)
        entries = tuple(sorted(self._entries, key=lambda entry: entry.name.encode()))
        self._listener(Finished("store weights", f"{len(entries)} tensors"))
        return Manifest(oid, len(header.raw), header.size_bytes, entries)

    def _settle(self) -> None:
        while self._waiting:
            name, dtype, shape, pending = self._waiting.popleft()
            self._entries.append(TensorEntry(name, dtype, shape, pending.oid()))


def store_file(pack: PackWriter, path: Path, parent: Manifest | None = None, listener: Listener = ignore) -> Manifest:
    """Store a safetensors file's tensors, as differences to the parent's of the same names; return its manifest.

    Raises:
        FormatError: not a safetensors file, or changed while it was read. StorageFull.
    """
    header = read_header(path)
    collected = Collected(parent, listener, header.size_bytes - header.data_start)
    with opened(path) as handle:
        before = stamp(handle)
        for span in header.tensors:
            fill = file_fill(handle, path, header.data_start + span.start)
            base = collected.parent(span.name, span.dtype, span.shape)
            pending = pack.enter(fill, span.end - span.start, span.dtype, base)
            collected.add(span.name, span.dtype, span.shape, pending)
        manifest = collected.manifest(pack, header)
        if stamp(handle) != before or before[1] != header.size_bytes:
            raise FormatError(f"{path}: changed while it was read", hint="wait until its writer has finished")
    return manifest


def store_tensors(
    pack: PackWriter,
    tensors: Iterable[tuple[str, str, Sequence[int], memoryview]],
    metadata: Mapping[str, str],
    parent: Manifest | None = None,
) -> Manifest:
    """Store tensors (name, dtype, shape, raw little-endian bytes) as the file that `build_header` describes.

    Each is copied as it comes, so the caller may use its buffer again for the next.

    Raises:
        FormatError: bytes that do not fit dtype and shape. StorageFull.
    """
    collected, described = Collected(parent, ignore, 0), list[tuple[str, str, Sequence[int]]]()
    for name, dtype, shape, data in tensors:
        view, expected = memoryview(data).cast("B"), size_bytes(dtype, shape)
        if len(view) != expected:
            raise FormatError(f"tensor {name!r}: expected {expected} bytes for {dtype} {list(shape)}, got {len(view)}")
        frames = (view[start : start + FRAME_BYTES] for start in range(0, expected, FRAME_BYTES))
        pending = pack.enter_frames(frames, expected, dtype, collected.parent(name, dtype, shape))
        collected.add(name, dtype, shape, pending)
        described.append((name, dtype, shape))
    return collected.manifest(pack, build_header(described, metadata))


def stored_header(store: ObjectStore, manifest: Manifest) -> Header:
    """Return a manifest's header, checked against it. Raises CorruptObject unless they agree, MissingObject."""
    raw = store.read(manifest.header)
    try:
        header = parse_header(raw, manifest.size_bytes, f"header {manifest.header}")
    except FormatError as error:
        raise CorruptObject(f"manifest and header disagree: {error.message}") from error
    described = sorted((span.name.encode(), span.dtype, span.shape) for span in header.tensors)
    if len(raw) != manifest.header_bytes or described != [
        (e.name.encode(), e.dtype, e.shape) for e in manifest.tensors
    ]:
        raise CorruptObject(f"header {manifest.header} does not describe the tensors of its manifest")
    return header


def open_tensor(store: ObjectStore, entry: TensorEntry) -> Link:
    """Return a tensor's object. Raises MissingObject, and CorruptObject when it is not as long as its shape says."""
    link, expected = store.open(entry.oid), size_bytes(entry.dtype, entry.shape)
    if link.size != expected or link.record.directory.kind != "tensor":
        raise CorruptObject(f"tensor {entry.name!r}: expected {expected} bytes, object {entry.oid} has {link.size}")
    return link


@dataclass(frozen=True, slots=True)
class Slot:
    """A frame of a tensor's object, and where it belongs in the file."""

    link: Link
    number: int
    at: int
    size: int
    old: int | None  # where an older file is likely to have it


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is being written, and an older one to copy from."""

    handle: int
    old: int | None
    places: Mapping[Oid, int]  # where in the older file an object starts


def same_places(store: ObjectStore, previous: Manifest | None) -> Mapping[Oid, int]:
    """Return where in the file of `previous` each of its tensors starts; nothing if that cannot be told."""
    if previous is None or previous.header not in store:
        return {}
    try:
        old = stored_header(store, previous)
    except CorruptObject:
        return {}
    oids = {entry.name: entry.oid for entry in previous.tensors}
    return {oids[span.name]: old.data_start + span.start for span in old.tensors}


def slots(store: ObjectStore, manifest: Manifest, header: Header, places: Mapping[Oid, int]) -> Iterator[Slot]:
    """Yield every frame of every tensor, in the file's order."""
    entries = {entry.name: entry for entry in manifest.tensors}
    for span in header.tensors:
        entry = entries[span.name]
        link, old = open_tensor(store, entry), places.get(entry.oid)
        for number in range(frame_count(link.size)):
            start = number * FRAME_BYTES
            at, size = header.data_start + span.start + start, frame_size(link.size, number)
            yield Slot(link, number, at, size, None if old is None else old + start)


def batches(ordered: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Yield runs of slots that lie side by side and fill one frame together, each beginning at a multiple of 8."""
    batch, size = list[Slot](), 0
    for slot in ordered:
        if batch and (size + slot.size > FRAME_BYTES or size % 8):
            yield batch
            batch, size = [], 0
        batch.append(slot)
        size += slot.size
    if batch:
        yield batch


def put_batch(store: ObjectStore, target: Target, batch: list[Slot]) -> None:
    """Write slots that lie side by side, with one call."""
    whole = TOOLS.buffer("out", sum(slot.size for slot in batch))
    start = 0
    for slot in batch:
        into = whole[start : start + slot.size]
        if not copied(target, slot, into):
            store.fill(slot.link, slot.number, into)
        start += slot.size
    write_at(target.handle, whole.data, batch[0].at)


def copied(target: Target, slot: Slot, into: Bytes) -> bool:
    """Fill `into` from the older file, if the bytes there are right."""
    expected = slot.link.leaf(slot.number)
    if target.old is None or slot.old is None or not expected:
        return False
    return read_all(target.old, slot.old, into.data) == len(into) and leaf(into.data) == expected


def materialise(
    store: ObjectStore,
    manifest: Manifest,
    path: Path,
    listener: Listener = ignore,
    previous: Manifest | None = None,
) -> None:
    """Write the file that a manifest describes, byte for byte; `path` is replaced at once, when all is on disk.

    `previous` describes what `path` should hold now: frames found there unchanged are copied.

    Raises:
        MissingObject: an object is not here. CorruptObject: one is damaged, or manifest and header disagree.
        StorageFull: the disk refuses; `path` is as it was.
    """
    header = stored_header(store, manifest)
    listener(Started(f"write {path.name}", manifest.size_bytes, "bytes"))
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}.tmp"
    try:
        with translated(path):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_file(store, manifest, header, (handle, path), listener, previous)
        finally:
            os.close(handle)
        with translated(path):
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
    listener(Finished(f"write {path.name}"))


def reserve(handle: int, path: Path, size: int) -> None:
    """Give an open file its size, on disk where the file system can. Raises StorageFull."""
    with translated(path):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(handle, size)


def write_file(
    store: ObjectStore,
    manifest: Manifest,
    header: Header,
    target: tuple[int, Path],
    listener: Listener,
    previous: Manifest | None,
) -> None:
    """Fill an open file with header and tensors, and make it durable. Raises as `materialise` does."""
    handle, path = target
    reserve(handle, path, manifest.size_bytes)
    write_at(handle, memoryview(header.raw), 0)
    places = same_places(store, previous)
    with opened(path) if places and path.is_file() else nullcontext() as old:
        into = Target(handle, old, places)
        store.each(announced(store, into, slots(store, manifest, header, places), (path, listener)))
    with translated(path):
        os.fsync(handle)


def announced(
    store: ObjectStore, target: Target, ordered: Iterable[Slot], told: tuple[Path, Listener]
) -> Iterator[Callable[[], None]]:
    """Yield the work of writing the slots; the listener hears of each piece as it is begun."""
    path, listener = told
    for batch in batches(ordered):
        yield partial(put_batch, store, target, batch)
        listener(Advanced(f"write {path.name}", sum(slot.size for slot in batch)))


class StoredTensors:
    """The tensors of a manifest, read from the store (a `TensorSource`)."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest

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


class FileTensors:
    """The tensors of a safetensors file (a `TensorSource`); ids are computed when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self._spans: dict[str, TensorSpan] = {span.name: span for span in self.header.tensors}
        self._entries: dict[str, TensorEntry] = {}

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return self._sorted

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._spans, key=str.encode)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id. Raises FormatError for an unknown name."""
        if name not in self._entries:
            span, leaves = self._span(name), b"".join(leaf(frame) for frame in self.frames(name))
            oid = root("tensor", span.end - span.start, leaves).hex()
            self._entries[name] = TensorEntry(name, span.dtype, span.shape, oid)
        return self._entries[name]

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's raw bytes in 4 MiB frames, each valid until the next. Raises FormatError."""
        span = self._span(name)
        size = span.end - span.start
        buffer = np.empty(min(size, FRAME_BYTES), np.uint8)
        with opened(self.path) as handle:
            fill = file_fill(handle, self.path, self.header.data_start + span.start)
            for number in range(frame_count(size)):
                yield fill(number, buffer[: frame_size(size, number)]).data

    def read(self, name: str) -> bytearray:
        """Return a tensor's raw little-endian bytes. Raises FormatError."""
        return bytearray(b"".join(bytes(frame) for frame in self.frames(name)))

    def _span(self, name: str) -> TensorSpan:
        if name not in self._spans:
            raise FormatError(f"{self.path}: no tensor {name!r}", hint=f"it has {', '.join(self._sorted[:10])}")
        return self._spans[name]
