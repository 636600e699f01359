"""Where packs lie: a flat set of named, immutable pieces of bytes.

A piece is written to a *stage*, invisible until it is published whole, and never changes after that.
"""

import errno
import fcntl
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import urandom
from pathlib import Path
from typing import Protocol

from modelgit.errors import StorageFull, StoreError
from modelgit.store.handles import READ, make_folder, read_all, share
from modelgit.store.identity import Buffer
from modelgit.store.mapping import MappedFile, flush_ahead

REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
NEWBORN_S = 60.0
FLUSH_BYTES = 8 * 1024 * 1024  # written before the system is asked to begin with the disk
FILES_KEPT = 32  # open, of those read last
PARTS_AT_ONCE = 512  # buffers a gathering write may take


class Stage(Protocol):
    """A piece being written. Leaving it as a context without publishing discards it."""

    def write(self, parts: Iterable[Buffer]) -> None:
        """Append bytes. Raises StorageFull."""

    def read_into(self, start: int, into: memoryview) -> None:
        """Fill `into` with written bytes from `start`."""

    def rewind(self, size_bytes: int) -> None:
        """Forget everything written after the first `size_bytes`."""

    def publish(self, name: str) -> bool:
        """Make the piece durable and visible as `name`; False if that name was there already. Raises StorageFull."""

    def discard(self) -> None:
        """Throw the piece away; nothing to do after publishing."""


class Backend(Protocol):
    """A flat store of immutable pieces; names are like `packs/<hash>.pack`."""

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`. Raises StoreError when there is no such piece, or it is shorter."""

    def read_into(self, name: str, start: int, into: memoryview) -> None:
        """Fill `into` from `start`. Raises as `read` does."""

    def size(self, name: str) -> int:
        """Return the length of a piece in bytes. Raises StoreError when there is none."""

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names of all pieces that start with `prefix`, which names a folder."""

    def put_if_absent(self, name: str, data: Iterable[Buffer]) -> bool:
        """Store a piece whole and durable; False, and nothing changed, if the name is taken. Raises StorageFull."""

    def delete(self, name: str) -> None:
        """Remove a piece; nothing to do if there is none."""

    def stage(self) -> Stage:
        """Begin a piece whose name is known only at its end. Raises StorageFull."""

    def move(self, name: str, target: str) -> None:
        """Give a piece another name, durably; its age begins anew. Raises StoreError when there is no such piece."""

    def changed_at(self, name: str) -> float:
        """Return when a piece was published or moved, in seconds since 1970. Raises as `size` does."""

    def date(self, name: str, when: float) -> None:
        """Make a piece as old as if it had been published at `when`, in seconds since 1970."""

    def busy(self) -> bool:
        """Tell whether somebody, in whatever process, is writing a stage."""

    def state(self) -> object:
        """Return a value that differs once pieces were added; None when that cannot be told cheaply."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors a person can act on."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in REFUSED:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            hint = "free some space" if full else "check the permissions"
            denied = error.errno in (errno.EACCES, errno.EPERM)  # to read it, perhaps
            what = f"{path}" if denied else f"cannot write to {path}"
            raise StorageFull(f"{what}: {reason}", hint=hint) from error
        raise StoreError(f"{path}: {reason}") from error


def check_name(name: str) -> None:
    """Raise StoreError unless a name stays inside the store."""
    parts = name.split("/")
    if len(parts) != 2 or any(not part or part.startswith(".") or "\0" in part for part in parts):
        raise StoreError(f"not the name of a piece: expected like packs/<hash>.pack, got {name!r}")


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, parts: Iterable[Buffer]) -> int:
    """Write every part to a file handle; return the bytes written."""
    pending = [memoryview(part).cast("B") for part in parts if len(part)]
    total = sum(len(part) for part in pending)
    while pending:
        done = os.writev(handle, pending[:PARTS_AT_ONCE])
        while pending and done >= len(pending[0]):
            done -= len(pending.pop(0))
        if done:
            pending[0] = pending[0][done:]
    return total


class FileStage:
    """A temporary file beside its destination, locked while its writer lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"tmp-{os.getpid()}-{urandom(8).hex()}"
        with translated(self._path):
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            share(self._handle, folder, READ)
        self._open = True
        self._written = self._flushed = 0

    def write(self, parts: Iterable[Buffer]) -> None:
        with translated(self._path):
            self._written += write_all(self._handle, parts)
        if self._written - self._flushed >= FLUSH_BYTES:
            flush_ahead()(self._handle, self._flushed, self._written - self._flushed)
            self._flushed = self._written

    def read_into(self, start: int, into: memoryview) -> None:
        with translated(self._path):
            if read_all(self._handle, start, into) != len(into):
                raise StoreError(f"{self._path}: shorter than was written")

    def rewind(self, size_bytes: int) -> None:
        with translated(self._path):
            os.ftruncate(self._handle, size_bytes)
            os.lseek(self._handle, size_bytes, os.SEEK_SET)
        self._written, self._flushed = size_bytes, min(self._flushed, size_bytes)

    def publish(self, name: str) -> bool:
        target = self._folder / name.rpartition("/")[2]
        if target.exists():
            self.discard()
            return False
        with translated(target):
            os.fsync(self._handle)
            self._path.rename(target)
            sync_folder(self._folder)
        self._close()
        return True

    def discard(self) -> None:
        if self._open:
            with suppress(OSError):
                self._path.unlink()
            self._close()

    def _close(self) -> None:
        self._open = False
        os.close(self._handle)


def copy_piece(source: Path, destination: Path) -> None:
    """Copy a piece under another name: another's file, whose time we may not set, in a store that a group shares."""
    remove_abandoned(destination.parent)
    stage = FileStage(destination.parent)
    try:
        with source.open("rb") as file:
            while data := file.read(FLUSH_BYTES):
                stage.write([data])
        destination.unlink(missing_ok=True)
        stage.publish(destination.name)
    finally:
        stage.discard()


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files whose writers are gone: nobody holds their lock."""
    for path in folder.glob("tmp-*"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(handle)  # an empty new one may be about to be locked
                if found.st_size or time.time() - found.st_mtime > NEWBORN_S:
                    path.unlink()
            finally:
                os.close(handle)


class DirBackend:
    """Pieces as read-only files in the folders of a directory, which is made at the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._files: OrderedDict[str, MappedFile] = OrderedDict()

    def read(self, name: str, start: int, length: int) -> bytes:
        data = bytearray(min(length, max(0, self.size(name) - start)))
        if len(data) != length:
            raise StoreError(f"{self._path(name)}: wanted {length} bytes from {start}, the file ends before")
        self.read_into(name, start, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, start: int, into: memoryview) -> None:
        path = self._path(name)
        with translated(path):
            if not self._open(name).read_into(start, into):
                raise StoreError(f"{path}: wanted {len(into)} bytes from {start}, the file ends before")

    def size(self, name: str) -> int:
        return self._found(name).st_size

    def changed_at(self, name: str) -> float:
        return self._found(name).st_mtime

    def move(self, name: str, target: str) -> None:
        source, destination = self._path(name), self._folder(target.partition("/")[0]) / self._path(target).name
        self._forget(name)
        with translated(source):
            try:
                os.utime(source)  # first: a move that is cut short leaves a piece that only looks young
                source.replace(destination)
            except PermissionError:
                copy_piece(source, destination)
                source.unlink()
            sync_folder(destination.parent)
            sync_folder(source.parent)

    def date(self, name: str, when: float) -> None:
        path = self._path(name)
        with translated(path):
            os.utime(path, (when, when))

    def busy(self) -> bool:
        remove_abandoned(self.root / "packs")
        return next((self.root / "packs").glob("tmp-*"), None) is not None

    def list(self, prefix: str) -> list[str]:
        folder = prefix.partition("/")[0]
        try:
            names = [f"{folder}/{entry.name}" for entry in os.scandir(self.root / folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"{self.root / folder}: {error.strerror}") from error
        return sorted(name for name in names if name.startswith(prefix) and not name.startswith(f"{folder}/tmp-"))

    def put_if_absent(self, name: str, data: Iterable[Buffer]) -> bool:
        check_name(name)
        stage = FileStage(self._folder(name.partition("/")[0]))
        try:
            stage.write(data)
            return stage.publish(name)
        finally:
            stage.discard()

    def delete(self, name: str) -> None:
        path = self._path(name)
        self._forget(name)
        with translated(path), suppress(FileNotFoundError):
            path.unlink()

    def stage(self) -> FileStage:
        folder = self._folder("packs")
        remove_abandoned(folder)
        return FileStage(folder)

    def state(self) -> object:
        return self._stamp("packs"), self._stamp("condemned")

    def _stamp(self, folder: str) -> tuple[int, int]:
        try:
            found = (self.root / folder).stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def _open(self, name: str) -> MappedFile:
        """Return an open piece, of which some are kept; a pack that was condemned since somebody looked is found."""
        with self._lock:
            found = self._files.pop(name, None)
        file = found or self._open_anew(name)
        with self._lock:
            self._files[name] = file
            if len(self._files) > FILES_KEPT:
                self._files.popitem(last=False)
        return file

    def _open_anew(self, name: str) -> MappedFile:
        try:
            return MappedFile(self._path(name))
        except FileNotFoundError:
            if not name.startswith("packs/"):
                raise
            return MappedFile(self._path(f"condemned/{name[6:]}"))

    def _forget(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)

    def _found(self, name: str) -> os.stat_result:
        path = self._path(name)
        with translated(path):
            try:
                return path.stat()
            except FileNotFoundError:
                if not name.startswith("packs/"):
                    raise
                return self._path(f"condemned/{name[6:]}").stat()

    def _path(self, name: str) -> Path:
        check_name(name)
        return self.root / name

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if not folder.is_dir():
            with translated(folder):
                make_folder(self.root)
                make_folder(folder)
                sync_folder(folder.parent)
                sync_folder(folder.parent.parent)
        return folder


class MemoryStage:
    """A piece being written to memory."""

    def __init__(self, backend: "MemoryBackend") -> None:
        self._backend, self._data = backend, bytearray()

    def write(self, parts: Iterable[Buffer]) -> None:
        for part in parts:
            self._data += part

    def read_into(self, start: int, into: memoryview) -> None:
        into[:] = self._data[start : start + len(into)]

    def rewind(self, size_bytes: int) -> None:
        del self._data[size_bytes:]

    def publish(self, name: str) -> bool:
        return self._backend.put_if_absent(name, [self._data])

    def discard(self) -> None:
        self._data = bytearray()


class MemoryBackend:
    """Pieces in memory, for tests and for looking at a store that is nowhere."""

    def __init__(self) -> None:
        self._pieces: dict[str, bytes] = {}
        self._times: dict[str, float] = {}

    def read(self, name: str, start: int, length: int) -> bytes:
        data = self._piece(name)[start : start + length]
        if len(data) != length:
            raise StoreError(f"{name}: wanted {length} bytes from {start}, got {len(data)}")
        return data

    def read_into(self, name: str, start: int, into: memoryview) -> None:
        into[:] = self.read(name, start, len(into))

    def size(self, name: str) -> int:
        return len(self._piece(name))

    def list(self, prefix: str) -> list[str]:
        return sorted(name for name in self._pieces if name.startswith(prefix))

    def put_if_absent(self, name: str, data: Iterable[Buffer]) -> bool:
        check_name(name)
        if name in self._pieces:
            return False
        self._pieces[name] = b"".join(data)
        self._times[name] = time.time()
        return True

    def delete(self, name: str) -> None:
        check_name(name)
        self._pieces.pop(name, None)

    def move(self, name: str, target: str) -> None:
        check_name(target)
        self._pieces[target] = self._piece(name)
        self._times[target] = time.time()
        del self._pieces[name]

    def changed_at(self, name: str) -> float:
        self._piece(name)
        return self._times[name]

    def date(self, name: str, when: float) -> None:
        self._piece(name)
        self._times[name] = when

    def busy(self) -> bool:
        return False  # one process, and gc is not run while it writes

    def stage(self) -> MemoryStage:
        return MemoryStage(self)

    def state(self) -> object:
        return len(self._pieces), frozenset(self._pieces)

    def _piece(self, name: str) -> bytes:
        check_name(name)
        if name not in self._pieces:
            raise StoreError(f"no piece {name}")
        return self._pieces[name]
