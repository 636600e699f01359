"""Values over values: lines with bands, or points, on axes with round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.drawing import COLOURS, Drawing, fit, number, text

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 520, 280, 74, 62, 230, 64
MOST_TICKS = 7


@dataclass(frozen=True, slots=True)
class Series:
    """Points by x; `line` joins them, `dashed` in dashes; `low` and `high` are a band around a line, bars through dots.

    `links` are pairs of points, by their places, that are joined besides. Without a label there is no key.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    line: bool = True
    dashed: bool = False
    dots: bool = True
    links: Sequence[tuple[int, int]] = ()
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis measures; `whole` for counts, whose ticks are whole numbers."""

    label: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """The values an axis spans, with a round distance between ticks."""

    low: float
    high: float
    step: float

    def part(self, value: float) -> float:
        """Returns where a value lies, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Returns the round numbers within."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [i * self.step for i in range(first, last + 1)]


def plane(series: Sequence[Series], title: str, axes: tuple[Axis, Axis], note: str = "") -> Drawing:
    """Returns the picture as a drawing, for a page with others; values that are not finite are left out."""
    across = spanned([x for one in series for x in one.x], axes[0])
    up = spanned([y for one in series for y in (*one.y, *one.low, *one.high)], axes[1])
    body = [text(LEFT, 30, title, 16, weight="600"), text(LEFT, TOP - 12, axes[1].label, 11, class_="faint")]
    body += [_row_tick(value, up) for value in up.ticks()]
    body += [_column_tick(value, across) for value in across.ticks()]
    body.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 40, axes[0].label, 11, anchor="middle", class_="faint"))
    coloured = [(one, one.colour or COLOURS[i % len(COLOURS)]) for i, one in enumerate(series)]
    body += [_series(one, (across, up), colour) for one, colour in coloured]
    named = [(one, colour) for one, colour in coloured if one.label]
    body += [_key(one, colour, TOP + 20 * i) for i, (one, colour) in enumerate(named)]
    body.append(text(LEFT, TOP + HEIGHT + 60, note, 11, class_="faint") if note else "")
    height = TOP + max(HEIGHT + BOTTOM + (12 if note else 0), 20 * len(named) + 20)
    return Drawing(LEFT + WIDTH + RIGHT, height, "".join(body))


def spanned(values: Sequence[float], axis: Axis) -> Range:
    """Returns a range around the values that are finite, with round ends."""
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = round_step((high - low) / (MOST_TICKS - 1), whole=axis.whole)
    return Range(math.floor(low / step) * step, math.ceil(high / step) * step, step)


def round_step(least: float, *, whole: bool) -> float:
    """Returns the smallest of 1, 2, 5, 10, … (or tenths, hundredths … of these) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return max(1.0, step) if whole else step


def _place(x: float, y: float, ranges: tuple[Range, Range]) -> tuple[float, float]:
    return LEFT + WIDTH * ranges[0].part(x), TOP + HEIGHT * (1 - ranges[1].part(y))


def _row_tick(value: float, up: Range) -> str:
    y = TOP + HEIGHT * (1 - up.part(value))
    rule = f'<path class="rule" d="M{LEFT} {number(y)}h{WIDTH}" stroke-width="1"/>\n'
    return rule + text(LEFT - 10, y + 4, label(value, up.step), 11, anchor="end", class_="faint")


def _column_tick(value: float, across: Range) -> str:
    x = LEFT + WIDTH * across.part(value)
    return text(x, TOP + HEIGHT + 20, label(value, across.step), 11, anchor="middle", class_="faint")


def label(value: float, step: float) -> str:
    """Returns a tick's number with as many digits as its step needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:.{digits}f}"


def _series(one: Series, ranges: tuple[Range, Range], colour: str) -> str:
    finite = [i for i in range(len(one.x)) if math.isfinite(one.x[i]) and math.isfinite(one.y[i])]
    places = [_place(one.x[i], one.y[i], ranges) for i in finite]
    spread = _band if one.line else _whiskers
    parts = [spread(one, finite, ranges, colour)] if one.low and one.high else []
    at = dict(zip(finite, places, strict=True))
    parts += [_link(at[i], at[j], colour) for i, j in one.links if i in at and j in at]
    if one.line and len(places) > 1:
        path = "L".join(f"{number(x)} {number(y)}" for x, y in places)
        dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"{dashes}/>\n')
    if one.dots:
        parts += [f'<circle cx="{number(x)}" cy="{number(y)}" r="3.5" fill="{colour}"/>\n' for x, y in places]
    return "".join(parts)


def _link(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    path = f"M{number(start[0])} {number(start[1])}L{number(end[0])} {number(end[1])}"
    return f'<path d="{path}" stroke="{colour}" stroke-width="1.2" opacity="0.45" fill="none"/>\n'


def _band(one: Series, finite: Sequence[int], ranges: tuple[Range, Range], colour: str) -> str:
    ends = [i for i in finite if math.isfinite(one.low[i]) and math.isfinite(one.high[i])]
    above = [_place(one.x[i], one.high[i], ranges) for i in ends]
    below = [_place(one.x[i], one.low[i], ranges) for i in reversed(ends)]
    outline = "L".join(f"{number(x)} {number(y)}" for x, y in [*above, *below])
    return f'<path d="M{outline}Z" fill="{colour}" fill-opacity="0.15"/>\n' if len(ends) > 1 else ""


def _whiskers(one: Series, finite: Sequence[int], ranges: tuple[Range, Range], colour: str) -> str:
    ends = [i for i in finite if math.isfinite(one.low[i]) and math.isfinite(one.high[i])]
    pairs = [(_place(one.x[i], one.low[i], ranges), _place(one.x[i], one.high[i], ranges)) for i in ends]
    path = "".join(f"M{number(a[0])} {number(a[1])}V{number(b[1])}" for a, b in pairs)
    return f'<path d="{path}" stroke="{colour}" stroke-width="1.6" opacity="0.45" fill="none"/>\n' if path else ""


def _key(one: Series, colour: str, y: float) -> str:
    x = LEFT + WIDTH + 24
    dashes = ' stroke-dasharray="4 3"' if one.dashed else ""
    mark = (
        f'<path d="M{x - 8} {number(y)}h16" stroke="{colour}" stroke-width="2" fill="none"{dashes}/>\n'
        if one.line
        else f'<circle cx="{x}" cy="{number(y)}" r="4.5" fill="{colour}"/>\n'
    )
    return mark + text(x + 14, y + 4, fit(one.label, RIGHT - 50, 12), 12)
