"""Files to read from, mapped into memory where the kernel is built: four times as fast as reading.

What is read is copied to where the caller wants it, so it stays as it was when it was hashed, whoever writes to the
file; and a file that is cut short meanwhile is an error like any other. Arithmetic that reads every byte once goes
without the copy (`view`).
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.compiled import load_library
from modelgit.store.handles import read_all

SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h
LARGE_BYTES = 64 * 1024  # files below are read: a mapping costs as much


class Copy(Protocol):
    """Copies bytes, unless those to copy are not there any more."""

    def __call__(self, to: ctypes.c_void_p, start: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        """Return 0, or 1 if they are not."""


@cache
def guarded_copy() -> Copy | None:
    """Return the kernel's copy, None without one."""
    copy: Copy | None = getattr(load_library(), "modelgit_copy", None)
    return copy


class MappedFile:
    """A file that is open for reading, until nobody holds it any more. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises OSError."""
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self.handle).st_size
        self._copy = guarded_copy() if self._size >= LARGE_BYTES else None
        self._map: mmap.mmap | None = None
        self._start = 0
        if self._copy is not None:
            self._map_in()

    def _map_in(self) -> None:
        try:
            self._map = mmap.mmap(self.handle, self._size, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # a file system that cannot
            self._copy = None
            return
        self._start = np.frombuffer(self._map, np.uint8).ctypes.data

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def view(self, start: int, size: int) -> Bytes | None:
        """Return a stretch of the file where it is mapped, for functions that `guarded` calls; None where it is not.

        Only those may read it: anything else would end with the process when the file is cut short.
        """
        if self._map is None or start < 0 or start + size > self._size:
            return None
        return np.frombuffer(self._map, np.uint8)[start : start + size]

    def read_into(self, start: int, into: memoryview) -> bool:
        """Fill `into` from `start`; return whether the file is long enough. Raises OSError."""
        if self._copy is None or not len(into):
            return read_all(self.handle, start, into) == len(into)
        if start < 0 or start + len(into) > self._size:
            return False
        to = ctypes.c_void_p(np.frombuffer(into, np.uint8).ctypes.data)
        return not self._copy(to, ctypes.c_void_p(self._start + start), ctypes.c_size_t(len(into)))


@cache
def flush_ahead() -> Callable[[int, int, int], None]:
    """Return what has the system begin to write a stretch (handle, start, bytes) to disk: a later sync is short."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return lambda _handle, _start, _size: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda handle, start, size: call(handle, start, size, SYNC_FILE_RANGE_WRITE)
