"""Reading from open files, and making folders; brings no NumPy."""

import os
import stat
from pathlib import Path

GROUP = stat.S_ISGID | stat.S_IRWXG


def make_folder(folder: Path) -> None:
    """Make a folder that is as open to its group as the one it lies in, as git does in a repository that is shared."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        mode, wanted = folder.stat().st_mode, folder.parent.stat().st_mode & GROUP
        if wanted & ~mode:
            folder.chmod(stat.S_IMODE(mode) | wanted)


def read_all(handle: int, start: int, into: memoryview) -> int:
    """Fill `into` from `start` of a file; return the bytes read, fewer only at the file's end."""
    done = 0
    while done < len(into):
        got = os.preadv(handle, [into[done:]], start + done)
        if not got:
            break
        done += got
    return done
