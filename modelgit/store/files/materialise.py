"""Manifests into weight files, byte for byte, a few frames at a time; what an older file shares is copied."""

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os import urandom
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from modelgit.errors import CorruptObject
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.manifest import Manifest
from modelgit.formats.safetensors import Header
from modelgit.store.backend import sync_folder, translated
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.files.opening import opened
from modelgit.store.files.tensors import fitting, stored_header
from modelgit.store.identity import FRAME_BYTES, frame_count, frame_size, leaf
from modelgit.store.mapping import MappedFile, flush_ahead
from modelgit.store.objects import ObjectStore, write_at
from modelgit.store.reading import Link, checked, parent_of

ENOUGH_BYTES = 256 * 1024  # to write at once, where more would bring another record


class Slot(NamedTuple):
    """A frame of a tensor's object, and where it belongs in the file."""

    link: Link
    number: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is being written, and an older one to copy from."""

    handle: int
    turn: Lock  # to write
    old: MappedFile | None
    places: Mapping[bytes, int]  # where in the older file an object starts


def same_places(store: ObjectStore, previous: Manifest | None) -> Mapping[bytes, int]:
    """Return where in the file of `previous` each of its tensors starts; nothing if that cannot be told."""
    if previous is None or previous.header not in store:
        return {}
    try:
        old = stored_header(store, previous)
    except CorruptObject:
        return {}
    oids = {entry.name: bytes.fromhex(entry.oid) for entry in previous.tensors}
    return {oids[span.name]: old.data_start + span.start for span in old.tensors}


def slots(store: ObjectStore, manifest: Manifest, header: Header) -> Iterator[Slot]:
    """Yield every frame of every tensor, in the file's order."""
    named = {entry.name: entry for entry in manifest.tensors}
    entries = [named[span.name] for span in header.tensors]
    for span, entry, link in zip(header.tensors, entries, store.links(entry.oid for entry in entries), strict=True):
        fitting(checked(link), entry)
        for number in range(frame_count(link.size)):
            start = number * FRAME_BYTES
            at, size = header.data_start + span.start + start, frame_size(link.size, number)
            yield Slot(link, number, at, size)


def batches(ordered: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Yield runs of slots that lie side by side and fill one frame together, each beginning at a multiple of 8.

    Small ones of two records come apart: what decodes a record then gives all of it.
    """
    batch, size, shared = list[Slot](), 0, None
    for slot in ordered:
        record = slot.link.record if slot.link.record.directory.bundle else None
        another = record is not None and shared is not None and record is not shared
        if batch and (size + slot.size > FRAME_BYTES or (another and size >= ENOUGH_BYTES) or size % 8):
            yield batch
            batch, size, shared = [], 0, None
        batch.append(slot)
        shared = record or shared
        size += slot.size
    if batch:
        yield batch


def put_batch(store: ObjectStore, target: Target, batch: list[Slot]) -> None:
    """Write slots that lie side by side, with one call."""
    whole = TOOLS.buffer("out", sum(slot.size for slot in batch))
    start = 0
    for bundled, some in itertools.groupby(batch, lambda slot: slot.link.record.directory.bundle):
        run = list(some)
        into = whole[start : start + sum(slot.size for slot in run)]
        if bundled:
            store.fill_members([slot.link for slot in run], into)
        else:
            put_frames(store, target, run, into)
        start += len(into)
    with target.turn:  # threads that write to one file at a time wait for each other in the system, spinning
        write_at(target.handle, whole.data, batch[0].at)
    flush_ahead()(target.handle, batch[0].at, len(whole))


def put_frames(store: ObjectStore, target: Target, run: Sequence[Slot], into: Bytes) -> None:
    """Fill `into` with frames of large tensors, one after another."""
    start = 0
    for slot in run:
        frame = into[start : start + slot.size]
        if not copied(target, slot, frame) and not grown(store, target, slot, frame):
            store.fill(slot.link, slot.number, frame)
        start += slot.size


def copied(target: Target, slot: Slot, into: Bytes) -> bool:
    """Fill `into` from the older file, if the bytes there are right."""
    expected = slot.link.leaf(slot.number)
    return bool(expected) and found_in_old(target, slot.link.oid, slot.number, into) and leaf(into.data) == expected


def found_in_old(target: Target, oid: bytes, number: int, into: Bytes) -> bool:
    """Fill `into` with what the older file has where a frame of the object should be; False if there is nothing."""
    at = target.places.get(oid)
    if target.old is None or at is None:
        return False
    try:
        return target.old.read_into(at + number * FRAME_BYTES, into.data)
    except OSError:  # the object can be decoded instead
        return False


def grown(store: ObjectStore, target: Target, slot: Slot, into: Bytes) -> bool:
    """Fill `into` by the difference to what the older file has in the parent's place, if that gives the right bytes."""
    expected = slot.link.leaf(slot.number)
    if target.old is None or not expected or slot.link.record.directory.codec != "delta":
        return False
    parent = parent_of(slot.link)
    if parent is None or not found_in_old(target, parent.oid, slot.number, into):
        return False
    try:
        store.grow(slot.link, slot.number, into)
    except CorruptObject:  # the older file is not what it should be, or the object is not: reading it will tell
        return False
    return leaf(into.data) == expected


def materialise(
    store: ObjectStore,
    manifest: Manifest,
    path: Path,
    listener: Listener = ignore,
    previous: Manifest | None = None,
) -> None:
    """Write the file that a manifest describes, byte for byte; `path` is replaced at once, when all is on disk.

    `previous` describes what `path` should hold now: frames found there unchanged are copied.

    Raises:
        MissingObject: an object is not here. CorruptObject: one is damaged, or manifest and header disagree.
        StorageFull: the disk refuses; `path` is as it was.
    """
    header = stored_header(store, manifest)
    listener(Started(f"write {path.name}", manifest.size_bytes, "bytes"))
    temporary = path.parent / f".{path.name[:100]}.{urandom(8).hex()}.tmp"
    try:
        with translated(path):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_file(store, manifest, header, (handle, path), listener, previous)
        finally:
            os.close(handle)
        with translated(path):
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
    listener(Finished(f"write {path.name}"))


def reserve(handle: int, path: Path, size: int) -> None:
    """Give an open file its size, on disk where the file system can. Raises StorageFull."""
    with translated(path):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(handle, size)


def write_file(
    store: ObjectStore,
    manifest: Manifest,
    header: Header,
    target: tuple[int, Path],
    listener: Listener,
    previous: Manifest | None,
) -> None:
    """Fill an open file with header and tensors, and make it durable. Raises as `materialise` does."""
    handle, path = target
    reserve(handle, path, manifest.size_bytes)
    write_at(handle, memoryview(header.raw), 0)
    places = same_places(store, previous)
    old = opened(path) if places and path.is_file() else None
    into = Target(handle, Lock(), old, places)
    store.each(announced(store, into, slots(store, manifest, header), (path, listener)))
    with translated(path):
        os.fsync(handle)


def announced(
    store: ObjectStore, target: Target, ordered: Iterable[Slot], told: tuple[Path, Listener]
) -> Iterator[Callable[[], None]]:
    """Yield the work of writing the slots; the listener hears of each piece as it is begun."""
    path, listener = told
    for batch in batches(ordered):
        yield partial(put_batch, store, target, batch)
        listener(Advanced(f"write {path.name}", sum(slot.size for slot in batch)))
