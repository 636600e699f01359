"""Changing entries of git's index in place: their stat, and their blob where it is another; flags stay as they are.

Layout: https://git-scm.com/docs/index-format (versions 2 to 4, ids of 20 bytes). An index where paths come or go, or of
a kind not known here, is not for this module: callers have git or GitPython write it.
"""

import hashlib
import os
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.repo.values import Blob

SIGNATURE, VERSIONS, HASH = b"DIRC", (2, 3, 4), 20
ROW = struct.Struct(">6LL3L20sH")  # times, device, inode; mode; owner, size; id; flags
MODE_AT, ID_AT, FLAGS_AT, NAME_AT = 24, 40, 60, 62
EXTENDED, STAGE, INTENDED = 0x4000, 0x3000, 0x2000  # the last one in the second flags
LASTING = (b"REUC", b"UNTR")  # extensions that say nothing of blobs
LOW = 0xFFFFFFFF
SECOND_NS = 1_000_000_000
WAIT_S, AGAIN_S = 2.0, 0.02


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's stat as the index holds it: seconds and nanoseconds, all in 32 bits."""

    ctime: tuple[int, int] = (0, 0)
    mtime: tuple[int, int] = (0, 0)
    device: int = 0
    inode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0

    def same_file(self, other: "Stamp") -> bool:
        """Tells whether a file was left alone between two stats."""
        mine, theirs = (self.ctime, self.mtime, self.inode), (other.ctime, other.mtime, other.inode)
        return mine == theirs and self.size == other.size


UNKNOWN = Stamp()  # git will look at the file itself


def stamp_of(stat: os.stat_result) -> Stamp:
    """Returns a stat as the index holds it."""
    return Stamp(
        (stat.st_ctime_ns // SECOND_NS & LOW, stat.st_ctime_ns % SECOND_NS),
        (stat.st_mtime_ns // SECOND_NS & LOW, stat.st_mtime_ns % SECOND_NS),
        stat.st_dev & LOW,
        stat.st_ino & LOW,
        stat.st_uid & LOW,
        stat.st_gid & LOW,
        stat.st_size & LOW,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where in an index an entry begins, its path, and what it says; `merged` is no side of a conflict."""

    start: int
    path: bytes
    blob: Blob
    merged: bool
    intended: bool  # by `git add --intent-to-add`: it stands for no blob yet


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

    Every other byte of the index stays, and its time: git asks of a file that is not older than the index whether it
    really is what the entry says; were the index to look newer, it would stop asking, of all the other files too.

    Raises:
        RepositoryError: the index cannot be written.
    """
    try:
        data = bytearray(index.read_bytes())
        name = os.fsencode(path)
        place = next((place for place in layout(data)[0] if place.path == name and place.merged), None)
        if place is None or place.blob.sha != sha:
            return False
        set_entry(data, place, place.blob, stamp)
        sign(data)
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


def patched(old: bytes, wanted: Mapping[bytes, tuple[Blob, Stamp]]) -> bytearray | None:
    """Returns an index with a blob and a stat for every path, all else as in the old one.

    Extensions that other blobs make untrue, git's cached trees for instance, are left out then. None if paths come or
    go, or the index is of a kind not known here, a split one for instance.
    """
    data = bytearray(old)
    try:
        places, end = layout(data)
        parts = dict(extensions(data, end))
    except (ValueError, IndexError, struct.error):
        return None
    if any(not name[:1].isupper() for name in parts):  # it must be understood
        return None
    if len(places) != len(wanted) or not all(place.merged and place.path in wanted for place in places):
        return None
    moved = [set_entry(data, place, *wanted[place.path]) for place in places]
    if any(moved):
        data[end:-HASH] = b"".join(part for name, part in parts.items() if name in LASTING)
    sign(data)
    return data


def set_entry(data: bytearray, place: Place, blob: Blob, stamp: Stamp) -> bool:
    """Gives an entry a stat and a blob; tells whether it stands for another one now.

    One that was only intended is added by that, unless it gets neither.
    """
    rest = (stamp.uid, stamp.gid, stamp.size, bytes.fromhex(blob.sha))
    where = (*stamp.ctime, *stamp.mtime, stamp.device, stamp.inode, int(blob.mode, 8))
    flags = struct.unpack_from(">H", data, place.start + FLAGS_AT)[0]
    ROW.pack_into(data, place.start, *where, *rest, flags)
    added = place.intended and (blob != place.blob or stamp != UNKNOWN)
    if added:
        more = struct.unpack_from(">H", data, place.start + NAME_AT)[0]
        struct.pack_into(">H", data, place.start + NAME_AT, more & ~INTENDED)
    return added or blob != place.blob


def sign(data: bytearray) -> None:
    """Sets the checksum, unless git was told to leave it out."""
    if any(data[-HASH:]):
        data[-HASH:] = checksum(data)


def checksum(data: bytearray) -> bytes:
    """Returns the checksum of all before its place."""
    return hashlib.sha1(memoryview(data)[:-HASH], usedforsecurity=False).digest()


def layout(data: bytearray) -> tuple[list[Place], int]:
    """Returns the entries of an index, and where they end.

    Raises:
        ValueError, IndexError, struct.error: it is damaged, or of a kind not known here.
    """
    if len(data) < 12 + HASH or data[:4] != SIGNATURE or (any(data[-HASH:]) and checksum(data) != data[-HASH:]):
        raise ValueError("no index, or a damaged one")
    version, count = struct.unpack_from(">LL", data, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version}")
    places: list[Place] = []
    position, name = 12, b""
    for _ in range(count):
        place, position = entry_at(data, position, name, version)
        places.append(place)
        name = place.path
    return places, position


def entry_at(data: bytearray, start: int, before: bytes, version: int) -> tuple[Place, int]:
    """Returns the entry at a position and where it ends; `before` is the path before it. Raises as `layout`."""
    *_, mode, _, _, _, sha, flags = ROW.unpack_from(data, start)
    extended = version > 2 and flags & EXTENDED
    position, kept = start + NAME_AT + (2 if extended else 0), 0
    if version == 4:
        strip, position = varint(data, position)
        kept = len(before) - strip
    end = data.index(b"\0", position, len(data) - HASH)
    path = before[:kept] + bytes(data[position:end])
    intended = bool(extended and struct.unpack_from(">H", data, start + NAME_AT)[0] & INTENDED)
    place = Place(start, path, Blob(sha.hex(), f"{mode:06o}"), not flags & STAGE, intended)
    return place, end + 1 if version == 4 else start + (end - start + 8) // 8 * 8


def extensions(data: bytearray, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields what follows the entries: names, and all the bytes. Raises as `layout`."""
    while position < len(data) - HASH:
        end = position + 8 + struct.unpack_from(">L", data, position + 4)[0]
        if end > len(data) - HASH:
            raise ValueError("an extension that is cut off")
        yield bytes(data[position : position + 4]), bytes(data[position:end])
        position = end


def varint(data: bytearray, position: int) -> tuple[int, int]:
    """Returns git's number of variable length at a position, and where it ends."""
    value = data[position] & 0x7F
    while data[position] & 0x80:
        position += 1
        value = ((value + 1) << 7) | (data[position] & 0x7F)
    return value, position + 1
