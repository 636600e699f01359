"""Figures of a report from made-up answers, whose values are known beforehand."""

import numpy as np
import pytest

from modelgit.porcelain.reporting.estimates import counted, estimated
from modelgit.porcelain.reporting.tallying import (
    Asked,
    Floats,
    accuracy,
    answered,
    asked,
    gain,
    law,
    line,
    pair,
    validation_accuracy,
)
from modelgit.train.answers import Answers, Examples

CLASSES = ("cat", "dog")
LABELS = np.array([0, 1] * 20)
EASY = np.arange(40) < 20  # the first half is of the domain `photo`


def examples(held_out: str = "") -> Examples:
    """Returns forty examples of two classes in two domains."""
    domains = tuple("photo" if easy else "sketch" for easy in EASY)
    apart = np.array([domain == held_out for domain in domains])
    return Examples(CLASSES, LABELS, domains, tuple(map(str, range(40))), apart, "d1")


def sure(wrong: list[int], logit: float = 4.0) -> Floats:
    """Returns logits of one who answers right but for the examples named, always as surely."""
    said = LABELS.copy()
    said[wrong] = 1 - said[wrong]
    found = np.zeros((40, 2), np.float32)
    found[np.arange(40), said] = logit
    return found


def test_all_is_compared_on_unless_a_domain_is_held_out() -> None:
    assert len(asked(examples()).rows) == 40
    on = asked(examples("sketch"))
    assert on.rows.tolist() == list(range(20, 40)) and set(on.domains) == {"sketch"}


def test_accuracy_is_the_mean_over_domains_with_wilsons_interval() -> None:
    on = asked(examples())
    found = accuracy(on.right(sure([0, 1, 2, 3])), on.domains)
    assert found.value == pytest.approx((0.8 + 1.0) / 2)
    assert (found.low, found.high) == pytest.approx((0.7695, 0.9604), abs=1e-4)
    assert found.n == 40


def test_domains_of_unequal_size_count_as_their_harmonic_mean() -> None:
    uneven, even = estimated(0.5, [10, 90]), estimated(0.5, [18, 18])
    assert (uneven.low, uneven.high, uneven.n) == (even.low, even.high, 100)
    assert estimated(0.5, []).low is None


def test_validation_accuracy_is_of_the_domains_trained_on() -> None:
    assert validation_accuracy(asked(examples("sketch")), sure([0, 30, 31])) == pytest.approx(0.95)
    assert validation_accuracy(asked(examples()), sure([0])) is None


def test_a_version_with_its_domains_its_worst_group_and_its_calibration() -> None:
    found = answered("a", "c" * 40, asked(examples()), sure([0, 2, 4, 6, 8], logit=4.0))
    assert {name: d.value for name, d in found.domains.items()} == {"photo": 0.75, "sketch": 1.0}
    assert found.worst_group == ("cat", "photo")
    assert found.worst is not None and (found.worst.value, found.worst.n) == (0.5, 10)
    confidence = 1 / (1 + np.exp(-4.0))
    assert found.ece == pytest.approx(confidence - 35 / 40, abs=1e-6)
    assert [(b.n, round(b.accuracy, 3)) for b in found.reliability] == [(40, 0.875)]


def test_groups_of_few_examples_are_never_the_worst() -> None:
    few = Asked(examples(), np.arange(0, 12))  # six of each class
    assert answered("a", None, few, sure([0])).worst_group is None


def test_a_pair_errs_differently_and_its_difference_has_an_interval() -> None:
    on = asked(examples())
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    found = pair(("a", "b"), on, (sure([]), sure([0, 1, 2, 3])), (features, 2 * features))
    assert found.difference == pytest.approx(0.1)
    assert found.low < 0.1 < found.high and found.low >= 0
    assert found.disagreement == pytest.approx(0.1)
    assert found.ratio_error is None  # no error in common
    assert found.cka == pytest.approx(1.0)
    assert pair(("a", "b"), on, (sure([]), sure([])), (features * 0, features)).cka is None


def test_the_gain_of_a_mean_is_over_the_best_single_one() -> None:
    on = asked(examples())
    found = gain(2, "b", on, sure([0]), [sure([0, 1]), sure([2, 3])])
    assert (found.accuracy.value, found.difference) == pytest.approx((0.975, 0.025))
    assert found.ensemble.value == pytest.approx(0.95)  # four ties, all answered with the first class
    assert found.low <= found.difference <= found.high


def test_the_law_is_found_again() -> None:
    found = law([0.8 - 0.2 / k for k in range(1, 7)])
    assert found is not None
    assert (found.limit, found.slope, found.error) == pytest.approx((0.8, 0.2, 0), abs=1e-9)
    assert law([0.5, 0.6]) is None


def test_a_valley_on_a_path_is_a_barrier() -> None:
    on = asked(examples())
    valley = line(("a", "b"), [0, 0.5, 1], [on.right(sure(w)) for w in ([], list(range(10)), [])], on)
    assert (valley.barrier, valley.at) == pytest.approx((0.25, 0.5))
    assert 0 < valley.low < 0.25 < valley.high
    ridge = line(("a", "b"), [0, 0.5, 1], [on.right(sure(w)) for w in ([0, 1], [], [0, 1])], on)
    assert ridge.barrier == 0 and ridge.high <= 0
    assert [place.promised for place in ridge.places] == pytest.approx([0.95] * 3)


def test_many_features_are_sampled_evenly() -> None:
    many = Examples(CLASSES, np.zeros(5000, np.int64), ("a",) * 5000, ("x",) * 5000, np.zeros(5000, bool), "")
    found = asked(many).sampled(
        Answers(np.zeros((5000, 2), np.float32), np.arange(5000, dtype=np.float32).reshape(-1, 1))
    )
    assert found[:3, 0].tolist() == [0, 3, 6] and len(found) == 1667


def test_a_share_of_few_is_unsure() -> None:
    assert counted(1, 1).low == pytest.approx(0.2065, abs=1e-4)
