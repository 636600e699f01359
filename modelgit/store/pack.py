"""The bytes of a pack: magic, records one after another, a sorted index, a footer. Pure functions, no files.

A record holds one object, or a *bundle* of small ones, and ends with its directory: how it is coded, against which
parents, and for each frame its stored length, the xxh3 of its stored bytes and the BLAKE3 of its raw bytes.
The index names every object with its place. See docs/reference/format.md.
"""

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from modelgit.errors import CorruptObject
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS
from modelgit.store.codec.arrays import Array
from modelgit.store.identity import FRAME_BYTES, HASH_BYTES, KINDS, Kind, frame_count

Codec = Literal["raw", "zstd", "full", "delta", "linear"]
CODECS: tuple[Codec, ...] = ("raw", "zstd", "full", "delta", "linear")
LINEAR_DTYPES = tuple(ARITHMETIC_WIDTHS)
MAGIC = b"MGPACK\x00\x01"
FOOTER = struct.Struct("<QQ32s8s")  # index offset, objects, BLAKE3 of the index, magic
FIXED = struct.Struct("<BBBBIQIIII")  # codec, kind, width, depth, cost, size, frames, members, parents, dtype
FRAME = struct.Struct("<IQ")  # stored length, xxh3 of the stored bytes
CHECK = struct.Struct("<Q")
ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("size", "<u8"), ("start", "<u4"), ("directory", "<u4")])
ENTRY_ROW = struct.Struct("<QQQII")  # the same

MAX_DEPTH = 64  # links from an object to one that stands alone
MAX_COST = 4096  # frames decoded to give one frame
MAX_MEMBERS = 1 << 16  # objects in a bundle
MAX_TERMS = 4096  # inputs of a linear combination
MAX_ALIKE = 64  # ids whose first eight bytes are those of the one before: hashes are not alike by chance
FRAME_OVERHEAD = 65536  # a stored frame is never longer than a raw one and this


@dataclass(frozen=True, slots=True)
class Directory:
    """What a record says of itself; `parents` are 32-byte ids, `leaves` the frames' BLAKE3 in one piece."""

    codec: Codec
    kind: Kind
    width: int  # bytes of an element
    depth: int
    cost: int
    size: int  # raw bytes of the record, all members together
    lengths: tuple[int, ...] = ()
    checks: tuple[int, ...] = ()
    leaves: bytes = b""
    members: tuple[int, ...] = ()  # raw bytes of each; empty unless a bundle
    parents: tuple[bytes, ...] = ()
    dtype: str = "F64"
    divisor: float = 1.0
    coefficients: tuple[float, ...] = ()

    @property
    def bundle(self) -> bool:
        """Whether the record holds several small objects."""
        return bool(self.members)

    @property
    def stored(self) -> int:
        """Bytes of the frames."""
        return sum(self.lengths)


class Entry(NamedTuple):
    """Where an object is inside a pack: its record, and for a member of a bundle where it starts there."""

    offset: int
    length: int
    size: int
    start: int
    directory: int  # bytes of the record's directory, at its end


def write_directory(record: Directory) -> bytes:
    """Return the directory's bytes, their xxh3 last."""
    out = [
        FIXED.pack(
            CODECS.index(record.codec),
            KINDS.index(record.kind),
            record.width,
            record.depth,
            record.cost,
            record.size,
            frame_count(record.size),
            len(record.members),
            len(record.parents),
            LINEAR_DTYPES.index(record.dtype),
        ),
        *(FRAME.pack(length, check) for length, check in zip(record.lengths, record.checks, strict=True)),
        record.leaves,
        struct.pack(f"<{len(record.members)}I", *record.members),
        *record.parents,
    ]
    if record.codec == "linear":
        out.append(struct.pack(f"<{1 + len(record.coefficients)}d", record.divisor, *record.coefficients))
    body = b"".join(out)
    return body + CHECK.pack(xxh3_64_intdigest(body))


class Cursor:
    """Takes a directory's fields off its bytes, never beyond their end."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._at, self._where = data, 0, where

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises CorruptObject when there are fewer."""
        end = self._at + count
        if end > len(self._data):
            raise CorruptObject(f"{self._where}: directory ends after {len(self._data)} bytes, expected {end}")
        taken, self._at = self._data[self._at : end], end
        return taken

    def done(self) -> None:
        """Raise CorruptObject unless everything was taken."""
        if self._at != len(self._data):
            raise CorruptObject(f"{self._where}: directory has {len(self._data) - self._at} bytes too many")


def require(holds: bool, where: str, what: str) -> None:
    """Raise CorruptObject saying `what` unless it `holds`."""
    if not holds:
        raise CorruptObject(f"{where}: {what}")


def check_fixed(fixed: tuple[int, ...], where: str) -> None:
    """Raise CorruptObject unless the fixed fields are within the limits of the format."""
    codec, kind, width, depth, cost, size, frames, members, parents, dtype = fixed
    require(codec < len(CODECS) and kind < len(KINDS), where, f"unknown codec {codec} or kind {kind}")
    require(width in (1, 2, 4, 8) and size % width == 0, where, f"{size} bytes in elements of {width}")
    require(depth <= MAX_DEPTH and 1 <= cost <= MAX_COST, where, f"depth {depth} or cost {cost} beyond the limits")
    require(size < 1 << 63 and frames == frame_count(size), where, f"{frames} frames for {size} bytes")
    require(members <= MAX_MEMBERS and parents <= MAX_MEMBERS, where, f"{members} members, {parents} parents")
    require(not members or (size <= FRAME_BYTES and codec in (2, 3)), where, f"a bundle of {size} bytes, codec {codec}")
    require(dtype < len(LINEAR_DTYPES), where, f"unknown arithmetic {dtype}")
    expected = {"delta": max(members, 1), "linear": parents}.get(CODECS[codec], 0)
    require(parents == expected and (depth > 0) == (parents > 0), where, f"{parents} parents at depth {depth}")
    if CODECS[codec] == "linear":
        require(0 < parents <= MAX_TERMS and not members, where, f"a combination of {parents} terms")
        require(size % ARITHMETIC_WIDTHS[LINEAR_DTYPES[dtype]] == 0, where, f"{size} bytes of {LINEAR_DTYPES[dtype]}")


def parse_directory(data: bytes, where: str) -> Directory:
    """Return the directory in `data`, all of it. Raises CorruptObject for anything that breaks the format."""
    require(len(data) >= FIXED.size + CHECK.size, where, f"directory of {len(data)} bytes is too short")
    body = data[: -CHECK.size]
    require(CHECK.unpack(data[-CHECK.size :])[0] == xxh3_64_intdigest(body), where, "directory fails its checksum")
    cursor = Cursor(body, where)
    fixed = FIXED.unpack(cursor.take(FIXED.size))
    check_fixed(fixed, where)
    codec, kind, width, depth, cost, size, frames, members, parents, dtype = fixed
    stored = 0 if CODECS[codec] == "linear" else frames
    table = list(FRAME.iter_unpack(cursor.take(FRAME.size * stored)))
    leaves = cursor.take(HASH_BYTES * frames) if not members else b""
    sizes = struct.unpack(f"<{members}I", cursor.take(4 * members))
    require(not members or sum(sizes) == size, where, f"members of {sum(sizes)} bytes in a bundle of {size}")
    ids = cursor.take(HASH_BYTES * parents)
    numbers: tuple[float, ...] = ()
    if CODECS[codec] == "linear":
        numbers = struct.unpack(f"<{1 + parents}d", cursor.take(8 * (1 + parents)))
        require(bool(np.isfinite(numbers).all()) and numbers[0] != 0, where, "numbers of a combination not finite")
    cursor.done()
    lengths = tuple(length for length, _ in table)
    require(max(lengths, default=0) <= FRAME_BYTES + FRAME_OVERHEAD, where, "a stored frame is too long")
    return Directory(
        CODECS[codec],
        KINDS[kind],
        width,
        depth,
        cost,
        size,
        lengths,
        tuple(check for _, check in table),
        leaves,
        sizes,
        tuple(ids[i : i + HASH_BYTES] for i in range(0, len(ids), HASH_BYTES)),
        LINEAR_DTYPES[dtype],
        numbers[0] if numbers else 1.0,
        numbers[1:],
    )


@dataclass(frozen=True, slots=True)
class Index:
    """The objects of one pack: `ids` (n, 32) bytes in ascending order, `entries` (n,) their places; `data` is both."""

    ids: Array[np.uint8]
    entries: Array[np.void]
    data: memoryview

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, row: int) -> bytes:
        """Return the 32-byte id of a row."""
        return self.data[row * HASH_BYTES : (row + 1) * HASH_BYTES].tobytes()

    def entry(self, row: int) -> Entry:
        """Return the place of the object in a row."""
        return Entry._make(ENTRY_ROW.unpack_from(self.data, len(self.ids) * HASH_BYTES + row * ENTRY_ROW.size))

    def prefixes(self) -> Array[np.uint64]:
        """Return each id's first eight bytes as a number (n,), ascending."""
        return self.ids[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)


def write_index(places: dict[bytes, Entry]) -> bytes:
    """Return the index of objects by their 32-byte ids."""
    ids = sorted(places)
    rows = [places[oid] for oid in ids]
    table = np.array([(r.offset, r.length, r.size, r.start, r.directory) for r in rows], ENTRY)
    return b"".join(ids) + table.tobytes()


def write_footer(index: bytes, offset: int) -> bytes:
    """Return the last bytes of a pack whose index starts at `offset`."""
    row = HASH_BYTES + ENTRY.itemsize
    return FOOTER.pack(offset, len(index) // row, blake3(index).digest(), MAGIC)


def parse_footer(data: bytes, pack_bytes: int, where: str) -> tuple[int, int, bytes]:
    """Return the index's offset, length and BLAKE3. Raises CorruptObject unless it ends just before the footer."""
    require(len(data) == FOOTER.size, where, "no footer: the pack is too short")
    offset, count, digest, magic = FOOTER.unpack(data)
    require(magic == MAGIC, where, f"not a pack of this version: expected {MAGIC!r}, got {magic!r}")
    length = count * (HASH_BYTES + ENTRY.itemsize)
    fits = len(MAGIC) <= offset and offset + length + FOOTER.size == pack_bytes
    require(fits, where, f"an index of {count} objects at {offset} does not fit a pack of {pack_bytes} bytes")
    return offset, length, digest


def parse_index(data: memoryview, offset: int, digest: bytes, where: str) -> Index:
    """Return the index in `data`, which starts at `offset` of its pack. Raises CorruptObject."""
    require(blake3(data).digest() == digest, where, "the index fails its checksum")
    count = len(data) // (HASH_BYTES + ENTRY.itemsize)
    ids = np.frombuffer(data, np.uint8, count * HASH_BYTES).reshape(count, HASH_BYTES)
    entries = np.frombuffer(data, ENTRY, count, count * HASH_BYTES)
    begin, length = entries["offset"], entries["length"]
    inside = (begin >= len(MAGIC)) & (begin <= offset) & (length <= offset - np.minimum(begin, offset))
    shape = (entries["directory"] <= length) & (entries["start"] <= FRAME_BYTES) & (entries["size"] < 1 << 63)
    require(bool((inside & shape).all()), where, "an index entry points outside the pack")
    index = Index(ids, entries, data)
    prefixes = index.prefixes()
    require(bool((prefixes[1:] >= prefixes[:-1]).all()), where, "the index is not sorted")
    alike = int((prefixes[1:] == prefixes[:-1]).sum())
    require(alike <= MAX_ALIKE, where, f"{alike} ids begin as the one before, expected at most {MAX_ALIKE}")
    return index
