"""The pictures: what is in them, where it stands, and that no text can break out of them."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from modelgit.errors import UsageError
from modelgit.report.chart import Row, strategy_chart_svg
from modelgit.report.drawing import DARK, LIGHT, fit, number
from modelgit.report.lineage import KINDS, Kind, Node, arrange, generations, lineage_svg
from modelgit.report.page import Report, report_html, report_svg

SVG = "{http://www.w3.org/2000/svg}"


def history() -> list[Node]:
    """Return a lineage of 43 models: a base, four auxiliary ones, 36 runs, two merges."""
    nodes = [Node("base", "base", "base")]
    nodes += [Node(f"aux{i}", f"aux/{i}", "aux", ("base",)) for i in range(4)]
    runs = [Node(f"run{i}", f"run/{i}", "target", (f"aux{i % 4}",), 60 + i / 4, f"start {i % 4}") for i in range(36)]
    nodes += runs
    nodes.append(Node("soup", "soup", "merge", tuple(n.id for n in runs[:4]), 71.0))
    nodes.append(Node("main", "main", "merge", tuple(n.id for n in runs), 72.25, emphasis=True))
    return nodes


def rows() -> tuple[Row, ...]:
    return (
        Row("ERM", 66.0, 0.9, 84.0, 0.4),
        Row("recycling", 72.4, 0.4, 86.9, 0.2, "all starts", True),
        Row("one", 65.0),
    )


def test_generation_is_the_longest_way_from_a_root() -> None:
    nodes = [Node("a", "a", "base"), Node("b", "b", "aux", ("a",)), Node("c", "c", "merge", ("a", "b"))]
    assert generations(nodes) == {"a": 0, "b": 1, "c": 2}


def test_boxes_never_overlap_and_columns_follow_generations() -> None:
    boxes = arrange(history())
    depth = generations(history())
    columns: dict[float, list[tuple[float, float]]] = {}
    for box in boxes:
        columns.setdefault(box.x, []).append((box.y, box.y + box.size[1]))
    assert [len(columns[x]) for x in sorted(columns)] == [1, 4, 36, 2]
    assert all(above[1] + 5 <= below[0] for column in columns.values() for above, below in pairwise(sorted(column)))
    assert sorted(columns) == sorted({box.x for box in boxes}) and {depth[b.node.id] for b in boxes} == {0, 1, 2, 3}
    assert all(box.x >= 0 and box.y >= 0 for box in boxes)


def test_a_groups_nodes_stand_together() -> None:
    groups = [box.node.group for box in arrange(history()) if box.node.kind == "target"]
    assert groups == [f"start {i}" for i in range(4) for _ in range(9)]


def test_lineage_shows_every_model_its_score_and_every_edge() -> None:
    root = ElementTree.fromstring(lineage_svg(history(), "Lineage"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {node.label for node in history()} <= set(texts)
    assert {"60.0", "72.2", "merge commit", "held-out accuracy, %"} <= set(texts)
    assert len(list(root.iter(f"{SVG}path"))) == sum(len(node.parents) for node in history())
    assert "linear probe" not in texts


def test_same_history_same_bytes() -> None:
    assert lineage_svg(history(), "L") == lineage_svg(history(), "L")


def test_text_cannot_leave_its_place() -> None:
    evil = "</text><script>alert('x')</script>&\""
    nodes = [Node("a", evil, "base", score=1.0, group=evil)]
    report = Report(evil, (Row(evil, 1.0, note=evil),), tuple(nodes), (evil,), evil)
    for picture in (lineage_svg(nodes, evil), strategy_chart_svg(report.rows, evil, evil), report_svg(report)):
        tags = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(picture).iter()}
        assert tags <= {"svg", "title", "style", "rect", "text", "path", "g", "circle"}
    assert "<script" not in report_html(report)


def test_pictures_are_self_contained() -> None:
    page = report_html(Report("R", rows(), tuple(history())))
    assert set(re.findall(r"https?://[^\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page and "@import" not in page


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_colour_visible_on_both_backgrounds(kind: Kind) -> None:
    colour = KINDS[kind][0]
    assert contrast(colour, LIGHT["paper"]) > 1.9
    assert contrast(colour, DARK["paper"]) > 3


def test_letters_are_readable_on_both_backgrounds() -> None:
    assert (
        min(contrast(p[ink], p[back]) for p in (LIGHT, DARK) for ink in ("ink", "faint") for back in ("paper", "card"))
        > 4.5
    )


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_parent_that_is_no_node_is_named() -> None:
    with pytest.raises(UsageError, match="parents that are no nodes: gone"):
        lineage_svg([Node("a", "a", "aux", ("gone",))], "L")


def test_a_circle_is_named() -> None:
    with pytest.raises(UsageError, match="runs in a circle through a, b"):
        generations([Node("a", "a", "aux", ("b",)), Node("b", "b", "aux", ("a",))])


def test_an_empty_lineage_is_a_picture() -> None:
    assert ElementTree.fromstring(lineage_svg([], "Nothing yet")).tag == f"{SVG}svg"


def test_chart_places_dots_in_order_of_accuracy() -> None:
    root = ElementTree.fromstring(strategy_chart_svg(rows(), "Strategies"))
    dots = [float(c.attrib["cx"]) for c in root.iter(f"{SVG}circle")][1:]  # the first is the key's
    assert dots[2] < dots[0] < dots[1]
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"66.0 ± 0.9", "72.4 ± 0.4", "65.0", "all starts", "65", "90"} <= set(texts)


def test_chart_of_one_value_has_a_scale() -> None:
    root = ElementTree.fromstring(strategy_chart_svg([Row("only", 50.0)], "S"))
    assert [c.attrib["cx"] for c in root.iter(f"{SVG}circle")][1:] != []


def test_page_holds_the_numbers_as_a_table() -> None:
    page = report_html(Report("R", rows(), tuple(history()), ("Nine vendors.",)))
    assert "<tr class=strong><td class=word>recycling<td>72.4<td>0.4<td>86.9<td>0.2</tr>" in page
    assert "<p>Nine vendors.</p>" in page
    assert page.count("<svg") == 2


def test_fit_cuts_with_an_ellipsis() -> None:
    assert fit("abcdefghij", 6 * 10 * 0.56, 10) == "abcde…"
    assert fit("abc", 100, 10) == "abc"


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0.0, 3.0, 2.25, -1.5)] == ["0", "3", "2.2", "-1.5"]
