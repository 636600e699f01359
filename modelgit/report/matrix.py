"""A value for every pair: squares, darker where it is larger, with the number inside."""

import math
from collections.abc import Sequence

from modelgit.report.drawing import BLUE, Drawing, fit, number, text, text_width

CELL, TOP, MARGIN, NAMES = 46, 66, 28, 220


def matrix(names: Sequence[str], values: Sequence[Sequence[float]], title: str, note: str = "") -> Drawing:
    """Returns the picture as a drawing, for a page with others; cells that are not finite stay empty."""
    finite = [v for row in values for v in row if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    left = MARGIN + min(NAMES, max((text_width(name, 12) for name in names), default=0)) + 12
    body = [text(MARGIN, 30, title, 16, weight="600")]
    for i, name in enumerate(names):
        body.append(text(left - 8, TOP + CELL * i + CELL / 2 + 4, fit(name, NAMES, 12), 12, anchor="end"))
        body.append(text(left + CELL * i + CELL / 2, TOP - 8, str(i + 1), 11, anchor="middle", class_="faint"))
        body += [_cell(left + CELL * j, TOP + CELL * i, v, (low, high)) for j, v in enumerate(values[i])]
    bottom = TOP + CELL * len(names)
    body.append(text(MARGIN, bottom + 24, note, 11, class_="faint") if note else "")
    width = max(left + CELL * len(names), text_width(title, 16) + MARGIN, text_width(note, 11) + MARGIN) + MARGIN
    return Drawing(width, bottom + 40, "".join(body))


def _cell(x: float, y: float, value: float, ends: tuple[float, float]) -> str:
    if not math.isfinite(value):
        return ""
    low, high = ends
    share = (value - low) / (high - low) if high > low else 0.5
    place = f'x="{number(x + 1)}" y="{number(y + 1)}" width="{CELL - 2}" height="{CELL - 2}"'
    square = f'<rect {place} rx="3" fill="{BLUE}" fill-opacity="{0.08 + 0.72 * share:.2f}"/>\n'
    return square + text(x + CELL / 2, y + CELL / 2 + 4, f"{value:.2f}", 11, anchor="middle")
