"""Object ids: BLAKE3 over a kind tag, the length and the BLAKE3 of every 4 MiB frame of the raw bytes.

The raw bytes alone give the id, not how they are stored, nor their dtype, shape or name. Frames are hashed apart,
so many threads can hash, and a reader who has the frames' hashes can check each frame as it comes.
"""

import re
from typing import Literal

from blake3 import blake3

from modelgit.errors import StoreError

Oid = str  # 64 lower-case hexadecimal digits
Kind = Literal["blob", "tensor"]
KINDS: tuple[Kind, ...] = ("blob", "tensor")
TAGS: dict[Kind, bytes] = {"blob": b"modelgit blob 1\n", "tensor": b"modelgit tensor 1\n"}
FRAME_BYTES = 4 * 1024 * 1024
HASH_BYTES = 32
OID = re.compile(r"[0-9a-f]{64}")

Buffer = bytes | bytearray | memoryview


def leaf(frame: Buffer) -> bytes:
    """Return the 32-byte hash of one frame of raw bytes."""
    return blake3(frame).digest()


def root(kind: Kind, size_bytes: int, leaves: Buffer) -> bytes:
    """Return the 32-byte id of an object of `size_bytes` whose frames hash to `leaves` (32 bytes each)."""
    return blake3(TAGS[kind] + size_bytes.to_bytes(8, "little") + leaves).digest()


def whole(kind: Kind, data: Buffer) -> bytes:
    """Return the 32-byte id of an object that is at hand."""
    if len(data) <= FRAME_BYTES:
        return root(kind, len(data), blake3(data).digest() if len(data) else b"")
    view = memoryview(data)
    leaves = b"".join(leaf(view[start : start + FRAME_BYTES]) for start in range(0, len(view), FRAME_BYTES))
    return root(kind, len(data), leaves)


def frame_count(size_bytes: int) -> int:
    """Return the number of frames of an object: none for an empty one."""
    return -(-size_bytes // FRAME_BYTES)


def frame_size(size_bytes: int, number: int) -> int:
    """Return the raw bytes of frame `number`; only the last is short."""
    return min(FRAME_BYTES, size_bytes - number * FRAME_BYTES)


def parse_oid(oid: Oid) -> bytes:
    """Return the 32 bytes of an id. Raises StoreError for anything but 64 lower-case hexadecimal digits."""
    if not OID.fullmatch(oid):
        raise StoreError(f"not an object id: expected 64 lower-case hexadecimal digits, got {oid[:80]!r}")
    return bytes.fromhex(oid)
