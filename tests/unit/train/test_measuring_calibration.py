import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.calibration import Bin, calibration_error, reliability

SURE = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.45, 0.55]])


def test_bins_by_hand() -> None:
    found = reliability(SURE, np.array([0, 1, 1, 0]), bins=10)
    assert [b.n for b in found] == [1, 1, 2]
    assert found[-1] == Bin(2, pytest.approx(0.95), 0.5)  # type: ignore[arg-type]
    assert [b.accuracy for b in found[:2]] == [0.0, 1.0]


def test_error_by_hand() -> None:
    expected = (abs(0.55 - 0) + abs(0.65 - 1) + 2 * abs(0.95 - 0.5)) / 4
    assert calibration_error(SURE, np.array([0, 1, 1, 0]), bins=10) == pytest.approx(expected)


def test_a_model_that_is_sure_and_right_has_none() -> None:
    labels = np.arange(30) % 3
    assert calibration_error(np.eye(3)[labels], labels) == 0


def test_a_model_as_sure_as_it_is_right_has_little() -> None:
    draws = np.random.default_rng(0)
    confidence = draws.uniform(0.5, 1, 200_000)
    labels = (draws.uniform(size=len(confidence)) > confidence).astype(np.int64)
    assert calibration_error(np.stack([confidence, 1 - confidence], 1), labels) < 0.01


def test_a_confidence_on_the_edge_belongs_below() -> None:
    found = reliability(np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([0, 0]), bins=10)
    assert [b.n for b in found] == [1, 1]


def test_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match="4 rows of probabilities for 3 examples"):
        calibration_error(SURE, np.array([0, 1, 1]))
