"""How two weight files differ, for `git diff`, and one as text, for `git log -p` and `git blame`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import MissingObject
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry, is_manifest, parse_bytes
from modelgit.formats.source import TensorSource
from modelgit.porcelain.plumbing.headers import DtypeChange, MetadataChange, Weights, compare_headers, dtype_changes
from modelgit.repo.filling import PREFIX_BYTES
from modelgit.repo.repository import Repository

if TYPE_CHECKING:
    from modelgit.porcelain.comparing import TensorChange

NO_TENSORS = Manifest("", 0, 0, ())
# The first line of the text: `git blame` hands it to the clean filter, which takes it by this for what it is.
TEXT_MARK = b"modelgit text of weights, a line a tensor: name type shape id"
SHORT = 12  # hexadecimal digits of a tensor's id
READ_BYTES = 256 * 1024**2  # what is read of tensors that differ, a few seconds' work; the rest are named only


@dataclass(frozen=True, slots=True)
class Shown:
    """How a weight file differs: tensors, how many are the same, and why numbers are absent, if any are.

    `dtypes`, `metadata` and `rewritten` are as in `Difference`.
    """

    tensors: "tuple[TensorChange, ...]"
    same: int
    unread: str | None = None
    dtypes: tuple[DtypeChange, ...] = ()
    metadata: tuple[MetadataChange, ...] = ()
    rewritten: tuple[str, ...] = ()


def manifest_of(path: Path) -> Manifest | None:
    """Returns the manifest in a file, one without tensors for an empty file; None for what else there may be."""
    with path.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
    if not prefix:
        return NO_TENSORS
    return parse_bytes(path.read_bytes(), path.name) if is_manifest(prefix) else None


def text_of(path: Path) -> Iterator[str]:
    """Yields a line a tensor of a manifest, or of a weight file: its name, type, shape, and the start of its id.

    A line with the start of the header's id comes first.

    Raises:
        FormatError: the file is neither.
    """
    manifest = manifest_of(path)
    if manifest is None:
        from modelgit.repo.look import hashed

        manifest = hashed(path)
    if manifest.header:  # another one where metadata differs, or the way the tensors lie
        yield f"header of {manifest.header_bytes} bytes {manifest.header[:SHORT]}"
    for entry in manifest.tensors:
        yield f"{entry.name} {entry.dtype} [{','.join(map(str, entry.shape))}] {entry.oid[:SHORT]}"


def source_of(repo: Repository, path: Path) -> Weights:
    """Returns the tensors of a manifest, from the store, or of a weight file. Raises FormatError."""
    from modelgit.store.files.tensors import FileTensors, StoredTensors

    manifest = manifest_of(path)
    return FileTensors(path) if manifest is None else StoredTensors(repo.store, manifest)


def difference(repo: Repository, path: str, old: Weights, new: Weights, limit: int = READ_BYTES) -> Shown:
    """Returns how the weight file at `path` differs; past `limit` bytes, or without objects, names alone.

    Raises:
        FormatError: a weight file is malformed. CorruptObject.
    """
    before, after = entries(old), entries(new)
    unlike = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    same = len({*before, *after}) - len(unlike)
    dtypes = dtype_changes((before[name], after[name]) for name in unlike if name in before and name in after)
    try:
        numbers = measured(path, old, new, limit)
        headers = compare_headers({path: old}, {path: new})
    except MissingObject:
        return Shown(named(path, before, after, unlike), same, "their objects are not here (modelgit fetch)", dtypes)
    rest = unlike[len(numbers) :]
    why = f"{len(rest):,} tensors were not read, to be quick (modelgit diff reads all)" if rest else None
    found = (*numbers, *named(path, before, after, rest))
    return Shown(found, same, why, dtypes, headers.metadata, headers.rewritten)


def entries(source: TensorSource) -> dict[str, TensorEntry]:
    """Returns the entries of all tensors."""
    return {name: source.entry(name) for name in source.names()}


def measured(path: str, old: TensorSource, new: TensorSource, limit: int) -> "tuple[TensorChange, ...]":
    """Returns the tensors that differ, by name, and how far; those that come after `limit` bytes are left out."""
    from modelgit.merge.compare import compare
    from modelgit.porcelain.comparing import looked_at, tensor_change

    changes, read = [], 0
    for found in compare(old, new):
        if found.kind != "same":
            changes.append(tensor_change(path, looked_at(new, found)))
            read += size_bytes(found.new.dtype, found.new.shape) if found.new is not None else 0
        if read >= limit:
            break
    return tuple(changes)


def named(
    path: str, before: dict[str, TensorEntry], after: dict[str, TensorEntry], names: Iterable[str]
) -> "tuple[TensorChange, ...]":
    """Returns the tensors that differ, unread."""
    from modelgit.porcelain.comparing import TensorChange

    found = []
    for name in sorted(names):
        old, new = before.get(name), after.get(name)
        entry = new or old
        if entry is not None:
            change = TensorChange(path, name, kind_of(old, new), entry.dtype, entry.shape, None, None, None)
            found.append(replace(change, old_dtype=old.dtype, old_shape=old.shape) if old is not None else change)
    return tuple(found)


def kind_of(old: TensorEntry | None, new: TensorEntry | None) -> str:
    """Returns in a word how a tensor differs."""
    if old is None or new is None:
        return "added" if old is None else "removed"
    if old.dtype != new.dtype:
        return "dtype"
    return "shape" if old.shape != new.shape else "changed"
