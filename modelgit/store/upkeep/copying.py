"""Records copied as they are into new packs of the same store, each object's id recomputed before anybody sees them."""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from modelgit.errors import StoreError
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.store.backend import Backend, DirBackend, translated
from modelgit.store.draft import PackDraft
from modelgit.store.handles import open_lock
from modelgit.store.objects import ObjectStore
from modelgit.store.reading import Reader
from modelgit.store.upkeep.survey import Stored, pieces

PACK_BYTES = 4 * 1024**3
LOCK = "upkeep.lock"
TASK = "copy objects"


@contextmanager
def alone(backend: Backend) -> Iterator[None]:
    """Keep a second gc or repair of this store away; readers and writers go on. Raises StoreError if one runs."""
    if not isinstance(backend, DirBackend) or not backend.root.is_dir():
        yield
        return
    path = backend.root / LOCK
    with translated(path):
        handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreError("another gc or repair of this store is running", hint="wait until it has ended") from error
    finally:
        os.close(handle)


def batches(records: Iterable[Stored], limit_bytes: int = PACK_BYTES) -> Iterator[list[Stored]]:
    """Yield records in groups that fit a pack."""
    batch, size = list[Stored](), 0
    for record in records:
        if batch and size + record.length > limit_bytes:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.length
    if batch:
        yield batch


def copy_records(store: ObjectStore, records: Sequence[Stored], listener: Listener) -> list[str]:
    """Copy records, byte for byte, into new packs; return the packs' names. Verified before they are visible.

    Raises:
        CorruptObject: an object is damaged. StorageFull. In both cases packs finished before are left, and do no harm.
    """
    if not records:
        return []
    listener(Started(TASK, sum(record.length for record in records), "bytes"))
    names = [name for batch in batches(records) if (name := copy_batch(store, batch, listener)) is not None]
    listener(Finished(TASK, f"{len(records)} records"))
    return names


def copy_batch(store: ObjectStore, records: Sequence[Stored], listener: Listener) -> str | None:
    """Copy records into one pack."""
    draft = PackDraft(store.backend, store.catalog)
    try:
        for record in records:
            draft.adopt(pieces(store.backend, record), record.entries)
            listener(Advanced(TASK, record.length))
        store.verify(Reader(draft.find_together, draft.read_into), draft.oids(), listener)
        dated = max(store.backend.changed_at(pack) for pack in {record.pack for record in records})
        name = draft.publish()
        if name is not None:
            store.backend.date(name, dated)  # what is in it is no younger for having been copied
        return name
    finally:
        draft.discard()
