"""Files of the work tree: written whole or not at all, and never through a link, which would lead elsewhere."""

import os
import stat as modes
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import urandom
from pathlib import Path

from modelgit.errors import DirtyWorktree, FormatError, StorageFull

PAST_NS = 2_000_000_000
LINK_HINT = "put the file itself there: cp -L"


def stat_of(root: Path, path: str) -> os.stat_result | None:
    """Returns the stat of a file below `root`, None if there is none (a folder is none).

    Raises:
        FormatError: it is a link, lies behind one, or is no ordinary file.
    """
    for folder in folders_above(root, path):
        if folder.is_symlink():
            raise FormatError(f"{path}: {folder} is a link, expected a folder", hint="put the folder itself there")
    try:
        found = (root / path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if modes.S_ISDIR(found.st_mode):
        return None
    if not modes.S_ISREG(found.st_mode):
        raise FormatError(f"{path}: expected an ordinary file, found a link or a device", hint=LINK_HINT)
    return found


def folders_above(root: Path, path: str) -> Iterator[Path]:
    """Yields the folders between `root` and a file, from the top."""
    folder = root
    for part in path.split("/")[:-1]:
        folder = folder / part
        yield folder


def mode_of(found: os.stat_result) -> str:
    """Returns git's mode of an ordinary file."""
    return "100755" if found.st_mode & 0o100 else "100644"


def refuse_obstacles(root: Path, write: Sequence[str], delete: Sequence[str]) -> None:
    """Refuses to write where something lies that is no file and will not be gone.

    Raises:
        FormatError: a link among the folders above. DirtyWorktree: files where a folder is needed, or the reverse.
    """
    gone = set(delete)
    found = {str(obstacle) for path in write for obstacle in obstacles(root, path) if str(obstacle) not in gone}
    if found:
        raise DirtyWorktree(
            f"files lie in the way of folders, or the reverse: {', '.join(sorted(found))}",
            hint="move them elsewhere, and run the command again",
        )


def obstacles(root: Path, path: str) -> Iterator[Path]:
    """Yields the files that must be gone before `path` can be written."""
    for folder in folders_above(root, path):
        if folder.is_symlink():
            raise FormatError(f"{path}: {folder} is a link, expected a folder", hint="put the folder itself there")
        if folder.exists() and not folder.is_dir():
            yield folder.relative_to(root)
    place = root / path
    if place.is_dir() and not place.is_symlink():
        for inside in place.rglob("*"):
            if inside.is_symlink() or not inside.is_dir():
                yield inside.relative_to(root)


def make_parents(root: Path, path: str) -> None:
    """Makes the folders above `path`, refusing links; a folder without files at `path` itself goes."""
    for folder in folders_above(root, path):
        if folder.is_symlink():
            raise FormatError(f"{path}: {folder} is a link, expected a folder", hint="put the folder itself there")
        folder.mkdir(exist_ok=True)
    place = root / path
    if place.is_dir() and not place.is_symlink():
        for inside in sorted(place.rglob("*"), reverse=True):
            inside.rmdir()
        place.rmdir()


def write_ordinary(place: Path, data: bytes, mode: str) -> None:
    """Writes an ordinary file through a temporary name.

    Raises:
        StorageFull: the file system refused.
    """
    scratch = place.with_name(f".{place.name[:100]}.{urandom(8).hex()}.modelgit-tmp")
    try:
        with scratch.open("xb") as file:
            file.write(data)
        scratch.chmod(0o755 if mode == "100755" else 0o644)
        scratch.replace(place)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise StorageFull(
            f"cannot write {place}: {error.strerror}", hint="free some space or check permissions"
        ) from error


def delete_path(root: Path, path: str) -> None:
    """Removes a file, and the folders above that it leaves empty; nothing if it lies behind a link."""
    above = list(folders_above(root, path))
    if any(folder.is_symlink() for folder in above):
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        (root / path).unlink()
    for folder in reversed(above):
        try:
            folder.rmdir()
        except OSError:
            return


def recent(found: os.stat_result) -> bool:
    """Tells whether a file was written so lately that git may hold its time for its index's own."""
    return found.st_mtime_ns > time.time_ns() - PAST_NS


def backdate(place: Path) -> os.stat_result:
    """Gives a file a time a little in the past, and returns its stat.

    Git compares whole seconds: it reads a file written in the same second as its index again, through the filter.
    A write after this one sets the time anew, so it still shows.
    """
    past = min(place.lstat().st_mtime_ns, time.time_ns() - PAST_NS)
    with suppress(PermissionError):
        os.utime(place, ns=(past, past), follow_symlinks=False)
    return place.lstat()
