"""A pack while it is written: its records so far, readable already, and the work that is under way for it."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from blake3 import blake3
from xxhash import xxh3_64

from modelgit.errors import StoreError
from modelgit.store.backend import Backend, Stage
from modelgit.store.catalog import Catalog, Place, put_aside
from modelgit.store.codec.frames import Parts, total_bytes
from modelgit.store.identity import Buffer, Oid
from modelgit.store.pack import MAGIC, Directory, Entry, write_directory, write_footer, write_index

T = TypeVar("T")
P = ParamSpec("P")


def checksum(parts: Parts) -> int:
    """Return the xxh3 of the parts, one after another."""
    state = xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()


@dataclass(slots=True)
class Pending:
    """An object handed to a pack, whose id may not be known yet."""

    drain: Callable[[], None]
    value: bytes | None = None

    def oid(self) -> Oid:
        """Return the id, waiting for it if need be. Raises what went wrong."""
        if self.value is None:
            self.drain()
        if self.value is None:
            raise StoreError("the pack was left before the object was written")
        return self.value.hex()


class Pipeline:
    """Runs work in a pool and its consequences in the caller's thread, in the order given, a bounded way ahead."""

    def __init__(self, pool: Executor, ahead: int) -> None:
        self._pool, self.ahead = pool, ahead
        self._waiting: deque[tuple[Future[None] | None, Callable[[], None]]] = deque()
        self._running = 0

    def begin(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Run `work` in the pool, in no order; the caller sees to the bound."""
        return self._pool.submit(work, *arguments, **named)

    def submit(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run `work` in the pool, and `then` with its result when everything before it is done."""
        while self._running >= self.ahead:
            self._step()
        results: list[T] = []
        future = self._pool.submit(lambda: results.append(work()))
        self._running += 1
        self._waiting.append((future, lambda: then(results[0])))

    def after(self, then: Callable[[], None]) -> None:
        """Run `then` when everything before it is done."""
        self._waiting.append((None, then))

    def drain(self) -> None:
        """Wait until everything is done. Raises what the work raised."""
        while self._waiting:
            self._step()

    def abandon(self) -> None:
        """Forget what waits, and wait for what runs; the last first, since later frames wait for first ones."""
        futures = [future for future, _ in reversed(self._waiting) if future is not None]
        self._waiting.clear()
        running = [future for future in futures if not future.cancel()]
        for future in running:
            future.exception()

    def _step(self) -> None:
        future, then = self._waiting.popleft()
        if future is not None:
            self._running -= 1
            future.result()
        then()


class PackDraft:
    """The records of a pack that is being written, and the objects in it. Its file is made at the first write."""

    def __init__(self, backend: Backend, catalog: Catalog) -> None:
        self._backend, self._catalog = backend, catalog
        self._stage: Stage | None = None
        self._places: dict[bytes, Place] = {}
        self.size = 0

    def oids(self) -> list[bytes]:
        """Return the objects of this pack, in the order they came."""
        return list(self._places)

    def has(self, oid: bytes) -> bool:
        """Tell whether an object is here or in the store's packs read so far."""
        return oid in self._places or self._catalog.known(oid) is not None

    def find(self, oid: bytes) -> Place | None:
        """Return an object's place, here first."""
        return self._places.get(oid) or self._catalog.find(oid)

    def find_together(self, oids: Sequence[bytes]) -> Sequence[Place | None]:
        """As `find`, of many."""
        if not any(oid in self._places for oid in oids):
            return self._catalog.find_together(oids)
        return [self.find(oid) for oid in oids]

    def has_together(self, oids: Sequence[bytes]) -> list[bool]:
        """As `has`, of many."""
        places = self._catalog.known_together(oids)
        return [place is not None or oid in self._places for oid, place in zip(oids, places, strict=True)]

    def holds(self, oid: bytes) -> bool:
        """Tell whether an object is in this pack."""
        return oid in self._places

    def read_into(self, pack: str, start: int, into: memoryview) -> None:
        """Fill `into` from a pack, the one being written if `pack` is empty."""
        if pack or self._stage is None:
            self._backend.read_into(pack, start, into)
        else:
            self._stage.read_into(start, into)

    def write(self, parts: Parts) -> None:
        """Append bytes. Raises StorageFull."""
        if self._stage is None:
            self._stage = self._backend.stage()
            self._stage.write([MAGIC])
            self.size = len(MAGIC)
        self._stage.write(parts)
        self.size += total_bytes(parts)

    def rewind(self, size_bytes: int) -> None:
        """Forget what was written after `size_bytes`, a record's start."""
        if self._stage is not None and size_bytes < self.size:
            self.size = max(size_bytes, len(MAGIC))
            self._stage.rewind(self.size)

    def close_record(self, directory: Directory, oids: Sequence[bytes]) -> None:
        """Append a record's directory to its frames, and note its objects: one, or a bundle's members in order."""
        data = write_directory(directory)
        self.write([data])
        length = directory.stored + len(data)
        offset, start = self.size - length, 0
        for oid, size in zip(oids, directory.members or (directory.size,), strict=True):
            self._places[oid] = Place("", Entry(offset, length, size, start, len(data)))
            start += size

    def adopt(self, frames: Iterable[Buffer], entries: Mapping[bytes, Entry]) -> None:
        """Append another pack's record as it is; `entries` are its objects there."""
        self.write([])
        offset = self.size
        for part in frames:
            self.write([part])
        for oid, entry in entries.items():
            self._places[oid] = Place("", entry._replace(offset=offset))

    def publish(self) -> str | None:
        """Make everything durable and visible; return the pack's name, None if there is nothing. Raises StorageFull."""
        if self._stage is None or not self._places:
            return None
        index = write_index({oid: place.entry for oid, place in self._places.items()})
        self._stage.write([index, write_footer(index, self.size)])
        name = f"packs/{blake3(index).hexdigest()}.pack"
        if name in self._catalog.broken():
            put_aside(self._backend, name)  # the same objects, but their index cannot be read
            self._catalog.refresh()
        self._stage.publish(name)
        self._catalog.refresh()
        return name

    def discard(self) -> None:
        """Leave nothing behind, unless published."""
        if self._stage is not None:
            self._stage.discard()
