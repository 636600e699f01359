"""What lies where in a store, record by record, without decoding anything."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from modelgit.errors import CorruptObject
from modelgit.store.backend import Backend
from modelgit.store.catalog import FSCK_HINT
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import Codec, Entry, Index, parse_directory


@dataclass(frozen=True, slots=True)
class Stored:
    """A record of a pack: the objects in it (one, or a bundle's members), and those it is stored by reference to."""

    pack: str
    offset: int
    length: int
    codec: Codec
    depth: int
    size: int  # raw bytes, all members together
    entries: Mapping[bytes, Entry]
    parents: tuple[bytes, ...]

    def share(self, oid: bytes) -> int:
        """Return the stored bytes that count as an object's own: a member's part of its bundle."""
        return self.length * self.entries[oid].size // max(1, self.size) if len(self.entries) > 1 else self.length


@dataclass(frozen=True, slots=True)
class Survey:
    """Every record, by the pack it lies in; packs by name, condemned ones apart."""

    live: Mapping[str, tuple[Stored, ...]]
    condemned: Mapping[str, tuple[Stored, ...]]

    def places(self) -> dict[bytes, tuple[Stored, ...]]:
        """Return the records of each object: those in live packs, or if there are none those in condemned packs."""
        found: dict[bytes, tuple[Stored, ...]] = {}
        for packs in (self.live, self.condemned):
            here: dict[bytes, tuple[Stored, ...]] = {}
            for record in (record for records in packs.values() for record in records):
                for oid in record.entries:
                    here[oid] = (*here.get(oid, ()), record)
            found = here | found
        return found


def survey(store: ObjectStore) -> Survey:
    """Return what lies where.

    Raises:
        CorruptObject: a pack is damaged, so nobody can tell.
    """
    packs = store.catalog.packs()
    for name, reason in store.catalog.broken().items():
        raise CorruptObject(f"{name}: {reason}", hint="repair it first: modelgit fsck --repair")
    records = {name: tuple(records_of(store.backend, name, index)) for name, index in sorted(packs.items())}
    return Survey(
        {name: found for name, found in records.items() if name.startswith("packs/")},
        {name: found for name, found in records.items() if not name.startswith("packs/")},
    )


def records_of(backend: Backend, pack: str, index: Index) -> Iterator[Stored]:
    """Yield the records of a pack, in their order. Raises CorruptObject when one does not say what it is."""
    together: dict[int, dict[bytes, Entry]] = {}
    for row in range(len(index)):
        entry = index.entry(row)
        together.setdefault(entry.offset, {})[index.id(row)] = entry
    for _, entries in sorted(together.items()):
        yield record_at(backend, pack, entries)


def record_at(backend: Backend, pack: str, entries: Mapping[bytes, Entry]) -> Stored:
    """Return the record that holds some objects. Raises CorruptObject."""
    first = next(iter(entries.values()))
    where = f"{pack}: the record at {first.offset}"
    data = backend.read(pack, first.offset + first.length - first.directory, first.directory)
    try:
        found = parse_directory(data, where)
    except CorruptObject as error:
        raise CorruptObject(error.message, hint=error.hint or FSCK_HINT) from error
    parents = tuple(dict.fromkeys(found.parents))
    return Stored(pack, first.offset, first.length, found.codec, found.depth, found.size, entries, parents)


def pieces(backend: Backend, record: Stored) -> Iterator[bytes]:
    """Yield a record's bytes, a few at a time."""
    end = record.offset + record.length
    for start in range(record.offset, end, FRAME_BYTES):
        yield backend.read(record.pack, start, min(FRAME_BYTES, end - start))


def closure(oids: Iterable[bytes], places: Mapping[bytes, tuple[Stored, ...]]) -> set[bytes]:
    """Return objects with everything they are stored by reference to, as far as it is in the store."""
    waiting, found = list(oids), set[bytes]()
    while waiting:
        oid = waiting.pop()
        if oid in found or oid not in places:
            continue
        found.add(oid)
        for record in places[oid]:
            waiting.extend(record.parents)
    return found
