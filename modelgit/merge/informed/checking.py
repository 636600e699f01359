"""Statistics looked at before anything is merged with them: they come from files that anybody may have written."""

import math

import numpy as np
from blake3 import blake3

from modelgit.errors import Conflict
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.vectors import gram
from modelgit.merge.engine.reading import frame_peak, whole, widened
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.informed.statistics import Kind, Statistics, wanted_shape
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS

TOLERANCE = 1e-3  # of a Gram matrix, by which it may miss symmetry and its bounds: it may be in half precision


def checked(kind: Kind, source: TensorSource, model: TensorSource, where: str) -> Statistics:
    """Return the statistics of a model, read once; `where` is what errors call them.

    Raises: MergeConflict naming all that is wrong: none at all, tensors that the model does not have, other shapes or
    types, values that are not finite or that no such statistics can have.
    """
    names, have = sorted(source.names()), set(model.names())
    conflicts = [c for name in names for c in _structure(kind, source.entry(name), model, have, where)]
    if not names:
        conflicts.append(Conflict("statistics", where, "a tensor for each tensor that is merged", "none"))
    if conflicts:
        raise conflict_error(conflicts)
    squares, total = list[float](), blake3()
    for name in names:
        entry = source.entry(name)
        found, wrong = _fisher(source, entry) if kind == "fisher" else _gram(source, entry)
        if wrong:
            conflicts.append(Conflict("statistics", name, wrong, f"others in {where}"))
        squares.append(found)
        total.update(f"{name} {entry.dtype} {list(entry.shape)} {entry.oid}\n".encode())
    if conflicts:
        raise conflict_error(conflicts)
    return Statistics(kind, source, frozenset(names), math.sqrt(math.fsum(squares)), total.hexdigest()[:32])


def _structure(kind: Kind, entry: TensorEntry, model: TensorSource, have: set[str], where: str) -> list[Conflict]:
    if entry.name not in have:
        return [Conflict("statistics", entry.name, "a tensor of the model", f"one only in {where}")]
    shape = wanted_shape(kind, model.entry(entry.name).shape)
    if shape is None:
        return [Conflict("statistics", entry.name, "matrices alone to have inputs", f"another tensor in {where}")]
    if entry.shape != shape:
        return [Conflict("statistics", entry.name, f"{list(shape)}", f"{list(entry.shape)} in {where}")]
    if entry.dtype not in ARITHMETIC_WIDTHS:
        return [
            Conflict("statistics", entry.name, f"one of {', '.join(ARITHMETIC_WIDTHS)}", f"{entry.dtype} in {where}")
        ]
    return []


def _fisher(source: TensorSource, entry: TensorEntry) -> tuple[float, str]:
    """Return the sum of squares of one tensor, and what was to be expected where that is not so."""
    squares = list[float]()
    for frame in source.frames(entry.name):
        if frame_peak(frame, entry.dtype) == math.inf:
            return 0.0, "finite values"
        values = widened(frame, entry.dtype)
        if values.size and float(values.min()) < 0:
            return 0.0, "values of 0 or more"
        squares.extend(float(part[0, 0]) for part in gram([values]))
    return math.fsum(squares), ""


def _gram(source: TensorSource, entry: TensorEntry) -> tuple[float, str]:
    values = whole(source, entry)
    if not np.isfinite(values).all():
        return 0.0, "finite values"
    bounds = np.diagonal(values)
    if (bounds < 0).any():
        return 0.0, "inner products of inputs: no negative one on the diagonal"
    roots = np.sqrt(bounds)
    reach = np.outer(roots, roots)
    if (np.abs(values - values.T) > TOLERANCE * reach).any():
        return 0.0, "inner products of inputs: a symmetric matrix"
    if (np.abs(values) > (1 + TOLERANCE) * reach).any():
        return 0.0, "inner products of inputs: none above those of the diagonal"
    return math.fsum(float(part[0, 0]) for part in gram([values])), ""
