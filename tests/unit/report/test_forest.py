import itertools
import xml.etree.ElementTree as ET

from modelgit.report.forest import Mark, Row, forest_svg
from modelgit.report.plane import Axis

SVG = "{http://www.w3.org/2000/svg}"


def drawn(rows: list[Row], key: tuple[str, ...] = ()) -> ET.Element:
    return ET.fromstring(forest_svg(rows, "Accuracy", Axis("accuracy, %"), key))


def test_dots_stand_in_the_order_of_their_values_with_their_intervals() -> None:
    root = drawn([Row("a", [Mark(60, 55, 65)], "60.0"), Row("b", [Mark(70)], "70.0")])
    xs = [float(dot.attrib["cx"]) for dot in root.iter(f"{SVG}circle")]
    assert xs[0] < xs[1]
    bar = next(p.attrib["d"] for p in root.iter(f"{SVG}path") if "opacity" in p.attrib)
    start, end = bar.removeprefix("M").split(" ")[0], bar.split("H")[1]
    assert float(start) < xs[0] < float(end)
    assert {"a", "b", "60.0", "70.0", "Accuracy", "accuracy, %"} <= {t.text for t in root.iter(f"{SVG}text")}


def test_several_dots_of_a_row_do_not_hide_each_other() -> None:
    root = drawn([Row("a", [Mark(60, series=i) for i in range(6)])], tuple("uvwxyz"))
    dots = [dot for dot in root.iter(f"{SVG}circle") if dot.attrib["r"] == "4"]
    heights = sorted(float(dot.attrib["cy"]) for dot in dots)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 7
    assert len({dot.attrib["fill"] for dot in dots}) == 6


def test_no_rows_are_a_picture_too() -> None:
    assert drawn([]).tag == f"{SVG}svg"
