"""Long histories: where lines run."""

import xml.etree.ElementTree as ET

from modelgit.report.lineage import Node
from modelgit.report.track import lanes, track_svg

SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    Node("m", "main", "merge", ("b", "c"), 72.0, emphasis=True),
    Node("c", "reviews", "target", ("a",), 66.0),
    Node("b", "tweets", "target", ("a",), 70.0),
    Node("a", "base", "base", ("gone",)),
]


def test_a_line_keeps_its_lane_until_it_ends() -> None:
    found = lanes(HISTORY)
    assert [(found[n].row, found[n].lane) for n in "mcba"] == [(0, 0), (1, 1), (2, 0), (3, 0)]
    assert found["m"].lines == ((0, "b"), (1, "c"))
    assert found["c"].lines == ((1, "a"),) and found["a"].lines == ()


def test_lanes_that_end_are_used_again() -> None:
    nodes = [Node("x", "x", "commit", ("r",)), Node("r", "r", "commit"), Node("y", "y", "commit")]
    assert [lanes(nodes)[n].lane for n in "xry"] == [0, 0, 0]


def test_two_versions_in_a_row_never_share_a_lane_with_a_line_that_passes() -> None:
    found = lanes(HISTORY)
    for child, node in ((found[n.id], n) for n in HISTORY):
        for lane, parent in child.lines:
            between = [s for s in found.values() if child.row < s.row < found[parent].row]
            assert all(stand.lane != lane for stand in between), node


def test_every_version_its_name_and_score_are_drawn() -> None:
    root = ET.fromstring(track_svg(HISTORY, "Lineage", "accuracy, %"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"main", "reviews", "tweets", "base", "72.0", "66.0", "accuracy, %", "merge commit"} <= set(texts)
    assert len([p for p in root.iter(f"{SVG}path") if "opacity" in p.attrib]) == 4  # lines of descent


def test_a_history_without_scores_has_no_axis() -> None:
    root = ET.fromstring(track_svg([Node("a", "a", "commit")], "Lineage"))
    assert [t.text for t in root.iter(f"{SVG}text")] == ["Lineage", "other commit", "a"]
