"""Git's index: a weight file's entry holds its manifest's blob and the real file's stat.

With the stat right git asks no filter and reads no weights. An entry is given a stat only when the file is known to be
what the blob says: written blindly, a changed file would look clean and its changes would be lost.
"""

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from os import urandom
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import FormatError, RepositoryError
from modelgit.repo.gitdir import GitDirectory, check_tracked
from modelgit.repo.merging.underway import conflicts_error
from modelgit.repo.repository import Repository
from modelgit.repo.stamps import UNKNOWN, Stamp, patched, stamp_of
from modelgit.repo.values import Blob

if TYPE_CHECKING:
    from git.index import IndexEntry

SKIP_WORKTREE, INTENDED = 1 << 30, 1 << 29  # as git has them in memory; in the file they are the second flags
SECOND_FLAGS = 16
ASSUME_UNCHANGED = 1 << 15
ROW = re.compile(
    rb"(\d+) ([0-9a-f]{40}) (\d)\t([^\0]+)\0  ctime: (\d+):(\d+)\n  mtime: (\d+):(\d+)\n"
    rb"  dev: (\d+)\tino: (\d+)\n  uid: (\d+)\tgid: (\d+)\n  size: (\d+)\tflags: ([0-9a-f]+)\n"
)


@dataclass(frozen=True, slots=True)
class Index:
    """The index as it was read: blobs and stamps by path, and the stat of its own file, None if there is none.

    `flags` are git's own of each path: whether its file is assumed to be unchanged, or only intended to be added.
    `unmerged` are the paths in conflict, which have no blob: the numbers of the sides that git has of them.
    """

    place: Path
    blobs: Mapping[str, Blob]
    stamps: Mapping[str, Stamp]
    flags: Mapping[str, int]
    state: os.stat_result | None
    git: GitDirectory
    unmerged: Mapping[str, str] = field(default_factory=dict)

    def unchanged(self, path: str, stat: os.stat_result) -> bool:
        """Tells whether a file still is what its entry says, by its stat alone.

        Never for a file written in the same instant as the index or later (git calls it racy): its stat proves nothing.
        """
        known = self.stamps.get(path)
        if known is None or self.state is None:
            return False
        return known.same_file(stamp_of(stat)) and stat.st_mtime_ns < self.state.st_mtime_ns

    def settled(self) -> dict[str, Stamp]:
        """Returns the stamps that may stand in an index written later: those of files older than this one.

        Those of others prove nothing now, and would seem to.
        """
        written = stamp_of(self.state).mtime if self.state is not None else (0, 0)
        return {path: stamp for path, stamp in self.stamps.items() if stamp.mtime < written}

    def intended(self, path: str) -> bool:
        """Tells whether an entry stands for no blob yet, only for the intention to add one."""
        return bool(self.flags.get(path, 0) & INTENDED)


def read_index(repo: Repository, *, conflicted: bool = False) -> Index:
    """Returns the index of the repository's work tree, to be looked at alone if it may be `conflicted`.

    Raises:
        RepositoryError: paths are in conflict, or the checkout is sparse. FormatError: a path that may not be.
    """
    place = repo.index_file
    state = state_of(place)
    blobs: dict[str, Blob] = {}
    stamps: dict[str, Stamp] = {}
    flags: dict[str, int] = {}
    unmerged: dict[str, str] = {}
    for row in ROW.finditer(repo.git.run_bytes("ls-files", "--stage", "--debug", "-z")):
        path = check_tracked(row[4].decode("utf-8", "surrogateescape"), "index")
        if row[3] != b"0":
            unmerged[path] = unmerged.get(path, "") + row[3].decode()
            continue
        flags[path] = int(row[14], 16) & (ASSUME_UNCHANGED | SKIP_WORKTREE | INTENDED)
        if flags[path] & SKIP_WORKTREE:
            raise RepositoryError(
                "sparse checkouts cannot hold models yet", hint="widen it: git sparse-checkout disable"
            )
        numbers = [int(row[i]) for i in range(5, 14)]
        blobs[path] = Blob(row[2].decode(), row[1].decode())
        stamps[path] = Stamp((numbers[0], numbers[1]), (numbers[2], numbers[3]), *numbers[4:])
    if unmerged and not conflicted:
        raise conflicts_error(repo, sorted(unmerged))
    return Index(place, blobs, stamps, flags, state, repo.git, unmerged)


def has_blob(git: GitDirectory, path: str, sha: str) -> bool:
    """Tells whether the index has a blob at a path, on any side of a merge; the mere intention to add one is none."""
    looks = ("--literal-pathspecs", "ls-files", "--stage", "--debug", "-z", "--", path)
    rows = ROW.finditer(git.run_bytes(*looks))
    return any(row[2].decode() == sha and not int(row[14], 16) & INTENDED for row in rows)


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

    Where no path comes or goes the entries are changed in place; else GitPython writes the whole. Flags stay.

    Raises:
        RepositoryError: another git command holds it, or has written it since it was read; or it holds conflicts, which
        would be lost. FormatError: a path that GitPython refuses.
    """
    if index.unmerged:
        raise RepositoryError("git's index holds conflicts", hint="modelgit status shows them, and the way out")
    scratch = index.place.with_name(f"index.{urandom(8).hex()}.tmp")
    try:
        data = renewed(index, files, stamps) or written_anew(index, files, stamps)
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


def renewed(index: Index, files: Mapping[str, Blob], stamps: Mapping[str, Stamp]) -> bytearray | None:
    """Returns the index changed in place, None where that cannot be done."""
    if index.state is None or files.keys() != index.blobs.keys():
        return None
    wanted = {os.fsencode(path): (blob, stamps.get(path, UNKNOWN)) for path, blob in files.items()}
    return patched(index.place.read_bytes(), wanted)


def written_anew(index: Index, files: Mapping[str, Blob], stamps: Mapping[str, Stamp]) -> bytes:
    """Returns an index as GitPython writes it. It has no extensions: git's cached trees would be stale.

    Raises:
        RepositoryError: GitPython cannot be loaded, for which it runs git. FormatError: a path that it refuses.
    """
    try:
        from git.index.fun import write_cache
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise RepositoryError(f"git does not run: {reason}", hint="run the command again") from error
    made, paths = BytesIO(), sorted(files, key=os.fsencode)
    try:
        write_cache([entry_for(index, path, files[path], stamps.get(path, UNKNOWN)) for path in paths], made)
    except ValueError as error:
        hint = "rename it: other systems would take it for something else"
        raise FormatError(f"git's index: {error}", hint=hint) from error
    return made.getvalue()


def entry_for(index: Index, path: str, blob: Blob, stamp: Stamp) -> "IndexEntry":
    """Returns GitPython's index entry; one that was only intended is added by a blob or a stamp."""
    from git.index import IndexEntry

    flags = index.flags.get(path, 0)
    if stamp != UNKNOWN or blob != index.blobs.get(path):
        flags &= ~INTENDED
    times = struct.pack(">LL", *stamp.ctime), struct.pack(">LL", *stamp.mtime)
    rest = (stamp.device, stamp.inode, stamp.uid, stamp.gid, stamp.size, flags >> SECOND_FLAGS)
    return IndexEntry((int(blob.mode, 8), bytes.fromhex(blob.sha), flags & ASSUME_UNCHANGED, path, *times, *rest))


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
