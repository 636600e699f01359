"""safetensors headers: read strictly, kept verbatim, written as the reference writer does.

A file is: u64 little-endian N, N bytes of JSON, then the tensors' bytes without holes. Layout:
https://github.com/safetensors/safetensors (format section). Accepted files come back byte for byte, because the first
8 + N bytes are kept as they are; what the reference reader accepts but we find dangerous (duplicate keys, names
that are paths or hold control characters) is refused.
"""

import json
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Never

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES, RANK, size_bytes

MAX_HEADER_BYTES = 100_000_000
MAX_NAME_BYTES = 4096
MAX_TENSORS = 1_000_000
MAX_NESTING = 100
MAX_VALUES = 16 * MAX_TENSORS  # commas and brackets each: what a parser sets aside memory for
PREFIX_BYTES = 8
LFS_MARK = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins, in the place of a file
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # nothing about it needs a second look
FIELDS = {"dtype", "shape", "data_offsets"}
Table = dict[str, object]


class TensorSpan(NamedTuple):
    """One tensor: bytes `start` to `end` of the data area."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The first 8 + N bytes of a file, verbatim, and what they say; `tensors` in the order of their data."""

    raw: bytes
    tensors: tuple[TensorSpan, ...]
    metadata: Mapping[str, str]

    @property
    def data_start(self) -> int:
        """Where in the file the data area begins."""
        return len(self.raw)

    @property
    def size_bytes(self) -> int:
        """The size of the whole file."""
        return len(self.raw) + (self.tensors[-1].end if self.tensors else 0)


def read_header(path: Path) -> Header:
    """Returns the header of a file, reading no tensor.

    Raises:
        FormatError: the file is no safetensors file, is cut short, or its header is malformed.
    """
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(PREFIX_BYTES)
            length = header_length(prefix, file_size, str(path))
            return parse_header(prefix + file.read(length), file_size, str(path))
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror}") from error


def header_length(prefix: bytes, file_size: int, source: str) -> int:
    """Returns N, checked against the file's size before anything is allocated."""
    if len(prefix) < PREFIX_BYTES:
        raise FormatError(
            f"{source}: not a safetensors file: {file_size} bytes, expected a header of at least {PREFIX_BYTES}"
        )
    length: int = struct.unpack("<Q", prefix)[0]
    if prefix == LFS_MARK[:PREFIX_BYTES]:
        hint = "bring the file: git lfs pull; then commit it anew"
        raise FormatError(f"{source}: a Git LFS pointer, expected the weight file itself", hint=hint)
    if length > MAX_HEADER_BYTES:
        hint = "is this another format? .pt and .bin files can be imported: modelgit import FILE"
        raise FormatError(
            f"{source}: not a safetensors file: header of {length} bytes, expected at most {MAX_HEADER_BYTES}",
            hint=hint,
        )
    if length > file_size - PREFIX_BYTES:
        raise FormatError(f"{source}: truncated: header of {length} bytes in a file of {file_size}")
    return length


def parse_header(raw: bytes, file_size: int | None, source: str) -> Header:
    """Returns the header whose first 8 + N bytes are `raw`, checked against the size of its file, if that is known.

    Raises:
        FormatError: naming `source`, the field, what was expected and what was there.
    """
    return _parse_header(raw, file_size, source)


@lru_cache(maxsize=1)  # who compares a file with an earlier one takes it in next
def _parse_header(raw: bytes, file_size: int | None, source: str) -> Header:
    length = header_length(raw[:PREFIX_BYTES], len(raw) if file_size is None else file_size, source)
    if len(raw) != PREFIX_BYTES + length:
        raise FormatError(f"{source}: header of {length} bytes, got {len(raw) - PREFIX_BYTES}")
    table = parse_json(raw[PREFIX_BYTES:], source)
    metadata = parse_metadata(table.pop("__metadata__", {}), source)
    if len(table) > MAX_TENSORS:
        raise FormatError(f"{source}: {len(table)} tensors, expected at most {MAX_TENSORS}")
    spans = sorted(parse_spans(table, source), key=lambda span: (span.start, span.end))
    check_contiguous(spans, source)
    if file_size is not None:
        check_end(spans[-1].end if spans else 0, file_size - len(raw), source)
    return Header(raw, tuple(spans), metadata)


def parse_json(text: bytes, source: str) -> Table:
    """Returns the JSON object in `text`; no duplicate keys, no floats, nothing but spaces around it."""
    brackets = text.count(b"{") + text.count(b"[")
    if max(brackets, text.count(b",")) > MAX_VALUES:
        raise FormatError(f"{source}: header: more than {MAX_VALUES} values, expected at most {MAX_TENSORS} tensors")
    try:
        table = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=lambda pairs: unique(pairs, source),
            parse_float=refuse_number,
            parse_constant=refuse_number,
            parse_int=integer if b"-0" in text else None,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: header is not valid JSON: {error}") from error
    if not isinstance(table, dict) or not text.startswith(b"{"):
        raise FormatError(f"{source}: header: expected a JSON object that begins with '{{'")
    if brackets > 3 * len(table) + 1:  # more than an object and two lists a tensor
        check_nesting(table, source)
    if b"\\u" in text:
        check_text(table, source)
    return table


def check_nesting(table: Table, source: str) -> None:
    """Refuses unknown fields that are nested deeper than the reference reader can follow."""
    level: list[object] = [table]
    for _ in range(MAX_NESTING):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in containers for item in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise FormatError(f"{source}: header: nested deeper than {MAX_NESTING} levels")


def check_text(table: Table, source: str) -> None:
    """Refuses strings with half of a surrogate pair, which only an escape can bring in."""
    try:
        json.dumps(table, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{source}: header: a string is not valid Unicode: {error.reason}") from error


def integer(text: str) -> int:
    """Returns an integer, refusing -0, which is a float elsewhere."""
    return refuse_number(text) if text == "-0" else int(text)


def refuse_number(text: str) -> Never:
    """Refuses a number that is no integer."""
    raise ValueError(f"expected integers only, got {text[:40]}")


def unique(pairs: list[tuple[str, object]], source: str) -> Table:
    """Returns the pairs as a table, refusing a key that comes twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FormatError(f"{source}: header: key {twice[:200]!r} comes twice")
    return table


def parse_metadata(value: object, source: str) -> Mapping[str, str]:
    """Returns `__metadata__`, a table of strings."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(f"{source}: __metadata__: expected a table of strings")
    return value


def parse_spans(table: Table, source: str) -> Iterator[TensorSpan]:
    """Yields the spans of a header's tensors."""
    for name, value in table.items():
        try:
            yield parse_span(name, value)
        except FormatError as error:
            raise FormatError(f"{source}: tensor {name[:200]!r}: {error.message}", hint=error.hint) from error


def parse_span(name: str, value: object) -> TensorSpan:
    """Returns the span of one tensor, its length checked against its dtype and shape."""
    check_name(name)
    if not isinstance(value, dict) or not value.keys() >= FIELDS:
        got = sorted(value) if isinstance(value, dict) else value
        raise FormatError(f"expected dtype, shape and data_offsets, got {str(got)[:200]}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    check_integers(shape, "shape")
    check_integers(offsets, "data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"unknown dtype {str(dtype)[:40]!r}", hint=f"known dtypes: {', '.join(DTYPES)}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"data_offsets: expected [start, end], got {offsets[:8]}")
    start, end = offsets
    expected = size_bytes(dtype, shape)
    if end - start != expected:
        raise FormatError(f"data_offsets: expected {expected} bytes for {dtype} {shape}, got {end - start}")
    return TensorSpan(name, dtype, tuple(shape), start, end)


def check_integers(value: object, field: str) -> None:
    """Refuses what is no short list of integers from 0 to 2**63 - 1."""
    if not isinstance(value, list) or len(value) > 64:
        raise FormatError(f"{field}: expected a list of at most 64 integers")
    for item in value:
        if type(item) is not int or not 0 <= item < 2**63:
            raise FormatError(f"{field}: expected integers from 0 to 2**63 - 1, got {str(item)[:40]}")


def check_name(name: str) -> None:
    """Refuses names that could be mistaken for paths, hide characters, or are not in Unicode's composed form."""
    if len(name) <= MAX_NAME_BYTES and PLAIN_NAME.fullmatch(name):
        return
    try:
        too_long = len(name.encode()) > MAX_NAME_BYTES
    except UnicodeEncodeError as error:
        raise FormatError("name is not valid Unicode") from error
    if not name or too_long:
        raise FormatError(f"name: expected 1 to {MAX_NAME_BYTES} bytes")
    plain = name.isascii() and name.isprintable()
    if not plain and any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in name):
        raise FormatError("name holds control characters")
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or DRIVE.match(name):
        raise FormatError("name looks like a path out of its folder")
    if not plain and unicodedata.normalize("NFC", name) != name:
        raise FormatError("name is not in Unicode's composed form (NFC)")


def check_contiguous(spans: Sequence[TensorSpan], source: str) -> None:
    """Refuses holes and overlaps."""
    position = 0
    for span in spans:
        if span.start != position:
            problem = "overlaps the tensor before it" if span.start < position else "leaves a hole before it"
            raise FormatError(f"{source}: tensor {span.name!r}: {problem}: starts at {span.start}, expected {position}")
        position = span.end


def check_end(expected: int, got: int, source: str) -> None:
    """Refuses data that is cut short or goes on."""
    if expected > got:
        raise FormatError(
            f"{source}: truncated: the header describes {expected} bytes of tensors, the file holds {got}"
        )
    if expected < got:
        raise FormatError(f"{source}: {got - expected} bytes after the last tensor, expected none")


def build_header(tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]) -> Header:
    """Returns the header that the reference writer (safetensors 0.8) gives to (name, dtype, shape) triples.

    Tensors lie by dtype, wide ones first, then by name; spaces pad the header to a multiple of 8.

    Raises:
        FormatError: a name that comes twice or may not be, an unknown dtype, an impossible shape.
    """
    ordered = sorted(tensors, key=lambda t: (-RANK.get(t[1], 0), t[0].encode()))
    spans: list[TensorSpan] = []
    position = 0
    for name, dtype, shape in ordered:
        try:
            check_name(name)
        except FormatError as error:
            raise FormatError(f"tensor {name[:200]!r}: {error.message}") from error
        end = position + size_bytes(dtype, shape)
        spans.append(TensorSpan(name, dtype, tuple(shape), position, end))
        position = end
    if len({span.name for span in spans}) != len(spans):
        raise FormatError("two tensors of one name")
    table: Table = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    table.update({s.name: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [s.start, s.end]} for s in spans})
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Header(struct.pack("<Q", len(text)) + text, tuple(spans), dict(metadata))
