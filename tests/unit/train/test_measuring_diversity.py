import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.diversity import Agreement, agreement, linear_cka, pairwise

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0])
FIRST = np.array([0, 0, 1, 0, 2, 0, 1, 1])  # right: 1 1 1 0 1 0 0 0
SECOND = np.array([0, 1, 1, 0, 0, 2, 0, 1])  # right: 1 0 1 0 0 1 0 0


def test_every_example_is_counted_once() -> None:
    assert agreement(FIRST, SECOND, LABELS) == Agreement(
        both_right=2, first_only=2, second_only=1, wrong_alike=2, wrong_apart=1
    )


def test_measures_of_a_pair_by_hand() -> None:
    found = agreement(FIRST, SECOND, LABELS)
    assert found.q_diversity == pytest.approx(1 - (2 * 3 - 2 * 1) / (2 * 3 + 2 * 1))
    assert found.ratio_error == pytest.approx((2 + 1 + 1) / 2)
    assert found.disagreement == pytest.approx(4 / 8)


def test_a_model_does_not_differ_from_itself() -> None:
    found = agreement(FIRST, FIRST, LABELS)
    assert (found.q_diversity, found.ratio_error, found.disagreement) == (0, 0, 0)


def test_opposite_errors_are_as_far_apart_as_can_be() -> None:
    labels = np.zeros(10, np.int64)
    even = np.arange(10) % 2
    found = agreement(even, 1 - even, labels)
    assert found.q_diversity == 2
    assert found.ratio_error == float("inf")


def test_independent_errors_have_diversity_one() -> None:
    first, second = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert agreement(first, second, np.zeros(4, np.int64)).q_diversity == 1


def test_a_pair_of_which_one_is_always_right_cannot_be_told_apart() -> None:
    assert agreement(LABELS, SECOND, LABELS).q_diversity == 0


def test_answers_to_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match="3 and 8 answers to 8 examples"):
        agreement(FIRST[:3], SECOND, LABELS)


def test_pairs_make_a_symmetric_matrix() -> None:
    found = pairwise([FIRST, SECOND, LABELS], LABELS, lambda a: a.disagreement)
    assert np.isnan(np.diag(found)).all()
    assert found[0, 1] == found[1, 0] == pytest.approx(0.5)
    assert found[0, 2] == found[2, 0] == pytest.approx(0.5)


def test_alignment_ignores_rotation_scale_and_shift() -> None:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(50, 6)).astype(np.float32)
    rotation, _ = np.linalg.qr(draws.normal(size=(6, 6)))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, draws.normal(size=(50, 4))) < 0.5


def test_alignment_by_hand() -> None:
    x, y = np.array([[1.0], [-1.0], [0.0]]), np.array([[1.0], [0.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx((1.0 / 2.0) ** 2)


def test_constant_features_have_no_alignment() -> None:
    with pytest.raises(DataError, match="the same for every example"):
        linear_cka(np.ones((4, 2)), np.arange(8.0).reshape(4, 2))
