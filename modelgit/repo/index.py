"""Git's index: a weight file's entry holds its manifest's blob and the real file's stat.

With the stat right git asks no filter and reads no weights. An entry is given a stat only when the file is known to be
what the blob says: written blindly, a changed file would look clean and its changes would be lost.
"""

import hashlib
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from os import urandom
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.repo.gitdir import GitDirectory, check_tracked
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob

LOW = 0xFFFFFFFF
SECOND_NS = 1_000_000_000
SKIP_WORKTREE = 1 << 30
LONGEST = 0xFFF  # length of a name that an entry can tell
ROW = re.compile(
    rb"(\d+) ([0-9a-f]{40}) (\d)\t([^\0]+)\0  ctime: (\d+):(\d+)\n  mtime: (\d+):(\d+)\n"
    rb"  dev: (\d+)\tino: (\d+)\n  uid: (\d+)\tgid: (\d+)\n  size: (\d+)\tflags: ([0-9a-f]+)\n"
)


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


@dataclass(frozen=True, slots=True)
class Index:
    """The index as it was read: blobs and stamps by path, and the stat of its own file, None if there is none."""

    place: Path
    blobs: Mapping[str, Blob]
    stamps: Mapping[str, Stamp]
    state: os.stat_result | None
    git: GitDirectory

    def unchanged(self, path: str, stat: os.stat_result) -> bool:
        """Tells whether a file still is what its entry says, by its stat alone.

        Never for a file written in the same instant as the index or later (git calls it racy): its stat proves nothing.
        """
        known = self.stamps.get(path)
        if known is None or self.state is None:
            return False
        return known.same_file(stamp_of(stat)) and stat.st_mtime_ns < self.state.st_mtime_ns


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


def read_index(repo: Repository) -> Index:
    """Returns the index of the repository's work tree.

    Raises:
        RepositoryError: a git merge is under way, or the checkout is sparse. FormatError: a path that may not be.
    """
    place = repo.index_file
    state = state_of(place)
    blobs: dict[str, Blob] = {}
    stamps: dict[str, Stamp] = {}
    for row in ROW.finditer(repo.git.run_bytes("ls-files", "--stage", "--debug", "-z")):
        path = check_tracked(row[4].decode("utf-8", "surrogateescape"), "index")
        if row[3] != b"0":
            raise RepositoryError("a git merge is under way here", hint="git status says how to go on")
        if int(row[14], 16) & SKIP_WORKTREE:
            raise RepositoryError(
                "sparse checkouts cannot hold models yet", hint="widen it: git sparse-checkout disable"
            )
        numbers = [int(row[i]) for i in range(5, 14)]
        blobs[path] = Blob(row[2].decode(), row[1].decode())
        stamps[path] = Stamp((numbers[0], numbers[1]), (numbers[2], numbers[3]), *numbers[4:])
    return Index(place, blobs, stamps, state, repo.git)


def state_of(place: Path) -> os.stat_result | None:
    """Returns the stat of the index itself, None if there is none yet."""
    try:
        return place.stat()
    except FileNotFoundError:
        return None


def rewritten(index: Index) -> bool:
    """Tells whether the index was written since it was read."""
    now = state_of(index.place)
    if now is None or index.state is None:
        return now is not index.state
    return not stamp_of(now).same_file(stamp_of(index.state))


def refuse_lock(index: Index) -> None:
    """Refuses a step while another git command holds the index, before anything is touched.

    Raises:
        RepositoryError: naming the lock.
    """
    with index.git.taking_locks():
        if lock_of(index).exists():
            raise locked(index)


def lock_of(index: Index) -> Path:
    """Returns the file by which git locks an index."""
    return index.place.with_name("index.lock")


def locked(index: Index) -> RepositoryError:
    """Returns the error for an index that is locked."""
    hint = f"wait for it; if it was killed: rm {lock_of(index)}"
    return RepositoryError("another git command is at work here: git's index is locked", hint=hint)


def write_index(index: Index, files: Mapping[str, Blob], stamps: Mapping[str, Stamp]) -> None:
    """Makes the index say `files`, with the stamps of those that are known to be so; atomically, under git's lock.

    Raises:
        RepositoryError: another git command holds it, or has written it since it was read.
    """
    data = index_bytes(files, stamps)
    scratch = index.place.with_name(f"index.{urandom(8).hex()}.tmp")
    try:
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with index.git.taking_locks():
            swap(index, scratch)
    except OSError as error:
        raise RepositoryError(f"cannot write git's index: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)


def swap(index: Index, scratch: Path) -> None:
    """Puts a complete index into place; git's lock is held for an instant only, so a kill hardly leaves one behind."""
    lock = lock_of(index)
    try:
        lock.hardlink_to(scratch)
    except FileExistsError as error:
        raise locked(index) from error
    try:
        if rewritten(index):
            raise RepositoryError("another git command has written git's index meanwhile", hint="run the command again")
        lock.replace(index.place)
    finally:
        lock.unlink(missing_ok=True)


def index_bytes(files: Mapping[str, Blob], stamps: Mapping[str, Stamp]) -> bytes:
    """Returns an index of version 2, as https://git-scm.com/docs/index-format has it.

    It has no extensions: those that were there, trees for instance, describe what the index said before.
    """
    rows = [entry_bytes(path, files[path], stamps.get(path, UNKNOWN)) for path in sorted(files, key=os.fsencode)]
    data = b"".join([struct.pack(">4sLL", b"DIRC", 2, len(rows)), *rows])
    return data + hashlib.sha1(data, usedforsecurity=False).digest()


def entry_bytes(path: str, blob: Blob, stamp: Stamp) -> bytes:
    """Returns one entry, filled up to a multiple of 8 bytes with 1 to 8 zeros."""
    name, owner = os.fsencode(path), (stamp.uid, stamp.gid)
    stat = (*stamp.ctime, *stamp.mtime, stamp.device, stamp.inode, int(blob.mode, 8), *owner, stamp.size)
    row = struct.pack(">10L20sH", *stat, bytes.fromhex(blob.sha), min(len(name), LONGEST)) + name
    return row.ljust((len(row) + 8) // 8 * 8, b"\0")
