"""Git's index, written by us: a weight file's entry holds its manifest's blob and the real file's stat.

With the stat right git asks no filter and reads no weights. An entry is given a stat only when the file is known to be
what the blob says: written blindly, a changed file would look clean and its changes would be lost.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from git import Repo
from git.index import IndexEntry, IndexFile

from modelgit.errors import RepositoryError
from modelgit.repo.gitdir import check_path
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob

LOW = 0xFFFFFFFF
NO_TIME = b"\0" * 8
SECOND_NS = 1_000_000_000


def index_of(repo: Repository) -> IndexFile:
    """Returns the index of the repository's work tree.

    Raises:
        RepositoryError: it is bare.
    """
    if repo.worktree is None:
        raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
    return IndexFile(Repo(repo.worktree))


def tracked(index: IndexFile) -> dict[str, Blob]:
    """Returns the files git tracks: path to blob.

    Raises:
        RepositoryError: a git merge is under way.
    """
    if any(stage for _, stage in index.entries):
        raise RepositoryError("a git merge is under way here", hint="finish it, or: git merge --abort")
    return {check_path(str(path), "index"): Blob(e.hexsha, f"{e.mode:o}") for (path, _), e in index.entries.items()}


def time_bytes(nanoseconds: int) -> bytes:
    """Returns a time as the index holds it."""
    return struct.pack(">LL", nanoseconds // SECOND_NS & LOW, nanoseconds % SECOND_NS)


def unchanged(entry: IndexEntry, stat: os.stat_result, written_ns: int) -> bool:
    """Tells whether the file still is what its entry says, by its stat alone.

    Never for a file written in the same instant as the index or later (git calls it racy): its stat proves nothing.
    """
    same = (
        entry.size == stat.st_size & LOW
        and entry.mtime_bytes == time_bytes(stat.st_mtime_ns)
        and entry.ctime_bytes == time_bytes(stat.st_ctime_ns)
        and entry.inode == stat.st_ino & LOW
    )
    return same and stat.st_mtime_ns < written_ns


def entry_for(path: str, blob: Blob, stat: os.stat_result | None) -> IndexEntry:
    """Returns an index entry; without a stat git will look at the file itself."""
    mode, sha = int(blob.mode, 8), bytes.fromhex(blob.sha)
    flags = min(len(os.fsencode(path)), 0xFFF)
    if stat is None:
        return IndexEntry((mode, sha, flags, path, NO_TIME, NO_TIME, 0, 0, 0, 0, 0))
    times = (time_bytes(stat.st_ctime_ns), time_bytes(stat.st_mtime_ns))
    owner = (stat.st_dev & LOW, stat.st_ino & LOW, stat.st_uid, stat.st_gid)
    return IndexEntry((mode, sha, flags, path, *times, *owner, stat.st_size & LOW))


def write_index(index: IndexFile, files: Mapping[str, Blob], stats: Mapping[str, os.stat_result]) -> None:
    """Makes the index say `files`, with the stats of those that are known to be so; atomically, under git's lock."""
    index.entries = {(path, 0): entry_for(path, blob, stats.get(path)) for path, blob in files.items()}
    try:
        index.write()
    except OSError as error:
        raise RepositoryError(
            f"cannot write git's index: {error}", hint="is another git command running here?"
        ) from error


def written_ns(index: IndexFile) -> int:
    """Returns when the index was last written, 0 if never."""
    try:
        return Path(index.path).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
