"""Comparing two versions, or the work tree with HEAD, tensor by tensor or layer by layer."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from modelgit.errors import FormatError, RevisionError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.manifest import Manifest, followed
from modelgit.formats.source import TensorSource
from modelgit.merge.compare import Comparison, compare, not_finite
from modelgit.porcelain.plumbing.headers import (
    DtypeChange,
    HeaderChanges,
    MetadataChange,
    Sources,
    Weights,
    compare_headers,
    dtype_changes,
    header_changes,
    stored,
)
from modelgit.porcelain.plumbing.showing import NO_TENSORS, source_of
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.repo import worktree
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.store.files.tensors import StoredTensors

RANGE = re.compile(r"(|.*[^.])(\.\.\.?)(|[^./].*)")  # A..B, A...B; no name of a commit has two dots
Found = list[tuple[str, Comparison]]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that differs: `kind` is changed, added, removed, shape or dtype.

    `changed_share` is the share of its elements with other bits; `relative_norm` is ||new - old|| / ||old||;
    numbers that say nothing are None. `nan` and `inf` count its values that are NaN or infinite where the old tensor's
    are finite, or all such values if there is no old one of that type and shape. `old_dtype` and `old_shape` are what
    they were, None if the tensor is new.
    """

    path: str
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    changed_share: float | None
    relative_norm: float | None
    cosine: float | None
    nan: int = 0
    inf: int = 0
    old_dtype: str | None = None
    old_shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerChange:
    """The tensors below one prefix of their names: how many there are, how many differ, the furthest of them."""

    layer: str
    tensors: int
    changed: int
    parameters: int
    changed_share: float
    largest_relative_norm: float | None
    nan: int = 0
    inf: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How `new` differs from version `old`; `new` is None for the work tree.

    `layers` is filled instead of `tensors` when a summary is asked for. `renamed` are weight files with the same
    content under another path, old and new; their tensors are among the `same`. `weight_files` is how many weight
    files were compared, with those that do not differ. `dtypes` sums up tensors of another type, `metadata` are keys
    that differ in the headers of files, `rewritten` files whose header differs in the order of tensors, or padding.
    """

    old: str
    new: str | None
    same: int
    tensors: tuple[TensorChange, ...]
    layers: tuple[LayerChange, ...]
    files: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    weight_files: int = 1
    dtypes: tuple[DtypeChange, ...] = ()
    metadata: tuple[MetadataChange, ...] = ()
    rewritten: tuple[str, ...] = ()


def diff(repo: Repository, old: str, new: str = "HEAD", *, depth: int = 0, listener: Listener = ignore) -> Difference:
    """Returns how `new` differs from `old`; with a `depth`, by the first parts of the tensors' names.

    `old` may name both, as in A..B, or A...B, which is B against the common ancestor of the two.

    Raises:
        MissingObject, CorruptObject: a tensor that differs cannot be read. RevisionError.
    """
    before, after = (repo.version(rev) for rev in ends_of(repo, old, new))
    files = tuple(p for p in sorted({*before.files, *after.files}) if before.files.get(p) != after.files.get(p))
    renamed = renames(before.manifests, after.manifests)
    found = compared(repo, before.manifests, stored(repo, after.manifests), listener)
    made = summed_up(
        (before.commit, after.commit), found, header_changes(repo, before.manifests, after.manifests), depth
    )
    return replace(made, files=files, renamed=renamed)


def is_range(word: str) -> bool:
    """Tells whether a word names two versions, as A..B or A...B."""
    return RANGE.fullmatch(word) is not None


def ends_of(repo: Repository, old: str, new: str) -> tuple[str, str]:
    """Returns the versions that are compared. Raises RevisionError for versions without a common ancestor."""
    both = RANGE.fullmatch(old)
    if both is None:
        return old, new
    old, new = both[1] or "HEAD", both[3] or "HEAD"
    if both[2] == "..":
        return old, new
    bases = repo.merge_base([old, new])
    if not bases:
        hint = f"compare them themselves: modelgit diff {old} {new}"
        raise RevisionError(f"{old} and {new} have no common ancestor", hint=hint)
    return min(bases), new


def diff_worktree(repo: Repository, rev: str = "HEAD", *, depth: int = 0, listener: Listener = ignore) -> Difference:
    """Returns how the work tree differs from a version; new weight files count, since a commit would take them.

    Raises:
        RevisionError: no such version. RepositoryError: there is no work tree. FormatError: a weight file is malformed.
        MissingObject, CorruptObject.
    """
    before = repo.version(rev)
    changes = {change.path: change for change in worktree.changes_since(repo, before.commit)}
    root = worktree.root_of(repo)
    named = {path: change for path, change in changes.items() if path.endswith(WEIGHTS_SUFFIX)}
    weights = {path: change for path, change in named.items() if change.problem or not (root / path).is_symlink()}
    after = {path: manifest for path, manifest in before.manifests.items() if path not in changes}
    edited = {path: in_worktree(repo, change) for path, change in weights.items() if change.kind != "deleted"}
    found = compared(repo, before.manifests, {**stored(repo, after), **edited}, listener)
    headers = compare_headers(stored(repo, before.manifests), edited)
    made = summed_up((before.commit, None), found, headers, depth)
    return replace(made, files=tuple(sorted(changes.keys() - weights.keys())))


def in_worktree(repo: Repository, change: worktree.Change) -> Weights:
    """Returns the tensors of a weight file of the work tree. Raises FormatError if it cannot be read."""
    if change.problem is not None:
        raise FormatError(change.problem)
    return source_of(repo, worktree.root_of(repo) / change.path)


def renames(before: Mapping[str, Manifest], after: Mapping[str, Manifest]) -> tuple[tuple[str, str], ...]:
    """Returns old and new path of the weight files that changed nothing but their name."""
    gone = {manifest: path for path, manifest in sorted(before.items(), reverse=True) if path not in after}
    fresh = {path: manifest for path, manifest in sorted(after.items()) if path not in before}
    return tuple((gone.pop(manifest), path) for path, manifest in fresh.items() if manifest in gone)


def compared(repo: Repository, before: Mapping[str, Manifest], new: Sources, listener: Listener) -> Found:
    """Returns the comparison of every tensor of either side, path by path; they are followed into other files."""
    nothing: Weights = StoredTensors(repo.store, NO_TENSORS)
    old = stored(repo, followed(before, {path: set(source.names()) for path, source in new.items()}))
    pairs = {path: (old.get(path, nothing), new.get(path, nothing)) for path in sorted({*old, *new})}
    total = sum(len({*before.names(), *after.names()}) for before, after in pairs.values())
    listener(Started("compare", total, "tensors"))
    found: Found = []
    for path, pair in pairs.items():
        for comparison in compare(*pair):
            found.append((path, looked_at(pair[1], comparison)))
            listener(Advanced("compare", 1))
    listener(Finished("compare"))
    return found


def looked_at(source: TensorSource, comparison: Comparison) -> Comparison:
    """Returns a comparison with the values that are not finite counted where the old ones cannot be compared."""
    if comparison.new is None or comparison.kind not in ("added", "shape", "dtype"):
        return comparison
    nan, inf = not_finite(source, comparison.new)
    return replace(comparison, nan=nan, inf=inf)


def summed_up(ends: tuple[str, str | None], found: Found, headers: HeaderChanges, depth: int) -> Difference:
    """Returns the report on the tensors and headers that were compared, by layer if there is a `depth`."""
    changed = tuple(tensor_change(path, c) for path, c in found if c.kind != "same")
    layers = tuple(layer_changes(found, depth)) if depth else ()
    tensors = () if depth else changed
    paths = {path for path, _ in found}
    dtypes = dtype_changes((c.old, c.new) for _, c in found if c.old is not None and c.new is not None)
    return Difference(
        *ends,
        len(found) - len(changed),
        tensors,
        layers,
        (),
        weight_files=len(paths),
        dtypes=dtypes,
        metadata=headers.metadata,
        rewritten=headers.rewritten,
    )


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
        comparison.nan,
        comparison.inf,
        comparison.old.dtype if comparison.old else None,
        comparison.old.shape if comparison.old else None,
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
    nan, inf = sum(c.nan for c in comparisons), sum(c.inf for c in comparisons)
    return LayerChange(name, len(comparisons), changed, sum(sizes), share, max(norms, default=None), nan, inf)
