"""The record of a version: what it is and how it came to be, as an ordinary file of the tree.

Git tracks it beside the manifest, so it travels with the history and shows in `git diff`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from modelgit.errors import FormatError
from modelgit.repo.repository import Repository

RECORD_PATH = ".modelgit/record.json"
RECORD_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """`kind` is import, train, probe, merge, fold or commit; `head` names the tensors of the classifier.

    `details` is what the kind adds: a recipe and its metrics, or a merge's method and inputs.
    """

    kind: str
    architecture: str | None = None
    classes: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def write_record(record: Record) -> bytes:
    """Returns the record as the bytes git tracks: sorted, indented JSON, so that a diff reads well."""
    return (json.dumps(asdict(record), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse_record(data: bytes, where: str) -> Record:
    """Returns the record in `data`.

    Raises:
        FormatError: it is no record; records come from other people's repositories, so nothing is taken on trust.
    """
    if len(data) > RECORD_LIMIT_BYTES:
        raise FormatError(f"{where}: a record of {len(data)} bytes, expected at most {RECORD_LIMIT_BYTES}")
    try:
        table = json.loads(data)
        words = {key: expect_words(table.get(key, [])) for key in ("classes", "head")}
        architecture, details = table.get("architecture"), table.get("details", {})
        if (
            not isinstance(table["kind"], str)
            or not isinstance(architecture, str | None)
            or not isinstance(details, dict)
        ):
            raise TypeError("a field of another type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where}: not a record of a version: {error}") from error
    return Record(table["kind"], architecture, words["classes"], words["head"], details)


def expect_words(value: object) -> tuple[str, ...]:
    """Returns a list of strings as a tuple."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"expected a list of strings, got {value!r}")
    return tuple(value)


def read_record(repo: Repository, rev: str) -> Record | None:
    """Returns the record of the version, None if it has none."""
    data = repo.read_file(rev, RECORD_PATH)
    return None if data is None else parse_record(data, f"{RECORD_PATH} in {rev}")
