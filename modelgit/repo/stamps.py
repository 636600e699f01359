"""Giving an entry of git's index the stat of its real file, in place: every other byte of the index stays.

Layout: https://git-scm.com/docs/index-format (versions 2 to 4, ids of 20 bytes). The new index keeps the old one's
time. Git asks of a file that is not older than the index whether it really is what the entry says; were the index to
look newer, it would stop asking, of all the other files too.
"""

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.repo.index import Stamp

SIGNATURE, VERSIONS, HASH = b"DIRC", (2, 3, 4), 20
STAT_BYTES, ID_AT, FLAGS_AT, NAME_AT = 40, 40, 60, 62
EXTENDED, STAGE = 0x4000, 0x3000
WAIT_S, AGAIN_S = 2.0, 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Where in an index an entry begins, and its blob's id."""

    start: int
    sha: str


@contextmanager
def index_lock(index: Path) -> Iterator[Path]:
    """Holds git's lock of an index: no git command changes index or files meanwhile. Yields the lock's file, empty.

    Whoever is inside may put the file into the index's place; else it is removed.

    Raises:
        RepositoryError: another command has held it for two seconds.
    """
    lock = index.with_name(f"{index.name}.lock")
    patience = time.monotonic() + WAIT_S
    while True:
        try:
            handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            break
        except FileExistsError:
            if time.monotonic() > patience:
                hint = f"wait for it; if it was killed: rm {lock}"
                raise RepositoryError("another git command is at work here: git's index is locked", hint=hint) from None
            time.sleep(AGAIN_S)
        except OSError as error:
            raise RepositoryError(f"cannot lock git's index: {error.strerror}") from error
    os.close(handle)
    try:
        yield lock
    finally:
        lock.unlink(missing_ok=True)


def put_stamp(index: Path, lock: Path, path: str, sha: str, stamp: Stamp) -> bool:
    """Gives the entry of `path` a stat, if its blob is `sha`; False if there is no such entry. The lock is held.

    Raises:
        RepositoryError: the index cannot be written.
    """
    try:
        data = bytearray(index.read_bytes())
        place = find_entry(data, os.fsencode(path))
        if place is None or place.sha != sha:
            return False
        data[place.start : place.start + STAT_BYTES] = stat_fields(data, place.start, stamp)
        if any(data[-HASH:]):  # git can be told to leave the checksum out
            data[-HASH:] = hashlib.sha1(memoryview(data)[:-HASH], usedforsecurity=False).digest()
        replace_index(index, lock, data)
    except (ValueError, IndexError, struct.error):
        return False  # an index of a kind not known here
    except OSError as error:
        raise RepositoryError(f"cannot write git's index: {error.strerror}") from error
    return True


def replace_index(index: Path, lock: Path, data: bytearray) -> None:
    """Writes the lock's file and puts it into the index's place, with the old one's mode and time."""
    old = index.stat()
    with lock.open("wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), old.st_mode & 0o7777)
        os.fsync(file.fileno())
    os.utime(lock, ns=(old.st_mtime_ns, old.st_mtime_ns))
    lock.replace(index)


def stat_fields(data: bytearray, start: int, stamp: Stamp) -> bytes:
    """Returns the ten numbers of an entry's stat; the mode is the entry's own."""
    mode = struct.unpack_from(">L", data, start + 24)[0]
    rest = (stamp.device, stamp.inode, mode, stamp.uid, stamp.gid, stamp.size)
    return struct.pack(">10L", *stamp.ctime, *stamp.mtime, *rest)


def find_entry(data: bytearray, path: bytes) -> Place | None:
    """Returns the merged entry of a path; None if there is none, or the index is of a kind not known here."""
    if len(data) < 12 + HASH or data[:4] != SIGNATURE:
        return None
    version, count = struct.unpack_from(">LL", data, 4)
    if version not in VERSIONS:
        return None
    position, name = 12, b""
    for _ in range(count):
        start = position
        if start + NAME_AT > len(data) - HASH:
            return None
        flags = struct.unpack_from(">H", data, start + FLAGS_AT)[0]
        position = start + NAME_AT + (2 if version > 2 and flags & EXTENDED else 0)
        kept = 0
        if version == 4:
            strip, position = varint(data, position)
            kept = len(name) - strip
        end = data.index(b"\0", position)
        name = name[:kept] + bytes(data[position:end])
        position = end + 1 if version == 4 else start + (end - start + 8) // 8 * 8
        if name == path and not flags & STAGE:
            return Place(start, bytes(data[start + ID_AT : start + FLAGS_AT]).hex())
    return None


def varint(data: bytearray, position: int) -> tuple[int, int]:
    """Returns git's number of variable length at a position, and where it ends."""
    value = data[position] & 0x7F
    while data[position] & 0x80:
        position += 1
        value = ((value + 1) << 7) | (data[position] & 0x7F)
    return value, position + 1
