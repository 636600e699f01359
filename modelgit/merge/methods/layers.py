"""Methods whose scale depends on how deep in the network a tensor lies.

Notation: base b, task vectors d_i = x_i - b, weights w_i, layers 0 to L - 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs, Tensor
from modelgit.merge.blocks.vectors import vectors
from modelgit.merge.methods.registry import call_elementwise, method, setting

NUMBER = r"(?:^|\.)(?:layers?|blocks?|h|stages?|convolutions|norms)\.(\d+)(?:\.|$)"
FIRST = r"embed|stem|patch|wte|wpe|tok"


@method("lines", "Wang et al. 2024, LiNeS, arXiv:2410.17146, eq. 3")
@dataclass(frozen=True)
class Lines:
    """Task vectors scaled by depth: b + s(l) sum w_i d_i / sum w_i, s(l) = shallow + (deep - shallow) l / (L - 1).

    General features of early layers are kept closer to the base than the late layers of the task. A tensor's layer is
    the number in its name that `layer` matches; names that `first` matches lie before the first, all others behind
    the last.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    task_vectors: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    shallow: float = setting(0.5, "factor on the mean task vector in the first layer")
    deep: float = setting(1.0, "factor on the mean task vector in the last layer")
    layer: str = setting(NUMBER, "regular expression whose first group is a tensor's layer number")
    first: str = setting(FIRST, "regular expression for tensors without a number that lie before the first layer")

    def __post_init__(self) -> None:
        for name, text in (("layer", self.layer), ("first", self.first)):
            try:
                groups = re.compile(text).groups
            except re.error as error:
                raise UsageError(f"lines: {name}: not a regular expression: {error}.") from error
            if name == "layer" and groups < 1:
                raise UsageError(f"lines: layer: expected a group that is the number, got {text!r}.")

    def number(self, name: str) -> int | None:
        """Return the layer number in a tensor's name, None if there is none."""
        found = re.search(self.layer, name)
        digits = found.group(1) if found else None
        return int(digits) if digits is not None and digits.isdigit() else None

    def survey(self, tensors: Sequence[Tensor]) -> int:
        """Return the number of the last layer."""
        return max((n for tensor in tensors if (n := self.number(tensor.name)) is not None), default=0)

    def facts(self, tensor: Tensor) -> float:
        """Return the factor on the mean task vector."""
        last, number = int(tensor.model or 0), self.number(tensor.name)
        if number is None:
            depth = 0.0 if re.search(self.first, tensor.name) else 1.0
        else:
            depth = number / last if last else 1.0
        return self.shallow + (self.deep - self.shallow) * depth

    def block(self, block: Inputs, facts: float) -> Array:
        """Return b + s sum w_i d_i / sum w_i."""
        total = sum(block.weights)
        if total == 0:
            raise UsageError(f"weights {list(block.weights)} add up to 0 and cannot be normalized.")
        return block.origin() + facts / total * vectors().mix(block.deltas(), block.weights)

    __call__ = call_elementwise
