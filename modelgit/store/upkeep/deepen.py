"""Storing everything better: differences to nearer relatives, in longer chains, than there is time for at a commit.

All that is needed goes into one new pack. An object's frames are either taken over as they are stored, or encoded
again as differences to a relative and decoded for comparison at once; whatever is smaller stays. Ids never change.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from modelgit.errors import CorruptObject
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.store.backend import MemoryBackend
from modelgit.store.catalog import Catalog
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.differences import decode_delta, encode_delta
from modelgit.store.codec.frames import Parts, encode_full, total_bytes
from modelgit.store.draft import PackDraft, Pipeline, checksum
from modelgit.store.identity import frame_count, frame_size, leaf
from modelgit.store.objects import ObjectStore
from modelgit.store.pack import MAGIC, Codec, Directory
from modelgit.store.reading import Link, Reader
from modelgit.store.upkeep.copying import alone
from modelgit.store.upkeep.gc import Rules, age, condemned_name, objects_of
from modelgit.store.upkeep.survey import Survey, closure, survey

DEPTH, COST = 16, 24  # of what a difference is taken to
LONGEST, COSTLIEST = 40, 1024  # of what is taken over as it is
TRIED = 3  # relatives whose first frames are compared
FRAMES_A_THREAD = 3
TASK = "store better"
Relatives = Mapping[bytes, Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Deepened:
    """What was gained: records encoded again, packs and bytes of records before, bytes saved."""

    packs: int
    records: int
    encoded: int
    bytes_before: int
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an object stands in the new pack: how deep, how costly, and in which record if that is a bundle."""

    depth: int
    cost: int
    bundle: int | None


def deepen(
    store: ObjectStore, roots: Iterable[bytes], relatives: Relatives, rules: Rules, listener: Listener = ignore
) -> Deepened:
    """Store what `roots` and young packs need anew, as small as it gets; the old packs are condemned.

    `relatives` names, for objects in the order in which they are to be stored, those they are likely to resemble.

    Raises:
        CorruptObject: an object is damaged; nothing was changed. StorageFull.
    """
    with alone(store.backend):
        before = survey(store)
        young = {name for name in before.live if age(store, name, rules) < rules.grace_s}
        needed = closure({*roots, *objects_of(before, young)}, before.places())
        if not needed:
            return Deepened(len(before.live), 0, 0, 0, 0)
        work = Deepening(store, relatives)
        listener(Started(TASK, len(needed), "objects"))
        try:
            for oid in [*(oid for oid in relatives if oid in needed), *sorted(needed)]:
                listener(Advanced(TASK, work.place(oid)))
            work.check()
            dated = max(store.backend.changed_at(name) for name in (*before.live, *before.condemned))
            exchange(store, before, work.draft, dated)
        finally:
            work.close()
        sizes = [record.length for records in before.live.values() for record in records]
        saved = sum(sizes) - (work.draft.size - len(MAGIC))
        listener(Finished(TASK, f"{work.encoded} of {work.records} records encoded again"))
        return Deepened(len(before.live), work.records, work.encoded, sum(sizes), saved)


def exchange(store: ObjectStore, before: Survey, draft: PackDraft, dated: float) -> None:
    """Put the new pack in the place of the old ones.

    These are condemned first: while both are there, an object's old form must not be found under another's new one.
    """
    for name in before.live:
        store.backend.move(name, condemned_name(name))
    try:
        new = draft.publish()
    except BaseException:
        for old in before.live:
            store.backend.move(condemned_name(old), old)
        raise
    if new is not None:
        store.backend.date(new, dated)
    store.catalog.refresh()


class Deepening:
    """The new pack in the making."""

    def __init__(self, store: ObjectStore, relatives: Relatives) -> None:
        self._store, self._relatives = store, relatives
        self.draft = PackDraft(store.backend, Catalog(MemoryBackend()))
        self._pipeline = Pipeline(store.pool, store.threads * FRAMES_A_THREAD)
        self._spots: dict[bytes, Spot] = {}
        self.records = self.encoded = 0

    def close(self) -> None:
        """Leave nothing behind, unless published."""
        self._pipeline.abandon()
        self.draft.discard()

    def check(self) -> None:
        """Open every object of the new pack, with all that it hangs on. Raises CorruptObject."""
        reader = Reader(self.draft.find_together, self.draft.read_into)
        for oid in self.draft.oids():
            reader.open(oid)

    def place(self, oid: bytes) -> int:
        """Write an object's record, what it hangs on first; return how many objects came with it."""
        if oid in self._spots:
            return 0
        before = len(self._spots)
        link = self._store.reader.open(oid)
        base = self._base(link)
        if base is None or not self._encode(link, base):
            self._take_over(link)
        return len(self._spots) - before

    def _base(self, link: Link) -> Link | None:
        """Return the relative to encode an object against, None to take it over as it is."""
        directory = link.record.directory
        if directory.bundle or directory.kind != "tensor" or directory.codec == "linear" or not link.size:
            return None
        found = [base for oid in self._relatives.get(link.oid, ()) if (base := self._relative(oid, link.size))]
        if not found or (directory.parents and found[0].oid == directory.parents[0]):
            return None
        sizes = [(total_bytes(self._difference(link, base, 0)), i) for i, base in enumerate(found[:TRIED])]
        smallest, chosen = min(sizes)
        return found[chosen] if smallest < directory.lengths[0] else None

    def _relative(self, oid: bytes, size: int) -> Link | None:
        spot = self._spots.get(oid)
        if spot is None or spot.bundle is not None or spot.depth >= DEPTH or spot.cost > COST:
            return None
        link = self._store.reader.open(oid)
        return link if link.size == size else None

    def _difference(self, link: Link, base: Link, number: int) -> Parts:
        """Return a frame as its difference to the base's, after decoding that again. Raises CorruptObject."""
        size, width = frame_size(link.size, number), link.record.directory.width
        child, parent = TOOLS.buffer("child", size), TOOLS.buffer("parent", size)
        self._store.reader.frame(link, number, child)
        self._store.reader.frame(base, number, parent)
        parts = encode_delta(child, parent, width)
        decode_delta(memoryview(b"".join(parts)), width, parent)
        if parent.data != child.data:
            raise CorruptObject(f"object {link.oid.hex()}: frame {number} does not survive its encoding")
        return parts

    def _full(self, link: Link, number: int) -> Parts:
        child = TOOLS.buffer("child", frame_size(link.size, number))
        self._store.reader.frame(link, number, child)
        return [b"".join(encode_full(child, link.record.directory.width))]

    def _encode(self, link: Link, base: Link | None) -> bool:
        """Write an object as differences to `base`, or alone; False, and nothing written, if that is no smaller."""
        self.draft.write([])
        start = self.draft.size
        lengths, checks = list[int](), list[int]()

        def take(parts: Parts) -> None:
            self.draft.write(parts)
            lengths.append(total_bytes(parts))
            checks.append(checksum(parts))

        for number in range(frame_count(link.size)):
            encode = partial(self._full, link) if base is None else partial(self._difference, link, base)
            self._pipeline.submit(partial(encode, number), take)
        self._pipeline.drain()
        if base is not None and sum(lengths) >= link.record.directory.stored:
            self.draft.rewind(start)
            return False
        self._close(told_anew(self._store.reader, link, base, lengths, checks), [link.oid])
        self.encoded += 1
        return True

    def _take_over(self, link: Link) -> None:
        """Write a record with the frames it has, on top of what its parents are now."""
        directory = link.record.directory
        for parent in dict.fromkeys(directory.parents):
            self.place(parent)
        depth, cost = self._standing(directory)
        if depth > LONGEST or cost > COSTLIEST:
            for oid, part in self._members(link):
                self._encode(part._replace(oid=oid), None)
            return
        self.draft.write([])
        for number, length in enumerate(directory.lengths):
            stored = TOOLS.buffer("stored", length)
            self._store.reader.stored(link.record, number, stored)
            self.draft.write([stored.data])
        self._close(directory, [oid for oid, _ in self._members(link)])

    def _members(self, link: Link) -> list[tuple[bytes, Link]]:
        """Return the objects of a record, in their order there."""
        if not link.record.directory.bundle:
            return [(link.oid, link)]
        index = self._store.catalog.packs()[link.record.pack]
        rows = (index.entries["offset"] == link.record.offset).nonzero()[0].tolist()
        entries = sorted(((index.entry(row), index.id(row)) for row in rows), key=lambda e: (e[0].start, e[0].size))
        return [(oid, Link(oid, link.record, entry.start, entry.size)) for entry, oid in entries]

    def _close(self, directory: Directory, oids: Sequence[bytes]) -> None:
        depth, cost = self._standing(directory)
        offset = self.draft.size - sum(directory.lengths)
        self.draft.close_record(replace(directory, depth=depth, cost=cost), oids)
        spot = Spot(depth, cost, offset if directory.bundle else None)
        self._spots.update(dict.fromkeys(oids, spot))
        self.records += 1

    def _standing(self, directory: Directory) -> tuple[int, int]:
        """Return the depth and cost of a record whose parents are in the new pack."""
        spots = [self._spots[parent] for parent in directory.parents]
        bundles = {spot.bundle: spot.cost for spot in spots if spot.bundle is not None}
        single = sum(spot.cost for spot in spots if spot.bundle is None)
        return max((spot.depth + 1 for spot in spots), default=0), 1 + single + sum(bundles.values())


def told_anew(
    reader: Reader, link: Link, base: Link | None, lengths: Sequence[int], checks: Sequence[int]
) -> Directory:
    """Return the directory of an object whose frames were encoded again, whatever it was before."""
    old = link.record.directory
    leaves = old.leaves
    if old.bundle and link.size:
        child = TOOLS.buffer("child", link.size)
        reader.frame(link, 0, child)
        leaves = leaf(child.data)
    form: Codec = "full" if base is None else "delta"
    parents = (base.oid,) if base is not None else ()
    return Directory(form, old.kind, old.width, 0, 1, link.size, tuple(lengths), tuple(checks), leaves, (), parents)
