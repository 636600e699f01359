"""Estimates as rows of dots with their intervals, several to a row in colours: who is how good, and how surely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.drawing import COLOURS, Drawing, document, escaped, fit, number, text, text_width
from modelgit.report.plane import Axis, Range, label, spanned

ROW, TOP, MARGIN, NAMES, PLOT, BOTTOM = 30, 84, 28, 250, 460, 54
APART = 7  # pixels between the dots of one row


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with the ends of its interval, if it has one; `series` is its place in the key."""

    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What marks are of, and a few words at the right."""

    label: str
    marks: Sequence[Mark]
    words: str = ""


def forest_svg(rows: Sequence[Row], title: str, axis: Axis, key: Sequence[str] = ()) -> str:
    """Returns the picture as an SVG file."""
    return document(forest(rows, title, axis, key), title)


def forest(rows: Sequence[Row], title: str, axis: Axis, key: Sequence[str] = ()) -> Drawing:
    """Returns the picture as a drawing; rows from above, `key` names the series, 0 has a line of its own if seen."""
    left = MARGIN + min(NAMES, max((text_width(row.label, 12.5) for row in rows), default=0)) + 16
    values = [v for row in rows for m in row.marks for v in (m.value, m.low, m.high) if v is not None]
    across = spanned(values, axis)
    bottom = TOP + sum(_height(row) for row in rows)
    body = [text(MARGIN, 30, title, 16, weight="600"), *_keys(key, MARGIN)]
    body += [_tick(value, across, left, bottom) for value in across.ticks()]
    at = float(TOP)
    for row in rows:
        body.append(_row(row, across, left, at))
        at += _height(row)
    body.append(text(left + PLOT / 2, bottom + 38, axis.label, 11, anchor="middle", class_="faint"))
    words = max((text_width(row.words, 12) for row in rows), default=0)
    texts = max(text_width(title, 16), sum(34 + text_width(name, 12) for name in key)) + 2 * MARGIN
    return Drawing(max(left + PLOT + 16 + words + MARGIN, texts), bottom + BOTTOM, "".join(body))


def _height(row: Row) -> float:
    return max(ROW, APART * len(row.marks) + 12)


def _keys(key: Sequence[str], x: float) -> list[str]:
    parts = []
    for i, name in enumerate(key):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<circle cx="{number(x + 5)}" cy="52" r="5" fill="{colour}"/>\n' + text(x + 16, 56, name, 12))
        x += 34 + text_width(name, 12)
    return parts


def _tick(value: float, across: Range, left: float, bottom: float) -> str:
    x = left + PLOT * across.part(value)
    dark = abs(value) < across.step / 1e6 and across.low < 0
    rule = f'<path class="rule" d="M{number(x)} {TOP - 6}V{number(bottom)}" stroke-width="{2.5 if dark else 1}"/>\n'
    return rule + text(x, bottom + 18, label(value, across.step), 11, anchor="middle", class_="faint")


def _row(row: Row, across: Range, left: float, top: float) -> str:
    middle = top + _height(row) / 2
    first = middle - APART * (len(row.marks) - 1) / 2
    parts = [f"<g><title>{escaped(f'{row.label}: {row.words}')}</title>\n"]
    parts.append(text(left - 14, middle + 4, fit(row.label, NAMES, 12.5), 12.5, anchor="end"))
    parts += [_mark(mark, across, left, first + APART * i) for i, mark in enumerate(row.marks)]
    parts.append(text(left + PLOT + 16, middle + 4, row.words, 12))
    return "".join([*parts, "</g>\n"])


def _mark(mark: Mark, across: Range, left: float, y: float) -> str:
    if not math.isfinite(mark.value):
        return ""
    colour, x = COLOURS[mark.series % len(COLOURS)], left + PLOT * across.part(mark.value)
    whisker = ""
    if mark.low is not None and mark.high is not None:
        a, b = (number(left + PLOT * across.part(end)) for end in (mark.low, mark.high))
        whisker = f'<path d="M{a} {number(y)}H{b}" stroke="{colour}" stroke-width="2" opacity="0.55" fill="none"/>\n'
    return whisker + f'<circle cx="{number(x)}" cy="{number(y)}" r="4" fill="{colour}"/>\n'
