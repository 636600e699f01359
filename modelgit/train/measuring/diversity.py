"""How differently two models err, and how alike their features are: what averaging them can gain by.

Diversity here is always between two models on the same examples; of a set of models it is the mean over its pairs.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError

Integers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two models are right together, alone, and wrong with the same answer or with two different ones."""

    both_right: int
    first_only: int
    second_only: int
    wrong_alike: int
    wrong_apart: int

    @property
    def q_diversity(self) -> float:
        """1 - Q, Q the statistic of Yule: 0 for the same errors, 1 for independent ones, at most 2.

        Kuncheva & Whitaker 2003, table 1. Where the statistic is not defined (one of the two is never or always
        right) the models cannot be told apart by it: 0.
        """
        together = self.both_right * (self.wrong_alike + self.wrong_apart)
        apart = self.first_only * self.second_only
        return 1 - (together - apart) / (together + apart) if together + apart else 0.0

    @property
    def ratio_error(self) -> float:
        """Different errors for each identical one (Aksela 2003); infinite without any.

        Errors differ where one model alone is wrong, or both are and give different answers (Ramé et al. 2022,
        arXiv:2205.09739).
        """
        different = self.first_only + self.second_only + self.wrong_apart
        return different / self.wrong_alike if self.wrong_alike else float("inf")

    @property
    def disagreement(self) -> float:
        """The share of examples with different answers."""
        different = self.first_only + self.second_only + self.wrong_apart
        return different / (different + self.both_right + self.wrong_alike)


def agreement(first: Integers, second: Integers, labels: Integers) -> Agreement:
    """Returns how two models' answers (n,) compare, given the right ones (n,).

    Raises:
        DataError: not one answer of each for every example.
    """
    if not len(first) == len(second) == len(labels) > 0:
        got = f"{len(first)} and {len(second)} answers"
        raise DataError(f"{got} to {len(labels)} examples: expected one of each model for every example, and examples")
    right, also, same = first == labels, second == labels, first == second
    return Agreement(
        both_right=int((right & also).sum()),
        first_only=int((right & ~also).sum()),
        second_only=int((~right & also).sum()),
        wrong_alike=int((~right & ~also & same).sum()),
        wrong_apart=int((~right & ~also & ~same).sum()),
    )


def linear_cka(first: Floats, second: Floats) -> float:
    """Returns the linear centred kernel alignment of features (n, d) and (n, e): 1 alike up to rotation and scale.

    |Y^T X|^2 / (|X^T X| |Y^T Y|), Frobenius norms, features centred (Kornblith et al. 2019, arXiv:1905.00414, eq. 3).

    Raises:
        DataError: features of different examples, or features that are all equal.
    """
    if len(first) != len(second):
        raise DataError(f"features of {len(first)} and of {len(second)} examples, expected the same examples")
    x, y = (values.astype(np.float64) - values.mean(0, dtype=np.float64) for values in (first, second))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if norms == 0:
        raise DataError("features that are the same for every example have no alignment")
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


def pairwise(
    answers: Sequence[Integers], labels: Integers, measure: Callable[[Agreement], float]
) -> npt.NDArray[np.float64]:
    """Returns a measure of every pair of models as a symmetric matrix (m, m), NaN along the diagonal."""
    found = np.full((len(answers), len(answers)), np.nan)
    for i, j in itertools.combinations(range(len(answers)), 2):
        found[i, j] = found[j, i] = measure(agreement(answers[i], answers[j], labels))
    return found
