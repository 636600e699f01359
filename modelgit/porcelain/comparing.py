"""Comparing two versions, tensor by tensor or layer by layer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod

from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.manifest import Manifest
from modelgit.merge.compare import Comparison, compare
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.repo.repository import Repository
from modelgit.store.files.tensors import StoredTensors

NO_TENSORS = Manifest("", 0, 0, ())


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that differs: `kind` is changed, added, removed, shape or dtype.

    `changed_share` is the share of its elements with other bits; `relative_norm` is ||new - old|| / ||old||;
    numbers that say nothing are None.
    """

    path: str
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    changed_share: float | None
    relative_norm: float | None
    cosine: float | None


@dataclass(frozen=True, slots=True)
class LayerChange:
    """The tensors below one prefix of their names: how many there are, how many differ, the furthest of them."""

    layer: str
    tensors: int
    changed: int
    parameters: int
    changed_share: float
    largest_relative_norm: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """How version `new` differs from `old`; `layers` is filled instead of `tensors` when a summary is asked for."""

    old: str
    new: str
    same: int
    tensors: tuple[TensorChange, ...]
    layers: tuple[LayerChange, ...]
    files: tuple[str, ...]


def diff(repo: Repository, old: str, new: str = "HEAD", *, depth: int = 0, listener: Listener = ignore) -> Difference:
    """Returns how `new` differs from `old`; with a `depth`, by the first parts of the tensors' names.

    Raises:
        MissingObject, CorruptObject: a tensor that differs cannot be read.
    """
    before, after = repo.version(old), repo.version(new)
    paths = sorted({*before.manifests, *after.manifests})
    total = len({(path, t.name) for v in (before, after) for path, m in v.manifests.items() for t in m.tensors})
    listener(Started("compare", total, "tensors"))
    found: list[tuple[str, Comparison]] = []
    for path in paths:
        pair = [StoredTensors(repo.store, version.manifests.get(path, NO_TENSORS)) for version in (before, after)]
        for comparison in compare(*pair):
            found.append((path, comparison))
            listener(Advanced("compare", 1))
    listener(Finished("compare"))
    changed = tuple(tensor_change(path, c) for path, c in found if c.kind != "same")
    files = tuple(p for p in sorted({*before.files, *after.files}) if before.files.get(p) != after.files.get(p))
    layers = tuple(layer_changes(found, depth)) if depth else ()
    return Difference(before.commit, after.commit, len(found) - len(changed), () if depth else changed, layers, files)


def tensor_change(path: str, comparison: Comparison) -> TensorChange:
    """Returns a comparison as it is reported."""
    entry = comparison.new or comparison.old
    assert entry is not None  # a comparison has at least one side
    return TensorChange(
        path,
        comparison.name,
        comparison.kind,
        entry.dtype,
        entry.shape,
        comparison.changed_share,
        comparison.relative_norm,
        comparison.cosine,
    )


def layer_changes(found: Iterable[tuple[str, Comparison]], depth: int) -> Iterator[LayerChange]:
    """Yields a summary for each prefix of `depth` parts; weight files other than the usual one are named too."""

    def layer(item: tuple[str, Comparison]) -> str:
        path, comparison = item
        prefix = ".".join(comparison.name.split(".")[:depth])
        return prefix if path == DEFAULT_PATH else f"{path}: {prefix}"

    for name, group in groupby(sorted(found, key=layer), key=layer):
        yield layer_change(name, [comparison for _, comparison in group])


def layer_change(name: str, comparisons: list[Comparison]) -> LayerChange:
    """Returns the summary of the tensors of one layer."""
    sizes = [prod((c.new or c.old).shape) if c.new or c.old else 0 for c in comparisons]  # type: ignore[union-attr]
    moved = sum(
        size * (1.0 if c.changed_share is None else c.changed_share) for size, c in zip(sizes, comparisons, strict=True)
    )
    norms = [c.relative_norm for c in comparisons if c.relative_norm is not None]
    share = moved / sum(sizes) if sum(sizes) else 0.0
    changed = sum(c.kind != "same" for c in comparisons)
    return LayerChange(name, len(comparisons), changed, sum(sizes), share, max(norms, default=None))
