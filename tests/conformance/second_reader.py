"""A second implementation of the format, for reading: written from docs/reference/format.md and manifest.md alone.

It imports nothing of modelgit. Where it and the first disagree, the text decides, or is not good enough.
Section numbers are those of format.md.
"""

import itertools
import json
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3
from xxhash import xxh3_64_intdigest

MAGIC = b"MGPACK\x00\x01"
FRAME = 4 * 1024 * 1024
RAW, ZSTD, FULL, DELTA, LINEAR = range(5)
TAGS = (b"modelgit blob 1\n", b"modelgit tensor 1\n")
ARITHMETIC = ((8, 11, 52), (4, 8, 23), (2, 5, 10), (2, 8, 7))  # F64, F32, F16, BF16: bytes, exponent and fraction bits
QUIET_NAN = (0x7FF8000000000000, 0x7FC00000, 0x7E00, 0x7FC0)
SHIFTS = {1: 0, 2: 7, 4: 23, 8: 52}
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}  # fmt: skip
Elements = npt.NDArray[Any]


class Malformed(Exception):
    """Bytes that break the format."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise Malformed(what)


@dataclass(frozen=True)
class Entry:
    """Section 3: where an object lies."""

    pack: Path
    offset: int
    length: int
    size: int
    start: int
    directory: int


@dataclass(frozen=True)
class Record:
    """Section 4.1: a record's directory."""

    codec: int
    kind: int
    width: int
    depth: int
    cost: int
    size: int
    arithmetic: int
    table: list[tuple[int, int]]
    leaves: list[bytes]
    members: tuple[int, ...]
    parents: list[bytes]
    numbers: tuple[float, ...]


class Store:
    """The objects of a folder of packs. `seen` counts the codecs and the kinds of planes that were met."""

    def __init__(self, packs: Path) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.depths: dict[bytes, int] = {}
        self.seen: Counter[str] = Counter()
        self.frames: dict[tuple[bytes, int], bytes] = {}
        for path in sorted(packs.iterdir()) if packs.is_dir() else []:
            if not path.name.startswith("tmp-"):
                self._read_index(path)

    def _read_index(self, path: Path) -> None:
        """Section 3."""
        data = path.read_bytes()
        require(len(data) >= 64 and data[:8] == MAGIC and data[-8:] == MAGIC, "magic")
        start, n, digest = struct.unpack("<QQ32s", data[-56:-8])
        require(start >= 8 and start + 64 * n == len(data) - 56, "index does not end where the footer begins")
        index = data[start:-56]
        require(blake3(index).digest() == digest and path.name == f"{digest.hex()}.pack", "H(index)")
        ids = [index[32 * i : 32 * i + 32] for i in range(n)]
        require(all(a < b for a, b in itertools.pairwise(ids)), "ids not ascending")
        stretches = set()
        for i, oid in enumerate(ids):
            offset, length, size, begin, directory = struct.unpack_from("<QQQII", index, 32 * n + 32 * i)
            require(offset >= 8 and offset + length <= start, "entry outside")
            stretches.add((offset, offset + length))
            depth = data[offset + length - directory + 3]
            if oid not in self.entries or depth < self.depths[oid]:  # section 4.5
                self.entries[oid] = Entry(path, offset, length, size, begin, directory)
                self.depths[oid] = depth
        end = 8
        for begin, stop in sorted(stretches):
            require(begin == end, "records do not tile")
            end = stop
        require(end == start, "records do not tile")

    def read(self, oid: bytes) -> bytes:
        """Return an object's raw bytes, checked against its id (section 2)."""
        entry, record = self.record(oid)
        if record.members:
            raw = self.bundle(entry, record)[entry.start : entry.start + entry.size]
            require(identity(record.kind, raw) == oid, "another id")
            return raw
        require(
            blake3(TAGS[record.kind] + struct.pack("<Q", record.size) + b"".join(record.leaves)).digest() == oid, "id"
        )
        frames = [self.frame(entry, record, number) for number in range(len(record.leaves))]
        require(all(blake3(f).digest() == leaf for f, leaf in zip(frames, record.leaves, strict=True)), "leaf")
        return b"".join(frames)

    def raw_frame(self, oid: bytes, number: int) -> bytes:
        """Return a parent's frame."""
        if (oid, number) not in self.frames:
            self.frames[oid, number] = self._raw_frame(oid, number)
        return self.frames[oid, number]

    def _raw_frame(self, oid: bytes, number: int) -> bytes:
        entry, record = self.record(oid)
        if record.members:
            return self.bundle(entry, record)[entry.start : entry.start + entry.size]
        return self.frame(entry, record, number)

    def record(self, oid: bytes, left: int = 65) -> tuple[Entry, Record]:
        """Sections 4.1 and 4.5: return a record, with the depth and cost that it has here."""
        require(oid in self.entries, f"no object {oid.hex()}")
        entry = self.entries[oid]
        with entry.pack.open("rb") as file:
            file.seek(entry.offset + entry.length - entry.directory)
            record = directory(file.read(entry.directory))
        require(sum(length for length, _ in record.table) + entry.directory == entry.length, "record is not filled")
        require(entry.start + entry.size <= record.size, "entry beyond its record")
        require(record.members or (entry.start, entry.size) == (0, record.size), "entry is not the whole record")
        above = [self.record(parent, left - 1) for parent in record.parents]
        bundles = {(e.pack, e.offset): r.cost for e, r in above if r.members}
        cost = 1 + sum(bundles.values()) + sum(r.cost for _, r in above if not r.members)
        require(left > 0 and cost <= 4096, "a chain too long, or too costly")
        sizes = record.members or (record.size,) * len(above)
        require(not above or [e.size for e, _ in above] == list(sizes), "a parent of another size")
        return entry, replace(record, depth=max((r.depth + 1 for _, r in above), default=0), cost=cost)

    def bundle(self, entry: Entry, record: Record) -> bytes:
        """Section 4.3."""
        return self.frame(entry, record, 0) if record.size else b""

    def frame(self, entry: Entry, record: Record, number: int) -> bytes:
        """Section 4.2."""
        size = min(FRAME, record.size - number * FRAME)
        self.seen[f"codec {record.codec}" + (" bundle" if record.members else "")] += 1
        if record.codec == LINEAR:
            return self.linear(record, number, size)
        length, check = record.table[number]
        with entry.pack.open("rb") as file:
            file.seek(entry.offset + sum(before for before, _ in record.table[:number]))
            stored = file.read(length)
        require(len(stored) == length and xxh3_64_intdigest(stored) == check, "xxh3 of a stored frame")
        if record.codec == RAW:
            require(len(stored) == size, "raw frame of another length")
            return stored
        if record.codec == ZSTD:
            return inflate(stored, size)
        if record.codec == FULL:
            rotated = self.elements(stored, record.width, size)
            one, rest = rotated.dtype.type(1), rotated.dtype.type(8 * record.width - 1)
            back: Elements = (rotated >> one) | (rotated << rest)
            return back.tobytes()
        parents = record.parents if record.members else record.parents[:1]
        parent = b"".join(self.raw_frame(oid, number) for oid in parents)
        require(len(parent) == size, "a parent's frame of another size")
        self.seen["same" if stored == b"\0" else "different"] += 1
        if stored == b"\0":
            return parent
        elements: Elements = np.frombuffer(parent, f"<u{record.width}")
        return bytes(different(stored, elements).data.cast("B"))

    def elements(self, stored: bytes, width: int, size: int) -> Elements:
        """Return the elements whose bytes were dealt out to planes."""
        planes = [self.plane(kind, part, size // width) for kind, part in sections(stored, width)]
        return np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).reshape(-1).view(f"<u{width}")

    def plane(self, kind: int, part: bytes, size: int) -> bytes:
        self.seen[f"plane {kind}"] += 1
        if kind != 3:
            return flat(kind, part, size)
        require(size % 8 == 0, "bit planes of an odd length")
        rows = [np.frombuffer(flat(k, row, size // 8), np.uint8) for k, row in sections(part, 8)]
        bits = np.stack([np.unpackbits(row, bitorder="little") for row in rows], axis=1)
        return np.packbits(bits, axis=1, bitorder="little").tobytes()

    def linear(self, record: Record, number: int, size: int) -> bytes:
        """Section 4.4."""
        divisor, coefficients = record.numbers[0], record.numbers[1:]
        total = None
        with np.errstate(all="ignore"):
            for oid, coefficient in zip(record.parents, coefficients, strict=True):
                product = np.float64(coefficient) * widened(self.raw_frame(oid, number), record.arithmetic)
                total = product if total is None else total + product
            require(total is not None and total.nbytes // 8 * ARITHMETIC[record.arithmetic][0] == size, "terms")
            return rounded(total / np.float64(divisor), record.arithmetic) if total is not None else b""


def identity(kind: int, raw: bytes) -> bytes:
    """Section 2."""
    leaves = b"".join(blake3(raw[i : i + FRAME]).digest() for i in range(0, len(raw), FRAME))
    return blake3(TAGS[kind] + struct.pack("<Q", len(raw)) + leaves).digest()


def directory(data: bytes) -> Record:
    """Section 4.1."""
    require(len(data) >= 40, "directory too short")
    require(xxh3_64_intdigest(data[:-8]) == struct.unpack("<Q", data[-8:])[0], "check")
    fixed = struct.unpack_from("<BBBBIQIIII", data)
    codec, kind, width, depth, cost, size, frames, members, parents, arithmetic = fixed
    require(codec <= LINEAR and kind <= 1 and width in (1, 2, 4, 8) and size % width == 0, "codec, kind or width")
    require(depth <= 64 and (depth > 0) == (parents > 0) and size < 1 << 63, "depth or size")
    require(frames == -(-size // FRAME) and members <= 65536 and arithmetic < 4, "frames, members or arithmetic")
    require(parents == {DELTA: max(1, members), LINEAR: parents}.get(codec, 0) <= 65536, "parents")
    require(codec != LINEAR or 1 <= parents <= 4096, "terms")
    require(not members or (codec in (FULL, DELTA) and size <= FRAME), "bundle")
    at = 32
    table = []
    for _ in range(0 if codec == LINEAR else frames):
        table.append(struct.unpack_from("<IQ", data, at))
        require(table[-1][0] <= FRAME + 65536, "a stored frame too long")
        at += 12
    count = 0 if members else frames
    leaves = [data[at + 32 * i : at + 32 * i + 32] for i in range(count)]
    at += 32 * count
    sizes = struct.unpack_from(f"<{members}I", data, at)
    require(not members or sum(sizes) == size, "members' sizes")
    at += 4 * members
    oids = [data[at + 32 * i : at + 32 * i + 32] for i in range(parents)]
    at += 32 * parents
    numbers = struct.unpack_from(f"<{1 + parents}d", data, at) if codec == LINEAR else ()
    at += 8 * len(numbers)
    require(not numbers or (np.isfinite(numbers).all() and numbers[0] != 0), "numbers")
    require(at == len(data) - 8, "directory is not filled")
    return Record(codec, kind, width, depth, cost, size, arithmetic, table, leaves, sizes, oids, numbers)


def sections(stored: bytes, count: int) -> list[tuple[int, bytes]]:
    """Return kind and bytes of `count` planes behind their table."""
    require(len(stored) >= 5 * count, "no table of planes")
    lengths, at, parts = struct.unpack_from(f"<{count}I", stored, count), 5 * count, []
    for kind, length in zip(stored[:count], lengths, strict=True):
        parts.append((kind, stored[at : at + length]))
        at += length
    require(at == len(stored), "planes do not fill the frame")
    return parts


def flat(kind: int, part: bytes, size: int) -> bytes:
    """Return a plane of kind 0, 1 or 2."""
    require(kind in (0, 1, 2), "kind of plane")
    if kind == 1:
        return inflate(part, size)
    require(len(part) == (size if kind == 0 else 1), "length of a plane")
    return part if kind == 0 else part * size


def inflate(coded: bytes, size: int) -> bytes:
    try:
        said = zstandard.get_frame_parameters(coded)
        require(said.content_size == size and said.dict_id == 0 and said.window_size <= 1 << 22, "zstd frame")
        return zstandard.ZstdDecompressor(max_window_size=1 << 22).decompress(coded)
    except zstandard.ZstdError as error:
        raise Malformed(str(error)) from error


def different(stored: bytes, parent: Elements) -> Elements:
    """Section 4.2.1: return the child of a parent."""
    require(len(stored) >= 16, "no head of a difference")
    form, first, last, states_log, words, bits, model = struct.unpack_from("<BBBBIII", stored)
    require(form == 1 and first <= last and states_log <= 8, "head of a difference")
    ends = np.cumsum([16, 4 << states_log, 2 * words, bits, model]).tolist()
    require(ends[-1] == len(stored) and words <= len(parent) and bits <= parent.nbytes, "parts do not fill the frame")
    states = np.frombuffer(stored[16 : ends[1]], "<u4").astype(np.int64)
    alphabet, blocks = 32 * parent.itemsize, -(-len(parent) // 64)
    told = inflate(stored[ends[3] :], -(-blocks // 8) + 2 * alphabet * (last - first + 1))
    flags = np.unpackbits(np.frombuffer(told[: -(-blocks // 8)], np.uint8), bitorder="little")
    require(not flags[blocks:].any(), "a block beyond the last is active")
    active = np.repeat(flags[:blocks], 64)[: len(parent)].astype(bool)
    frequencies = np.frombuffer(told[-(-blocks // 8) :], "<u2").reshape(-1, alphabet).astype(np.int64)
    require((frequencies.sum(axis=1) == 4096).all(), "frequencies do not add up")
    keys = ((parent >> parent.dtype.type(SHIFTS[parent.itemsize])) & parent.dtype.type(255)).astype(np.int64)[active]
    rows = np.clip(keys, first, last) - first
    tokens = untangled(states, np.frombuffer(stored[ends[1] : ends[2]], "<u2").astype(np.int64), frequencies, rows)
    z = np.zeros(len(parent), parent.dtype)
    z[active] = values(tokens, stored[ends[2] : ends[3]], parent.dtype)
    one = z.dtype.type(1)
    child: Elements = parent + np.where(z & one, ~(z >> one), z >> one)
    return child


def untangled(states: Elements, words: Elements, frequencies: Elements, rows: Elements) -> Elements:
    """Return the tokens (n,) of elements whose keys have the frequencies of `rows`: as many at a time as are states."""
    require((states < 1 << 31).all(), "a state too large")
    above = np.cumsum(frequencies, axis=1)
    below = above - frequencies
    table = np.stack([np.repeat(np.arange(len(row)), row) for row in frequencies])  # remainder -> token
    tokens, used = np.empty(len(rows), np.int64), 0
    for start in range(0, len(rows), len(states)):
        row = rows[start : start + len(states)]
        y = states[: len(row)]
        r = y % 4096
        t = tokens[start : start + len(row)] = table[row, r]
        y = frequencies[row, t] * (y // 4096) + r - below[row, t]
        short = np.flatnonzero(y < 1 << 15)
        require(used + len(short) <= len(words), "words are missing")
        y[short] = y[short] * 65536 + words[used : used + len(short)]
        states[: len(row)], used = y, used + len(short)
    require(used == len(words) and (states == 1 << 15).all(), "words are left, or a state is not at its start")
    return tokens


def values(tokens: Elements, raw: bytes, dtype: np.dtype[Any]) -> Elements:
    """Return the zigzag steps of tokens, their lowest bits taken from `raw`."""
    highest, two = 4 + (tokens - 16) // 4, (tokens - 16) % 4
    lengths = np.where(tokens < 16, 0, highest - 2)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    require(len(raw) == -(-total // 8), "raw bits of another length")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    require(not bits[total:].any(), "the last byte of raw bits is not filled up with zeros")
    z = np.where(tokens < 16, tokens, 0).astype(dtype)
    for element in np.flatnonzero(tokens >= 16).tolist():
        low = bits[ends[element] - lengths[element] : ends[element]]
        number = (4 + int(two[element])) << int(lengths[element])
        z[element] = number + sum(int(bit) << place for place, bit in enumerate(low))
    return z


def widened(raw: bytes, arithmetic: int) -> npt.NDArray[np.float64]:
    width, exponent, _ = ARITHMETIC[arithmetic]
    if (width, exponent) == (2, 8):
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    return np.frombuffer(raw, f"<f{width}").astype(np.float64)


def rounded(values: npt.NDArray[np.float64], arithmetic: int) -> bytes:
    """Return `values` rounded once, to nearest even; the bits are put together by hand, apart from F64's."""
    width, exponent_bits, fraction = ARITHMETIC[arithmetic]
    bias = (1 << (exponent_bits - 1)) - 1
    if width == 8:
        bits = values.view("<u8").copy()
    else:
        finite = np.where(np.isfinite(values), np.abs(values), 0.0)
        exponent = np.maximum(np.where(finite > 0, np.frexp(finite)[1] - 1, 1 - bias), 1 - bias)
        units = np.rint(np.ldexp(finite, fraction - exponent)).astype(np.int64)  # in units of the last place
        bits = (units + ((exponent + bias - 1).astype(np.int64) << fraction)).astype("<u8")
        infinity = np.uint64(((1 << exponent_bits) - 1) << fraction)
        bits = np.where(np.isinf(values), infinity, np.minimum(bits, infinity))
        bits |= np.signbit(values).astype("<u8") << np.uint64(8 * width - 1)
    bits[np.isnan(values)] = QUIET_NAN[arithmetic]
    return bits.astype(f"<u{width}").tobytes()


def weight_file(store: Store, manifest: str) -> bytes:
    """Section 5 and manifest.md: return the file that a manifest describes."""
    lines = manifest.split("\n")
    require(lines[0] == "modelgit manifest 1" and lines[-1] == "", "not a manifest")
    size, (_, header_id, header_size) = int(lines[1].removeprefix("size ")), lines[2].split(" ")
    header = store.read(bytes.fromhex(header_id))
    require(len(header) == int(header_size) == 8 + struct.unpack("<Q", header[:8])[0], "length of the header")
    table = {name: value for name, value in json.loads(header[8:]).items() if name != "__metadata__"}
    parts: list[tuple[int, int, bytes]] = []
    for line in lines[3:-1]:
        name, dtype, shape, oid = split(line)
        begin, end = table[name]["data_offsets"]
        require((table[name]["dtype"], table[name]["shape"]) == (dtype, shape), "manifest and header disagree")
        raw = store.read(bytes.fromhex(oid))
        require(len(raw) == end - begin == int(np.prod(shape, dtype=object)) * BITS[dtype] // 8, "size of a tensor")
        parts.append((begin, end, raw))
    require(len(parts) == len(table), "a tensor is missing")
    file = header + b"".join(raw for _, _, raw in sorted(parts))
    require(len(file) == size, "size of the file")
    return file


def split(line: str) -> tuple[str, str, list[int], str]:
    """Return name, dtype, shape and id of a line."""
    name, end = json.JSONDecoder().raw_decode(line)
    dtype, shape, oid = line[end + 1 :].split(" ")
    return name, dtype, json.loads(shape), oid
