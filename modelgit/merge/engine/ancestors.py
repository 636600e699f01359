"""The base of a merge whose history has several: the mean of the common ancestors, read tensor by tensor.

Git's recursive strategy merges the ancestors to get one; for weights, merging is averaging.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.reading import widened
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, NARROW
from modelgit.store.identity import leaf, root


class MeanTensors:
    """The uniform mean of several models (a `TensorSource`); their order reaches no byte.

    A tensor that is not the same kind of thing in all of them, or that cannot be averaged, is the one with the
    smallest id.
    """

    def __init__(self, sources: Sequence[TensorSource]) -> None:
        self._sources = sources
        self._entries: dict[str, TensorEntry] = {}

    def names(self) -> Sequence[str]:
        """Return the names of all tensors, sorted."""
        return sorted(set().union(*(source.names() for source in self._sources)), key=str.encode)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id; reads it where the ancestors differ. Raises FormatError."""
        if name not in self._entries:
            holders = self._holders(name)
            entry = holders[0][1]
            if len(holders) > 1:
                leaves = b"".join(leaf(frame) for frame in self.frames(name))
                oid = root("tensor", size_bytes(entry.dtype, entry.shape), leaves).hex()
                entry = TensorEntry(name, entry.dtype, entry.shape, oid)
            self._entries[name] = entry
        return self._entries[name]

    def fleeting(self, name: str) -> bool:
        """Return whether a tensor is made here: no recipe may refer to it."""
        return len(self._holders(name)) > 1

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in frames. Raises as the sources do."""
        holders = self._holders(name)
        if len(holders) == 1:
            yield from holders[0][0].frames(name)
            return
        dtype = holders[0][1].dtype
        for frames in zip(*(source.frames(name) for source, _ in holders), strict=True):
            total = widened(frames[0], dtype).copy()
            for frame in frames[1:]:
                total += widened(frame, dtype)
            yield NARROW[dtype](total / len(frames)).view(np.uint8).data

    def _holders(self, name: str) -> list[tuple[TensorSource, TensorEntry]]:
        """Return the sources whose tensors are averaged, in the order of their ids; one, if nothing is."""
        found = [(source, source.entry(name)) for source in self._sources if name in set(source.names())]
        found.sort(key=lambda holder: holder[1].oid)
        kinds = {(entry.dtype, entry.shape) for _, entry in found}
        same = len({entry.oid for _, entry in found}) == 1
        if not found or same or len(kinds) > 1 or found[0][1].dtype not in ARITHMETIC_WIDTHS:
            return found[:1] or [(self._sources[0], self._sources[0].entry(name))]
        return found
