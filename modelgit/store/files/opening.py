"""Weight files opened for reading, frame by frame."""

import os
from pathlib import Path

from modelgit.errors import FormatError
from modelgit.store.backend import translated
from modelgit.store.codec.arrays import Bytes
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.mapping import MappedFile
from modelgit.store.writing import Fill

Stat = tuple[int, int, int, int]


def opened(path: Path) -> MappedFile:
    """Open a file for reading. Raises StoreError when it cannot be."""
    with translated(path):
        return MappedFile(path)


def stamp(file: MappedFile) -> Stat:
    """Return what changes when an open file does."""
    found = os.fstat(file.handle)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def file_fill(file: MappedFile, path: Path, start: int) -> Fill:
    """Return a fill that reads frames of a tensor which begins at `start` of an open file."""

    def fill(number: int, into: Bytes) -> Bytes:
        with translated(path):
            complete = file.read_into(start + number * FRAME_BYTES, into.data)
        if not complete:
            raise FormatError(f"{path}: became shorter while it was read", hint="wait until its writer has finished")
        return into

    return fill
