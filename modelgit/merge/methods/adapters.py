"""Methods for LoRA adapters: they merge products of two tensors, not tensors (see `merge/adapters`).

Notation: adapters (A_i, B_i) with scalings s_i, weights w_i; the change of a matrix is s_i B_i A_i.
"""

from dataclasses import dataclass
from typing import ClassVar

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.methods.registry import method, setting

SOURCE = "Hu et al. 2021, LoRA, arXiv:2106.09685"


@method("lora_cat", f"{SOURCE}; the mean of products as one product")
@dataclass(frozen=True)
class LoraCat:
    """The weighted mean of adapters, exact: sum w_i s_i B_i A_i / sum w_i, as one adapter.

    Its rank is the sum of the ranks: the A_i below each other, the scaled B_i beside each other. Other tensors
    (trained heads) take the weighted mean.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    adapters: ClassVar[bool] = True

    @property
    def truncated(self) -> int | None:
        """None: no rank is cut off."""
        return None

    def __call__(self, inputs: Inputs) -> Array:
        raise no_tensor(self.name, inputs)  # type: ignore[attr-defined]


@method("lora_svd", f"{SOURCE}; cut off by singular values (Eckart and Young 1936)")
@dataclass(frozen=True)
class LoraSvd:
    """The best approximation of a given rank to the weighted mean of adapters, sum w_i s_i B_i A_i / sum w_i.

    The singular values come from the factors, without forming the matrices; the error is noted with the merge.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    adapters: ClassVar[bool] = True
    rank: int = setting(16, "of the result; modules whose ranks add up to less stay exact")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora_svd: rank: expected a number of 1 or more, got {self.rank}.")

    @property
    def truncated(self) -> int | None:
        """The rank that is left."""
        return self.rank

    def __call__(self, inputs: Inputs) -> Array:
        raise no_tensor(self.name, inputs)  # type: ignore[attr-defined]


def no_tensor(name: str, inputs: Inputs) -> UsageError:
    """Returns the error for asking for one tensor of a product."""
    return UsageError(f"{name} merges adapters as a whole: tensor {inputs.name!r} alone has no merge")
