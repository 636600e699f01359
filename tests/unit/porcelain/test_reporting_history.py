"""What is read from notes and history: names, numbers, and what anybody may have written there."""

import pytest

from modelgit.cli.reporting.history import board_name
from modelgit.porcelain.reporting.history import best_before, boards, model, name_of, newest, standing
from modelgit.porcelain.scorebook import Score, parse_scores
from modelgit.repo.values import LogEntry

SPLIT = '{"held_out": "fluent"}'


def entry(commit: str, *parents: str, date: int = 0, refs: tuple[str, ...] = (), message: str = "") -> LogEntry:
    return LogEntry(commit, parents, "Ada", date, message.split("\n", 1)[0], message, refs)


def score(accuracy: float, held_out: float | None = None) -> Score:
    values = {"val_accuracy": accuracy, "val_accuracy/noto": accuracy - 0.1, "val_accuracy/twemoji": accuracy + 0.1}
    images = {"val_accuracy/noto": 50, "val_accuracy/twemoji": 50, "ood_accuracy": 200}
    return Score("emoji", SPLIT, values | ({"ood_accuracy": held_out} if held_out is not None else {}), images)


HISTORY = [entry("d", "b", "c"), entry("c", "a"), entry("b", "a"), entry("a")]  # children first
SCORES = {"a": [score(0.5, 0.4)], "b": [score(0.7, 0.5)], "d": [score(0.65, 0.6)]}


def test_the_newest_are_shown_oldest_first() -> None:
    dated = [entry("c", "b", date=3), entry("x", date=9), entry("b", "a", date=2), entry("a", date=1)]
    assert [one.commit for one in newest(dated, 3)] == ["b", "x", "c"]


def test_what_was_forgotten_is_measured_against_all_ancestors() -> None:
    found = boards(newest(HISTORY, 9), HISTORY, SCORES)
    assert [(b.data, b.held_out) for b in found] == [("emoji", "fluent")]
    rows = {row.number: row for row in found[0].rows}
    assert {n: row.forgotten for n, row in rows.items()} == {1: None, 2: pytest.approx(-0.2), 4: pytest.approx(0.05)}
    worst = rows[4].worst
    assert rows[4].worst_domain == "noto" and worst is not None and worst.value == pytest.approx(0.55)
    held = rows[4].held_out
    assert held is not None and held.n == 200 and held.low == pytest.approx(0.5308, abs=1e-4)


def test_ancestors_that_are_not_shown_count_too() -> None:
    assert best_before(HISTORY, SCORES)["d"] == {SPLIT: 0.7}
    shown = [HISTORY[0]]
    assert boards(shown, HISTORY, SCORES)[0].rows[0].forgotten == pytest.approx(0.05)


def test_splits_of_one_data_set_are_told_apart() -> None:
    first, second = '{"held_out": "noto", "fold": 0, "trial": 0}', '{"held_out": "noto", "fold": 2, "trial": 1}'
    texts = (first, second, second[:-1] + ', "size": 64}', "[1]")
    scores = {"a": [Score("emoji", text, {"val_accuracy": 0.5}) for text in texts]}
    found = {one.split: one for one in boards([HISTORY[-1]], HISTORY, scores)}
    assert [board_name(found[text]) for text in texts] == [
        "emoji, noto held out",
        "emoji, noto held out, fold 2, trial 1, split 2",
        "emoji, noto held out, fold 2, trial 1",
        "emoji",
    ]  # fmt: skip


def test_scores_of_ensembles_are_of_no_version() -> None:
    ensemble = Score("emoji (ensemble of 4)", f"{SPLIT}, ensemble 12ab", {"val_accuracy": 0.9})
    assert boards([HISTORY[-1]], HISTORY, {"a": [ensemble]}) == ()


def test_notes_are_anybodys_word() -> None:
    text = '{"data": "x", "split": "s", "val_accuracy": NaN, "ood_accuracy": 7.5, "images": {"ood_accuracy": -3}}'
    (found,) = parse_scores(text)
    row = standing(1, found, {})
    assert (row.accuracy, row.held_out, row.worst, row.forgotten) == (None, None, None, None)


def test_without_counts_there_is_no_interval() -> None:
    (found,) = parse_scores('{"data": "x", "split": "s", "accuracy": 0.5, "images": "many"}')
    row = standing(1, found, {"s": 0.75})
    assert row.accuracy is not None and (row.accuracy.value, row.accuracy.low) == (0.5, None)
    assert row.forgotten == 0.25


def test_a_version_is_called_by_its_branch() -> None:
    assert name_of(entry("a", refs=("tag: v1", "main"), message="First")) == "main"
    assert name_of(entry("a", refs=("tag: v1",))) == "v1"
    assert name_of(entry("a" * 40, message="First try\n\nmore")) == "First try"
    assert name_of(entry("a" * 40)) == "a" * 10


def test_only_a_merge_is_a_merge() -> None:
    text = "Average\n\nMerge-Method: linear"
    numbers = {"a": 1, "b": 2, "m": 3}
    assert model(entry("m", "a", "b", message=text), None, numbers).kind == "merge"
    assert model(entry("m", "a", message=text), None, numbers).kind == "commit"
    assert model(entry("m", "gone", "b", message=text), None, numbers).parents == (2,)
