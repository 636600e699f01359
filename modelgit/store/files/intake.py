"""Weight files into objects and a manifest, a few frames at a time."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from modelgit.errors import FormatError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry, by_name
from modelgit.formats.safetensors import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    Header,
    TensorSpan,
    build_header,
    header_length,
    parse_header,
    read_header,
)
from modelgit.store.bundling import SMALL_BYTES
from modelgit.store.draft import Pending
from modelgit.store.files.opening import file_fill, opened, stamp
from modelgit.store.files.prints import Print
from modelgit.store.identity import FRAME_BYTES, Oid, frame_count, frame_size
from modelgit.store.mapping import MappedFile
from modelgit.store.writing import PackWriter

Described = tuple[str, str, Sequence[int]]  # a tensor's name, dtype and shape
Older = Iterable[Mapping[str, TensorEntry]]  # what may be like a file in earlier versions, by name, the nearest first
WAITING = 4096  # tensors entered whose ids were not asked for yet
RUN_BYTES, RUN_TENSORS = 1 << 20, 4096  # small tensors that are read and hashed at once


def delta_parent(parents: Mapping[str, TensorEntry], name: str, dtype: str, shape: Sequence[int]) -> Oid | None:
    """Return the id of the tensor of that name, if its type and size are the same."""
    found = parents.get(name)
    if found is None or found.dtype != dtype:
        return None
    alike = found.shape == tuple(shape) or size_bytes(dtype, found.shape) == size_bytes(dtype, shape)
    return found.oid if alike else None


class Collected:
    """The tensors of a manifest in the making, some of whose ids are not known yet."""

    def __init__(self, parent: Manifest | None, listener: Listener, total: int | None, older: Older = ()) -> None:
        self._parents, self._older, self._listener = [by_name(parent)], iter(older), listener
        self._waiting: deque[tuple[str, str, tuple[int, ...], Pending]] = deque()
        self._entries: list[TensorEntry] = []
        listener(Started("store weights", total, "bytes"))

    def parent(self, name: str, dtype: str, shape: Sequence[int]) -> Oid | None:
        """Return the id to store a difference to; older versions are looked at for what the newer ones lack."""
        bases = (delta_parent(parents, name, dtype, shape) for parents in self._nearest())
        return next((oid for oid in bases if oid is not None), None)

    def _nearest(self) -> Iterator[Mapping[str, TensorEntry]]:
        yield from self._parents
        for parents in self._older:
            self._parents.append(parents)
            yield parents

    def add(self, size: int, tensors: Iterable[TensorSpan | Described], pending: Sequence[Pending]) -> None:
        """Note tensors of so many bytes together; the listener hears of them now."""
        for (name, dtype, shape, *_), each in zip(tensors, pending, strict=True):
            self._waiting.append((name, dtype, tuple(shape), each))
        self._listener(Advanced("store weights", size, self._waiting[-1][0]))
        while self._waiting and (self._waiting[0][3].value is not None or len(self._waiting) > WAITING):
            self._settle()

    def manifest(self, pack: PackWriter, header: Header) -> Manifest:
        """Return the manifest of all that was added, the header stored beside."""
        while self._waiting:
            self._settle()
        oid = pack.add_blob(header.raw)
        entries = tuple(sorted(self._entries, key=lambda entry: entry.name.encode()))
        self._listener(Finished("store weights", f"{len(entries)} tensors"))
        return Manifest(oid, len(header.raw), header.size_bytes, entries)

    def _settle(self) -> None:
        """Ask for the id of the tensor that waits longest."""
        name, dtype, shape, pending = self._waiting.popleft()
        self._entries.append(TensorEntry(name, dtype, shape, pending.oid()))


def store_file(
    pack: PackWriter, path: Path, parent: Manifest | None = None, listener: Listener = ignore, older: Older = ()
) -> Manifest:
    """Store a safetensors file's tensors, as differences to the parent's of the same names; return its manifest.

    Raises:
        FormatError: not a safetensors file, or changed while it was read. StorageFull.
    """
    return store_and_print(pack, path, parent, listener, older)[0]


def store_and_print(
    pack: PackWriter, path: Path, parent: Manifest | None, listener: Listener, older: Older = ()
) -> tuple[Manifest, str | None]:
    """As `store_file`; return the file's print as well, None if frames of it were not needed.

    `older` is looked at only as far as tensors find nothing alike before.
    """
    header = read_header(path)
    found = Print(header)
    collected = Collected(parent, listener, header.size_bytes - header.data_start, older)
    file = opened(path)
    before = stamp(file)
    for first, spans in runs(header.tensors):
        fill = file_fill(file, path, header.data_start + spans[0].start)
        bases = [collected.parent(span.name, span.dtype, span.shape) for span in spans]
        if spans[0].end - spans[0].start < SMALL_BYTES:
            sizes = [(span.end - span.start, span.dtype, base) for span, base in zip(spans, bases, strict=True)]
            pending = pack.enter_together(found.watched_together(first, fill), sizes)
        else:
            pending = [pack.enter(found.watched(first, fill), spans[0].end - spans[0].start, spans[0].dtype, bases[0])]
        collected.add(spans[-1].end - spans[0].start, spans, pending)
    manifest = collected.manifest(pack, header)
    if stamp(file) != before or before[1] != header.size_bytes or not begins_with(file, header.raw):
        raise FormatError(f"{path}: changed while it was read", hint="wait until its writer has finished")
    return manifest, found.digest()


def runs(spans: Sequence[TensorSpan]) -> Iterator[tuple[int, Sequence[TensorSpan]]]:
    """Yield large tensors each by itself, small ones that lie side by side together; with the number of the first."""
    run = list[TensorSpan]()
    for number, span in enumerate(spans):
        small = span.end - span.start < SMALL_BYTES
        if run and not (small and span.end - run[0].start <= RUN_BYTES and len(run) < RUN_TENSORS):
            yield number - len(run), run
            run = []
        if small:
            run.append(span)
        else:
            yield number, [span]
    if run:
        yield len(spans) - len(run), run


def begins_with(file: MappedFile, raw: bytes) -> bool:
    """Tell whether an open file is the one that a header was read from: another may have taken its path since."""
    start = bytearray(len(raw))
    return file.read_into(0, memoryview(start)) and start == raw


class Stream(Protocol):
    """Bytes that come once, in order."""

    def readinto(self, into: memoryview, /) -> int | None:
        """Fill a part of `into` and return how many bytes that was, 0 at the end."""


def read_some(stream: Stream, into: memoryview) -> int:
    """Fill `into`, or as much of it as there is, and return how much."""
    done = 0
    while done < len(into):
        got = stream.readinto(into[done:])
        if not got:
            break
        done += got
    return done


def stream_header(stream: Stream, name: str) -> Header:
    """Return the header that a stream begins with. Raises FormatError."""
    prefix = bytearray(PREFIX_BYTES)
    got = read_some(stream, memoryview(prefix))
    most = PREFIX_BYTES + MAX_HEADER_BYTES if got == PREFIX_BYTES else got
    raw = prefix + bytearray(header_length(bytes(prefix[:got]), most, name))
    if read_some(stream, memoryview(raw)[PREFIX_BYTES:]) != len(raw) - PREFIX_BYTES:
        raise FormatError(f"{name}: truncated: the file ends inside its header of {len(raw) - PREFIX_BYTES} bytes")
    return parse_header(bytes(raw), None, name)


def stream_frames(stream: Stream, size: int, name: str) -> Iterator[memoryview]:
    """Yield the next `size` bytes of a stream in frames, each valid until the next. Raises FormatError."""
    buffer = memoryview(bytearray(min(size, FRAME_BYTES)))
    for number in range(frame_count(size)):
        frame = buffer[: frame_size(size, number)]
        if read_some(stream, frame) != len(frame):
            raise FormatError(f"{name}: truncated: the file ends inside a tensor")
        yield frame


def store_stream(
    pack: PackWriter,
    stream: Stream,
    name: str,
    parent: Manifest | None = None,
    listener: Listener = ignore,
    older: Older = (),
) -> Manifest:
    """As `store_file`, from a stream that is read once, with nothing beside it on disk; `name` is for messages.

    Raises:
        FormatError: not a safetensors file. StorageFull.
    """
    header = stream_header(stream, name)
    collected = Collected(parent, listener, header.size_bytes - header.data_start, older)
    for span in header.tensors:
        size, base = span.end - span.start, collected.parent(span.name, span.dtype, span.shape)
        pending = pack.enter_frames(stream_frames(stream, size, name), size, span.dtype, base)
        collected.add(size, [span], [pending])
    manifest = collected.manifest(pack, header)
    if read_some(stream, memoryview(bytearray(1))):
        raise FormatError(f"{name}: bytes after the last tensor, expected none")
    return manifest


def store_tensors(
    pack: PackWriter,
    tensors: Iterable[tuple[str, str, Sequence[int], memoryview]],
    metadata: Mapping[str, str],
    parent: Manifest | None = None,
    older: Older = (),
    listener: Listener = ignore,
) -> Manifest:
    """Store tensors (name, dtype, shape, raw little-endian bytes) as the file that `build_header` describes.

    Each is copied as it comes, so the caller may use its buffer again for the next.

    Raises:
        FormatError: bytes that do not fit dtype and shape. StorageFull.
    """
    collected, described = Collected(parent, listener, None, older), list[Described]()
    for name, dtype, shape, data in tensors:
        view, expected = memoryview(data).cast("B"), size_bytes(dtype, shape)
        if len(view) != expected:
            raise FormatError(f"tensor {name!r}: expected {expected} bytes for {dtype} {list(shape)}, got {len(view)}")
        frames = (view[start : start + FRAME_BYTES] for start in range(0, expected, FRAME_BYTES))
        pending = pack.enter_frames(frames, expected, dtype, collected.parent(name, dtype, shape))
        collected.add(expected, [(name, dtype, shape)], [pending])
        described.append((name, dtype, shape))
    return collected.manifest(pack, build_header(described, metadata))
