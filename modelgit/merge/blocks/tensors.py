"""One tensor of every model, whole or block by block: what methods are given."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array

T = TypeVar("T")
BLOCK_ELEMENTS = 1 << 16  # of each input: a frame holds whole blocks, and a few of them stay in the cache


def grid(shape: Sequence[int], *, whole_rows: bool) -> tuple[int, int]:
    """Return how many elements a block has, and a row of it: 0 where blocks are flat."""
    row = shape[-1] if whole_rows and shape else 0
    return (max(1, BLOCK_ELEMENTS // row) * row, row) if row else (BLOCK_ELEMENTS, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """One tensor of every model: `heads` (M arrays of one shape), a weight each, the base where there is one.

    `name` is the tensor's and `keys` are the ids of the heads: what random methods are seeded from. `heads` may load
    each array when it is asked for, and keep none: go through them one after another (`delta`) where that is possible.
    A block is the same for a part of a tensor, which begins at element `start`; a method with `task_vectors` finds the
    differences in `differences` there, and no heads. Where a method asks for statistics, `statistics` are those of the
    heads for this tensor (or part), none where nothing is known of it; `sizes` are their norms over whole models.
    """

    heads: Sequence[Array]
    weights: Sequence[float]
    base: Array | None = None
    name: str = ""
    keys: Sequence[str] = ()
    start: int = 0
    differences: Sequence[Array] | None = None
    statistics: Sequence[Array] = ()
    sizes: Sequence[float] = ()

    def origin(self) -> Array:
        """Return the base. Raises UsageError without one."""
        if self.base is None:
            raise UsageError(f"tensor {self.name!r}: differences to a base are asked for, and there is none.")
        return self.base

    def delta(self, head: int) -> Array:
        """Return head - base for one head, to be changed at will. Raises UsageError without a base."""
        if self.differences is not None:
            return self.differences[head]
        difference: Array = self.heads[head] - self.origin()
        return difference

    def deltas(self) -> list[Array]:
        """Return head - base for every head, all at once. Raises UsageError without a base."""
        return [self.delta(i) for i in range(len(self.differences or self.heads))]


class Tensor(Protocol):
    """One tensor of every model, to be looked at block by block."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def weights(self) -> Sequence[float]:
        """A weight for each head."""

    @property
    def keys(self) -> Sequence[str]:
        """The ids of the heads."""

    @property
    def model(self) -> Any:
        """What the method's `survey` found over all tensors; None for a method that has none."""

    @property
    def unchanged(self) -> bool:
        """Whether all heads have it as the base has: then it has no blocks. Only a `survey` meets such a tensor."""

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of every block, in the order of the blocks; it may run in several threads at once.

        With `every`, only one block in so many is looked at, the first among them: a sample.

        Each call reads all inputs again (or finds them in memory, when they are few). Blocks are the same in every
        call, and lie in scratch memory that is used again: `look` must keep no part of one.
        """


@dataclasses.dataclass(slots=True)
class ArrayTensor:
    """A tensor at hand (a `Tensor`)."""

    inputs: Inputs
    whole_rows: bool = False
    model: object = None

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.inputs.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self.inputs.heads[0].shape

    @property
    def weights(self) -> Sequence[float]:
        """Return a weight for each head."""
        return self.inputs.weights

    @property
    def keys(self) -> Sequence[str]:
        """Return the ids of the heads."""
        return self.inputs.keys

    @property
    def unchanged(self) -> bool:
        """Return that there is something to look at."""
        return False

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of every block."""
        step, row = grid(self.shape, whole_rows=self.whole_rows)
        heads = [head.reshape(-1) for head in self.inputs.heads]
        statistics = [values.reshape(-1) for values in self.inputs.statistics]
        base = None if self.inputs.base is None else self.inputs.base.reshape(-1)

        def part(values: Array, start: int) -> Array:
            cut = values[start : start + step]
            return cut.reshape(-1, row) if row else cut

        return [
            look(
                dataclasses.replace(
                    self.inputs,
                    heads=[part(head, start) for head in heads],
                    base=None if base is None else part(base, start),
                    start=start,
                    statistics=[part(values, start) for values in statistics],
                )
            )
            for start in range(0, math.prod(self.shape), step * every)
        ]
