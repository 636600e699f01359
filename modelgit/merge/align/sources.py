"""A model with its units in another order, read tensor by tensor (a `TensorSource`)."""

from collections.abc import Iterator, Sequence

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import FRAME_BYTES, TensorSource
from modelgit.merge.align.spec import Permutations, Spec, source_index
from modelgit.store.identity import frame_count, frame_size, leaf, root


class PermutedTensors:
    """The tensors of a source, permuted when they are read; one at a time is in memory, and none is stored."""

    def __init__(self, source: TensorSource, spec: Spec, found: Permutations) -> None:
        self._source, self._found, self._axes = source, found, spec.tensors()
        self._entries: dict[str, TensorEntry] = {}

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id after permuting. Raises FormatError for an unknown name."""
        if name not in self._entries:
            entry = self._source.entry(name)
            if name in self._axes:
                leaves = b"".join(leaf(frame) for frame in self.frames(name))
                oid = root("tensor", size_bytes(entry.dtype, entry.shape), leaves).hex()
                entry = TensorEntry(name, entry.dtype, entry.shape, oid)
            self._entries[name] = entry
        return self._entries[name]

    def fleeting(self, name: str) -> bool:
        """Return whether a tensor is made here: a merge is stored without reference to it."""
        return name in self._axes

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in frames. Raises as the source does."""
        if name not in self._axes:
            yield from self._source.frames(name)
            return
        data = self._permuted(name)
        for number in range(frame_count(len(data))):
            start = number * FRAME_BYTES
            yield memoryview(data)[start : start + frame_size(len(data), number)]

    def _permuted(self, name: str) -> bytes:
        entry, raw = self._source.entry(name), b"".join(bytes(frame) for frame in self._source.frames(name))
        values = np.frombuffer(raw, np.uint8).reshape(*entry.shape, -1)
        for axis, groups in self._axes[name].items():
            values = values.take(source_index(entry.shape[axis], groups, self._found), axis)
        return values.tobytes()
