"""Which object lies in which pack: the indexes of all packs, merged in memory as they are found.

Indexes are read on first use. When an object is not found, packs that other processes wrote since are looked for.
Packs that `gc` has condemned come last: readers still find objects there, writers do not count on them.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from modelgit.errors import CorruptObject, StoreError
from modelgit.store.backend import Backend
from modelgit.store.identity import HASH_BYTES
from modelgit.store.pack import FOOTER, MAGIC, Entry, Index, parse_footer, parse_index, require

SETTLED_S = 2.0  # a folder's time stamp this old cannot hide a later change
LIVE, CONDEMNED, DAMAGED = "packs/", "condemned/", "damaged/"

FEW = 8  # objects that are sooner found one by one

DEPTH_AT, UNKNOWN_DEPTH = 3, 256  # of a record's directory, the byte that tells the depth

FSCK_HINT = "run `modelgit fsck --repair`"


@dataclass(frozen=True, slots=True)
class Merged:
    """All packs' objects in one order: first eight bytes of each id, and pack number << 32 | row."""

    packs: list[tuple[str, Index]]
    prefixes: memoryview
    rows: memoryview


def merge(packs: dict[str, Index]) -> Merged:
    """Return the objects of all packs in one sorted table."""
    named = sorted(packs.items())
    prefixes = np.concatenate([np.empty(0, np.uint64), *(index.prefixes() for _, index in named)])
    rows = [np.arange(len(index), dtype=np.uint64) | np.uint64(n << 32) for n, (_, index) in enumerate(named)]
    order = np.argsort(prefixes, kind="stable")
    return Merged(named, prefixes[order].data, np.concatenate([np.empty(0, np.uint64), *rows])[order].data)


class Place(NamedTuple):
    """An object's entry, and the name of the pack it lies in ("" while that is being written)."""

    pack: str
    entry: Entry


def places_in(merged: Merged, oid: bytes) -> list[Place]:
    """Return the places of an object in merged packs."""
    prefixes, prefix = merged.prefixes, int.from_bytes(oid[:8], "big")
    at, found = bisect_left(prefixes, prefix), list[Place]()
    while at < len(prefixes) and prefixes[at] == prefix:
        number, row = divmod(merged.rows[at], 1 << 32)
        name, index = merged.packs[number]
        if index.id(row) == oid:
            found.append(Place(name, index.entry(row)))
        at += 1
    return found


def read_index(backend: Backend, name: str) -> Index:
    """Return a pack's index, checked. Raises CorruptObject."""
    size = backend.size(name)
    footer = backend.read(name, max(0, size - FOOTER.size), min(size, FOOTER.size))
    offset, length, digest = parse_footer(footer, size, name)
    require(backend.read(name, 0, len(MAGIC)) == MAGIC, name, "does not begin as a pack of this version")
    return parse_index(memoryview(backend.read(name, offset, length)), offset, digest, name)


def put_aside(backend: Backend, name: str) -> str:
    """Move a damaged pack where nobody looks for objects, under a name that is free; return that."""
    base = name.rpartition("/")[2].removesuffix(".pack")
    taken, number = set(backend.list(DAMAGED)), 1
    while (free := f"{DAMAGED}{base}{f'-{number}' * (number > 1)}.pack") in taken:
        number += 1
    backend.move(name, free)
    return free


class Catalog:
    """The objects of a backend's packs. Safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._packs: dict[str, Index] = {}
        self._broken: dict[str, str] = {}
        self._merged = self._condemned = merge({})
        self._state: object = None
        self._looked_at = -SETTLED_S

    def find_together(self, oids: Sequence[bytes]) -> Sequence[Place | None]:
        """As `find`, of many."""
        if len(oids) < FEW:
            return [self.find(oid) for oid in oids]
        return [place or self.find(oid) for oid, place in zip(oids, self.known_together(oids), strict=True)]

    def find(self, oid: bytes) -> Place | None:
        """Return the place of an object, looking for new packs if it is not known. Raises CorruptObject."""
        place = self.known(oid)
        if place is None and self.refresh():
            place = self.known(oid)
        place = place or self.condemned(oid)
        if place is None and self._broken:
            name, reason = next(iter(self._broken.items()))
            raise CorruptObject(f"an object may be in {name}, whose index cannot be read: {reason}", hint=FSCK_HINT)
        return place

    def known(self, oid: bytes) -> Place | None:
        """Return the place of an object in the packs read so far, condemned ones aside."""
        return self._shallowest(places_in(self._merged, oid))  # replaced whole by other threads, never changed

    def known_together(self, oids: Sequence[bytes]) -> Sequence[Place | None]:
        """As `known`, of many."""
        if len(oids) < FEW:
            return [self.known(oid) for oid in oids]
        merged = self._merged
        prefixes, rows = np.asarray(merged.prefixes), np.asarray(merged.rows)
        wanted = np.frombuffer(b"".join(oids), ">u8")[:: HASH_BYTES // 8].astype(np.uint64)
        first, end = np.searchsorted(prefixes, wanted), np.searchsorted(prefixes, wanted, "right")
        found: list[Place | None] = [None] * len(oids)
        for number in np.flatnonzero(end > first).tolist():
            at = int(first[number])
            name, index = merged.packs[int(rows[at]) >> 32]
            row = int(rows[at]) & 0xFFFFFFFF
            alone = end[number] - at == 1 and index.id(row) == oids[number]
            found[number] = Place(name, index.entry(row)) if alone else self.known(oids[number])
        return found

    def condemned(self, oid: bytes) -> Place | None:
        """Return the place of an object in the condemned packs read so far."""
        return self._shallowest(places_in(self._condemned, oid))

    def _shallowest(self, places: Sequence[Place]) -> Place | None:
        """Return the place with the shortest chain when it was written: so the chains of a store never form a loop.

        Two packs may hold each an object as a difference to what the other holds whole.
        """
        if len(places) > 1:
            return min(places, key=self._depth)
        return places[0] if places else None

    def _depth(self, place: Place) -> int:
        directory = place.entry.offset + place.entry.length - place.entry.directory
        try:
            return self._backend.read(place.pack, directory + DEPTH_AT, 1)[0]
        except StoreError:  # its pack has gone meanwhile
            return UNKNOWN_DEPTH

    def refresh(self) -> bool:
        """Read the indexes of packs that were added or removed; return whether there were any."""
        with self._lock:
            state, now = self._backend.state(), time.monotonic()
            if state is not None and state == self._state and now - self._looked_at > SETTLED_S:
                return False
            if state != self._state:
                self._looked_at = now
            self._state = state
            return self._read_changes()

    def _read_changes(self) -> bool:
        names = self._backend.list(LIVE) + self._backend.list(CONDEMNED)
        added = [name for name in names if name not in self._packs and name not in self._broken]
        removed = (self._packs.keys() | self._broken.keys()) - set(names)
        for name in removed:
            self._packs.pop(name, None)
            self._broken.pop(name, None)
        for name in added:
            try:
                self._packs[name] = read_index(self._backend, name)
            except (CorruptObject, StoreError) as error:
                self._broken[name] = error.message
        if added or removed:
            self._merged = merge({name: index for name, index in self._packs.items() if name.startswith(LIVE)})
            self._condemned = merge({n: index for n, index in self._packs.items() if n.startswith(CONDEMNED)})
        return bool(added or removed)

    def packs(self) -> dict[str, Index]:
        """Return the index of every pack that can be read, condemned ones too."""
        self.refresh()
        return dict(self._packs)

    def broken(self) -> dict[str, str]:
        """Return the packs whose index cannot be read, with the reason."""
        self.refresh()
        return dict(self._broken)

    def oids(self) -> Iterator[bytes]:
        """Yield every object's id once, in ascending order."""
        self.refresh()
        yield from sorted({index.id(row) for index in self._packs.values() for row in range(len(index))})
