"""How two models differ, tensor by tensor: how many values changed, how far, and whether the direction is kept.

Frames of both are read side by side and summed in float64: memory does not depend on the models' size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.sums import Array, tree_sum
from modelgit.merge.engine.reading import frame_peak, widened
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS

Kind = Literal["same", "changed", "added", "removed", "shape", "dtype"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of two models, old and new; `old` or `new` is None where one has no such tensor.

    `changed_share` is the share of elements with other bits, from 0 to 1. `relative_norm` is ||new - old|| / ||old||
    and `cosine` that of the angle between old and new; None where they say nothing (other shapes, integers, zeros,
    values that are not finite). `nan` and `inf` count values that came in: the old ones at their places are finite.
    """

    name: str
    kind: Kind
    old: TensorEntry | None
    new: TensorEntry | None
    changed_share: float | None = None
    relative_norm: float | None = None
    cosine: float | None = None
    nan: int = 0
    inf: int = 0


def compare(old: TensorSource, new: TensorSource) -> Iterator[Comparison]:
    """Yield a comparison for every tensor name of either model, sorted; equal ids are not read."""
    before, after = set(old.names()), set(new.names())
    for name in sorted(before | after):
        yield _compare(
            name,
            (old, old.entry(name)) if name in before else None,
            (new, new.entry(name)) if name in after else None,
        )


Side = tuple[TensorSource, TensorEntry]


def _compare(name: str, old: Side | None, new: Side | None) -> Comparison:
    if old is None or new is None:
        kind: Kind = "added" if old is None else "removed"
        return Comparison(name, kind, old and old[1], new and new[1])
    a, b = old[1], new[1]
    if a.dtype != b.dtype:
        return Comparison(name, "dtype", a, b)
    if a.shape != b.shape:
        return Comparison(name, "shape", a, b)
    if a.oid == b.oid:
        return Comparison(name, "same", a, b, 0.0, 0.0, 1.0)
    return _statistics(old, new)


def _statistics(old: Side, new: Side) -> Comparison:
    entry = old[1]
    count = math.prod(entry.shape)
    width = size_bytes(entry.dtype, entry.shape) // count
    changed, nan, inf = 0, 0, 0
    sums = np.zeros(4)  # |new - old|^2, |old|^2, |new|^2, old . new
    for frame, other in zip(old[0].frames(entry.name), new[0].frames(entry.name), strict=True):
        unlike = np.frombuffer(frame, np.uint8) != np.frombuffer(other, np.uint8)
        changed += int(np.count_nonzero(unlike.reshape(-1, width or 1).any(axis=1)))
        if entry.dtype in ARITHMETIC_WIDTHS:
            a, b = widened(frame, entry.dtype), widened(other, entry.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                squares = tree_sum(b * b)
                sums += [tree_sum((b - a) ** 2), tree_sum(a * a), squares, tree_sum(a * b)]
            if not math.isfinite(squares):
                nan, inf = nan + _count(np.isnan, a, b), inf + _count(np.isinf, a, b)
    moved, length, other_length, dot = (float(value) for value in sums)
    share = changed / count
    relative = _ratio(math.sqrt(moved), math.sqrt(length))
    cosine = _ratio(dot, math.sqrt(length) * math.sqrt(other_length))
    return Comparison(entry.name, "changed", entry, new[1], share, relative, cosine, nan, inf)


def not_finite(source: TensorSource, entry: TensorEntry) -> tuple[int, int]:
    """Return how many values of a tensor are NaN, and how many infinite; none of a type that is not computed with."""
    nan = inf = 0
    for frame in source.frames(entry.name) if entry.dtype in ARITHMETIC_WIDTHS else ():
        if math.isinf(frame_peak(frame, entry.dtype)):
            values = widened(frame, entry.dtype)
            nan, inf = nan + int(np.isnan(values).sum()), inf + int(np.isinf(values).sum())
    return nan, inf


def _count(kind: np.ufunc, old: Array, new: Array) -> int:
    """Return how many values are of a kind where the old ones are finite."""
    return int(np.count_nonzero(kind(new) & np.isfinite(old)))


def _ratio(above: float, below: float) -> float | None:
    """Return the quotient; None where it means nothing."""
    ratio = above / below if below else math.nan
    return ratio if math.isfinite(ratio) else None
