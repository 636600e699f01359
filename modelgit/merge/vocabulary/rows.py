"""A model with the rows of its tokens in another order, read tensor by tensor (a `TensorSource`).

A row whose token the model does not know is the mean of the rows of the models that do: the mean of all models is then
the mean of those, and a task vector says nothing about a token that its task never met.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelgit.errors import UsageError
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import FRAME_BYTES, TensorSource
from modelgit.merge.engine.reading import widened
from modelgit.merge.vocabulary.naming import is_embedding
from modelgit.merge.vocabulary.tokens import Vocabulary
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, NARROW
from modelgit.store.codec.arrays import Array as Typed
from modelgit.store.codec.arrays import Bytes
from modelgit.store.identity import frame_count, frame_size, leaf, root

NONE = -1

Index = Typed[np.int64]


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models: its tensors, its vocabulary, and how many rows it has for tokens (some may be unused)."""

    source: TensorSource
    vocabulary: Vocabulary
    rows: int


def row_index(model: Model, wanted: Vocabulary, rows: int) -> Index:
    """Returns for each of `rows` which row of the model it is, NONE where the model has none for its token."""
    names, own = wanted.names(), model.vocabulary.names()
    index = np.full(rows, NONE, np.int64)
    for row in range(rows):
        token = names.get(row)
        if token is not None:
            index[row] = model.vocabulary.ids.get(token, NONE)
        elif row < model.rows and row not in own:
            index[row] = row  # neither has a token there
    return index


def token_tensors(models: Sequence[Model]) -> tuple[str, ...]:
    """Returns the tensors whose first axis are tokens: as long as it in each model, under a name that says so.

    Where the models have different numbers of rows and a tensor is as long in each, it needs no such name.
    """
    apart = len({model.rows for model in models}) > 1
    have = [{name: model.source.entry(name).shape for name in model.source.names()} for model in models]
    found = []
    for name in sorted(set().union(*have)):
        shapes = [(shapes[name], model.rows) for shapes, model in zip(have, models, strict=True) if name in shapes]
        if all(shape and shape[0] == rows for shape, rows in shapes):
            differ = apart and len({rows for _, rows in shapes}) > 1 and "position" not in name
            if differ or is_embedding(name):
                found.append(name)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where rows come from: for each model (by a key of the caller's) an index, and the tensors that it is true of.

    Rows that a model lacks are the mean over `heads`, a base being none of them.
    """

    tensors: frozenset[str]
    rows: int
    models: Mapping[str, Model]
    index: Mapping[str, Index]
    heads: frozenset[str]
    filled: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def still(self, key: str) -> bool:
        """Returns whether a model's rows stay where they are."""
        model = self.models[key]
        return model.rows == self.rows and bool((self.index[key] == np.arange(self.rows)).all())

    def missing(self, name: str) -> dict[int, bytes]:
        """Returns the rows that some models have no token for, each the mean of those that have one, as bytes."""
        if name not in self.filled:
            places = np.flatnonzero(np.any([index == NONE for index in self.index.values()], 0))
            self.filled[name] = self._means(name, places) if places.size else {}
        return self.filled[name]

    def _means(self, name: str, places: Index) -> dict[int, bytes]:
        sources = {key: self.models[key].source for key in self.heads}
        have = [(source.entry(name), key) for key, source in sources.items() if name in set(source.names())]
        holders = sorted(have, key=lambda holder: (holder[0].oid, holder[1]))
        dtype, width = holders[0][0].dtype, row_bytes(holders[0][0])
        if dtype not in ARITHMETIC_WIDTHS:
            raise UsageError(f"tensor {name!r}: no mean of rows of type {dtype}", hint="--vocabulary ours")
        total = np.zeros((places.size, width // ARITHMETIC_WIDTHS[dtype]))
        count = np.zeros(places.size)
        for _, key in holders:
            index = self.index[key][places]
            own = raw_rows(self.models[key].source, name).take(index, 0)
            values = widened(own.reshape(-1).data, dtype).reshape(total.shape)
            total += np.where((index != NONE)[:, None], values, 0.0)
            count += index != NONE
        means = NARROW[dtype]((total / np.maximum(count, 1)[:, None]).reshape(-1)).view(np.uint8)
        rows = means.reshape(places.size, width)
        return {int(place): rows[i].tobytes() for i, place in enumerate(places)}


def row_bytes(entry: TensorEntry) -> int:
    """Returns the bytes of one row."""
    return size_bytes(entry.dtype, (1, *entry.shape[1:]))


def raw_rows(source: TensorSource, name: str) -> Bytes:
    """Returns a tensor's bytes, (rows, bytes of a row)."""
    entry = source.entry(name)
    raw = np.empty(size_bytes(entry.dtype, entry.shape), np.uint8)
    start = 0
    for frame in source.frames(name):
        raw[start : start + frame.nbytes] = np.frombuffer(frame, np.uint8)
        start += frame.nbytes
    return raw.reshape(entry.shape[0], row_bytes(entry))


class TokenTensors:
    """The tensors of a model, the rows of its tokens in the layout's order; one tensor at a time is in memory."""

    def __init__(self, source: TensorSource, layout: Layout, key: str) -> None:
        self._source, self._layout, self._key = source, layout, key
        self._entries: dict[str, TensorEntry] = {}

    def names(self) -> Sequence[str]:
        """Returns the tensors' names, sorted."""
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        """Returns a tensor's dtype, shape and id in the new order. Raises FormatError for an unknown name."""
        if name not in self._entries:
            entry = self._source.entry(name)
            if name in self._layout.tensors:
                shape = (self._layout.rows, *entry.shape[1:])
                leaves = b"".join(leaf(frame) for frame in self.frames(name))
                oid = root("tensor", size_bytes(entry.dtype, shape), leaves).hex()
                entry = TensorEntry(name, entry.dtype, shape, oid)
            self._entries[name] = entry
        return self._entries[name]

    def fleeting(self, name: str) -> bool:
        """Returns whether a tensor is made here: a merge is stored without reference to it."""
        return name in self._layout.tensors

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yields a tensor's bytes in frames. Raises as the source does."""
        if name not in self._layout.tensors:
            yield from self._source.frames(name)
            return
        index = self._layout.index[self._key]
        rows = raw_rows(self._source, name).take(index, 0)
        missing = self._layout.missing(name)
        for place in np.flatnonzero(index == NONE).tolist():
            rows[place] = np.frombuffer(missing[place], np.uint8)
        data = rows.reshape(-1)
        for number in range(frame_count(data.nbytes)):
            start = number * FRAME_BYTES
            yield data.data[start : start + frame_size(data.nbytes, number)]
