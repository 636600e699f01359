"""Adapters joined into one, read tensor by tensor (a `TensorSource`).

The mean of the changes is sum_i (w_i / sum w) s_i B_i A_i. It is one product again: the A_i below each other, the
scaled B_i beside each other; its rank is the sum of the ranks. With a rank of its own it is cut off after the largest
singular values, found from the factors without the matrix: QR of both, then the singular values of the small core
(Halko et al. 2011, section 5). A module that an adapter leaves alone is a product of zero there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from modelgit.errors import Conflict, FormatError
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import FRAME_BYTES, TensorSource
from modelgit.merge.adapters.configuration import Configuration
from modelgit.merge.adapters.naming import UNKNOWN, Pair, pair_of
from modelgit.merge.blocks.sums import Array
from modelgit.merge.engine.plan import Policy
from modelgit.merge.engine.reading import frame_peak, whole
from modelgit.merge.engine.ways import conflict_error
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, NARROW
from modelgit.store.codec.arrays import Bytes
from modelgit.store.identity import frame_count, frame_size, leaf, root


@dataclass(frozen=True, slots=True)
class Adapter:
    """One of the adapters: its name, tensors, weight and configuration."""

    name: str
    source: TensorSource
    weight: float
    configuration: Configuration


@dataclass(slots=True)
class Joined:
    """Adapters as one (a `TensorSource`); `rank` cuts the products off, None keeps them exact.

    `shares` are the parts of a product's squared size that were cut off, by module, known once it was read.
    """

    adapters: Sequence[Adapter]
    policy: Policy
    rank: int | None = None
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    _entries: dict[str, TensorEntry] = field(default_factory=dict)
    _last: tuple[Pair, Array, Array] | None = None

    def names(self) -> Sequence[str]:
        """Returns the tensors' names, sorted."""
        every = set().union(*(adapter.source.names() for adapter in self.adapters))
        everywhere = set(every).intersection(*(adapter.source.names() for adapter in self.adapters))
        return sorted(everywhere if self.policy.on_missing == "drop" else every)

    def entry(self, name: str) -> TensorEntry:
        """Returns a tensor's dtype, shape and id; computes it. Raises FormatError, MergeConflict."""
        if name not in self._entries:
            dtype, shape, data = self._made(name)
            starts = range(frame_count(data.nbytes))
            leaves = b"".join(leaf(data[i * FRAME_BYTES :][: frame_size(data.nbytes, i)].data) for i in starts)
            oid = root("tensor", size_bytes(dtype, shape), leaves).hex()
            self._entries[name] = TensorEntry(name, dtype, shape, oid)
        return self._entries[name]

    def fleeting(self, name: str) -> bool:
        """Returns True: every tensor is made here."""
        return True

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yields a tensor's bytes in frames."""
        data = self._made(name)[2]
        for number in range(frame_count(data.nbytes)):
            start = number * FRAME_BYTES
            yield data[start : start + frame_size(data.nbytes, number)].data

    def _made(self, name: str) -> tuple[str, tuple[int, ...], Bytes]:
        holders = [adapter for adapter in self.adapters if name in set(adapter.source.names())]
        dtype = holders[0].source.entry(name).dtype
        pair = pair_of(name)
        if pair is None:
            values = mean_of(holders, name)
        else:
            if self._last is None or self._last[0] != pair:
                self._last = (pair, *self._product(pair))
            values = self._last[1] if name == pair.a else self._last[2]
        data = NARROW[dtype](np.ascontiguousarray(values).reshape(-1)).view(np.uint8)
        if frame_peak(data.data, dtype) == math.inf:
            wanted = f"a result that {dtype} can hold"
            raise conflict_error([Conflict("overflow", name, wanted, "a value beyond its range")])
        return dtype, values.shape, data

    def _product(self, pair: Pair) -> tuple[Array, Array]:
        """Returns both factors of a module's mean change, in the shapes of the first adapter that has it."""
        total = math.fsum(adapter.weight for adapter in self.adapters)
        below, beside = list[Array](), list[Array]()
        holders = [adapter for adapter in self.adapters if pair.a in set(adapter.source.names())]
        shapes = [holders[0].source.entry(name).shape for name in (pair.a, pair.b)]
        for adapter in holders:
            a, b = finite(adapter, pair.a), finite(adapter, pair.b)
            factor = adapter.weight / total * adapter.configuration.scaling(pair.module, len(a))
            below.append(a.reshape(len(a), -1))
            beside.append(factor * b.reshape(len(b), -1))
        a, b = np.concatenate(below, 0), np.concatenate(beside, 1)
        if self.rank is not None and self.rank < len(a):
            a, b, self.shares[pair.module] = cut_off(a, b, self.rank)
        self.ranks[pair.module] = len(a)
        return a.reshape(len(a), *shapes[0][1:]), b.reshape(shapes[1][0], len(a), *shapes[1][2:])

    def error(self) -> tuple[float, str, float]:
        """Returns the relative error over all modules that were read, and the module with the largest, with it."""
        lost, size = (math.fsum(part[i] for part in self.shares.values()) for i in (0, 1))
        worst = max(self.shares, key=lambda module: relative(*self.shares[module]), default="")
        return relative(lost, size), worst, relative(*self.shares.get(worst, (0.0, 0.0)))


def relative(lost: float, size: float) -> float:
    """Returns the relative error that a share of the squared size is."""
    return math.sqrt(lost / size) if size > 0 else 0.0


def finite(adapter: Adapter, name: str) -> Array:
    """Returns a tensor of an adapter as float64. Raises MergeConflict, naming both, if a value is not finite."""
    values = whole(adapter.source, adapter.source.entry(name))
    if not np.isfinite(values).all():
        got = f"infinity or not-a-number in {adapter.name}"
        raise conflict_error([Conflict("non-finite", name, "finite values", got)])
    return values


def mean_of(holders: Sequence[Adapter], name: str) -> Array:
    """Returns the weighted mean of a tensor that is no factor: a trained head, a bias."""
    total = math.fsum(adapter.weight for adapter in holders)
    parts = [adapter.weight * finite(adapter, name) for adapter in holders]
    return np.asarray(sum(parts[1:], parts[0]) / total)


def cut_off(a: Array, b: Array, rank: int) -> tuple[Array, Array, tuple[float, float]]:
    """Returns factors (rank, n), (m, rank) of the best approximation of b a, and the squared size lost and in all."""
    with threadpool_limits(1, "blas"):
        left, upper = np.linalg.qr(b)
        right, lower = np.linalg.qr(a.T)
        u, s, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
        root_s = np.sqrt(s[:rank])
        new_b = (left @ u[:, :rank]) * root_s
        new_a = (right @ v[:rank].T * root_s).T
    size = float((s * s).sum())
    short = rank - len(root_s)  # a matrix smaller than the rank asked for
    if short > 0:
        new_a, new_b = np.pad(new_a, ((0, short), (0, 0))), np.pad(new_b, ((0, 0), (0, short)))
    return new_a, new_b, (float((s[rank:] ** 2).sum()), size)


def adapter_conflicts(adapters: Sequence[Adapter], policy: Policy) -> list[Conflict]:
    """Returns why adapters cannot be joined, from names, shapes, dtypes and configurations alone."""
    conflicts = list[Conflict]()
    have = [set(adapter.source.names()) for adapter in adapters]
    for name in sorted(set().union(*have)):
        holders = [adapter for adapter, own in zip(adapters, have, strict=True) if name in own]
        if name.endswith(UNKNOWN):
            conflicts.append(Conflict("adapter", name, "factors A and B", f"another kind in {holders[0].name}"))
        if len(holders) < len(adapters) and policy.on_missing == "error":
            absent = ", ".join(adapter.name for adapter in adapters if adapter not in holders)
            conflicts.append(Conflict("missing", name, "in every adapter", f"absent from {absent}"))
        conflicts.extend(shape_conflicts(holders, name))
    for adapter, own in zip(adapters, have, strict=True):
        conflicts.extend(rank_conflicts(adapter, own))
    return conflicts


def shape_conflicts(holders: Sequence[Adapter], name: str) -> list[Conflict]:
    """Returns the conflicts between the adapters that have a tensor; ranks may differ, other axes may not."""
    first, pair = holders[0], pair_of(name)
    expected, conflicts = first.source.entry(name), list[Conflict]()
    axis = None if pair is None else 0 if name == pair.a else 1
    if expected.dtype not in ARITHMETIC_WIDTHS:
        known = ", ".join(ARITHMETIC_WIDTHS)
        conflicts.append(Conflict("dtype", name, f"one of {known}", f"{expected.dtype} in {first.name}"))
    for other in holders[1:]:
        entry = other.source.entry(name)
        shapes = [tuple(n for i, n in enumerate(e.shape) if i != axis) for e in (expected, entry)]
        if entry.dtype != expected.dtype:
            conflicts.append(
                Conflict("dtype", name, f"{expected.dtype} as in {first.name}", f"{entry.dtype} in {other.name}")
            )
        if shapes[0] != shapes[1] or len(entry.shape) != len(expected.shape):
            told = f"{list(expected.shape)} as in {first.name}", f"{list(entry.shape)} in {other.name}"
            conflicts.append(Conflict("shape", name, *told))
    return conflicts


def rank_conflicts(adapter: Adapter, names: set[str]) -> list[Conflict]:
    """Returns the factors of one adapter that do not belong together, or not to its configuration."""
    conflicts = list[Conflict]()
    for pair in sorted({p for name in names if (p := pair_of(name)) is not None}, key=lambda p: p.a):
        absent = [name for name in (pair.a, pair.b) if name not in names]
        if absent:
            conflicts.append(Conflict("adapter", pair.module, "factors A and B", f"no {absent[0]} in {adapter.name}"))
            continue
        a, b = adapter.source.entry(pair.a).shape, adapter.source.entry(pair.b).shape
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or 0 in a or 0 in b:
            told = f"{list(a)} and {list(b)} in {adapter.name}"
            conflicts.append(Conflict("adapter", pair.module, "factors of one rank", told))
            continue
        try:
            adapter.configuration.scaling(pair.module, a[0])
        except FormatError as error:
            conflicts.append(Conflict("adapter", pair.module, "the rank that adapter_config.json says", error.message))
    return conflicts


def ranks_of(adapters: Sequence[Adapter], rank: int | None) -> Mapping[str, int]:
    """Returns the rank of each module of the result, without reading a tensor."""
    found: dict[str, int] = {}
    for adapter in adapters:
        for name in adapter.source.names():
            pair = pair_of(name)
            if pair is not None and name == pair.a:
                found[pair.module] = found.get(pair.module, 0) + adapter.source.entry(name).shape[0]
    return {module: total if rank is None else min(total, rank) for module, total in found.items()}
