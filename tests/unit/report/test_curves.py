"""The picture of paths: where points lie, what is left out, and that it is a sound SVG file."""

import math
import re
from xml.etree import ElementTree

from modelgit.report.curves import HEIGHT, LEFT, TOP, WIDTH, Curve, curves_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_points_lie_where_their_scores_say() -> None:
    picture = curves_svg([Curve("a – <b>", [0, 0.5, 1], [0.5, 0.0, 1.0])], "Paths & points", "accuracy")
    root = ElementTree.fromstring(picture)
    circles = [
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle") if c.attrib["r"] == "3.5"
    ]
    assert circles == [
        (LEFT, TOP + HEIGHT / 2),
        (LEFT + WIDTH / 2, TOP + HEIGHT),
        (LEFT + WIDTH, TOP),
    ]
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Paths & points", "accuracy", "a – <b>", "0", "0.25", "0.5", "1"} <= set(words)
    dashed = [path.attrib["d"] for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    assert dashed == [f"M{LEFT} {TOP + HEIGHT / 2:g}L{LEFT + WIDTH} {TOP}"]


def test_a_score_that_is_no_number_is_left_out_and_level_paths_are_drawn() -> None:
    picture = curves_svg([Curve("a", [0, 0.5, 1], [0.5, math.nan, 0.5]), Curve("b", [0], [0.5])], "t", "loss")
    assert "nan" not in picture
    assert len(re.findall(r'r="3.5"', picture)) == 3
    ElementTree.fromstring(curves_svg([], "nothing", "loss"))
