import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.forgetting import backward_transfer, forgetting

HISTORY = [{"a": 0.8}, {"a": 0.9, "b": 0.5}, {"a": 0.6, "b": 0.7, "c": 0.4}]


def test_forgetting_is_measured_from_the_best_before() -> None:
    assert forgetting(HISTORY) == {"a": pytest.approx(0.3), "b": pytest.approx(-0.2)}


def test_transfer_is_measured_from_the_first() -> None:
    assert backward_transfer(HISTORY) == {"a": pytest.approx(-0.2), "b": pytest.approx(0.2)}


def test_a_first_version_has_forgotten_nothing() -> None:
    assert forgetting(HISTORY[:1]) == {}


def test_no_versions_are_refused() -> None:
    with pytest.raises(DataError, match="no versions"):
        forgetting([])
    with pytest.raises(DataError, match="no versions"):
        backward_transfer([])
