"""Mending a store: what is sound in damaged packs is copied out, the rest is taken from other stores.

Damaged packs are put aside, never deleted. Nothing is believed that was not decoded and gave its id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from xxhash import xxh3_64_intdigest

from modelgit.errors import CorruptObject, MissingObject, RemoteError, StoreError
from modelgit.events import Listener, ignore
from modelgit.store.catalog import DAMAGED, Place, put_aside
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.identity import HASH_BYTES, frame_count, frame_size, root
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import ENTRY, FOOTER, MAGIC, Directory, Entry, parse_directory
from modelgit.store.reading import Reader
from modelgit.store.upkeep.copying import alone, copy_records
from modelgit.store.upkeep.fsck import FsckReport, check
from modelgit.store.upkeep.survey import Stored, survey

ROW = HASH_BYTES + ENTRY.itemsize


@dataclass(frozen=True, slots=True)
class Mended:
    """What a repair did: objects copied out of damaged packs and brought from elsewhere, packs put aside.

    `lost` are the needed objects that were found nowhere, `report` is how the store is now.
    """

    salvaged: int
    brought: int
    put_aside: tuple[str, ...]
    lost: frozenset[bytes]
    report: FsckReport


def mend(
    store: ObjectStore,
    sources: Sequence[ObjectStore],
    needed: Iterable[bytes],
    *,
    full: bool = False,
    listener: Listener = ignore,
) -> Mended:
    """Make a store sound: replace what is damaged, and bring what of `needed` is missing, from `sources`.

    Raises:
        StoreError: a gc is running. StorageFull. Run it again: damaged packs are kept.
    """
    with alone(store.backend):
        work = Mending(store, sources, set(needed), listener)
        work.put_aside(damaged_packs(store, check(store, full=full, listener=listener)))
        work.complete()
        work.put_aside(work.stuck_packs())
        work.complete()
        report = check(store, full=full, listener=listener)
        return Mended(work.salvaged, work.brought, tuple(work.aside), frozenset(work.wishes(work.needed)), report)


def damaged_packs(store: ObjectStore, report: FsckReport) -> list[str]:
    """Return the packs that are damaged themselves: not those whose objects hang on damaged ones elsewhere."""
    bad = {fault.oid for fault in report.faults if fault.oid}
    found = dict[str, None]()
    for fault in report.faults:
        parents = parents_in(store, fault.pack, fault.oid) if fault.oid else ()
        if bad.isdisjoint(parents) and not store.missing(parent.hex() for parent in parents):
            found[fault.pack] = None
    return list(found)


def parents_in(store: ObjectStore, pack: str, oid: bytes) -> tuple[bytes, ...]:
    """Return what an object is stored by reference to in one pack; nothing if its record cannot be read."""
    index = store.catalog.packs()[pack]
    rows = (index.ids == np.frombuffer(oid, np.uint8)).all(axis=1).nonzero()[0]
    entry = index.entry(int(rows[0]))
    with suppress(StoreError):
        data = store.backend.read(pack, entry.offset + entry.length - entry.directory, entry.directory)
        return parse_directory(data, pack).parents
    return ()


class Mending:
    """A repair under way."""

    def __init__(
        self, store: ObjectStore, sources: Sequence[ObjectStore], needed: set[bytes], listener: Listener
    ) -> None:
        self._store, self._sources, self._listener = store, sources, listener
        self.needed = needed
        self.salvaged = self.brought = 0
        self.aside: list[str] = []

    def put_aside(self, packs: Iterable[str]) -> None:
        """Copy what is sound out of packs, then move them where nobody looks."""
        names = list(packs)
        new = self._salvage(names, None)
        for name in names:
            if name not in new:  # else it was put aside to make room for its sound copy
                put_aside(self._store.backend, name)
            self.aside.append(name)
        self._store.catalog.refresh()

    def complete(self) -> None:
        """Bring what is missing: from other stores, and out of the packs put aside, now or earlier."""
        live = {oid for packs in survey(self._store).places().values() for record in packs for oid in record.parents}
        for source in self._sources:
            self._bring(source, self.wishes(self.needed | live))
        wanted = self.wishes(self.needed | live)
        if wanted:
            self._salvage(self._store.backend.list(DAMAGED), wanted)

    def wishes(self, needed: Iterable[bytes]) -> set[bytes]:
        """Return the objects that are missing: needed themselves, or by what needed ones are stored as."""
        places = survey(self._store).places()
        waiting, seen, missing = list(needed), set[bytes](), set[bytes]()
        while waiting:
            oid = waiting.pop()
            if oid in seen:
                continue
            seen.add(oid)
            records = places.get(oid, ())
            waiting.extend(parent for record in records for parent in record.parents)
            if not records:
                missing.add(oid)
        return missing

    def stuck_packs(self) -> list[str]:
        """Return the packs with objects that hang on missing ones."""
        found = survey(self._store)
        bad = self.wishes(found.places())
        packs = {**found.live, **found.condemned}
        stuck = dict[str, None]()
        while True:
            before = len(bad)
            for name, records in packs.items():
                for record in records:
                    if not bad.isdisjoint(record.parents):
                        bad.update(record.entries)
                        stuck[name] = None
            if len(bad) == before:
                return list(stuck)

    def _bring(self, source: ObjectStore, wanted: set[bytes]) -> None:
        """Copy what a source has; if that fails, one by one, since the source may be damaged as well."""
        oids = {oid.hex() for oid in wanted}
        have = sorted(oids - source.missing(oids))
        try:
            self.brought += source.copy_to(self._store, have, self._listener).objects if have else 0
        except (StoreError, RemoteError):
            for oid in have:
                with suppress(StoreError, RemoteError):
                    self.brought += source.copy_to(self._store, [oid]).objects

    def _salvage(self, packs: Sequence[str], wanted: set[bytes] | None) -> list[str]:
        """Copy sound records out of packs, all or those with the `wanted` objects; return the new packs."""
        records = [record for name in packs for record in readable(self._store, name)]
        found = {oid: record for record in records for oid in record.entries}
        elsewhere = self._elsewhere(set(packs))
        reader = Reader(
            lambda oids: [elsewhere(oid) or place_of(found, oid) for oid in oids], self._store.backend.read_into
        )
        chosen = dict[int, Stored]()
        for oid in list(found) if wanted is None else [oid for oid in found if oid in wanted]:
            for record in parents_first(oid, found):
                if id(record) not in chosen and any(elsewhere(one) is None for one in record.entries):
                    kept = {one: entry for one, entry in record.entries.items() if sound(reader, one)}
                    chosen[id(record)] = replace(record, entries=kept)
        good = [record for record in chosen.values() if record.entries]
        new = copy_records(self._store, good, self._listener)
        self.salvaged += sum(len(record.entries) for record in good)
        self._store.catalog.refresh()
        return new

    def _elsewhere(self, packs: set[str]) -> Callable[[bytes], Place | None]:
        """Return a function that finds an object outside some packs."""
        places = {
            index.id(row): Place(name, index.entry(row))
            for name, index in self._store.catalog.packs().items()
            if name not in packs
            for row in range(len(index))
        }
        return places.get


def place_of(found: Mapping[bytes, Stored], oid: bytes) -> Place | None:
    """Return where an object lies in records that were found."""
    record = found.get(oid)
    return Place(record.pack, record.entries[oid]) if record is not None else None


def parents_first(oid: bytes, found: Mapping[bytes, Stored]) -> Iterator[Stored]:
    """Yield the records that an object hangs on, as far as they were found, each after those it hangs on itself."""
    seen, stack = set[bytes](), [(oid, False)]
    while stack:
        one, ready = stack.pop()
        if one not in found:
            continue
        if ready:
            yield found[one]
        elif one not in seen:
            seen.add(one)
            stack.append((one, True))
            stack.extend((parent, False) for parent in found[one].parents)


def sound(reader: Reader, oid: bytes) -> bool:
    """Tell whether an object can be decoded and gives its id."""
    try:
        link = reader.open(oid)
        for number in range(frame_count(link.size)):
            reader.frame(link, number, TOOLS.buffer("out", frame_size(link.size, number)))
    except (CorruptObject, MissingObject, StoreError):
        return False
    return True


def readable(store: ObjectStore, pack: str) -> Iterator[Stored]:
    """Yield the records of a damaged pack whose own bytes are whole; its index need not be."""
    together = dict[tuple[int, int, int], dict[bytes, Entry]]()
    for oid, entry in rows_of(store, pack):
        together.setdefault((entry.offset, entry.length, entry.directory), {})[oid] = entry
    for (offset, length, directory), entries in sorted(together.items()):
        with suppress(StoreError):
            data = store.backend.read(pack, offset + length - directory, directory)
            told = parse_directory(data, pack)
            if not intact(store, pack, offset, told):
                continue
            if not told.bundle:  # such a record says itself whose it is
                own = Entry(offset, length, told.size, 0, directory)
                entries = {root(told.kind, told.size, told.leaves): own}
            parents = tuple(dict.fromkeys(told.parents))
            yield Stored(pack, offset, length, told.codec, told.depth, told.size, entries, parents)


def intact(store: ObjectStore, pack: str, offset: int, told: Directory) -> bool:
    """Tell whether the frames of a record have their checksums."""
    for length, expected in zip(told.lengths, told.checks, strict=True):
        if xxh3_64_intdigest(store.backend.read(pack, offset, length)) != expected:
            return False
        offset += length
    return True


def rows_of(store: ObjectStore, pack: str) -> Iterator[tuple[bytes, Entry]]:
    """Yield what a pack's index says, believing as little as possible of its footer. A row may be wrong."""
    size = store.backend.size(pack)
    if size < len(MAGIC) + FOOTER.size:
        return
    offset, count, _, _ = FOOTER.unpack(store.backend.read(pack, size - FOOTER.size, FOOTER.size))
    for start in dict.fromkeys((offset, size - FOOTER.size - count * ROW)):
        length = size - FOOTER.size - start
        if start < len(MAGIC) or length <= 0 or length % ROW:
            continue
        data = store.backend.read(pack, start, length)
        ids = length // ROW * HASH_BYTES
        table = np.frombuffer(data, ENTRY, length // ROW, ids)
        for row, values in enumerate(table.tolist()):
            entry = Entry(*values)
            if len(MAGIC) <= entry.offset and entry.offset + entry.length <= start and entry.directory <= entry.length:
                yield data[row * HASH_BYTES : (row + 1) * HASH_BYTES], entry
