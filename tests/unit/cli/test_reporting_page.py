"""From figures to the page: every number is there, in words that say what it is of."""

import re
from dataclasses import replace

import pytest

from modelgit.cli.reporting.history import joined, kind_of, lineage_section
from modelgit.cli.reporting.page import page
from modelgit.cli.reporting.words import points, with_ends
from modelgit.porcelain.reporting.values import (
    Answered,
    Board,
    Comparison,
    Estimate,
    Gain,
    GroupGap,
    Law,
    Line,
    Model,
    Pair,
    Place,
    Report,
    Standing,
    Sureness,
)
from modelgit.report.sheet import Picture, Section, Table, sheet_html

DAY = 1_700_000_000


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05, 100)


def model(number: int, name: str, kind: str, *parents: int, data: str = "") -> Model:
    return Model(number, f"{number:040x}", name, kind, DAY, parents, data)


VERSIONS = (
    model(1, "base", "import"),
    model(2, "aux", "train", 1, data="icons.zip"),
    model(3, "run", "train", 2, data="emoji.zip"),
    model(4, "main", "merge", 3, 2),
)
ROWS = (
    Standing(2, estimate(0.61), "noto", estimate(0.52), None, None),
    Standing(3, estimate(0.71), "noto", estimate(0.62), estimate(0.43), -0.1, estimate(0.2), 0.093),
    Standing(4, estimate(0.68), "noto", estimate(0.58), estimate(0.47), 0.03, estimate(0.21), 0.171),
)
BOARD = Board("emoji", "{}", "fluent", ROWS)


GAPS = (
    GroupGap("accuracy", "fluent", "noto", "", "", 0.2, 0.04, 0.36),
    GroupGap("odds", "noto", "fluent", "cat", "dog", 0.5, 0.1, 0.9),
)


def answered(name: str, value: float) -> Answered:
    domains = {"fluent": estimate(value), "noto": estimate(value + 0.2)}
    bins = (Sureness(60, 0.9, 0.5), Sureness(40, 0.4, 0.35))
    return Answered(
        name, None, estimate(value), domains, ("cat", "fluent"), estimate(0.125), 0.26, (0.2, 0.33), GAPS, bins
    )


def comparison(count: int = 3) -> Comparison:
    names = ["run", "aux", "other", "fourth"][:count]
    pairs = [Pair(a, b, 0.25, None, 0.3, 0.875, 0.02, -0.01, 0.05) for a in names for b in names if a < b]
    gains = [Gain(k, names[k - 1], estimate(0.5), estimate(0.52), 0.015, -0.02, 0.04) for k in range(1, count + 1)]
    places = tuple(Place(at, estimate(v), 0.5) for at, v in ((0.0, 0.5), (0.5, 0.375), (1.0, 0.5)))
    lines = [Line("run", name, places, 0.125, 0.5, 0.07, 0.18) for name in names[1:]]
    return Comparison(
        data="emoji",
        digest="d",
        measured="the held-out domain fluent",
        examples=309,
        domains=("fluent",),
        ordered_by="validation accuracy on the training domains",
        versions=tuple(answered(name, 0.4) for name in names),
        mean=answered("mean of all", 0.45),
        pairs=tuple(pairs),
        gains=tuple(gains),
        law=Law(0.55, 0.08, 0.004) if count > 2 else None,
        paths=tuple(lines),
        evaluations=9,
    )


REPORT = Report("models", (), VERSIONS, 3, (BOARD,), comparison())


def section(report: Report, title: str) -> Section:
    return next(one for one in page(report).sections if one.title == title)


def table(found: Section, place: int = 0) -> list[tuple[str, ...]]:
    return [tuple(row) for row in [part for part in found.parts if isinstance(part, Table)][place].rows]


def test_the_history_alone_has_three_sections() -> None:
    assert [s.title for s in page(replace(REPORT, comparison=None)).sections] == [
        "Lineage",
        "Scores across commits",
        "Forgetting",
    ]


def test_scores_stand_in_the_table_with_their_intervals() -> None:
    newest = table(section(REPORT, "Scores across commits"))[0]
    assert newest[:4] == ("main", "4", f"{4:040x}"[:10], "2023-11-14")
    assert newest[4:] == (
        "68.0 (63.0–73.0)",
        "noto 58.0 (53.0–63.0)",
        "47.0 (42.0–52.0)",
        "21.0 (16.0–26.0)",
        "17.1",
        "+3.0",
    )
    assert table(section(REPORT, "Scores across commits"))[-1][-3:] == ("–", "–", "–")  # of an older note
    assert table(section(REPORT, "Forgetting")) == [("main", "4", "1", "+3.0", "emoji, fluent held out +3.0")]


def test_the_page_says_what_is_left_out() -> None:
    words = " ".join(lineage_section(REPORT).sentences)
    assert "the newest 4; 3 older versions left out" in words
    assert "held-out accuracy on emoji, fluent held out" in words


def test_a_repository_without_scores_says_so() -> None:
    bare = replace(REPORT, boards=(), comparison=None)
    assert "No version has scores yet" in section(bare, "Scores across commits").sentences[0]
    assert "nothing can be said to be forgotten" in section(bare, "Forgetting").sentences[1]
    assert [tile.value for tile in page(bare).tiles] == ["7"]


def test_the_best_version_the_mean_and_the_barrier_come_first() -> None:
    tiles = {tile.label: tile for tile in page(REPORT).tiles}
    best = tiles["best held-out accuracy"]
    assert (best.value, best.remark) == ("47.0 %", "main, on emoji, fluent held out")
    assert tiles["points above the best single"].value == "+1.5"
    assert tiles["points above the best single"].remark == "95 % interval −2.0 to +4.0"
    assert tiles["points, highest barrier"].value == "12.5"


def test_every_measure_of_the_comparison_is_in_a_table() -> None:
    assert table(section(REPORT, "Linear mode connectivity"))[0] == (
        "run – aux", "50.0", "50.0", "37.5", "0.5", "+12.5 (+7.0 to +18.0)",
    )  # fmt: skip
    assert table(section(REPORT, "Diversity"))[0] == (
        "aux – run", "0.25", "–", "30.0 %", "0.875", "+2.0 (−1.0 to +5.0)",
    )  # fmt: skip
    gains = table(section(REPORT, "Marginal gains"))
    assert gains[2] == ("other", "3", "50.0 (45.0–55.0)", "52.0 (47.0–57.0)", "+1.5 (−2.0 to +4.0)")
    assert table(section(REPORT, "Calibration"))[0] == ("run", "26.0 (20.0–33.0)", "70.0", "40.0")
    assert table(section(REPORT, "Gaps between domains"))[0] == (
        "run",
        "+20.0 (+4.0 to +36.0): fluent above noto",
        "+50.0 (+10.0 to +90.0): noto above fluent, cat for dog",
    )
    domains = table(section(REPORT, "Domains and groups"))[-1]
    assert domains == (
        "mean of all", "45.0 (40.0–50.0)", "65.0 (60.0–70.0)", "fluent", "cat in fluent 12.5 (7.5–17.5)",
    )  # fmt: skip


def test_the_law_is_said_and_drawn_dashed() -> None:
    found = section(REPORT, "Marginal gains")
    assert "55.0 − 8.0 / k by least squares, off by 0.4 points" in found.sentences[1]
    assert any("stroke-dasharray" in part.drawing.body for part in found.parts if isinstance(part, Picture))
    two = section(replace(REPORT, comparison=comparison(2)), "Marginal gains")
    assert not any("stroke-dasharray" in part.drawing.body for part in two.parts if isinstance(part, Picture))


def test_the_page_is_html_with_a_picture_for_each_measure() -> None:
    html = sheet_html(page(REPORT))
    titles = re.findall(r"<svg[^>]*>\n<title>([^<]*)</title>", html)
    assert titles == [
        "Accuracy", "Accuracy on each domain", "Gaps between domains", "Paths between models, on emoji",
        "q-diversity", "ratio-error", "CKA of features", "Marginal gains", "Reliability", "Lineage",
        "Accuracy on emoji, fluent held out", "Calibration error on emoji, fluent held out", "Forgetting",
    ]  # fmt: skip


def test_a_deep_history_is_drawn_in_rows() -> None:
    deep = tuple(model(i, f"v{i}", "commit", *([i - 1] if i > 1 else [])) for i in range(1, 30))
    (picture,) = lineage_section(Report("models", (), deep, 0, (), None)).parts
    assert isinstance(picture, Picture) and picture.drawing.width < 800 and picture.drawing.height > 29 * 20


def test_versions_are_joined_to_the_nearest_scored_ones() -> None:
    bare = replace(BOARD, rows=(ROWS[0], ROWS[2]))  # 3 has no score: 4 comes from 2
    assert joined(VERSIONS, bare) == [(2, 4)]
    assert joined(VERSIONS, BOARD) == [(2, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [("train", "icons.zip", "aux"), ("train", "emoji.zip", "target"), ("probe", "", "probe"), ("commit", "", "commit")],
)
def test_training_on_other_data_is_auxiliary(kind: str, data: str, expected: str) -> None:
    assert kind_of(model(1, "x", kind, data=data), "emoji", fused=False) == expected


def test_numbers_are_written_the_same_everywhere() -> None:
    assert [points(v) for v in (0.0, 0.0004, -0.0004, 0.012, -0.012)] == ["0.0", "0.0", "0.0", "+1.2", "−1.2"]
    assert with_ends(None) == "–" and with_ends(Estimate(0.5)) == "50.0"
