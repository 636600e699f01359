"""A data set as the trainer sees it, whatever it is kept in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from modelgit.errors import DataError

Integers = npt.NDArray[np.int64]
Kind = Literal["images", "arrays", "text"]
Inputs = npt.NDArray[Any] | list[str]
CHUNK = 4096  # examples looked at together


@dataclass(frozen=True, slots=True)
class Dataset:
    """`n` examples by index; `digest` identifies their names, labels, domains and contents.

    `shape` is that of one input, () for a text. `read` gives the inputs at some indices; use `inputs`. `contents` are
    digests of each example's, where loading found them: use `contents_of`. `notes` tell what looks odd in it.
    """

    path: str
    kind: Kind
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    labels: Integers  # (n,)
    domain_ids: Integers  # (n,)
    names: tuple[str, ...]
    digest: str
    shape: tuple[int, ...]
    read: Callable[[Sequence[int]], Inputs]
    contents: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()

    def inputs(self, indices: Sequence[int]) -> Inputs:
        """Returns the examples at `indices`.

        Images are (n, 3, size, size) uint8, RGB on white; arrays (n, *shape) float32 or uint8; text a list of strings.

        Raises:
            DataError: an example that cannot be read.
        """
        return self.read(indices)


def arrays_of(dataset: Dataset, indices: Sequence[int]) -> npt.NDArray[Any]:
    """Returns the inputs at `indices` as one array. Raises DataError where they are texts."""
    found = dataset.inputs(indices)
    if isinstance(found, list):
        raise DataError(f"{dataset.path}: texts, expected images or arrays", hint="this network reads numbers")
    return found


def contents_of(dataset: Dataset) -> tuple[bytes, ...]:
    """Returns a digest of each example's content, label and domain left out: equal for the same example elsewhere."""
    if dataset.contents:
        return dataset.contents
    found: list[bytes] = []
    for start in range(0, len(dataset.labels), CHUNK):
        rows = dataset.inputs(range(start, min(start + CHUNK, len(dataset.labels))))
        texts = (row.encode() for row in rows) if isinstance(rows, list) else (row.tobytes() for row in rows)
        found.extend(blake3(text).digest() for text in texts)
    return tuple(found)
