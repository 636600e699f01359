"""A merge method of one's own, in two forms: modelgit merge BRANCH… --method examples/own_method.py:midrange

A function sees one tensor of all models at a time (`inputs.heads`, `inputs.base`, `inputs.weights`, float64 arrays) and
returns the merged values. A frozen dataclass can have settings (--set share=0.2) and can be streamed in blocks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modelgit.merge.methods import Inputs
from modelgit.merge.methods.registry import call_elementwise, no_facts, setting, within

Array = np.ndarray[Any, Any]


def midrange(inputs: Inputs) -> Array:
    """The middle between the smallest and the largest value of all models, at each place."""
    low, high = inputs.heads[0].copy(), inputs.heads[0].copy()
    for head in inputs.heads:
        np.minimum(low, head, out=low)
        np.maximum(high, head, out=high)
    return (low + high) / 2


@dataclass(frozen=True)
class Winsorized:
    """The mean once a share of the largest and smallest values was set to their neighbours', at each place."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    share: float = setting(0.25, "of the models that are set to their neighbours, at either end")

    def __post_init__(self) -> None:
        within("winsorized: share", self.share, 0, 0.5)

    def block(self, block: Inputs, facts: object) -> Array:
        """Returns the merged values of one block."""
        stacked = np.sort(np.stack(block.heads), axis=0)
        count = min(int(self.share * len(stacked)), (len(stacked) - 1) // 2)
        return np.asarray(np.clip(stacked, stacked[count], stacked[-1 - count]).mean(0))

    facts = no_facts
    __call__ = call_elementwise
