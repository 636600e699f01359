"""From an id to raw bytes: records, the parents they hang on, and frames decoded and checked one at a time.

A frame is decoded in place: first its parent's frame, then the difference on top, so a chain of any allowed length
needs the memory of one link. Every frame given out hashes to what the id promises.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from modelgit.errors import CorruptObject, MissingObject
from modelgit.store.catalog import FSCK_HINT, Place
from modelgit.store.codec import arithmetic
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.differences import decode_delta
from modelgit.store.codec.frames import decode_full, inflate
from modelgit.store.identity import HASH_BYTES, leaf, root, whole
from modelgit.store.pack import MAX_COST, MAX_DEPTH, Directory, parse_directory, require

TOO_DEEP = f"a chain of more than {MAX_DEPTH} differences"
MAX_NESTED = 8  # linear combinations of linear combinations
TERMS_AT_ONCE = 8  # frames of a combination's terms that are in memory together
RECORDS_KEPT = 4096
BUNDLES_KEPT_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A record that can be decoded: where its frames lie, and the objects it hangs on."""

    pack: str
    offset: int
    directory: Directory
    frames: tuple[int, ...]  # where each stored frame starts in the pack
    parents: "tuple[Link, ...]"
    nested: int  # linear combinations on the longest way down


class Link(NamedTuple):
    """An object in its record: all of it, or `size` bytes from `start` of a bundle."""

    oid: bytes
    record: Record
    start: int
    size: int

    def leaf(self, number: int) -> bytes:
        """Return the BLAKE3 of frame `number`; empty for the member of a bundle, where only the id tells."""
        return self.record.directory.leaves[number * HASH_BYTES : (number + 1) * HASH_BYTES]


def measured(directory: Directory, parents: tuple[Link, ...], where: str) -> Directory:
    """Return a directory with the depth and cost that its parents have here, which may lie here in another form.

    Raises:
        CorruptObject: sizes disagree, or the chain is too long or too costly.
    """
    depth, cost = max((link.record.directory.depth + 1 for link in parents), default=0), link_cost(parents)
    require(depth <= MAX_DEPTH and cost <= MAX_COST, where, f"depth {depth} or cost {cost} beyond the limits")
    sizes = directory.members or (directory.size,) * len(parents)
    for link, size in zip(parents, sizes, strict=bool(parents and directory.members)):
        require(link.size == size, where, f"a parent of {link.size} bytes for {size}")
    same = directory.depth == depth and directory.cost == cost
    return directory if same else replace(directory, depth=depth, cost=cost)


def link_cost(parents: tuple[Link, ...]) -> int:
    """Return how many frames are decoded to give one frame of a record with these parents; a bundle counts once."""
    bundles = {(p.record.pack, p.record.offset): p.record.directory.cost for p in parents if p.record.directory.bundle}
    single = (p.record.directory.cost for p in parents if not p.record.directory.bundle)
    return 1 + sum(bundles.values()) + sum(single)


Find = Callable[[Sequence[bytes]], Sequence[Place | None]]  # the places of objects


class Reader:
    """Decodes objects that `find` finds, from bytes that `read_into` gives. Safe to use from several threads."""

    def __init__(self, find: Find, read_into: Callable[[str, int, memoryview], None]) -> None:
        self._find, self._read_into = find, read_into
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._bundles: OrderedDict[tuple[str, int], Bytes] = OrderedDict()
        self._bundled_bytes = 0

    def forget(self) -> None:
        """Let go of the records and bundles that are kept in memory."""
        with self._lock:
            self._records.clear()
            self._bundles.clear()
            self._bundled_bytes = 0

    def link(self, oid: bytes, below: int = MAX_DEPTH + 1) -> Link:
        """Return an object's record, with all it hangs on.

        Raises:
            MissingObject: neither the object nor a parent of it may be absent.
            CorruptObject: the record breaks the format, or its chain is not shorter than `below`: there are no loops.
        """
        return self.link_at(self._find([oid])[0], oid, below)

    def link_at(self, place: Place | None, oid: bytes, below: int = MAX_DEPTH + 1) -> Link:
        """As `link`, of an object that was looked for already."""
        if place is None:
            raise MissingObject(f"object {oid.hex()} is not in the store", hint="fetch it from a remote")
        record = self._record(place, oid, below)
        start, size = place.entry.start, place.entry.size
        if record.directory.bundle:
            inside = start + size <= record.directory.size
        else:
            inside = start == 0 and size == record.directory.size
        if not inside:
            raise CorruptObject(f"{oid.hex()}: {size} bytes from {start} of a record of {record.directory.size}")
        return Link(oid, record, start, size)

    def open(self, oid: bytes) -> Link:
        """Return an object's record after checking that its frames' hashes give its id. Raises as `link` does."""
        return checked(self.link(oid))

    def frame(self, link: Link, number: int, into: Bytes) -> None:
        """Fill `into` (aligned, as long as the frame) with raw bytes that the id vouches for. Raises CorruptObject."""
        self.frames([link], number, [into])

    def frames(self, links: Sequence[Link], number: int, places: Sequence[Bytes]) -> None:
        """As `frame`, for a frame of several objects; what they are stored as differences to is decoded once."""
        self.together(links, number, places)
        for link, into in zip(links, places, strict=True):
            if link.record.directory.bundle:
                right = whole(link.record.directory.kind, into.data) == link.oid
            else:
                right = leaf(into.data) == link.leaf(number)
            if not right:
                where = f"object {link.oid.hex()}: frame {number}"
                raise CorruptObject(f"{where} has other bytes than its id", hint=FSCK_HINT)

    def raw(self, link: Link, number: int, into: Bytes) -> None:
        """Fill `into` with a frame's bytes, not yet checked against the id. Raises CorruptObject."""
        if link.record.directory.bundle:
            into[:] = self._bundle(link.record)[link.start : link.start + link.size]
        else:
            self.decode(link.record, number, into)

    def decode(self, record: Record, number: int, into: Bytes) -> None:
        """Fill `into` with a frame of a record, whoever its members are. Raises CorruptObject."""
        directory = record.directory
        if directory.codec == "linear":
            self.combine(directory, record.parents, number, into)
            return
        if directory.codec == "delta" and directory.bundle:
            self.join(record.parents, into)
        elif directory.codec == "delta":
            self.raw(record.parents[0], number, into)
        if directory.codec == "raw":
            require(directory.lengths[number] == len(into), self._where(record), "a raw frame of another length")
            self.stored(record, number, into)
            return
        self.grow(record, number, into)

    def grow(self, record: Record, number: int, into: Bytes, parent: Bytes | None = None) -> None:
        """Decode a stored frame; a difference is to what `parent` holds, or `into` without. Raises CorruptObject."""
        directory = record.directory
        stored = TOOLS.buffer("stored", directory.lengths[number])
        self.stored(record, number, stored)
        try:
            self._decode(directory, stored, into, parent)
        except CorruptObject as error:
            raise CorruptObject(f"{self._where(record)}, frame {number}: {error.message}", hint=FSCK_HINT) from error

    def stored(self, record: Record, number: int, into: Bytes) -> None:
        """Fill `into` with a frame as it is stored. Raises CorruptObject when its checksum fails."""
        self._read_into(record.pack, record.frames[number], into.data)
        if xxh3_64_intdigest(into.data) != record.directory.checks[number]:
            raise CorruptObject(f"{self._where(record)}: frame {number} fails its checksum", hint=FSCK_HINT)

    def _decode(self, directory: Directory, stored: Bytes, into: Bytes, parent: Bytes | None) -> None:
        if directory.codec == "full":
            decode_full(stored.data, directory.width, into)
        elif directory.codec == "delta":
            decode_delta(stored.data, directory.width, into, parent=parent)
        else:
            inflate(stored.data, into)

    def members(self, links: Sequence[Link], into: Bytes) -> None:
        """Fill `into` with small objects one after another, each vouched for by its id. Raises CorruptObject."""
        self.join(links, into)
        view, start = into.data, 0
        for link in links:
            if whole(link.record.directory.kind, view[start : start + link.size]) != link.oid:
                raise CorruptObject(f"object {link.oid.hex()} has other bytes than its id", hint=FSCK_HINT)
            start += link.size

    def join(self, links: Sequence[Link], into: Bytes) -> None:
        """Fill `into` with small objects one after another, not yet checked against their ids."""
        start = 0
        for link in stretches(links):
            self.raw(link, 0, into[start : start + link.size])
            start += link.size

    def combine(self, directory: Directory, links: tuple[Link, ...], number: int, into: Bytes) -> None:
        """Fill `into` with a frame of a linear combination of `links`, a few of them at a time."""
        level, dtype, sums = nested(links), directory.dtype, arithmetic.sums()
        width, coefficients = arithmetic.element_width(dtype), np.array(directory.coefficients, np.float64)
        for start in range(0, len(links), TERMS_AT_ONCE):
            some = links[start : start + TERMS_AT_ONCE]
            places = [TOOLS.buffer(f"term{level}.{i}", len(into)) for i in range(len(some))]
            self.together(some, number, places)
            if len(some) == len(links):
                sums.combine(places, coefficients, directory.divisor, dtype, into)
                return
            total = TOOLS.buffer(f"total{level}", 8 * (len(into) // width)).view(np.float64)
            chosen = coefficients[start : start + TERMS_AT_ONCE]
            sums.accumulate(total, places, chosen, dtype, first=start == 0)
        sums.finish(total, directory.divisor, dtype, into)

    def together(self, links: Sequence[Link], number: int, places: Sequence[Bytes]) -> None:
        """Fill `places` with a frame of several objects, as `raw`; what several are made from is decoded once."""
        if len(links) == 1:
            self.raw(links[0], number, places[0])
            return
        sources = [source for link in links for source in (link, differs_from(link)) if source is not None]
        uses = Counter(place_of(source) for source in sources)
        own = {place_of(link): into for link, into in zip(links, places, strict=True)}
        several = Several(self, number, nested(tuple(links)), uses, own, {})
        for link, into in zip(links, places, strict=True):
            found = several.frame(link, into)
            if found is not into:
                into[:] = found

    def _bundle(self, record: Record) -> Bytes:
        key = (record.pack, record.offset)
        with self._lock:
            found = self._bundles.get(key)
            if found is not None:
                self._bundles.move_to_end(key)
                return found
        decoded = np.empty(record.directory.size, np.uint8)
        if record.directory.size:
            self.decode(record, 0, decoded)
        with self._lock:
            if key not in self._bundles:
                self._bundles[key] = decoded
                self._bundled_bytes += len(decoded)
            while self._bundled_bytes > BUNDLES_KEPT_BYTES and len(self._bundles) > 1:
                self._bundled_bytes -= len(self._bundles.popitem(last=False)[1])
        return decoded

    def _record(self, place: Place, oid: bytes, below: int) -> Record:
        key = (place.pack, place.entry.offset)
        record = self._records.get(key)
        if record is None:
            record = self._load(place, oid, below)
            with self._lock:
                self._records[key] = record
                if len(self._records) > RECORDS_KEPT:
                    self._records.popitem(last=False)
        elif record.directory.depth >= below:
            raise CorruptObject(f"{oid.hex()}: {TOO_DEEP}")
        return record

    def _load(self, place: Place, oid: bytes, below: int) -> Record:
        where, entry = f"object {oid.hex()}", place.entry
        data = bytearray(entry.directory)
        self._read_into(place.pack, entry.offset + entry.length - entry.directory, memoryview(data))
        directory = parse_directory(bytes(data), where)
        require(below > 0, where, TOO_DEEP)
        require(directory.stored + entry.directory == entry.length, where, "frames do not fill the record")
        links = self._parents(directory, where, below)
        return make_record(place.pack, entry.offset, directory, tuple(links[oid] for oid in directory.parents), where)

    def _parents(self, directory: Directory, where: str, below: int) -> dict[bytes, Link]:
        """Return the parents' records; stops where they cost too much, so nobody is kept reading."""
        links: dict[bytes, Link] = {}
        bundles, cost = set[tuple[str, int]](), 1
        parents = list(dict.fromkeys(directory.parents))
        for parent, found in zip(parents, self._find(parents) if parents else (), strict=True):
            link = links[parent] = self.link_at(found, parent, below - 1)
            place = (link.record.pack, link.record.offset)
            cost += 0 if place in bundles else link.record.directory.cost
            require(cost <= MAX_COST, where, f"a cost of more than {MAX_COST}")
            if link.record.directory.bundle:
                bundles.add(place)
        return links

    def _where(self, record: Record) -> str:
        return f"record at {record.offset} of {record.pack or 'the pack being written'}"


@dataclass(frozen=True, slots=True)
class Several:
    """A frame of several objects, while it is decoded: `uses` of each place, `own` memory of some, what is there."""

    reader: Reader
    number: int
    level: int
    uses: Mapping[tuple[str, int], int]
    own: Mapping[tuple[str, int], Bytes]
    decoded: dict[tuple[str, int], Bytes]

    def frame(self, link: Link, into: Bytes) -> Bytes:
        """Return where an object's frame is: in `into`, or where it is decoded for several."""
        place = place_of(link)
        if link.record.directory.bundle or self.uses[place] < 2:
            return self._grown(link, into)
        if place not in self.decoded:
            shared = f"shared{self.level}.{len(self.decoded)}"
            kept = self.own[place] if place in self.own else TOOLS.buffer(shared, len(into))
            self.decoded[place] = kept
            self._grown(link, kept)
        return self.decoded[place]

    def _grown(self, link: Link, into: Bytes) -> Bytes:
        """Fill `into` as `raw` does, and return it; what a difference is to is decoded there or elsewhere."""
        origin = differs_from(link)
        if origin is None:
            self.reader.raw(link, self.number, into)
        else:
            self.reader.grow(link.record, self.number, into, self.frame(origin, into))
        return into


def checked(link: Link) -> Link:
    """Return an object's record if its frames' hashes give its id. Raises CorruptObject."""
    directory = link.record.directory
    right = directory.bundle or root(directory.kind, directory.size, directory.leaves) == link.oid
    if not right or (link.size == 0 and whole(directory.kind, b"") != link.oid):
        raise CorruptObject(f"object {link.oid.hex()}: its frames' hashes give another id", hint=FSCK_HINT)
    return link


def stretches(links: Sequence[Link]) -> Iterator[Link]:
    """Yield the links, those that lie side by side in one bundle as one."""
    if not links:
        return
    whole = links[0]
    for link in links[1:]:
        if link.record is whole.record and link.start == whole.start + whole.size and link.record.directory.members:
            whole = whole._replace(size=whole.size + link.size)
        else:
            yield whole
            whole = link
    yield whole


def differs_from(link: Link) -> Link | None:
    """Return the object that a large one is stored as a difference to; None if it is stored otherwise."""
    directory = link.record.directory
    return link.record.parents[0] if directory.codec == "delta" and not directory.bundle else None


def place_of(link: Link) -> tuple[str, int]:
    """Return where an object's record lies."""
    return link.record.pack, link.record.offset


def make_record(pack: str, offset: int, directory: Directory, parents: tuple[Link, ...], where: str) -> Record:
    """Return the record of a directory and its parents. Raises CorruptObject unless they fit together."""
    directory = measured(directory, parents, where)
    depth = nested(parents) + (directory.codec == "linear")
    require(depth <= MAX_NESTED, where, f"{depth} nested combinations, at most {MAX_NESTED}")
    starts = tuple(accumulate(directory.lengths, initial=offset))[:-1]
    return Record(pack, offset, directory, starts, parents, depth)


def nested(links: tuple[Link, ...]) -> int:
    """Return how many linear combinations hang on one another below a record with these parents."""
    return max((link.record.nested for link in links), default=0)


def parent_of(link: Link) -> Link | None:
    """Return what an object is a difference to; for a combination its first term; None if it stands alone."""
    parents = link.record.parents
    if not parents or not link.record.directory.bundle:
        return parents[0] if parents else None
    start = 0
    for size, parent in zip(link.record.directory.members, parents, strict=True):
        if start >= link.start and size == link.size:
            return parent
        start += size
    return None


def chain_root(link: Link) -> Link:
    """Return the object at the end of an object's differences (and combinations' first terms)."""
    while (below := parent_of(link)) is not None:
        link = below
    return link
