"""How a page gets to its file: whole, or not at all."""

import os
from pathlib import Path

from modelgit.errors import StorageFull


def write_text(path: Path, text: str, *, hint: str) -> None:
    """Writes a file through a temporary name; its folder is made if it is not there.

    Raises:
        StorageFull: it cannot be written; with the hint.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageFull(f"cannot write {path}: {error.strerror}", hint=hint) from error
