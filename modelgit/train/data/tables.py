"""Text in tables: CSV and JSON lines, a row an example; what a column is called is told, or usual.

Lines are read one at a time and measured first, so that no file makes a reader set aside more than a row may hold.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from modelgit.errors import DataError
from modelgit.train.config import DataConfig
from modelgit.train.data.columns import Table, Values, texts
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.rows import assemble

MAX_COLUMNS = 10_000
MAX_LINE = 16 * 1024 * 1024
MAX_FILE = 8 * 1024**3
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def load_table(config: DataConfig) -> Dataset:
    """Returns the texts of a CSV, TSV or JSON lines file.

    Raises:
        DataError: it cannot be read, lacks a column, or a value is none that the column may hold.
    """
    path = Path(config.path)
    delimiter = DELIMITERS.get(path.suffix.lower())
    return assemble(texts(delimited(path, delimiter) if delimiter else json_lines(path), config), config)


def delimited(path: Path, delimiter: str) -> Table:
    """Returns a CSV or TSV, whose first row names the columns."""
    return Table(header_of(path, delimiter), partial(delimited_rows, path, delimiter))


def header_of(path: Path, delimiter: str) -> tuple[str, ...]:
    """Returns the names of the columns. Raises DataError for none, too many, or two of one name."""
    with opened(path) as file, long_fields():
        header = next(reader(file, path, delimiter), (0, []))[1]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if not header or twice or len(header) > MAX_COLUMNS:
        got = f"'{twice[0]}' twice" if twice else f"{len(header)} columns"
        raise DataError(f"{path}: expected a first line that names at most {MAX_COLUMNS} columns, got {got}")
    return tuple(header)


def delimited_rows(path: Path, delimiter: str, wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
    """Yields the values of every row that is not empty. Raises DataError for one of another length."""
    with opened(path) as file, long_fields():
        rows = reader(file, path, delimiter)
        header = next(rows, (0, []))[1]
        places = [header.index(name) for name in wanted]
        for line, row in rows:
            if len(row) != len(header):
                raise DataError(f"{path}: line {line}: {len(row)} columns, expected {len(header)}")
            yield f"{path}: line {line}", [row[place] for place in places]


def reader(file: TextIO, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields rows with the number of the line that each ends on; empty lines are left out."""
    rows = csv.reader(lines(file, path), delimiter=delimiter, strict=True)
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}") from error


def json_lines(path: Path) -> Table:
    """Returns a file of one JSON object a line; the first one's keys are the columns."""
    first = next(objects(path), None)
    return Table(tuple(first[1]) if first is not None else (), partial(json_rows, path))


def json_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
    """Yields the wanted values of every object. Raises DataError for one that lacks a key."""
    for where, found in objects(path):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise DataError(f"{where}: no '{missing[0]}', which the first line has")
        yield where, [found[name] for name in wanted]


def objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields each line's object and where it stands; empty lines are left out."""
    with opened(path) as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: not JSON: {error}") from error
            if not isinstance(found, dict):
                raise DataError(f"{path}: line {number}: expected an object, got {line.strip()[:60]!r}")
            yield f"{path}: line {number}", found


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yields lines. Raises DataError for one that is too long, or bytes that are no UTF-8."""
    number = 0
    try:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise DataError(f"{path}: line {number}: more than {MAX_LINE} characters")
            yield line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {number + 1} or after: not UTF-8: {error}") from error


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Opens a text file; line ends stay as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size > MAX_FILE:
                raise DataError(
                    f"{path}: {size} bytes, expected at most {MAX_FILE}", hint="keep it as Parquet, in parts"
                )
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


@contextmanager
def long_fields() -> Iterator[None]:
    """Lets fields of a CSV be as long as a line, where Python's reader would stop at 128 KiB."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)
