"""Methods that go as far from the base as the models agree.

Notation: heads x_i, base b, differences d_i = x_i - b. Everything is per tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modelgit.merge.methods.linear_form import Array, LinearForm, about_base, cosine_of
from modelgit.merge.methods.registry import call_fitted, method


@method("model_stock", "Jang et al. 2024, arXiv:2403.19522")
@dataclass(frozen=True)
class ModelStock:
    """Between base and mean, as far as the models agree: t * mean + (1 - t) b, t = N c / (1 + (N - 1) c).

    c is the mean cosine of the angles between the d_i, tensor by tensor. Cosines are taken in float64 and not
    clamped, so that small tensors are not drawn to the base; where the models do not agree (c <= 0) t is 0.
    """

    heads: ClassVar[tuple[int, int | None]] = (2, None)
    weighted: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return t / N on each head and 1 - t on the base."""
        n = len(products)
        cosines = [cosine_of(products, i, j) for i in range(n) for j in range(i + 1, n)]
        c = max(0.0, math.fsum(cosines) / len(cosines))
        t = n * c / (1 + (n - 1) * c)
        return about_base(LinearForm((t,) * n, divisor=float(n)))

    __call__ = call_fitted
