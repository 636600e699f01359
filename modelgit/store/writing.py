"""Writing one pack: objects in, hashed and encoded by a pool of threads, written in order, published at once.

Each frame is read once into a private buffer, hashed and encoded from there: what is stored is what was hashed, even
if the source changes meanwhile. Frames that equal the parent's cost a hash; tensors below 64 KiB share records.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType

import numpy as np

from modelgit.errors import MissingObject, StoreError, UsageError
from modelgit.formats.dtypes import dtype_named
from modelgit.store import identity
from modelgit.store.backend import Backend
from modelgit.store.bundling import SMALL_BYTES, Bundler, Small
from modelgit.store.catalog import CONDEMNED, Catalog, Place
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.codec.arithmetic import element_width
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.draft import PackDraft, Pending, Pipeline, checksum
from modelgit.store.identity import FRAME_BYTES, Buffer, Kind, Oid, frame_count, frame_size, parse_oid
from modelgit.store.pack import MAX_TERMS, Codec, Directory
from modelgit.store.reading import Link, Reader, chain_root, link_cost, nested

DEPTH_CAP = 4  # differences on differences, at commit
PARENT_COST_CAP = 8  # frames decoded for a parent's frame
LINEAR_DEPTH_CAP, LINEAR_COST_CAP, LINEAR_NEST_CAP = 16, 256, 4
FRAMES_A_THREAD = 3  # encoded and not yet written

Fill = Callable[[int, Bytes], Bytes]  # (frame number, buffer of its length) -> the frame, there or elsewhere


def element_bytes(dtype: str, size_bytes: int) -> int:
    """Return the element width that the codec works in: parts of complex numbers, single bytes below 16 bits."""
    width = 4 if dtype == "C64" else dtype_named(dtype).bits // 8
    return width if width in (2, 4, 8) and size_bytes % width == 0 else 1


def delta_base(link: Link | None) -> Link | None:
    """Return what to store a difference to: the object, or what its chain stands on when that is long or costly."""
    return link if link is None or is_cheap(link) else chain_root(link)


def is_cheap(link: Link) -> bool:
    """Tell whether one more difference may hang on an object."""
    directory = link.record.directory
    return directory.depth < DEPTH_CAP and (directory.bundle or directory.cost <= PARENT_COST_CAP)


def check_terms(terms: Sequence[tuple[Oid, float]], links: Sequence[Link], divisor: float, size_bytes: int) -> None:
    """Raise UsageError unless a linear combination of these terms can be stored."""
    if not 0 < len(terms) <= MAX_TERMS:
        raise UsageError(f"a linear combination has 1 to {MAX_TERMS} terms: got {len(terms)}")
    for link in links:
        if link.size != size_bytes:
            raise UsageError(f"term {link.oid.hex()} has {link.size} bytes: expected {size_bytes}")
    if divisor == 0 or not np.isfinite([divisor, *(coefficient for _, coefficient in terms)]).all():
        raise UsageError(f"expected finite coefficients and a divisor not zero: got divisor {divisor}")


def checked_frames(frames: Iterable[Buffer], size_bytes: int) -> Iterator[Bytes]:
    """Yield copies of the frames. Raises UsageError unless they are the 4 MiB pieces of `size_bytes`."""
    count = 0
    for frame in frames:
        copy = np.frombuffer(frame, np.uint8).copy()
        if count >= frame_count(size_bytes) or len(copy) != frame_size(size_bytes, count):
            raise UsageError(f"frame {count} of {size_bytes} bytes has {len(copy)}: expected pieces of 4 MiB")
        yield copy
        count += 1
    if count != frame_count(size_bytes):
        raise UsageError(f"got {count} frames for {size_bytes} bytes: expected {frame_count(size_bytes)}")


@dataclass(slots=True)
class Incoming:
    """A large object on its way into the pack."""

    kind: Kind
    width: int
    size: int
    pending: Pending
    nominal: Link | None = None  # what it is likely to equal, frame by frame
    base: Link | None = None  # what a difference is stored to, if that pays
    pays: Future[bool] = field(default_factory=Future)  # decided on the first frame
    start: int = 0
    lengths: list[int] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)

    def codec(self) -> Codec:
        """Return how the frames were encoded."""
        if self.kind == "blob":
            return "raw" if self.lengths == [self.size] else "zstd"
        return "delta" if self.pays.done() and self.pays.result() else "full"


class PackWriter:
    """Writes one pack. Use from one thread, as a context; leaving it without `commit` leaves nothing behind.

    An object that is already stored, here or in the store, is not written again. All methods raise StorageFull when
    the disk refuses, and CorruptObject when a parent is damaged.
    """

    def __init__(self, backend: Backend, catalog: Catalog, pool: Executor, threads: int) -> None:
        catalog.refresh()
        self._draft = PackDraft(backend, catalog)
        self._pipeline = Pipeline(pool, threads * FRAMES_A_THREAD)
        self._reader = Reader(self._find, self._draft.read_into)
        self._bundler = Bundler(self._draft, self._pipeline, self._reader, self._bases)
        self._closed = False

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._bundler.abandon()
        self._pipeline.abandon()
        self._draft.discard()
        self._reader.forget()  # it and this refer to each other: both may stay long

    def add_tensor(self, data: Buffer, dtype: str, parent: Oid | None = None) -> Oid:
        """Store raw little-endian bytes, as a difference to `parent` where that is smaller; return their id.

        Raises:
            FormatError: an unknown dtype.
        """
        return self.enter_tensor(data, dtype, parent).oid()

    def enter_tensor(self, data: Buffer, dtype: str, parent: Oid | None = None) -> Pending:
        """As `add_tensor`, but go on before it is written; `data` must stay as it is until the id was asked for."""
        array = np.frombuffer(data, np.uint8)
        return self.enter(lambda number, _: piece(array, number), len(array), dtype, parent)

    def enter(self, fill: Fill, size_bytes: int, dtype: str, parent: Oid | None = None) -> Pending:
        """Store a tensor whose frames `fill` gives, called once a frame, from any thread and in any order."""
        self._require_open()
        width = element_bytes(dtype, size_bytes)
        if size_bytes < SMALL_BYTES:
            data = fill(0, np.empty(size_bytes, np.uint8)) if size_bytes else np.empty(0, np.uint8)
            return self._bundler.enter(data, width, parent)
        incoming = self._incoming("tensor", size_bytes, width, parent)
        for number in range(frame_count(size_bytes)):
            self._submit(incoming, number, fill)
        return self._close(incoming)

    def enter_together(
        self, read: Callable[[Bytes], Bytes], tensors: Sequence[tuple[int, str, Oid | None]]
    ) -> list[Pending]:
        """As `enter`, for small tensors (bytes, dtype, parent) that lie side by side.

        `read`, called once and from any thread, fills a buffer with all of them and returns it.
        """
        self._require_open()
        members = [Small(size, element_bytes(dtype, size), parent) for size, dtype, parent in tensors]
        return self._bundler.enter_together(read, members)

    def add_frames(self, frames: Iterable[Buffer], size_bytes: int, dtype: str, parent: Oid | None = None) -> Oid:
        """As `add_tensor`, from 4 MiB pieces that need be valid one at a time. Raises UsageError if sizes disagree."""
        return self.enter_frames(frames, size_bytes, dtype, parent).oid()

    def enter_frames(self, frames: Iterable[Buffer], size_bytes: int, dtype: str, parent: Oid | None = None) -> Pending:
        """As `add_frames`, but go on before it is written; each frame is copied. Raises as it does."""
        self._require_open()
        width = element_bytes(dtype, size_bytes)
        pieces = checked_frames(frames, size_bytes)
        if size_bytes < SMALL_BYTES:
            return self._bundler.enter(np.concatenate([np.empty(0, np.uint8), *pieces]), width, parent)
        incoming = self._incoming("tensor", size_bytes, width, parent)
        for number, frame in enumerate(pieces):
            self._submit(incoming, number, constant(frame))
        return self._close(incoming)

    def add_blob(self, data: Buffer) -> Oid:
        """Store bytes that are no tensor, compressed as text is; return their id."""
        self._require_open()
        array = np.frombuffer(data, np.uint8)
        incoming = self._incoming("blob", len(array), 1, None)
        for number in range(frame_count(len(array))):
            self._submit(incoming, number, lambda n, _: piece(array, n))
        return self._close(incoming).oid()

    def add_linear(self, terms: Sequence[tuple[Oid, float]], divisor: float, dtype: str, size_bytes: int) -> Oid:
        """Store sum(coefficient * tensor) / divisor as that recipe; return the result's id. See `arithmetic.linear`.

        Raises:
            UsageError: no terms, too many, other lengths, numbers that are not finite, a dtype without sums.
            MissingObject: a term is not in the store.
        """
        return self.enter_linear(terms, divisor, dtype, size_bytes).oid()

    def enter_linear(
        self,
        terms: Sequence[tuple[Oid, float]],
        divisor: float,
        dtype: str,
        size_bytes: int,
        using: Callable[[Fill], Fill] = lambda fill: fill,
    ) -> Pending:
        """As `add_linear`, but go on before it is computed. Raises as it does.

        `using` gets what computes the frames of the result and returns what shall be used instead: something that
        looks at them, or has them at hand.
        """
        self._require_open()
        links = tuple(self._reader.link(parse_oid(oid)) for oid, _ in terms)
        check_terms(terms, links, divisor, size_bytes)
        draft = Directory(
            "linear",
            "tensor",
            element_width(dtype),
            max(link.record.directory.depth for link in links) + 1,
            link_cost(links),
            size_bytes,
            parents=tuple(link.oid for link in links),
            dtype=dtype,
            divisor=float(divisor),
            coefficients=tuple(float(coefficient) for _, coefficient in terms),
        )
        if draft.depth > LINEAR_DEPTH_CAP or draft.cost > LINEAR_COST_CAP or nested(links) >= LINEAR_NEST_CAP:
            return self.enter(using(self._combined(draft, links)), size_bytes, dtype, links[0].oid.hex())
        return self._enter_recipe(draft, using(self._combined(draft, links)))

    def commit(self) -> None:
        """Make everything durable and visible, as one pack."""
        self._require_open()
        self._settle()
        self._closed = True
        self._draft.publish()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this pack was committed or left already", hint="begin another")

    def _settle(self) -> None:
        self._bundler.flush()
        self._pipeline.drain()

    def _find(self, oids: Sequence[bytes]) -> Sequence[Place | None]:
        if any(oid in self._bundler for oid in oids):
            self._settle()
        return self._draft.find_together(oids)

    def _parent(self, parent: Oid | None, size_bytes: int) -> Link | None:
        return self._parents([Small(size_bytes, 1, parent)])[0]

    def _parents(self, tensors: Sequence[Small]) -> list[Link | None]:
        oids = [parse_oid(tensor.parent) for tensor in tensors if tensor.parent is not None]
        places = iter(zip(oids, self._find(oids), strict=True))
        return [None if tensor.parent is None else self._link_of(tensor.size, *next(places)) for tensor in tensors]

    def _link_of(self, size_bytes: int, oid: bytes, place: Place | None) -> Link | None:
        if place is None or place.pack.startswith(CONDEMNED):
            return None
        try:
            link = self._reader.link_at(place, oid)
        except MissingObject:
            return None
        return link if link.size == size_bytes else None

    def _bases(self, tensors: Sequence[Small]) -> list[Link | None]:
        return [delta_base(link) for link in self._parents(tensors)]

    # Large objects, frame by frame.

    def _incoming(self, kind: Kind, size_bytes: int, width: int, parent: Oid | None) -> Incoming:
        nominal = self._parent(parent, size_bytes)
        return Incoming(kind, width, size_bytes, Pending(self._pipeline.drain), nominal, delta_base(nominal))

    def _submit(self, incoming: Incoming, number: int, fill: Fill) -> None:
        self._pipeline.submit(
            lambda: self._encode(incoming, number, fill), lambda encoded: self._take(incoming, number, *encoded)
        )

    def _close(self, incoming: Incoming) -> Pending:
        self._pipeline.after(lambda: self._finish(incoming))
        return incoming.pending

    def _encode(self, incoming: Incoming, number: int, fill: Fill) -> tuple[bytes, codec.Parts | None]:
        """Return a frame's hash and stored form, None where it is known to be stored already."""
        try:
            data = fill(number, TOOLS.buffer("raw", frame_size(incoming.size, number)))
            leaf = identity.leaf(data.data)
            if incoming.nominal is not None and incoming.nominal.leaf(number) == leaf:
                self._decide(incoming, number, True)
                return leaf, None
            if incoming.size <= FRAME_BYTES and self._draft.has(identity.root(incoming.kind, incoming.size, leaf)):
                return leaf, None
            return leaf, self._encode_data(incoming, number, data, leaf)
        except BaseException:
            self._decide(incoming, number, False)  # nobody may wait for it
            raise

    def _encode_data(self, incoming: Incoming, number: int, data: Bytes, leaf: bytes) -> codec.Parts:
        if incoming.kind == "blob":
            return codec.encode_blob(data, keep=incoming.size <= FRAME_BYTES)
        base = incoming.base
        if base is None:
            return codec.encode_full(data, incoming.width)
        same = base.leaf(number) == leaf
        parent = TOOLS.buffer("parent", len(data))
        if not same:
            self._reader.raw(base, number, parent)
        if number == 0 and not incoming.pays.done():
            self._decide(incoming, number, same or differences.delta_pays(data, parent, incoming.width))
        if not incoming.pays.result():
            return codec.encode_full(data, incoming.width)
        return differences.encode_same() if same else differences.encode_delta(data, parent, incoming.width)

    def _decide(self, incoming: Incoming, number: int, pays: bool) -> None:
        if number == 0 and not incoming.pays.done():
            incoming.pays.set_result(pays)

    def _take(self, incoming: Incoming, number: int, leaf: bytes, parts: codec.Parts | None) -> None:
        if number == 0:
            incoming.start = self._draft.size
        incoming.leaves.append(leaf)
        if parts is not None:
            self._write_skipped(incoming, number)
            self._write_frame(incoming, parts)

    def _write_skipped(self, incoming: Incoming, end: int) -> None:
        """Write the frames before `end` that equal the nominal parent's, now that the object is known to differ."""
        while (number := len(incoming.lengths)) < end and incoming.nominal is not None:
            data = TOOLS.buffer("raw", frame_size(incoming.size, number))
            if incoming.base is incoming.nominal and incoming.pays.result():
                self._write_frame(incoming, differences.encode_same())
            else:
                self._reader.raw(incoming.nominal, number, data)
                self._write_frame(incoming, self._encode_data(incoming, number, data, incoming.leaves[number]))

    def _write_frame(self, incoming: Incoming, parts: codec.Parts) -> None:
        self._draft.write(parts)
        incoming.lengths.append(codec.total_bytes(parts))
        incoming.checks.append(checksum(parts))

    def _finish(self, incoming: Incoming) -> None:
        leaves = b"".join(incoming.leaves)
        oid = incoming.pending.value = identity.root(incoming.kind, incoming.size, leaves)
        if self._draft.has(oid):
            self._draft.rewind(incoming.start if incoming.lengths else self._draft.size)
            return
        self._write_skipped(incoming, len(incoming.leaves))
        delta = incoming.codec() == "delta"
        parents = (incoming.base,) if delta and incoming.base is not None else ()
        self._close_record(incoming, incoming.codec(), parents, leaves)

    def _close_record(self, incoming: Incoming, form: Codec, parents: tuple[Link, ...], leaves: bytes) -> None:
        directory = Directory(
            form,
            incoming.kind,
            incoming.width,
            max((link.record.directory.depth + 1 for link in parents), default=0),
            link_cost(parents),
            incoming.size,
            tuple(incoming.lengths),
            tuple(incoming.checks),
            leaves,
            parents=tuple(link.oid for link in parents),
        )
        oid = incoming.pending.value
        self._draft.close_record(directory, [oid] if oid else [])

    # Linear combinations.

    def _combined(self, draft: Directory, links: tuple[Link, ...]) -> Fill:
        """Return what computes the frames of a combination."""

        def fill(number: int, into: Bytes) -> Bytes:
            self._reader.combine(draft, links, number, into)
            return into

        return fill

    def _enter_recipe(self, draft: Directory, fill: Fill) -> Pending:
        pending, leaves = Pending(self._pipeline.drain), list[bytes]()

        def work(number: int) -> bytes:
            return identity.leaf(fill(number, TOOLS.buffer("raw", frame_size(draft.size, number))).data)

        def finish() -> None:
            oid = pending.value = identity.root("tensor", draft.size, b"".join(leaves))
            if not self._draft.has(oid):
                self._draft.close_record(replace(draft, leaves=b"".join(leaves)), [oid])

        for number in range(frame_count(draft.size)):
            self._pipeline.submit(partial(work, number), leaves.append)
        self._pipeline.after(finish)
        return pending


def piece(data: Bytes, number: int) -> Bytes:
    """Return a frame of bytes at hand."""
    return data[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]


def constant(data: Bytes) -> Fill:
    """Return a fill that gives the same frame whatever is asked."""
    return lambda _number, _into: data
