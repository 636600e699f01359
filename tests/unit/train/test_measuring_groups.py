import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.train.measuring.groups import answer_gap, group_scores

LABELS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
ANSWERS = np.array([0, 0, 1, 1, 0, 1, 0, 1])
GROUPS = ["a"] * 4 + ["b"] * 4


def test_groups_by_hand() -> None:
    found = group_scores(ANSWERS, LABELS, GROUPS, ["no", "yes"])
    assert found.accuracy == {"a": 1.0, "b": 0.5}
    assert found.counts == {"a": 4, "b": 4}
    assert found.worst == ("b", 0.5)
    assert found.accuracy_gap == 0.5
    assert found.cells[("no", "b")] == 0.5
    assert found.worst_cell == (("no", "b"), 0.5)


def test_equal_shares_of_answers_hide_unequal_errors() -> None:
    found = group_scores(ANSWERS, LABELS, GROUPS, ["no", "yes"])
    assert found.parity_gap == 0
    assert found.odds_gap == 0.5


def test_parity_gap_is_the_widest_over_classes() -> None:
    answers = np.array([0, 0, 1, 2, 2, 2, 1, 0])
    assert group_scores(answers, answers, GROUPS, ["x", "y", "z"]).parity_gap == 0.25


def test_cells_without_examples_do_not_count() -> None:
    found = group_scores(np.array([0, 1]), np.array([0, 1]), ["a", "b"], ["no", "yes"])
    assert set(found.cells) == {("no", "a"), ("yes", "b")}
    assert found.odds_gap == 0


def test_answers_of_no_sets_have_no_gap() -> None:
    assert answer_gap(np.array([0]), [np.array([False])], 2) == 0


def test_a_group_for_every_example() -> None:
    with pytest.raises(DataError, match="8 answers and 2 groups for 8 examples"):
        group_scores(ANSWERS, LABELS, ["a", "b"], ["no", "yes"])
