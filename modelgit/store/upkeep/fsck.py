"""Looking for damage: structure, checksums, and on request every id. Condemned packs are looked at as well."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from modelgit.errors import MissingObject, StoreError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.store.catalog import Place
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.identity import HASH_BYTES, frame_count, frame_size
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import ENTRY, FOOTER, MAGIC, Index
from modelgit.store.reading import Reader


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a pack: `oid` is the object that cannot be read, empty when the pack itself is damaged."""

    pack: str
    oid: bytes
    reason: str

    def __str__(self) -> str:
        """The fault in a sentence, which names the pack once."""
        reason = self.reason.removeprefix(f"{self.pack}: ").replace(f" of {self.pack}:", ":")
        return f"{self.pack}: object {self.oid.hex()}: {reason}" if self.oid else f"{self.pack}: {reason}"


@dataclass(frozen=True, slots=True)
class FsckReport:
    """How many objects were looked at, and what is wrong."""

    objects: int
    faults: tuple[Fault, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a sentence each."""
        return tuple(map(str, self.faults))


def check(store: ObjectStore, *, full: bool = False, listener: Listener = ignore) -> FsckReport:
    """Look for damage in every pack.

    Quick: structure, checksums of indexes, records and stored frames, and that nothing referred to is absent.
    `full` also decodes everything and recomputes every id.
    """
    packs = store.catalog.packs()
    faults = [Fault(name, b"", reason) for name, reason in sorted(store.catalog.broken().items())]
    listener(Started("check packs", sum(len(index) for index in packs.values()), "objects"))
    for name, index in sorted(packs.items()):
        faults += check_pack(store, name, index, full)
        listener(Advanced("check packs", len(index), name))
    listener(Finished("check packs", f"{len(faults)} problems"))
    objects = {index.id(row) for index in packs.values() for row in range(len(index))}
    return FsckReport(len(objects), tuple(faults))


def check_pack(store: ObjectStore, name: str, index: Index, full: bool) -> list[Fault]:
    """Return what is wrong in one pack."""
    here = {index.id(row): Place(name, index.entry(row)) for row in range(len(index))}
    reader = Reader(lambda oids: [here.get(oid) or store.catalog.find(oid) for oid in oids], store.backend.read_into)
    faults = [Fault(name, b"", reason) for reason in untiled(index, store.backend.size(name))]
    seen = set[int]()

    def look(oid: bytes, check_frames: bool) -> None:
        try:
            check_object(reader, oid, check_frames, full)
        except (StoreError, MissingObject) as error:
            faults.append(Fault(name, oid, error.message))

    work = list[Callable[[], None]]()
    for oid, place in here.items():
        work.append(partial(look, oid, place.entry.offset not in seen))
        seen.add(place.entry.offset)
    store.each(work)
    return sorted(faults, key=str)


def check_object(reader: Reader, oid: bytes, check_frames: bool, full: bool) -> None:
    """Check an object's record, its stored frames' checksums, and with `full` its id. Raises CorruptObject."""
    link = reader.open(oid)
    lengths = link.record.directory.lengths
    for number in range(len(lengths) if check_frames else 0):
        reader.stored(link.record, number, TOOLS.buffer("stored", lengths[number]))
    for number in range(frame_count(link.size) if full else 0):
        reader.frame(link, number, TOOLS.buffer("out", frame_size(link.size, number)))


def untiled(index: Index, pack_bytes: int) -> list[str]:
    """Return a problem for each stretch of a pack that belongs to no record, or to two."""
    problems, end, table = [], len(MAGIC), index.entries
    for offset, length in sorted(set(zip(table["offset"].tolist(), table["length"].tolist(), strict=True))):
        if offset != end:
            problems.append(f"records end at {end}, the next starts at {offset}")
        end = offset + length
    expected = pack_bytes - FOOTER.size - len(index) * (HASH_BYTES + ENTRY.itemsize)
    if end != expected:
        problems.append(f"records end at {end}, the index starts at {expected}")
    return problems
