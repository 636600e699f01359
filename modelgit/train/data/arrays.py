"""Arrays in an .npz or .safetensors file: `x` or `inputs`, `y` or `labels`, `domain`; nothing is ever unpickled.

What numbers mean may stand beside them, as `classes` and `domains`: arrays of text in an .npz, JSON lists in the
metadata of a .safetensors file. Headers are checked against the size of the file before an array is made.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError, FormatError
from modelgit.formats.dtypes import DTYPES
from modelgit.formats.safetensors import read_header
from modelgit.train.config import DataConfig
from modelgit.train.data.columns import USUAL, Table, Told, Values, choose, gather
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.rows import Rows, assemble, check_amount, words_of

INPUTS = ("x", "inputs")
MEANINGS = ("classes", "domains")
MAX_BYTES = 64 * 1024**3
MOST_DEFLATED = 1032  # times smaller than it was: more than that no deflated stream can be
CHUNK_BYTES = 64 * 1024 * 1024
BAD_HEADER = (ValueError, SyntaxError, TypeError, OverflowError, TokenError, RecursionError, MemoryError)
BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A file's arrays by name, read when they are taken, and the words that numbers stand for."""

    names: tuple[str, ...]
    take: Callable[[str], Array]
    words: Mapping[str, tuple[str, ...]]


def load_arrays(config: DataConfig) -> Dataset:
    """Returns the examples in an .npz or .safetensors file.

    Raises:
        DataError: it cannot be read, lacks an array, or one is not of a shape or type that can be.
    """
    path = Path(config.path)
    found = tensors(path) if path.suffix.lower() == ".safetensors" else npz(path)
    chosen = choose(config.columns, found.names, INPUTS, config.path)
    x = found.take(chosen.input or "")
    check_inputs(x, config.path)
    classes = found.words.get("classes", ())
    own = config.columns.domain in (None, *USUAL["domain"])  # of another column they are not the words
    domains = found.words.get("domains", ()) if own else ()
    table = Table(found.names, partial(values_of, found, len(x), path), classes, domains)
    return assemble(array_rows(x, table, gather(table, chosen, config, inputs=False)), config)


def values_of(arrays: Arrays, count: int, path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
    """Yields the values of labels, domains and names. Raises DataError if there are not `count` of each."""
    columns = []
    for name in wanted:
        array = arrays.take(name)
        if array.shape != (count,):
            raise DataError(f"{path}: array '{name}': shape {array.shape}, expected ({count},) as there are inputs")
        columns.append(array.tolist())
    for number, values in enumerate(zip(*columns, strict=True)):
        yield f"{path}: example {number + 1}", values


def array_rows(x: Array, table: Table, told: Told) -> Rows:
    """Returns the examples whose inputs are the rows of `x`."""

    def read(indices: Sequence[int]) -> Array:
        return single(x[np.asarray(indices, np.int64)])

    return told.rows(table, "arrays", x.shape[1:], read, lambda index: single(x[index]).tobytes())


def check_inputs(x: Array, path: str) -> None:
    """Raises DataError for what a network cannot be given: no examples by rows, no numbers, none that are finite."""
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise DataError(f"{path}: inputs of shape {x.shape}, expected (examples, …)")
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: inputs of type {x.dtype}, expected numbers")
    check_amount(len(x), path)
    check_finite(x, path)


def single(x: Array) -> Array:
    """Returns bytes as they are, any other numbers in single precision."""
    return np.ascontiguousarray(x, np.uint8 if x.dtype == np.uint8 else np.float32)


def check_finite(x: Array, path: str) -> None:
    """Raises DataError for the first example with a number that is not finite in single precision."""
    if x.dtype.kind != "f":
        return
    at_once = max(1, CHUNK_BYTES // max(1, x[:1].nbytes))
    for start in range(0, len(x), at_once):
        with np.errstate(over="ignore"):
            finite = np.isfinite(single(x[start : start + at_once])).reshape(len(x[start : start + at_once]), -1)
        if len(wrong := np.flatnonzero(~finite.all(1))):
            raise DataError(f"{path}: example {start + int(wrong[0]) + 1}: a number that is not finite")


# ------------------------------------------------------------------------------------------------- npz


def npz(path: Path) -> Arrays:
    """Returns the arrays of an .npz file. Raises DataError for one that cannot be read."""
    try:
        archive = zipfile.ZipFile(path)
    except (*BAD_ZIP, ValueError) as error:
        raise DataError(f"{path}: not an .npz file that can be read: {error}") from error
    entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
    named = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    if len(named) != len(entries):
        raise DataError(f"{path}: two arrays of one name")

    def take(name: str) -> Array:
        return npy(archive, named[name], path)

    wheres = {name: f"{path}: array '{name}'" for name in MEANINGS if name in named}
    return Arrays(tuple(named), take, {n: words_of(text_of(take(n), where), where) for n, where in wheres.items()})


def text_of(array: Array, where: str) -> list[object]:
    """Returns the values of an array of text. Raises DataError for another."""
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"{where}: expected a list of names, got {array.dtype} of shape {array.shape}")
    found: list[object] = array.tolist()
    return found


def npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Array:
    """Returns one array of an archive, its size checked before it is made."""
    where = f"{path}: array {entry.filename.removesuffix('.npy')[:200]!r}"
    try:
        with archive.open(entry) as file:
            check_header(file, entry, path.stat().st_size, where)
        with archive.open(entry) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except BAD_ZIP as error:
        raise DataError(f"{where}: cannot be read: {error}") from error
    except BAD_HEADER as error:
        raise DataError(f"{where}: not an array that can be read: {error}") from error
    return array


def check_header(file: IO[bytes], entry: zipfile.ZipInfo, archive_bytes: int, where: str) -> None:
    """Raises DataError unless an array's header fits the bytes that are there, and they are plain numbers or text."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where}: version {version}, expected (1, 0) or (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "fiubU":
        raise DataError(
            f"{where}: type {str(dtype)[:60]}, expected numbers or text", hint="objects are never unpickled"
        )
    if shape:
        check_amount(shape[0], where)
    held = entry.file_size - file.tell()
    likely = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    most = min(MAX_BYTES, (min(entry.compress_size, archive_bytes) + 16) * MOST_DEFLATED)
    if not likely or held > most or math.prod(shape) * dtype.itemsize != held:
        raise DataError(f"{where}: {str(dtype)[:60]} of shape {shape} in {held} bytes, expected as many as it takes")


# ------------------------------------------------------------------------------------------------- safetensors


def tensors(path: Path) -> Arrays:
    """Returns the tensors of a .safetensors file, mapped into memory. Raises DataError for one that cannot be read."""
    try:
        header = read_header(path)
    except FormatError as error:
        raise DataError(error.message, hint=error.hint) from error
    spans = {span.name: span for span in header.tensors}

    def take(name: str) -> Array:
        span = spans[name]
        kind = DTYPES[span.dtype].numpy
        if kind is None:
            raise DataError(f"{path}: array '{name}': type {span.dtype}, expected F32, U8 or another that NumPy has")
        if span.start == span.end:
            return np.empty(span.shape, kind)
        return np.memmap(path, kind, "r", header.data_start + span.start, span.shape)

    wheres = {name: f"{path}: metadata '{name}'" for name in MEANINGS if name in header.metadata}
    words = {name: words_of(json_list(header.metadata[name], where), where) for name, where in wheres.items()}
    return Arrays(tuple(spans), take, words)


def json_list(text: str, where: str) -> list[object]:
    """Returns a JSON list. Raises DataError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, list):
        raise DataError(f"{where}: expected a JSON list of names, got {text[:60]!r}")
    return found
