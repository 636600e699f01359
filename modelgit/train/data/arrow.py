"""Arrow tables: Parquet files, and the folders that `save_to_disk` of Hugging Face's `datasets` writes.

The folders are read as the Arrow streams that they are; `datasets` is not needed, and nothing in them is ever run. A
column of text makes texts, one of lists of equal length arrays, one of encoded pictures (`bytes`) images.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data.arrays import array_rows, check_inputs
from modelgit.train.data.columns import Table, Told, Values, choose, gather, texts
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.images import decode_all
from modelgit.train.data.rows import Rows, assemble, check_amount, listed, words_of

INPUTS = ("text", "x", "inputs", "image")
MAX_BYTES = 64 * 1024**3
MAX_JSON = 16 * 1024 * 1024
MAX_DIMENSIONS = 8
AT_ONCE = 1024  # rows turned into Python values together
Arrow = Any  # a pyarrow.Table: its package has no types


def load_parquet(config: DataConfig) -> Dataset:
    """Returns the examples in a Parquet file.

    Raises:
        DataError: it cannot be read, lacks a column, or a value is none that the column may hold.
    """
    arrow, path = pyarrow(), Path(config.path)
    try:
        with arrow.parquet.ParquetFile(path) as file:
            check_amount(file.metadata.num_rows, config.path)
            chosen = choose(config.columns, file.schema_arrow.names, INPUTS, config.path)
            features = features_in(file.schema_arrow.metadata, path)
            table = gathered(file.iter_batches(AT_ONCE, columns=columns_of(chosen)), path)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
    return from_arrow(table, class_names(features, path), config)


def load_saved(config: DataConfig) -> Dataset:
    """Returns the examples in a folder that `save_to_disk` wrote, mapped into memory.

    Raises:
        DataError: it cannot be read, lacks a column, or a value is none that the column may hold.
    """
    path = Path(config.path)
    if (path / "dataset_dict.json").is_file():
        parts = read_json(path / "dataset_dict.json").get("splits")
        hint = f"name one of them: {listed([str(path / str(part)) for part in parts])}" if parts else None
        raise DataError(f"{path}: several data sets in one folder", hint=hint)
    tables = [read_stream(file, config) for file in data_files(path)]
    try:
        table = pyarrow().concat_tables(tables)
    except (pyarrow().ArrowException, ValueError) as error:
        raise DataError(f"{path}: files of different columns: {error}") from error
    info = path / "dataset_info.json"
    return from_arrow(table, class_names(read_json(info).get("features"), info), config)


def read_stream(file: Path, config: DataConfig) -> Arrow:
    """Returns the wanted columns of an Arrow stream, mapped into memory, all their offsets checked."""
    arrow = pyarrow()
    try:
        with arrow.memory_map(str(file)) as mapped, arrow.ipc.open_stream(mapped) as stream:
            chosen = choose(config.columns, stream.schema.names, INPUTS, config.path)
            table = gathered(stream, file).select(columns_of(chosen))
            table.validate(full=True)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not an Arrow stream that can be read: {error}") from error
    return table


def columns_of(chosen: Columns) -> list[str]:
    """Returns the columns that are read."""
    found = (chosen.input, chosen.label, chosen.domain, chosen.name)
    return list(dict.fromkeys(name for name in found if name is not None))


def gathered(batches: Iterable[Any], path: Path) -> Arrow:
    """Returns batches as one table. Raises DataError as soon as they hold too much, or where there are none."""
    parts, total = [], 0
    for batch in batches:
        total += batch.nbytes
        if total > MAX_BYTES:
            raise DataError(f"{path}: more than {MAX_BYTES} bytes")
        parts.append(batch)
    if not parts:
        raise DataError(f"{path}: no examples")
    return pyarrow().Table.from_batches(parts)


def data_files(path: Path) -> list[Path]:
    """Returns the folder's Arrow files, in order. Raises DataError for a name that is none of a file in it."""
    listed = read_json(path / "state.json").get("_data_files")
    names = [row.get("filename") for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    if not names:
        raise DataError(f"{path / 'state.json'}: no data files")
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
        if not plain or (path / str(name)).is_symlink():
            raise DataError(f"{path / 'state.json'}: data file {name!r}: expected a file in the folder")
    return [path / str(name) for name in names]


def features_in(metadata: Mapping[bytes, bytes] | None, path: Path) -> object:
    """Returns what `datasets` wrote of the columns into a Parquet file's schema; None if nothing."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        return json.loads(text)["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its features cannot be read: {error!r}") from error


def class_names(features: object, path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the names that the numbers of a column stand for, by column."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[column] = words_of(names, f"{path}: column {column!r}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Returns a file's JSON object. Raises DataError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise DataError(f"{path}: more than {MAX_JSON} bytes")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object")
    return found


# ------------------------------------------------------------------------------------------------- columns


def from_arrow(table: Arrow, names: Mapping[str, tuple[str, ...]], config: DataConfig) -> Dataset:
    """Returns the examples of an Arrow table; `names` are what a column's numbers stand for."""
    types, path = pyarrow().types, config.path
    check_amount(table.num_rows, path)
    chosen = choose(config.columns, table.column_names, INPUTS, path)
    meanings = [names.get(column or "", ()) for column in (chosen.label, chosen.domain)]
    rows = Table(tuple(table.column_names), partial(values_of, table, path), meanings[0], meanings[1])
    column = table.column(chosen.input)
    if holds_text(column.type):
        return assemble(texts(rows, config), config)
    told = gather(rows, chosen, config, inputs=False)
    if types.is_struct(column.type):
        return assemble(image_rows(column, rows, told, config), config)
    x = array_of(column, f"{path}: column '{chosen.input}'")
    check_inputs(x, path)
    return assemble(array_rows(x, rows, told), config)


def holds_text(kind: Any) -> bool:
    """Tells whether a column of this type holds texts."""
    types = pyarrow().types
    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner))


def values_of(table: Arrow, path: str, wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
    """Yields the wanted values of every row."""
    done = 0
    for batch in table.select(wanted).to_batches(AT_ONCE):
        columns = [column.to_pylist() for column in batch.columns]
        for number, values in enumerate(zip(*columns, strict=True), done + 1):
            yield f"{path}: example {number}", values
        done += batch.num_rows


def image_rows(column: Any, table: Table, told: Told, config: DataConfig) -> Rows:
    """Returns encoded pictures as images. Raises DataError for one that is kept elsewhere: names are never paths."""
    path, size = config.path, config.image_size
    if "bytes" not in [column.type.field(number).name for number in range(column.type.num_fields)]:
        raise DataError(f"{path}: inputs of type {column.type}, expected texts, lists of numbers, or pictures as bytes")

    def encoded(index: int) -> bytes:
        found = column[index].as_py()
        if found is None or found["bytes"] is None:
            raise DataError(f"{path}: example {index + 1}: no picture's bytes, a path is not followed")
        data: bytes = found["bytes"]
        return data

    def read(indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        return decode_all(((encoded(index), f"{path}: example {index + 1}") for index in indices), len(indices), size)

    return told.rows(table, "images", (3, size, size), read, encoded)


def array_of(column: Any, where: str) -> npt.NDArray[Any]:
    """Returns a column of (lists of …) numbers as one array. Raises DataError for lists of different lengths."""
    types, compute = pyarrow().types, pyarrow().compute
    values, shape = column.combine_chunks(), [len(column)]
    while True:
        values = getattr(values, "storage", values)  # how datasets marks arrays of several dimensions
        if values.null_count:
            raise DataError(f"{where}: a value is missing")
        if not (
            types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type)
        ):
            break
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or len(shape) > MAX_DIMENSIONS:
            raise DataError(f"{where}: lists of different lengths, expected arrays of one shape")
        shape.append(lengths[0])
        values = values.flatten()
    if not (types.is_floating(values.type) or types.is_integer(values.type) or types.is_boolean(values.type)):
        raise DataError(f"{where}: {column.type}, expected texts, lists of numbers, or pictures as bytes")
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(shape)
    return found


def pyarrow() -> Any:
    """Returns the package that reads Arrow and Parquet. Raises DependencyMissing without it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        hint = "pip install 'modelgit[tables]'"
        raise DependencyMissing("reading Parquet and saved data sets needs PyArrow", hint=hint) from error
    return pyarrow
