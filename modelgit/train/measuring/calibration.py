"""Whether a model is as sure as it is right."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Examples of about one confidence: their number, mean confidence, and share of right answers."""

    n: int
    confidence: float
    accuracy: float


def reliability(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], bins: int = BINS
) -> tuple[Bin, ...]:
    """Returns the bins of equal width in which there are examples, by rising confidence.

    `probabilities` (n, classes) in rows that add up to 1, `labels` (n,). An example's confidence is its highest
    probability; bin i of k holds those above i / k, up to and with (i + 1) / k.

    Raises:
        DataError: no examples, or probabilities of other ones.
    """
    if not len(probabilities) == len(labels) > 0:
        raise DataError(f"{len(probabilities)} rows of probabilities for {len(labels)} examples")
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    members = [place == i for i in range(bins)]
    return tuple(Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in members if m.any())


def calibration_error(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], bins: int = BINS
) -> float:
    """Returns the expected calibration error: |confidence - accuracy|, averaged over examples.

    Guo et al. 2017, arXiv:1706.04599, equation 3, with 15 bins unless told otherwise.

    Raises:
        DataError: as `reliability`.
    """
    found = reliability(probabilities, labels, bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in found) / sum(b.n for b in found)
