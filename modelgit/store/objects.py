"""The object store: content-addressed tensors and blobs in packs, each read checked against its id.

`ObjectStore` is what the rest of modelgit sees of this room, with `checkpoint` for whole files.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelgit.events import Advanced, Finished, Listener, Started, announced, ignore
from modelgit.store.backend import Backend, DirBackend, translated
from modelgit.store.catalog import Catalog, Place
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.draft import PackDraft
from modelgit.store.identity import FRAME_BYTES, Kind, Oid, frame_count, frame_size, parse_oid
from modelgit.store.pack import Entry
from modelgit.store.reading import Link, Reader
from modelgit.store.writing import PackWriter

if TYPE_CHECKING:
    from modelgit.store.upkeep.fsck import FsckReport

COPY_BYTES = FRAME_BYTES
LOOKED_FOR = 4096  # objects at once


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """How an object is stored; a small one's share of its record counts as its stored bytes."""

    kind: Kind
    size_bytes: int
    stored_bytes: int
    codec: str
    depth: int
    parents: tuple[Oid, ...]


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy brought: objects that were missing, and the bytes written."""

    objects: int
    bytes: int


def piece(data: Bytes, number: int) -> Bytes:
    """Return the part of `data` where frame `number` belongs."""
    return data[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]


def available_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of an open file. Raises StorageFull."""
    with translated(Path(f"file handle {handle}")):
        while data:
            done = os.pwrite(handle, data, offset)
            data, offset = data[done:], offset + done


def new_parents(link: Link, seen: set[tuple[str, int]]) -> Sequence[bytes]:
    """Return what a record refers to, nothing if it was seen before: small objects share one."""
    place = (link.record.pack, link.record.offset)
    if place in seen:
        return ()
    seen.add(place)
    return link.record.directory.parents


class ObjectStore:
    """Objects in a folder (or another backend) that need not exist yet: then the store is empty."""

    def __init__(self, root: Path | Backend, *, threads: int | None = None) -> None:
        self.backend = DirBackend(root) if isinstance(root, Path) else root
        self.threads = max(1, threads or available_threads())
        self.catalog = Catalog(self.backend)
        self.reader = Reader(self.catalog.find_together, self.backend.read_into)
        self._executor: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that hash, encode and decode."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="modelgit-store")
        return self._executor

    def begin(self) -> PackWriter:
        """Return a writer for one new pack."""
        return PackWriter(self.backend, self.catalog, self.pool, self.threads)

    def __contains__(self, oid: Oid) -> bool:
        return self.catalog.find(parse_oid(oid)) is not None

    def oids(self) -> Iterator[Oid]:
        """Yield the ids of all objects, in ascending order."""
        return (oid.hex() for oid in self.catalog.oids())

    def info(self, oid: Oid) -> ObjectInfo:
        """Return how an object is stored. Raises MissingObject, CorruptObject."""
        link = self.reader.link(parse_oid(oid))
        directory, place = link.record.directory, self.catalog.find(parse_oid(oid))
        length = place.entry.length if place else 0
        share = length * link.size // max(1, directory.size) if directory.bundle else length
        parents = tuple(parent.hex() for parent in dict.fromkeys(directory.parents))
        return ObjectInfo(directory.kind, link.size, share, directory.codec, directory.depth, parents)

    def read(self, oid: Oid) -> bytes:
        """Return an object's raw bytes. Raises MissingObject, CorruptObject."""
        link = self.reader.open(parse_oid(oid))
        data = np.empty(link.size, np.uint8)
        self.decode_frames(link, lambda number: piece(data, number), lambda _number, _frame: None)
        return data.tobytes()

    def frames(self, oid: Oid) -> Iterator[memoryview]:
        """Yield an object's raw bytes in frames of 4 MiB, each valid until the next. Raises as `read` does."""
        link = self.reader.open(parse_oid(oid))
        waiting: deque[tuple[Future[None], Bytes]] = deque()
        free = [np.empty(min(FRAME_BYTES, link.size), np.uint8) for _ in range(self.threads + 1)]
        for number in range(frame_count(link.size)):
            frame = free.pop()[: frame_size(link.size, number)]
            waiting.append((self.pool.submit(self.reader.frame, link, number, frame), frame))
            if not free:
                yield from self._give(waiting, free)
        while waiting:
            yield from self._give(waiting, free)

    def _give(self, waiting: deque[tuple[Future[None], Bytes]], free: list[Bytes]) -> Iterator[memoryview]:
        future, frame = waiting.popleft()
        future.result()
        yield frame.data
        free.append(frame)

    def write_to(self, oid: Oid, handle: int, offset: int) -> None:
        """Write an object's raw bytes at `offset` of an open file. Raises as `read` does, and StorageFull."""
        link = self.reader.open(parse_oid(oid))
        self.decode_frames(
            link,
            lambda number: TOOLS.buffer("out", frame_size(link.size, number)),
            lambda number, frame: write_at(handle, frame.data, offset + number * FRAME_BYTES),
        )

    def open(self, oid: Oid) -> Link:
        """Return an object's record, its frames' hashes checked. Raises MissingObject, CorruptObject."""
        return self.reader.open(parse_oid(oid))

    def fill(self, link: Link, number: int, into: Bytes) -> None:
        """Fill `into` with a frame of an opened object. Raises CorruptObject."""
        self.reader.frame(link, number, into)

    def fill_members(self, links: Sequence[Link], into: Bytes) -> None:
        """Fill `into` with small objects one after another. Raises CorruptObject."""
        self.reader.members(links, into)

    def fill_together(self, links: Sequence[Link], number: int, places: Sequence[Bytes]) -> None:
        """As `fill`, for a frame of several objects; what they are stored as differences to is decoded once."""
        self.reader.frames(links, number, places)

    def grow(self, link: Link, number: int, into: Bytes) -> None:
        """Apply an opened object's difference to `into`, which holds the parent's frame. Raises CorruptObject."""
        self.reader.grow(link.record, number, into)

    def decode_frames(self, link: Link, buffer: Callable[[int], Bytes], done: Callable[[int, Bytes], None]) -> None:
        """Decode every frame, in the pool's threads, into what `buffer` gives for it; `done` gets it there."""

        def work(number: int) -> None:
            into = buffer(number)
            self.reader.frame(link, number, into)
            done(number, into)

        self.each([partial(work, number) for number in range(frame_count(link.size))])

    def each(self, work: Iterable[Callable[[], None]]) -> None:
        """Run pieces of work in the pool, a bounded way ahead. Raises the first error, after all have ended."""
        running: deque[Future[None]] = deque()
        try:
            for piece_of_work in work:
                running.append(self.pool.submit(piece_of_work))
                if len(running) > 2 * self.threads:
                    running.popleft().result()
            while running:
                running.popleft().result()
        finally:
            for future in running:
                if not future.cancel():
                    future.exception()

    def missing(self, oids: Iterable[Oid], *, lasting: bool = False) -> set[Oid]:
        """Return those that are not in the store; with `lasting`, nor in packs that are to stay: for who writes."""
        self.catalog.refresh()
        absent = {oid for oid in oids if self.catalog.known(parse_oid(oid)) is None}
        return absent if lasting else {oid for oid in absent if self.catalog.condemned(parse_oid(oid)) is None}

    def links(self, oids: Iterable[Oid]) -> Iterator[Link]:
        """Yield objects' records, many looked for at once. Raises MissingObject, CorruptObject."""
        waiting = iter(oids)
        while some := [parse_oid(oid) for oid in itertools.islice(waiting, LOOKED_FOR)]:
            for oid, place in zip(some, self.catalog.find_together(some), strict=True):
                yield self.reader.link_at(place, oid)

    def closure(self, oids: Iterable[Oid]) -> set[Oid]:
        """Return the objects and everything they are stored by reference to. Raises MissingObject, CorruptObject."""
        found, seen, waiting = set[bytes](), set[tuple[str, int]](), list[bytes]()
        for link in self.links(oids):
            found.add(link.oid)
            waiting.extend(new_parents(link, seen))
        while waiting:
            oid = waiting.pop()
            if oid not in found:
                found.add(oid)
                waiting.extend(new_parents(self.reader.link(oid), seen))
        return {oid.hex() for oid in found}

    def copy_to(self, other: "ObjectStore", oids: Iterable[Oid], listener: Listener = ignore) -> CopyReport:
        """Copy what is missing there, as it is stored here, with all it refers to, as one new pack.

        A small tensor takes its record's other members along. Everything is decoded there and every id recomputed
        before anything becomes visible.

        Raises:
            MissingObject: an object is not here either. CorruptObject: one is damaged. StorageFull.
        """
        other.catalog.refresh()
        missing = {oid for oid in self.closure(oids) if other.catalog.known(parse_oid(oid)) is None}
        records = self._records_of(missing)
        draft = PackDraft(other.backend, other.catalog)
        total = sum(length for _, _, length in records)
        listener(Started("copy objects", total, "bytes"))
        try:
            for pack, offset, length in records:
                draft.adopt(self._pieces(pack, offset, length), self._members(pack, offset, other))
                listener(Advanced("copy objects", length))
            other.verify(Reader(draft.find_together, draft.read_into), draft.oids(), listener)
            draft.publish()
        finally:
            draft.discard()
        listener(Finished("copy objects", f"{len(missing)} objects"))
        return CopyReport(len(missing), total)

    def _records_of(self, oids: Iterable[Oid]) -> list[tuple[str, int, int]]:
        places = [place for oid in oids if (place := self.catalog.find(parse_oid(oid))) is not None]
        return sorted({(place.pack, place.entry.offset, place.entry.length) for place in places})

    def _members(self, pack: str, offset: int, other: "ObjectStore") -> dict[bytes, Entry]:
        """Return a record's objects that are read from it here and are not there: none gets a second form there."""
        index = self.catalog.packs()[pack]
        rows = np.flatnonzero(index.entries["offset"] == offset)
        found = {index.id(row): index.entry(row) for row in rows.tolist()}
        return {
            oid: entry
            for oid, entry in found.items()
            if other.catalog.known(oid) is None and self.catalog.find(oid) == Place(pack, entry)
        }

    def _pieces(self, pack: str, offset: int, length: int) -> Iterator[bytes]:
        for start in range(offset, offset + length, COPY_BYTES):
            yield self.backend.read(pack, start, min(COPY_BYTES, offset + length - start))

    def verify(self, reader: Reader, oids: Sequence[bytes], listener: Listener) -> None:
        """Decode objects through `reader` and check every frame against its id. Raises CorruptObject, MissingObject."""

        def work(link: Link, number: int) -> None:
            reader.frame(link, number, TOOLS.buffer("out", frame_size(link.size, number)))

        links = (reader.open(oid) for oid in announced(oids, "check objects", "objects", listener))
        self.each(partial(work, link, number) for link in links for number in range(frame_count(link.size)))

    def size_on_disk(self) -> int:
        """Return the bytes of all packs, condemned ones aside."""
        return sum(self.backend.size(name) for name in self.backend.list("packs/"))

    def fsck(self, *, full: bool = False, listener: Listener = ignore) -> "FsckReport":
        """Look for damage in every pack: see `upkeep.fsck.check`."""
        from modelgit.store.upkeep.fsck import check

        return check(self, full=full, listener=listener)
