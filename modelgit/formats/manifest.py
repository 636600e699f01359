"""Manifests: what git tracks in the place of a weight file. Canonical text, one tensor a line, sorted by name.

    modelgit manifest 1
    size 18800000
    header 4f1c… 12345
    "bn.weight" F32 [32] 9ab3…

Two weight files have equal manifests exactly when they are equal byte for byte.
"""

import bisect
import difflib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.safetensors import MAX_HEADER_BYTES, MAX_TENSORS, check_name

MAGIC = "modelgit manifest "
VERSION = 1
MAX_MANIFEST_BYTES = 512 * 1024 * 1024
OID = r"[0-9a-f]{64}"
NUMBER = r"0|[1-9][0-9]{0,18}"
HEADER_LINE = re.compile(rf"header ({OID}) ({NUMBER})")
SIZE_LINE = re.compile(rf"size ({NUMBER})")
TENSOR_LINE = re.compile(rf'("(?:[^"\\]|\\.)*") ([A-Z0-9_]+) \[((?:{NUMBER})(?:,(?:{NUMBER}))*|)\] ({OID})')

quoted = json.JSONEncoder(ensure_ascii=False).encode


class TensorEntry(NamedTuple):
    """One tensor of a version; `oid` is 64 hex digits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    oid: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A weight file as a value: the object of its verbatim header, and its tensors sorted by name."""

    header: str
    header_bytes: int
    size_bytes: int
    tensors: tuple[TensorEntry, ...]

    def entry(self, name: str) -> TensorEntry:
        """Returns the tensor of that name. Raises FormatError, listing near names."""
        place = bisect.bisect_left(self.tensors, name.encode(), key=lambda t: t.name.encode())
        found = self.tensors[place] if place < len(self.tensors) else None
        if found is None or found.name != name:
            near = difflib.get_close_matches(name, [t.name for t in self.tensors], n=3)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else None
            raise FormatError(f"no tensor is called {name!r}", hint=hint)
        return found

    def oids(self) -> tuple[str, ...]:
        """Returns the id of every object the file is made of, each once."""
        return tuple(dict.fromkeys([self.header, *(t.oid for t in self.tensors)]))


@dataclass(frozen=True, slots=True)
class ManifestDiff:
    """How two manifests differ, tensor by tensor; `changed` holds (old, new) pairs, `same` counts the rest."""

    added: tuple[TensorEntry, ...]
    removed: tuple[TensorEntry, ...]
    changed: tuple[tuple[TensorEntry, TensorEntry], ...]
    same: int


def write(manifest: Manifest) -> str:
    """Returns the manifest's canonical text."""
    return "".join(line + "\n" for line in lines(manifest))


def lines(manifest: Manifest) -> Iterator[str]:
    """Yields the lines of the canonical text."""
    yield f"{MAGIC}{VERSION}"
    yield f"size {manifest.size_bytes}"
    yield f"header {manifest.header} {manifest.header_bytes}"
    for t in manifest.tensors:
        yield f"{quoted(t.name)} {t.dtype} [{','.join(map(str, t.shape))}] {t.oid}"


def is_manifest(prefix: bytes) -> bool:
    """Tells whether a file that begins with `prefix` is meant to be a manifest."""
    return prefix.startswith(MAGIC.encode())


def parse_bytes(data: bytes, source: str) -> Manifest:
    """Returns the manifest in a file's bytes. Raises FormatError, as `parse`."""
    try:
        return parse(data.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise FormatError(f"{source}: manifest: expected UTF-8, got something else at byte {error.start}") from error


def parse(text: str, source: str) -> Manifest:
    """Returns the manifest in `text`; only canonical text is one, so equal manifests are equal text.

    Raises:
        FormatError: naming `source`, the line, what was expected and what was there.
    """
    if len(text) > MAX_MANIFEST_BYTES or text.count("\n") > MAX_TENSORS + 3:
        raise FormatError(f"{source}: manifest of {len(text)} characters, expected at most {MAX_TENSORS} tensors")
    rows = text.split("\n")
    if rows.pop() != "" or len(rows) < 3:
        raise FormatError(f"{source}: manifest is cut short")
    check_version(rows[0], source)
    size = expect(SIZE_LINE, rows[1], f"{source}: line 2", "size BYTES")
    header = expect(HEADER_LINE, rows[2], f"{source}: line 3", "header OID BYTES")
    if int(header[2]) > min(MAX_HEADER_BYTES + 8, int(size[1])):
        raise FormatError(f"{source}: line 3: header of {header[2]} bytes in a file of {size[1]}")
    tensors = tuple(parse_entries(rows[3:], source))
    for before, after in itertools.pairwise([tensor.name.encode() for tensor in tensors]):
        if before >= after:
            names = f"{before.decode()!r} and {after.decode()!r}"
            raise FormatError(f"{source}: tensors {names} are not in order, or the same")
    check_size(tensors, int(size[1]) - int(header[2]), source)
    return Manifest(header[1], int(header[2]), int(size[1]), tensors)


def check_size(tensors: Sequence[TensorEntry], expected: int, source: str) -> None:
    """Refuses tensors that do not fill the file: a weight file has no holes, so nobody need believe a shape."""
    got = 0
    for tensor in tensors:
        try:
            got += size_bytes(tensor.dtype, tensor.shape)
        except FormatError as error:
            raise FormatError(f"{source}: tensor {tensor.name[:120]!r}: {error.message}") from error
    if got != expected:
        raise FormatError(f"{source}: expected {expected} bytes of tensors after the header, got {got}")


def check_version(line: str, source: str) -> None:
    """Refuses what is no manifest, or one from a later version."""
    if not line.startswith(MAGIC):
        raise FormatError(f"{source}: not a manifest: expected '{MAGIC}{VERSION}', got {line[:60]!r}")
    if line == f"{MAGIC}{VERSION}\r":
        hint = "git, or an editor, has changed them: bring the weight file itself back, and commit that"
        raise FormatError(f"{source}: manifest: lines end with carriage returns, expected line feeds alone", hint=hint)
    if line != f"{MAGIC}{VERSION}":
        raise FormatError(
            f"{source}: manifest version {line[len(MAGIC) :][:20]!r}, expected {VERSION}",
            hint="a newer modelgit wrote it: upgrade",
        )


def expect(pattern: re.Pattern[str], line: str, where: str, form: str) -> re.Match[str]:
    """Returns the whole-line match."""
    match = pattern.fullmatch(line)
    if match is None:
        raise FormatError(f"{where}: expected '{form}', got {line[:120]!r}")
    return match


def parse_entries(rows: Sequence[str], source: str) -> Iterator[TensorEntry]:
    """Yields the tensors that the lines from the fourth on describe."""
    for number, row in enumerate(rows, 4):
        try:
            yield parse_entry(row)
        except FormatError as error:
            raise FormatError(f"{source}: line {number}: {error.message}", hint=error.hint) from error


def parse_entry(line: str) -> TensorEntry:
    """Returns the tensor that a line describes."""
    match = TENSOR_LINE.fullmatch(line)
    if match is None:
        raise FormatError(f"expected '\"NAME\" DTYPE [SHAPE] OID', got {line[:120]!r}")
    text, dtype, sizes, oid = match.groups()
    name = parse_name(text)
    try:
        check_name(name)
    except FormatError as error:
        raise FormatError(f"{name[:120]!r}: {error.message}") from error
    if dtype not in DTYPES:
        raise FormatError(f"unknown dtype {dtype!r}", hint=f"known dtypes: {', '.join(DTYPES)}")
    shape = tuple(map(int, sizes.split(","))) if sizes else ()
    if len(shape) > 64:
        raise FormatError(f"{len(shape)} dimensions, expected at most 64")
    return TensorEntry(name, dtype, shape, oid)


def parse_name(text: str) -> str:
    """Returns the name that a JSON string holds, written in the one way that is canonical."""
    inner = text[1:-1]
    if inner.isascii() and inner.isprintable() and "\\" not in inner:
        return inner
    try:
        name = json.loads(text)
    except ValueError as error:
        raise FormatError(f"name {text[:120]} is no JSON string") from error
    if not isinstance(name, str) or quoted(name) != text:
        raise FormatError(f"name {text[:120]} is not in canonical form")
    return name


def by_name(manifest: Manifest | None) -> Mapping[str, TensorEntry]:
    """Returns the tensors of a manifest by their names."""
    return {entry.name: entry for entry in manifest.tensors} if manifest is not None else {}


def relatives(manifests: Mapping[str, Manifest], path: str) -> Manifest | None:
    """Returns what a file at `path` is likely to resemble: the tensors of the version's file there, and then of others.

    So a checkpoint cut into other shards meets its tensors again, whichever file they were in. The result is for
    looking up tensors by name; it describes no file.
    """
    own = manifests.get(path)
    others = [manifests[other] for other in sorted(manifests) if other != path]
    if not others:
        return own
    found = {entry.name: entry for manifest in reversed(others) for entry in manifest.tensors}
    found |= {entry.name: entry for entry in (own.tensors if own else ())}
    first = own or others[0]
    return replace(first, tensors=tuple(sorted(found.values(), key=lambda entry: entry.name.encode())))


def followed(before: Mapping[str, Manifest], after: Mapping[str, Collection[str]]) -> Mapping[str, Manifest]:
    """Returns the files of `before`, each tensor in the file where `after` keeps it; `after` has their names by path.

    A checkpoint that is cut into other shards, or renamed, meets its tensors again. A name that is left in its file
    stays there. The result is for looking up tensors by name; it describes no files.
    """
    known = {path: {entry.name for entry in manifest.tensors} for path, manifest in before.items()}
    homes: dict[str, str] = {}
    for path in sorted(after, reverse=True):
        homes |= {name: path for name in after[path] if name not in known.get(path, ())}
    found: dict[str, list[TensorEntry]] = {}
    for path, manifest in sorted(before.items()):
        for entry in manifest.tensors:
            stays = entry.name in after.get(path, ())
            found.setdefault(path if stays else homes.pop(entry.name, path), []).append(entry)
    some = next(iter(before.values()), None)
    return {
        path: replace(some, tensors=tuple(sorted(entries, key=lambda entry: entry.name.encode())))
        for path, entries in found.items()
        if some is not None
    }


def compare(old: Manifest, new: Manifest) -> ManifestDiff:
    """Returns how `new` differs from `old`; a tensor has changed if its dtype, shape or bytes have."""
    before, after = {t.name: t for t in old.tensors}, {t.name: t for t in new.tensors}
    changed = tuple((before[n], t) for n, t in after.items() if n in before and before[n] != t)
    added = tuple(t for n, t in after.items() if n not in before)
    removed = tuple(t for n, t in before.items() if n not in after)
    return ManifestDiff(added, removed, changed, len(after) - len(added) - len(changed))
