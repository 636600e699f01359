"""Gates: what a bar means, and what is said when it is missed."""

import math

import pytest

from modelgit.certify.gate import Bar, check_bars, parse_bar
from modelgit.errors import GateFailed, UsageError


@pytest.mark.parametrize(
    ("text", "bar"),
    [
        ("accuracy>=0.75", Bar("accuracy", ">=", 0.75)),
        (" accuracy/photos < 1e-1 ", Bar("accuracy/photos", "<", 0.1)),
        ("loss<=2", Bar("loss", "<=", 2.0)),
        ("val_accuracy>.5", Bar("val_accuracy", ">", 0.5)),
    ],
)
def test_a_bar_is_read(text: str, bar: Bar) -> None:
    assert parse_bar(text) == bar


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy=0.7", "accuracy>=", ">=0.7", "accuracy>=high", "a>=nan", "a<inf"]
)
def test_what_is_no_bar_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected METRIC, a comparison, a number"):
        parse_bar(text)


@pytest.mark.parametrize(
    ("comparison", "cleared"), [(">=", [False, True, True]), (">", [False, False, True]), ("<=", [True, True, False])]
)
def test_the_bound_itself(comparison: str, cleared: list[bool]) -> None:
    bar = Bar("accuracy", comparison, 0.5)
    assert [bar.cleared_by(score) for score in (0.4, 0.5, 0.6)] == cleared


def test_what_is_not_a_number_clears_nothing() -> None:
    assert not any(Bar("a", comparison, 0.0).cleared_by(math.nan) for comparison in (">=", "<=", ">", "<"))


def test_every_missed_bar_is_named() -> None:
    bars = [parse_bar(text) for text in ("accuracy>=0.75", "worst>=0.5", "accuracy<=1")]
    check_bars(bars, {"accuracy": 0.75, "worst": 0.5}, "main")
    with pytest.raises(GateFailed) as caught:
        check_bars(bars, {"accuracy": 0.7, "worst": 0.25}, "main")
    assert caught.value.message == (
        "gate failed for main: accuracy is 0.7, expected >= 0.75; worst is 0.25, expected >= 0.5"
    )
    assert caught.value.exit_code == 1


def test_an_unknown_metric_is_no_failed_gate() -> None:
    with pytest.raises(UsageError) as caught:
        check_bars([parse_bar("f1>=0.5")], {"accuracy": 0.7}, "main")
    assert caught.value.hint == "measured: accuracy"
