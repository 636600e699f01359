"""What changed weight files held when they were last read, so that looking twice does not read them twice.

The index knows files that are as git has them; this knows the others. It is a cache: whatever is wrong with it, it is
empty. A file is entered only when it is older than the clock's grain, so that a later write must show in its stat.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import urandom
from pathlib import Path

from modelgit.errors import FormatError
from modelgit.formats.manifest import Manifest, parse, write

VERSION = 1
GRAIN_NS = 50_000_000
MAX_TEXT = 64 * 1024 * 1024
KEPT = 256
Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """A manifest's text, and the stat of the file that it describes."""

    key: Key
    text: str


def key_of(stat: os.stat_result) -> Key:
    """Returns size, times and inode of a file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


class StatCache:
    """The cache in one file; read at once, written when something was added."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._old = read_cache(place)
        self._new: dict[str, Known] = {}

    def get(self, path: str, stat: os.stat_result) -> Manifest | None:
        """Returns the manifest of an unchanged file, None if it must be read."""
        known = self._old.get(path)
        if known is None or known.key != key_of(stat):
            return None
        try:
            manifest = parse(known.text, path)
        except FormatError:
            return None
        self._new[path] = known
        return manifest

    def put(self, path: str, stat: os.stat_result, manifest: Manifest) -> None:
        """Enters a file that was read just now and whose stat was the same before and after."""
        if max(stat.st_mtime_ns, stat.st_ctime_ns) + GRAIN_NS < time.time_ns():
            self._new[path] = Known(key_of(stat), write(manifest))

    def save(self) -> None:
        """Writes what was asked for or entered, and forgets the rest; a disk that refuses is no error."""
        if self._new == self._old:
            return
        table = {path: {"stat": list(known.key), "manifest": known.text} for path, known in sorted(self._new.items())}
        text = json.dumps({"version": VERSION, "files": table}, ensure_ascii=False)
        if len(text) > MAX_TEXT:
            return
        replace_text(self.place, text)


class Prints:
    """The prints of weight files that were committed here, by their manifests' blobs, in one file; the last `KEPT`.

    A file whose time was touched is known again by its print, without its ids.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._known = read_prints(place)

    def get(self, sha: str) -> str | None:
        """Returns the print of the file that a manifest describes, None if it is not known."""
        return self._known.get(sha)

    def put(self, sha: str, print_: str | None) -> None:
        """Enters a print; `save` writes it."""
        if print_ is not None:
            self._known.pop(sha, None)
            self._known[sha] = print_

    def save(self) -> None:
        """Writes the prints; a disk that refuses is no error."""
        kept = dict(list(self._known.items())[-KEPT:])
        if kept != read_prints(self.place):
            replace_text(self.place, json.dumps({"version": VERSION, "prints": kept}))


def read_prints(place: Path) -> dict[str, str]:
    """Returns the prints that are kept; none if the file is absent, damaged or another version's."""
    try:
        table = json.loads(place.read_text(encoding="utf-8"))
        if table["version"] != VERSION:
            return {}
        return {str(sha): str(print_) for sha, print_ in table["prints"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def replace_text(place: Path, text: str) -> None:
    """Writes a file through a temporary name; a disk that refuses is no error."""
    scratch = place.with_name(f"{place.name}.{urandom(8).hex()}")
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(place)
    with suppress(OSError):
        scratch.unlink()


def read_cache(place: Path) -> Mapping[str, Known]:
    """Returns what the cache holds; nothing if it is absent, damaged or another version's."""
    try:
        table = json.loads(place.read_text(encoding="utf-8"))
        if table["version"] != VERSION:
            return {}
        return {path: known(row) for path, row in table["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def known(row: Mapping[str, object]) -> Known:
    """Returns one entry. Raises KeyError or TypeError if it is none."""
    numbers, text = row["stat"], row["manifest"]
    if not isinstance(numbers, list) or len(numbers) != 4 or not isinstance(text, str):
        raise TypeError("expected four numbers and a manifest")
    return Known((numbers[0], numbers[1], numbers[2], numbers[3]), text)
