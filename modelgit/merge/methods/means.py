"""Means of models and sums of task vectors: methods whose coefficients do not depend on the values.

Notation: heads x_i, base b, differences d_i = x_i - b, weights w_i. Everything is per tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modelgit.merge.methods.linear_form import LinearForm, about_base, weighted_mean
from modelgit.merge.methods.registry import call_linear, method, setting


@method("linear", "Wortsman et al. 2022, arXiv:2203.05482; Ramé et al. 2022, arXiv:2205.09739")
@dataclass(frozen=True)
class LinearMean:
    """The weighted mean of the models: sum w_i x_i / sum w_i. With equal weights, the uniform soup."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    normalize: bool = setting(True, "divide by the sum of the weights")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return w_i over their sum."""
        return weighted_mean(weights, normalize=self.normalize)

    __call__ = call_linear


@method("task_arithmetic", "Ilharco et al. 2023, arXiv:2212.04089")
@dataclass(frozen=True)
class TaskArithmetic:
    """The base plus the scaled sum of task vectors: b + scale * sum w_i d_i. Papers scale many by 0.3 to 0.4."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    scale: float = setting(1.0, "factor on the sum of the task vectors")
    normalize: bool = setting(False, "divide the sum by the sum of the weights")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return scale * w_i, and on the base what is left of 1."""
        return about_base(_scaled(weighted_mean(weights, normalize=self.normalize), self.scale))

    __call__ = call_linear


@method("wise_ft", "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903")
@dataclass(frozen=True)
class WiseFt:
    """A point on the line from the base to the weighted mean of the models: (1 - alpha) b + alpha * mean."""

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    alpha: float = setting(0.5, "how far to go from the base: 0 is the base, 1 the mean of the models")

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return alpha * w_i over their sum, and 1 - alpha on the base."""
        return about_base(_scaled(weighted_mean(weights, normalize=True), self.alpha))

    __call__ = call_linear


def _scaled(form: LinearForm, factor: float) -> LinearForm:
    return LinearForm(tuple(factor * c for c in form.heads), divisor=form.divisor)
