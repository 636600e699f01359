"""Methods that know more of the models than their weights: statistics of each on data.

Notation: models x_i, weights w_i. A tensor that no model has statistics of takes the mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from modelgit.errors import MergeConflict, UsageError
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.informed.statistics import Kind
from modelgit.merge.methods.linear_form import weighted_mean
from modelgit.merge.methods.registry import call_combined, call_elementwise, method, no_facts, setting, within

SMALLEST = 2.0**-24  # of an eigenvalue, for each row, as a share of the largest: statistics are in single precision


@method("fisher", "Matena & Raffel 2022, Merging models with Fisher-weighted averaging, arXiv:2111.09832, equation 2")
@dataclass(frozen=True)
class Fisher:
    """The mean of the models, element by element, each with the weight that the element has for what the model says.

    sum c_i (F_i + floor) x_i / sum c_i (F_i + floor), where F_i is the diagonal of the Fisher information of model i on
    data, and c_i = w_i / |F_i|, the norm over the whole model (c_i = w_i without `normalize`).
    Needs statistics: `--stats-on DATA`, or `--stats FILE` for each model.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = False
    statistics: ClassVar[Kind] = "fisher"
    normalize: bool = setting(True, "divide each model's Fisher information by its norm: no model outweighs the others")
    floor: float = setting(1e-6, "least importance: where no element matters to any model, the mean is left")

    def __post_init__(self) -> None:
        within("fisher: floor", self.floor, 1e-30, 1e30)

    def check_weights(self, weights: Sequence[float]) -> None:
        """Raise UsageError for weights that make no sense."""
        refuse_negative(self.name, weights)  # type: ignore[attr-defined]

    def block(self, block: Inputs, facts: None) -> Array:
        """Return the weighted mean of a block."""
        if not block.statistics:
            return mean_of(block)
        above, below = np.zeros(block.heads[0].shape), np.zeros(block.heads[0].shape)
        for factor, values, importance in zip(self._factors(block), block.heads, block.statistics, strict=True):
            share = (importance + self.floor) * factor
            below += share
            above += share * values
        return np.asarray(above / below)

    def _factors(self, block: Inputs) -> list[float]:
        if not self.normalize:
            return list(block.weights)
        raw = [w / (size + self.floor) for w, size in zip(block.weights, block.sizes, strict=True)]
        total = math.fsum(raw)
        return [value / total for value in raw]

    facts = no_facts
    __call__ = call_elementwise


@method("regmean", "Jin et al. 2023, Dataless knowledge fusion by merging weights, arXiv:2212.09849, equations 2 and 5")
@dataclass(frozen=True)
class RegMean:
    """Of every linear layer, the weights whose outputs are nearest to all models' outputs, each on its own inputs.

    X = m + (sum w_i (x_i - m) G_i) (sum w_i G_i)^-1, where m is the mean of the models and G_i = X_i^T X_i / n_i, the
    inner products of the inputs of model i, off the diagonal times `alpha`. Where no input tells, the mean stays.
    Needs statistics: `--stats-on DATA`, or `--stats FILE` for each model. Every other tensor takes the mean.
    """

    heads: ClassVar[tuple[int, int | None]] = (1, None)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    statistics: ClassVar[Kind] = "gram"
    alpha: float = setting(0.9, "factor on inner products of different inputs: below 1, few data do less harm")

    def __post_init__(self) -> None:
        within("regmean: alpha", self.alpha, 0, 1)

    def check_weights(self, weights: Sequence[float]) -> None:
        """Raise UsageError for weights that make no sense."""
        refuse_negative(self.name, weights)  # type: ignore[attr-defined]

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged tensor; models and their statistics are in memory one after another."""
        mean = mean_of(inputs)
        if not inputs.statistics or mean.size == 0:
            return mean
        total, pull = np.zeros((mean.shape[1],) * 2), np.zeros(mean.T.shape)
        with threadpool_limits(1, "blas"):
            for i, weight in enumerate(inputs.weights):
                products = weight * self._reduced(inputs.statistics[i])
                total += products
                pull += products @ (inputs.heads[i] - mean).T
            return mean + self._solved(total, pull, inputs.name).T

    def _reduced(self, products: Array) -> Array:
        reduced = self.alpha * products
        np.fill_diagonal(reduced, np.diagonal(products))
        return reduced

    def _solved(self, total: Array, pull: Array, name: str) -> Array:
        """Return the least solution of total @ x = pull, each input measured by its own size."""
        sizes = np.diagonal(total)
        scale = np.where(sizes > 0, 1 / np.sqrt(np.where(sizes > 0, sizes, 1)), 0)
        even = scale[:, None] * total * scale
        if self.alpha == 1:
            values, vectors = np.linalg.eigh(even)
            kept = values > len(values) * SMALLEST * max(0.0, float(values[-1]))
            inner = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ (scale[:, None] * pull))
            return np.asarray(scale[:, None] * inner)
        np.fill_diagonal(even, 1)  # inputs that were always 0 leave the mean as it is
        try:
            return np.asarray(scale[:, None] * np.linalg.solve(even, scale[:, None] * pull))
        except np.linalg.LinAlgError as error:
            hint = "inner products of inputs are never so: compute them again"
            raise MergeConflict(
                f"{name}: the statistics of the models add up to a singular matrix", hint=hint
            ) from error

    __call__ = call_combined


def mean_of(inputs: Inputs) -> Array:
    """Return the weighted mean of the models, one after another."""
    form = weighted_mean(inputs.weights, normalize=True)
    total = form.heads[0] * inputs.heads[0]
    for i in range(1, len(form.heads)):
        total = total + form.heads[i] * inputs.heads[i]
    return np.asarray(total / form.divisor)


def refuse_negative(name: str, weights: Sequence[float]) -> None:
    """Raise UsageError unless weights are 0 or more, and one is more."""
    if min(weights) < 0 or max(weights) == 0:
        raise UsageError(f"{name}: expected weights of 0 or more, not all 0, got {list(weights)}.")
