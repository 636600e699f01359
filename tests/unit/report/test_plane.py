import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest

from modelgit.report.drawing import document
from modelgit.report.matrix import matrix
from modelgit.report.plane import Axis, Series, label, plane, round_step, spanned

AXES = (Axis("models averaged", whole=True), Axis("accuracy, %"))


def document_of_plane(series: Sequence[Series], title: str, axes: tuple[Axis, Axis], note: str = "") -> str:
    return document(plane(series, title, axes, note), title)


def document_of_matrix(names: Sequence[str], values: Sequence[Sequence[float]], title: str) -> str:
    return document(matrix(names, values, title), title)


SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("least", "whole", "expected"), [(0.03, False, 0.05), (1.0, False, 1.0), (3.2, False, 5.0), (0.2, True, 1.0)]
)
def test_steps_are_round(least: float, whole: bool, expected: float) -> None:
    assert round_step(least, whole=whole) == pytest.approx(expected)


def test_ticks_lie_within_round_ends() -> None:
    found = spanned([60.3, 63.8], Axis("x"))
    assert (found.low, found.high, found.step) == (60, 64, 1)
    assert found.ticks() == [60, 61, 62, 63, 64]
    assert found.part(62) == 0.5


def test_one_value_has_room_on_both_sides() -> None:
    found = spanned([5.0], Axis("x"))
    assert found.low < 5 < found.high


def test_labels_have_the_digits_of_their_step() -> None:
    assert label(0.30000000000000004, 0.1) == "0.3"
    assert label(2.0, 1.0) == "2"
    assert label(-0.0, 0.05) == "0.00"


def test_lines_points_and_bands_are_drawn() -> None:
    series = [
        Series("mean", [1, 2, 3], [60, 61, 61.5], low=[59, 60, 61], high=[61, 62, 62]),
        Series("fit", [1, 3], [60, 61.7], dashed=True, dots=False),
        Series("runs", [1, 1, 2], [59.5, 60.2, math.nan], line=False),
    ]
    svg = document_of_plane(series, "Gain by members", AXES, "a note")
    root = ET.fromstring(svg)
    assert len(list(root.iter(f"{SVG}circle"))) == 3 + 2 + 1  # dots, points that are finite, the points' key
    assert sum("fill-opacity" in node.attrib for node in root.iter(f"{SVG}path")) == 1
    assert {"mean", "fit", "runs", "Gain by members", "a note", "models averaged", "accuracy, %"} <= set(words(svg))


def test_names_are_escaped() -> None:
    svg = document_of_plane([Series("<b>&", [0, 1], [0, 1])], "<script>", AXES)
    assert "<b>" not in svg and "<script>" not in svg
    assert "<b>&" in words(svg)


def test_a_plane_without_values_is_still_a_picture() -> None:
    assert "empty" in words(document_of_plane([Series("empty", [], [])], "Nothing yet", AXES))


def test_matrix_shows_each_value_once() -> None:
    svg = document_of_matrix(["a", "b"], [[math.nan, 1.25], [1.25, math.nan]], "Diversity")
    assert words(svg).count("1.25") == 2
    assert len(list(ET.fromstring(svg).iter(f"{SVG}rect"))) == 1 + 2


def test_larger_values_are_darker() -> None:
    svg = document_of_matrix(["a", "b", "c"], [[1, 2, 3]] * 3, "Values")
    shades = [
        float(node.attrib["fill-opacity"]) for node in ET.fromstring(svg).iter(f"{SVG}rect") if "rx" in node.attrib
    ]
    assert shades[:3] == sorted(shades[:3]) and shades[0] < shades[2]
