"""Files of the work tree: written whole or not at all, and never through a link, which would lead elsewhere."""

import os
import stat as modes
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
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
    refuse_links_above(root, path)
    try:
        found = (root / path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if modes.S_ISDIR(found.st_mode):
        return None
    if not modes.S_ISREG(found.st_mode):
        raise FormatError(f"{path}: expected an ordinary file, found a link or a device", hint=LINK_HINT)
    return found


def link_at(root: Path, path: str) -> bytes | None:
    """Returns where a link at `path` leads, None if there is none; nobody goes there.

    Raises:
        FormatError: it lies behind another link.
    """
    refuse_links_above(root, path)
    try:
        return os.readlink(os.fsencode(root / path))  # noqa: PTH115  Path would put it in another form
    except OSError:
        return None


def refuse_links_above(root: Path, path: str) -> None:
    """Refuses a path behind a link, which would lead elsewhere. Raises FormatError."""
    for folder in folders_above(root, path):
        if folder.is_symlink():
            raise FormatError(f"{path}: {folder} is a link, expected a folder", hint="put the folder itself there")


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
    found = {str(obstacle) for path in write for obstacle in obstacles(root, path, gone) if str(obstacle) not in gone}
    if found:
        raise DirtyWorktree(
            f"files lie in the way of folders, or the reverse: {', '.join(sorted(found))}",
            hint="move them elsewhere, and run the command again",
        )


def obstacles(root: Path, path: str, gone: Set[str] = frozenset()) -> Iterator[Path]:
    """Yields the files that must be gone before `path` can be written; a link among the folders above may be `gone`."""
    for folder in folders_above(root, path):
        if folder.is_symlink():
            if str(folder.relative_to(root)) in gone:
                return
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
    refuse_links_above(root, path)
    for folder in folders_above(root, path):
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
    with scratch_for(place) as scratch:
        with scratch.open("xb") as file:
            file.write(data)
        scratch.chmod(0o755 if mode == "100755" else 0o644)


def write_link(place: Path, target: bytes) -> None:
    """Makes a link, of which nothing is read or written through it.

    Raises:
        StorageFull: the file system refused. FormatError: it leads nowhere that a file system knows.
    """
    if not target or b"\0" in target:
        raise FormatError(f"{place}: a link to {target[:40]!r}, expected a path")
    with scratch_for(place) as scratch:
        os.symlink(target, os.fsencode(scratch))  # noqa: PTH211  as above


def make_submodule(root: Path, path: str) -> os.stat_result:
    """Makes the folder of a submodule, and returns its stat; `git submodule update` fills it, what is there stays."""
    refuse_links_above(root, path)
    place = root / path
    if place.is_symlink() or place.is_file():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    return place.lstat()


@contextmanager
def scratch_for(place: Path) -> Iterator[Path]:
    """Yields a name beside a place; what is there then takes the place. Raises StorageFull."""
    scratch = place.with_name(f".{place.name[:100]}.{urandom(8).hex()}.modelgit-tmp")
    try:
        yield scratch
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
    place = root / path
    with suppress(FileNotFoundError, NotADirectoryError):
        if place.is_dir() and not place.is_symlink():  # of a submodule: what is in it stays
            with suppress(OSError):
                place.rmdir()
        else:
            place.unlink()
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
