"""Scores along straight paths between models: a line for each path, dashed what its ends promise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.drawing import COLOURS, Drawing, document, fit, number, text

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 280, 74, 56, 210, 54
TICKS = 4


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores at places from 0 to 1 on a path; not finite ones are left out."""

    label: str
    places: Sequence[float]
    scores: Sequence[float]


def curves_svg(curves: Sequence[Curve], title: str, axis: str) -> str:
    """Return the picture as an SVG file."""
    return document(curves_drawing(curves, title, axis), title)


def curves_drawing(curves: Sequence[Curve], title: str, axis: str) -> Drawing:
    """Return the picture as a drawing, for a page with others."""
    values = [score for curve in curves for score in curve.scores if math.isfinite(score)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    high = high if high > low else low + 1.0
    body = [text(LEFT, 30, title, 16, weight="600"), text(LEFT, TOP - 10, axis, 11, class_="faint")]
    body += [_tick(low + i * (high - low) / TICKS, low, high) for i in range(TICKS + 1)]
    ends = zip((0.0, 0.5, 1.0), ("start", "middle", "end"), strict=True)
    body += [text(_x(at), TOP + HEIGHT + 20, f"{at:g}", 11, anchor=anchor, class_="faint") for at, anchor in ends]
    for i, curve in enumerate(curves):
        body.append(_curve(curve, low, high, COLOURS[i % len(COLOURS)], 20.0 * i))
    height = TOP + max(HEIGHT + BOTTOM, 20 * len(curves) + 20)
    return Drawing(LEFT + WIDTH + RIGHT, height, "".join(body))


def _x(at: float) -> float:
    return LEFT + WIDTH * at


def _y(score: float, low: float, high: float) -> float:
    return TOP + HEIGHT * (high - score) / (high - low)


def _tick(value: float, low: float, high: float) -> str:
    y = _y(value, low, high)
    rule = f'<path class="rule" d="M{LEFT} {number(y)}h{WIDTH}" stroke-width="1"/>\n'
    return rule + text(LEFT - 10, y + 4, f"{value:.4g}", 11, anchor="end", class_="faint")


def _curve(curve: Curve, low: float, high: float, colour: str, down: float) -> str:
    points = [(a, s) for a, s in zip(curve.places, curve.scores, strict=True) if math.isfinite(s)]
    drawn = [f"{number(_x(a))} {number(_y(s, low, high))}" for a, s in points]
    parts = []
    if len(drawn) > 1:
        parts.append(f'<path d="M{drawn[0]}L{drawn[-1]}" stroke="{colour}" stroke-dasharray="4 4" fill="none"/>\n')
        parts.append(f'<path d="M{"L".join(drawn)}" stroke="{colour}" stroke-width="2" fill="none"/>\n')
    for place in drawn:
        x, y = place.split()
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>\n')
    label = fit(curve.label, RIGHT - 44, 12)
    parts.append(f'<circle cx="{LEFT + WIDTH + 24}" cy="{number(TOP + down)}" r="5" fill="{colour}"/>\n')
    parts.append(text(LEFT + WIDTH + 36, TOP + down + 4, label, 12))
    return "".join(parts)
