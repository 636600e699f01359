import numpy as np
import pytest

from modelgit.train.measuring.calibration import calibration_error
from modelgit.train.measuring.groups import group_scores
from modelgit.train.measuring.serving import serving

LABELS = np.tile([0, 0, 1, 1, 0, 0, 1, 1], 5)
ANSWERS = np.tile([0, 0, 1, 1, 0, 1, 0, 1], 5)
GROUPS = (["young"] * 4 + ["old"] * 4) * 5
THINGS = [str(i) for i in range(40)]
WORDS = ["no", "yes"]


def likely(answers: np.ndarray, sure: float = 0.9) -> np.ndarray:
    found = np.full((len(answers), 2), 1 - sure)
    found[np.arange(len(answers)), answers] = sure
    return found


def test_gaps_name_the_groups_and_agree_with_the_scores_of_groups() -> None:
    found, scores = (
        serving(likely(ANSWERS), LABELS, GROUPS, THINGS, WORDS),
        group_scores(ANSWERS, LABELS, GROUPS, WORDS),
    )
    accuracy, parity, odds = found.gaps
    assert (accuracy.kind, accuracy.more, accuracy.less, accuracy.size.mean) == (
        "accuracy",
        "young",
        "old",
        scores.accuracy_gap,
    )
    assert (parity.kind, parity.size.mean) == ("parity", scores.parity_gap)
    assert (odds.kind, odds.label, odds.answer, odds.more, odds.less) == ("odds", "no", "no", "young", "old")
    assert odds.size.mean == scores.odds_gap


def test_intervals_hold_what_is_so_and_are_wide_where_things_are_few() -> None:
    draws = np.random.default_rng(0)
    labels, groups = draws.integers(0, 2, 4000), draws.choice(["a", "b"], 4000)
    right = draws.random(4000) < np.where(groups == "a", 0.9, 0.6)
    answers = np.where(right, labels, 1 - labels)
    each = serving(likely(answers), labels, list(groups), [str(i) for i in range(4000)], WORDS)
    gap = each.gaps[0].size
    assert (each.gaps[0].more, gap.low < 0.3 < gap.high, gap.high - gap.low < 0.06) == ("a", True, True)
    few = serving(likely(answers), labels, list(groups), [str(i % 20) for i in range(4000)], WORDS)
    assert few.gaps[0].size.mean == pytest.approx(gap.mean)
    assert each.ece.mean == calibration_error(likely(answers), labels) == pytest.approx(0.15, abs=0.02)
    assert each.ece.low < 0.15 < each.ece.high


def test_one_group_has_no_gaps_and_one_that_a_draw_lacks_is_left_out_of_it() -> None:
    assert serving(likely(ANSWERS), LABELS, ["all"] * 40, THINGS, WORDS).gaps == ()
    lone = serving(likely(ANSWERS), LABELS, ["a"] * 39 + ["b"], THINGS, WORDS).gaps[0]
    assert (lone.more, lone.less) == ("b", "a")
    assert 0 <= lone.size.low <= lone.size.mean <= lone.size.high <= 1
    assert lone.size.mean == pytest.approx(10 / 39)


def test_classes_of_which_a_group_has_few_examples_say_nothing_of_odds() -> None:
    few = serving(likely(ANSWERS[:36]), LABELS[:36], GROUPS[:36], THINGS[:36], WORDS).gaps
    assert [gap.kind for gap in few] == ["accuracy", "parity"]
