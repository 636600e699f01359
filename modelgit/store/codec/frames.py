"""Frames of weights as bytes to store, and back.

Weights are noise with a skewed exponent: Huffman coding of byte planes takes all there is to gain, and zstd, set up
to look for no matches, is a fast Huffman coder whose frames any zstd can read. Each plane is stored as it is, coded,
as one constant byte, or, where there is little in it, as eight bit planes; samples decide, so nothing is coded twice.
"""

import struct

import numpy as np
import zstandard

from modelgit.errors import CorruptObject
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import BLOB_WINDOW_LOG, TOOLS
from modelgit.store.codec.transforms import Transforms, aligned, transforms

STORED, CODED, CONSTANT, BITS = range(4)  # kinds of plane
NOISE_BITS = 7.93  # bits a byte from which coding gains nothing
SPARSE_BITS = 2.2  # bits a byte below which bit planes may be smaller
SPARSE_BYTES = 4096  # planes shorter than this are not split into bits
TINY_BYTES = 64  # planes shorter than this are stored
SAMPLES = 8192  # bytes looked at for an entropy
PIECES, PIECE_BYTES = 3, 16384  # stretches looked at to choose between two forms

Parts = list[bytes | bytearray | memoryview]


def total_bytes(parts: Parts) -> int:
    """Return how many bytes `parts` hold together."""
    return sum(len(part) for part in parts)


def sampled_entropy(plane: Bytes) -> float:
    """Return the order-0 entropy of evenly spaced bytes of `plane`, in bits a byte."""
    counts = np.bincount(plane[:: max(1, len(plane) // SAMPLES)][:SAMPLES], minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def pieces(data: Bytes) -> list[Bytes]:
    """Return evenly spaced stretches of `data`, or all of it if it is short; each starts at a multiple of 8 bytes."""
    if len(data) <= 2 * PIECES * PIECE_BYTES:
        return [data]
    step = (len(data) - PIECE_BYTES) // (PIECES - 1) & ~7
    return [data[i * step : i * step + PIECE_BYTES] for i in range(PIECES)]


def encode_flat(plane: Bytes, entropy: float) -> tuple[int, Parts]:
    """Return kind and bytes of a plane as it is, coded or constant."""
    if entropy == 0.0 and len(plane) and bool((plane == plane[0]).all()):
        return CONSTANT, [plane[:1].tobytes()]
    if entropy < NOISE_BITS and len(plane) >= TINY_BYTES:
        coded = TOOLS.huffman.compress(plane.data)
        if len(coded) < len(plane):
            return CODED, [coded]
    return STORED, [plane.tobytes()]


def encode_bits(plane: Bytes, tools: Transforms) -> tuple[int, Parts]:
    """Return kind and bytes of a plane (8 * n,) as eight bit planes, each flat."""
    bits = TOOLS.buffer("bits", len(plane)).reshape(8, -1)
    tools.bits_split(plane, bits)
    rows = [encode_flat(row, sampled_entropy(row)) for row in bits]
    head = struct.pack("<8B8I", *(kind for kind, _ in rows), *(total_bytes(parts) for _, parts in rows))
    return BITS, [head, *(part for _, parts in rows for part in parts)]


def bits_are_smaller(plane: Bytes, tools: Transforms) -> bool:
    """Tell from a few stretches of `plane` whether bit planes take fewer bytes than the flat form."""
    flat = split = 0
    for piece in pieces(plane):
        flat += total_bytes(encode_flat(piece, 1.0)[1])
        split += total_bytes(encode_bits(piece, tools)[1])
    return split < flat


def encode_plane(plane: Bytes, tools: Transforms) -> tuple[int, Parts]:
    """Return kind and bytes of one byte plane, in the form that samples say is the smallest."""
    entropy = sampled_entropy(plane) if len(plane) else 8.0
    sparse = entropy < SPARSE_BITS and len(plane) >= SPARSE_BYTES and len(plane) % 8 == 0
    if sparse and not (entropy == 0.0 and bool((plane == plane[0]).all())) and bits_are_smaller(plane, tools):
        return encode_bits(plane, tools)
    return encode_flat(plane, entropy)


def encode_planes(planes: Bytes, tools: Transforms) -> Parts:
    """Return the frame of byte planes (width, n): kinds, lengths, then the planes."""
    coded = [encode_plane(plane, tools) for plane in planes]
    width = len(coded)
    head = struct.pack(f"<{width}B{width}I", *(kind for kind, _ in coded), *(total_bytes(parts) for _, parts in coded))
    return [head, *(part for _, parts in coded for part in parts)]


def encode_full(data: Bytes, width: int, tools: Transforms | None = None) -> Parts:
    """Return the bytes that hold `data` (n * width,) alone."""
    chosen = tools or transforms()
    planes = TOOLS.buffer("planes", len(data)).reshape(width, -1)
    chosen.full_split(width, aligned(data, width), planes)
    return encode_planes(planes, chosen)


def inflate(coded: memoryview, into: Bytes) -> None:
    """Decompress one zstd frame that must fill `into` exactly, with bounded memory. Raises CorruptObject."""
    try:
        frame = zstandard.get_frame_parameters(coded)
        if frame.content_size != len(into) or frame.window_size > 1 << BLOB_WINDOW_LOG or frame.dict_id:
            raise CorruptObject(f"a zstd frame declares {frame.content_size} bytes, expected {len(into)}")
        got = TOOLS.decompressor.stream_reader(coded).readinto(into.data)
    except zstandard.ZstdError as error:
        raise CorruptObject(f"a zstd frame does not decode: {error}") from error
    if got != len(into):
        raise CorruptObject(f"a zstd frame holds {got} bytes, expected {len(into)}")


def decode_flat(kind: int, stored: memoryview, into: Bytes) -> Bytes:
    """Return the bytes of a flat plane: `into`, filled, or a view of `stored`. Raises CorruptObject."""
    if kind == STORED and len(stored) == len(into):
        return np.frombuffer(stored, np.uint8)
    if kind == CONSTANT and len(stored) == 1:
        into.fill(stored[0])
    elif kind == CODED:
        inflate(stored, into)
    else:
        raise CorruptObject(f"a plane of kind {kind} holds {len(stored)} bytes for {len(into)}")
    return into


def sections(stored: memoryview, count: int) -> list[tuple[int, memoryview]]:
    """Return kind and bytes of `count` planes behind their table. Raises CorruptObject unless they fill `stored`."""
    start = 5 * count
    if len(stored) < start:
        raise CorruptObject(f"a frame of {len(stored)} bytes is too short for {count} planes")
    lengths = struct.unpack_from(f"<{count}I", stored, count)
    if start + sum(lengths) != len(stored):
        raise CorruptObject(f"planes of {sum(lengths)} bytes do not fill a frame of {len(stored) - start}")
    found = []
    for kind, length in zip(stored[:count], lengths, strict=True):
        found.append((kind, stored[start : start + length]))
        start += length
    return found


def decode_bits(stored: memoryview, into: Bytes, tools: Transforms) -> Bytes:
    """Fill `into` from its eight bit planes. Raises CorruptObject."""
    if len(into) % 8:
        raise CorruptObject(f"a plane of {len(into)} bytes cannot be split into bits")
    bits = TOOLS.buffer("bits", len(into)).reshape(8, -1)
    for row, (kind, part) in zip(bits, sections(stored, 8), strict=True):
        decoded = decode_flat(kind, part, row)
        if decoded is not row:
            row[:] = decoded
    tools.bits_join(bits, into)
    return into


def decode_planes(stored: memoryview, width: int, size_bytes: int, tools: Transforms) -> list[Bytes]:
    """Return the `width` planes of a frame of `size_bytes`. Raises CorruptObject."""
    scratch = TOOLS.buffer("planes", size_bytes).reshape(width, -1)
    planes = []
    for row, (kind, part) in zip(scratch, sections(stored, width), strict=True):
        planes.append(decode_bits(part, row, tools) if kind == BITS else decode_flat(kind, part, row))
    return planes


def decode_full(stored: memoryview, width: int, into: Bytes, tools: Transforms | None = None) -> None:
    """Undo `encode_full` into `into`, aligned and of the frame's length. Raises CorruptObject."""
    chosen = tools or transforms()
    chosen.full_join(width, decode_planes(stored, width, len(into), chosen), into)


def encode_blob(data: Bytes, *, keep: bool) -> Parts:
    """Return `data` compressed as text is; with `keep`, as it is if that is no longer."""
    coded = TOOLS.general.compress(data.data)
    return [data.tobytes()] if keep and len(coded) >= len(data) else [coded]
