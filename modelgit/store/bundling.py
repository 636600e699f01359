"""Small tensors on their way into a pack: hashed in the pool, those that lie side by side at once; many to a record."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from modelgit.store import identity
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.draft import PackDraft, Pending, Pipeline, checksum
from modelgit.store.identity import FRAME_BYTES, Oid
from modelgit.store.pack import MAX_MEMBERS, Directory
from modelgit.store.reading import Link, Reader, chain_root, link_cost

SMALL_BYTES = 64 * 1024  # tensors below are bundled
COST_CAP = 64  # frames decoded for a bundle's parents


class Small(NamedTuple):
    """A small tensor that is about to come: its bytes, the width of an element, what it is likely to resemble."""

    size: int
    width: int
    parent: Oid | None


FindBases = Callable[[Sequence[Small]], list[Link | None]]  # what to store differences to


@dataclass(slots=True)
class Group:
    """Small tensors that are being hashed; their data and ids come together."""

    members: Sequence[Small]
    pending: list[Pending]
    hashed: Future[tuple[Bytes, list[bytes]]]


@dataclass(slots=True)
class Bundle:
    """Small tensors that will share a record; `parents` is empty, or one for each."""

    width: int
    pieces: list[Bytes] = field(default_factory=list)
    members: list[bytes] = field(default_factory=list)
    size: int = 0
    parents: list[Link] = field(default_factory=list)

    def full(self, more_bytes: int) -> bool:
        """Tell whether another member of that size would be too much."""
        return self.size + more_bytes > FRAME_BYTES or len(self.members) >= MAX_MEMBERS

    def append(self, oid: bytes, data: Bytes, parent: Link | None) -> None:
        """Add a member; all of a bundle have a parent, or none. Its data is copied: what lies beside it may go."""
        self.pieces.append(data.copy())
        self.members.append(oid)
        self.size += len(data)
        if parent is not None:
            self.parents.append(parent)


def hashed(read: Callable[[Bytes], Bytes], members: Sequence[Small]) -> tuple[Bytes, list[bytes]]:
    """Return the bytes of small tensors that `read` gives, and their ids."""
    data, start, oids = read(np.empty(sum(member.size for member in members), np.uint8)), 0, list[bytes]()
    view = data.data
    for member in members:
        oids.append(identity.whole("tensor", view[start : start + member.size]))
        start += member.size
    return data, oids


class Bundler:
    """Puts small tensors into a draft, in the order they are entered. Use from one thread."""

    def __init__(self, draft: PackDraft, pipeline: Pipeline, reader: Reader, bases: FindBases) -> None:
        self._draft, self._pipeline, self._reader, self._bases_of = draft, pipeline, reader, bases
        self._groups: deque[Group] = deque()
        self._bundles: dict[tuple[int, bool], Bundle] = {}
        self._unwritten: set[bytes] = set()

    def __contains__(self, oid: bytes) -> bool:
        """Tell whether a tensor is in a bundle that is not written yet."""
        return oid in self._unwritten

    def enter(self, data: Bytes, width: int, parent: Oid | None) -> Pending:
        """Take in a small tensor; its data is copied."""
        self.drain()
        oid = identity.whole("tensor", data.data)
        self._add([Small(len(data), width, parent)], [oid], data)
        return Pending(self.drain, oid)

    def enter_together(self, read: Callable[[Bytes], Bytes], members: Sequence[Small]) -> list[Pending]:
        """Take in small tensors that lie side by side; in the pool `read` fills a buffer with them and returns it."""
        group = Group(members, [Pending(self.drain) for _ in members], self._pipeline.begin(hashed, read, members))
        self._groups.append(group)
        while len(self._groups) > self._pipeline.ahead:
            self._take()
        return group.pending

    def drain(self) -> None:
        """Wait until everything is hashed and in its bundle. Raises what `read` raised."""
        while self._groups:
            self._take()

    def flush(self) -> None:
        """Hand everything to the pipeline."""
        self.drain()
        for bundle in self._bundles.values():
            self._flush(bundle)
        self._bundles.clear()

    def abandon(self) -> None:
        """Forget what is being hashed, and wait for what runs."""
        running = [group.hashed for group in self._groups if not group.hashed.cancel()]
        self._groups.clear()
        self._bundles.clear()
        for future in running:
            future.exception()

    def _take(self) -> None:
        group = self._groups.popleft()
        data, oids = group.hashed.result()
        self._add(group.members, oids, data)
        for oid, pending in zip(oids, group.pending, strict=True):
            pending.value = oid

    def _add(self, members: Sequence[Small], oids: Sequence[bytes], data: Bytes) -> None:
        stored, start = self._draft.has_together(oids), 0
        new = [member for member, known in zip(members, stored, strict=True) if not known]
        bases = iter(self._bases_of(new))
        for member, oid, known in zip(members, oids, stored, strict=True):
            base = None if known else next(bases)
            if not known and oid not in self._unwritten and not self._draft.holds(oid):
                bundle = self._bundle(member.width, base is not None, member.size)
                bundle.append(oid, data[start : start + member.size], base)
                self._unwritten.add(oid)
            start += member.size

    def _bundle(self, width: int, delta: bool, size_bytes: int) -> Bundle:
        bundle = self._bundles.get((width, delta))
        if bundle is not None and bundle.full(size_bytes):
            self._flush(bundle)
            bundle = None
        if bundle is None:
            bundle = self._bundles[width, delta] = Bundle(width)
        return bundle

    def _flush(self, bundle: Bundle) -> None:
        parents = tuple(bundle.parents)
        if link_cost(parents) > COST_CAP:
            parents = tuple(chain_root(link) for link in parents)
        if parents and link_cost(parents) > COST_CAP:
            parents = ()
        if not bundle.size:
            self._pipeline.after(lambda: self._write(bundle, (), []))
            return
        self._pipeline.submit(lambda: self._encode(bundle, parents), lambda result: self._write(bundle, *result))

    def _encode(self, bundle: Bundle, parents: tuple[Link, ...]) -> tuple[tuple[Link, ...], codec.Parts]:
        data = np.concatenate(bundle.pieces, out=TOOLS.buffer("raw", bundle.size))
        if parents:
            parent = TOOLS.buffer("parent", len(data))
            self._reader.join(parents, parent)
            if (parent == data).all():
                return parents, differences.encode_same()
            if differences.delta_pays(data, parent, bundle.width):
                return parents, differences.encode_delta(data, parent, bundle.width)
        return (), codec.encode_full(data, bundle.width)

    def _write(self, bundle: Bundle, parents: tuple[Link, ...], parts: codec.Parts) -> None:
        self._draft.write(parts)
        directory = Directory(
            "delta" if parents else "full",
            "tensor",
            bundle.width,
            max((link.record.directory.depth + 1 for link in parents), default=0),
            link_cost(parents),
            bundle.size,
            (codec.total_bytes(parts),) if parts else (),
            (checksum(parts),) if parts else (),
            members=tuple(map(len, bundle.pieces)),
            parents=tuple(link.oid for link in parents),
        )
        self._draft.close_record(directory, bundle.members)
        self._unwritten.difference_update(bundle.members)
