"""A model as a set of named tensors to be read piece by piece, wherever they lie."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from modelgit.formats.manifest import TensorEntry

FRAME_BYTES = 4 * 1024 * 1024


class TensorSource(Protocol):
    """Named tensors: a version in the store, a safetensors file, a checkpoint."""

    def names(self) -> Sequence[str]:
        """Returns the names, sorted by their UTF-8 bytes."""

    def entry(self, name: str) -> TensorEntry:
        """Returns dtype, shape and object id of a tensor. Raises FormatError for an unknown name."""

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yields the tensor's little-endian bytes in pieces of FRAME_BYTES, the last one short.

        A piece is valid until the next is asked for.
        """
