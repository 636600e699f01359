"""Models in memory as raw tensors: read once, averaged as running sums, merged by the engine without a store.

A `State` is what a measure is given: every tensor's entry and its little-endian bytes. Sums are of float64, and rounded
once: a mean equals what the engine stores, but for the order of its sum, which reaches a bit only where float64 rounds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelgit.errors import Conflict
from modelgit.events import ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import FRAME_BYTES, TensorSource
from modelgit.merge.blocks.sums import Array
from modelgit.merge.engine.execution import Work, carry_out
from modelgit.merge.engine.plan import Plan, Step
from modelgit.merge.engine.reading import frame_peak, widened
from modelgit.merge.engine.sinks import Done, Given, Look, Sum
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.engine.windows import Workshop
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, finish
from modelgit.store.identity import frame_count, frame_size
from modelgit.store.writing import Fill

Raw = tuple[TensorEntry, bytearray]
State = Mapping[str, Raw]
Measure = Callable[[State], float]
HELD_BYTES = 1 << 30  # of models that are kept in memory while coefficients are searched


def read_state(source: TensorSource, name: str) -> dict[str, Raw]:
    """Return every tensor of a model, each byte read once; `name` is the model's.

    Raises: MergeConflict of kind "non-finite", naming a tensor with an infinity or what is not a number.
    """
    return {tensor: (source.entry(tensor), raw_of(source, tensor, name)) for tensor in source.names()}


def raw_of(source: TensorSource, tensor: str, name: str) -> bytearray:
    """Return one tensor's bytes. Raises MergeConflict as `read_state` does."""
    raw, dtype = bytearray(), source.entry(tensor).dtype
    for frame in source.frames(tensor):
        if dtype in ARITHMETIC_WIDTHS and frame_peak(frame, dtype) == math.inf:
            got = f"infinity or not-a-number in {name}"
            raise conflict_error([Conflict("non-finite", tensor, "finite values", got)])
        raw += frame
    return raw


@dataclass(slots=True)
class Soup:
    """The mean of models that are kept one after another (a `Tasting`).

    In memory are the sum in float64, one model, and the mean of both. Sources are in the order of their content.
    `reads` counts how often each model was read.
    """

    sources: Sequence[TensorSource]
    names: Sequence[str]
    measure: Measure
    reads: list[int] = field(init=False)
    kept: list[int] = field(default_factory=list)
    sums: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Raw] = field(default_factory=dict)  # what cannot be summed, of the first by content
    at_hand: tuple[int, dict[str, Raw]] | None = None

    def __post_init__(self) -> None:
        self.reads = [0] * len(self.sources)

    def alone(self, head: int) -> float:
        """Return the score of one model by itself."""
        return self.measure(self.load(head))

    def tasted(self, head: int) -> float:
        """Return the score of the mean of the models kept and this one."""
        return self.measure(self.mean_with(head))

    def mean_with(self, head: int) -> dict[str, Raw]:
        """Return the mean of the models kept and this one; where all have the same tensor, that tensor."""
        first, state = head < min(self.kept, default=head), self.load(head)
        return {name: self._mean(name, raw, first=first) for name, raw in state.items()}

    def keep(self, head: int) -> None:
        """Put a model into the mean; the one at hand is not read again."""
        first, state = head < min(self.kept, default=head + 1), self.load(head)
        for name, (entry, raw) in state.items():
            if entry.dtype in ARITHMETIC_WIDTHS:
                total = self.sums.setdefault(name, np.full(len(raw) // ARITHMETIC_WIDTHS[entry.dtype], -0.0))
                for start in range(0, len(raw), FRAME_BYTES):
                    values = widened(memoryview(raw)[start : start + FRAME_BYTES], entry.dtype)
                    total[start // ARITHMETIC_WIDTHS[entry.dtype] :][: values.size] += values
            elif first:
                self.others[name] = entry, raw
        self.kept.append(head)
        self.at_hand = None

    def load(self, head: int) -> dict[str, Raw]:
        """Return one model, read now unless it is the one at hand. Raises MergeConflict as `read_state` does."""
        if self.at_hand is None or self.at_hand[0] != head:
            self.at_hand = None  # gone before the next one comes
            self.reads[head] += 1
            self.at_hand = head, read_state(self.sources[head], self.names[head])
        return self.at_hand[1]

    def _mean(self, name: str, raw: Raw, *, first: bool) -> Raw:
        entry, data = raw
        if all(self.sources[i].entry(name).oid == entry.oid for i in self.kept):
            return raw
        if entry.dtype not in ARITHMETIC_WIDTHS:
            return raw if first else self.others[name]
        mean = bytearray(len(data))
        width = ARITHMETIC_WIDTHS[entry.dtype]
        for start in range(0, len(data), FRAME_BYTES):
            values = widened(memoryview(data)[start : start + FRAME_BYTES], entry.dtype)
            values += self.sums[name][start // width :][: values.size]
            into = np.frombuffer(mean, np.uint8)[start : start + FRAME_BYTES]
            finish(values, float(len(self.kept) + 1), entry.dtype, into)
        return entry, mean


# ------------------------------------------------------------------------------------------- merges in memory


class Held:
    """A model whose tensors stay in memory once read, shared by id with others, up to a limit (a `TensorSource`)."""

    def __init__(self, source: TensorSource, shelf: dict[str, bytes], limit: int = HELD_BYTES) -> None:
        self._source, self._shelf, self._limit = source, shelf, limit

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id. Raises FormatError for an unknown name."""
        return self._source.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in frames. Raises as the source does."""
        entry = self.entry(name)
        size = size_bytes(entry.dtype, entry.shape)
        if entry.oid not in self._shelf and size + sum(map(len, self._shelf.values())) <= self._limit:
            self._shelf[entry.oid] = b"".join(self._source.frames(name))
        if entry.oid not in self._shelf:
            yield from self._source.frames(name)
            return
        view = memoryview(self._shelf[entry.oid])
        yield from (view[start : start + FRAME_BYTES] for start in range(0, len(view), FRAME_BYTES))


def merged_state(plan: Plan, shop: Workshop) -> dict[str, Raw]:
    """Return what the engine makes of a plan, in memory and bit for bit. Raises MergeConflict as `execute` does."""
    sink = MemorySink()
    carry_out(Work(plan, sink, shop), ignore, lambda: None)
    entries = {step.name: TensorEntry(step.name, step.dtype, step.shape, "") for step in plan.steps}
    return {name: (entries[name], raw) for name, raw in sink.tensors.items()}


@dataclass(slots=True)
class MemorySink:
    """Memory (a `Sink`): a merge that leaves nothing behind."""

    tensors: dict[str, bytearray] = field(default_factory=dict)

    def copy(self, step: Step, given: Given) -> Done:
        """Take an input as it is."""
        source, entry = given
        self.tensors[step.name] = bytearray(b"".join(source.frames(entry.name)))
        return None

    def sum(self, step: Step, total: Sum, look: Look) -> Done:
        """Take a weighted sum's values."""
        return self.values(step, lambda number, into: look(total.fill(number, into)))

    def values(self, step: Step, fill: Fill) -> Done:
        """Take values."""
        size, raw = size_bytes(step.dtype, step.shape), bytearray()
        for number in range(frame_count(size)):
            raw += fill(number, np.empty(frame_size(size, number), np.uint8)).data
        self.tensors[step.name] = raw
        return None

    def again(self, step: Step, earlier: str, done: Done) -> Done:
        """Take what an earlier tensor came to."""
        self.tensors[step.name] = self.tensors[earlier]
        return None
