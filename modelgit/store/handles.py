"""Reading from open files, and making folders; brings no NumPy."""

import os
import stat
from contextlib import suppress
from pathlib import Path

GROUP = stat.S_ISGID | stat.S_IRWXG
READ, WRITE = 0o444, 0o222


def make_folder(folder: Path) -> None:
    """Make a folder that is as open to its group as the one it lies in, as git does in a repository that is shared."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        mode, wanted = folder.stat().st_mode, folder.parent.stat().st_mode & GROUP
        if wanted & ~mode:
            folder.chmod(stat.S_IMODE(mode) | wanted)


def share(handle: int, folder: Path, bits: int) -> None:
    """Let others do with an open file of ours what they may do in a folder that a group writes, as far as `bits` go."""
    allowed = folder.stat().st_mode
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    wanted = allowed & bits & 0o077 if allowed & stat.S_IWGRP else 0
    if wanted & ~mode:
        with suppress(PermissionError):  # not ours after all
            os.fchmod(handle, mode | wanted)


def open_lock(path: Path) -> int:
    """Open a file to be locked, which is made if there is none; one that is another's for reading, which will do."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    share(handle, path.parent, READ | WRITE)
    return handle


def read_all(handle: int, start: int, into: memoryview) -> int:
    """Fill `into` from `start` of a file; return the bytes read, fewer only at the file's end."""
    done = 0
    while done < len(into):
        got = os.preadv(handle, [into[done:]], start + done)
        if not got:
            break
        done += got
    return done
