"""What weight files say beside the values of their tensors, and how that differs: metadata, types, the way they lie."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelgit.formats.manifest import Manifest, TensorEntry, followed
from modelgit.formats.safetensors import Header
from modelgit.formats.source import TensorSource
from modelgit.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """A key of a weight file's metadata that differs; `old` or `new` is None where one has no such key."""

    path: str
    key: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class DtypeChange:
    """How many tensors are of type `new` now, and were of type `old`."""

    old: str
    new: str
    tensors: int


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """How the headers of weight files differ; `rewritten` are files whose tensors lie in another order, or padding."""

    metadata: tuple[MetadataChange, ...] = ()
    rewritten: tuple[str, ...] = ()


class Weights(TensorSource, Protocol):
    """The tensors of one weight file, with its header."""

    @property
    def header(self) -> Header | None:
        """Returns the header, None of a file that is not there. Raises MissingObject, CorruptObject."""


Sources = Mapping[str, Weights]


def stored(repo: Repository, manifests: Mapping[str, Manifest]) -> Sources:
    """Returns the tensors of weight files in the store."""
    from modelgit.store.files.tensors import StoredTensors  # brings numpy

    return {path: StoredTensors(repo.store, manifest) for path, manifest in manifests.items()}


def header_changes(repo: Repository, before: Mapping[str, Manifest], after: Mapping[str, Manifest]) -> HeaderChanges:
    """Returns how the headers of two versions' files differ; equal ones are not read. Raises MissingObject."""
    unlike = [path for path in sorted(before.keys() & after.keys()) if before[path].header != after[path].header]
    if not unlike:
        return HeaderChanges()
    old, new = (stored(repo, {path: side[path] for path in unlike}) for side in (before, after))
    return compare_headers(old, new)


def compare_headers(before: Sources, after: Sources) -> HeaderChanges:
    """Returns how the headers of files that both have differ. Raises MissingObject, CorruptObject."""
    metadata: list[MetadataChange] = []
    rewritten: list[str] = []
    for path in sorted(before.keys() & after.keys()):
        old, new = before[path].header, after[path].header
        if old is not None and new is not None and old.raw != new.raw:
            found = metadata_changes(path, old.metadata, new.metadata)
            metadata += found
            if not found and described(old) == described(new):
                rewritten.append(path)
    return HeaderChanges(tuple(metadata), tuple(rewritten))


def metadata_changes(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[MetadataChange]:
    """Returns the keys that were added, removed or changed, sorted."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [MetadataChange(path, key, old.get(key), new.get(key)) for key in keys]


def described(header: Header) -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns name, type and shape of the tensors, in one order."""
    return sorted((span.name, span.dtype, span.shape) for span in header.tensors)


def dtype_changes(pairs: Iterable[tuple[TensorEntry, TensorEntry]]) -> tuple[DtypeChange, ...]:
    """Returns how many tensors went from which type to which, the most frequent first."""
    counts = Counter((old.dtype, new.dtype) for old, new in pairs if old.dtype != new.dtype)
    return tuple(DtypeChange(*kinds, n) for kinds, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def tensor_pairs(
    before: Mapping[str, Manifest], after: Mapping[str, Manifest]
) -> Iterator[tuple[TensorEntry, TensorEntry]]:
    """Yields the tensors that both versions have, old and new; they are followed into other files."""
    names = {path: {entry.name for entry in manifest.tensors} for path, manifest in after.items()}
    for path, manifest in followed(before, names).items():
        old = {entry.name: entry for entry in manifest.tensors}
        yield from (
            ((old[entry.name], entry) for entry in after[path].tensors if entry.name in old) if path in after else ()
        )
