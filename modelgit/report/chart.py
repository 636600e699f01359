"""Strategies side by side: held-out accuracy as dots with error bars, validation accuracy beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report import drawing
from modelgit.report.drawing import Drawing, document, escaped, fit, number, percent, text, text_width

ROW, TOP, BOTTOM, MARGIN, PLOT, VALUES = 34, 74, 62, 28, 520, 122
HELD_OUT, VALIDATION = drawing.RED, drawing.BLUE


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's accuracies in percent; errors are half the length of the bar (None: a single run, no bar).

    `emphasis` marks the strategy that the page is about; `note` is a few words under its name.
    """

    label: str
    held_out: float
    held_out_error: float | None = None
    validation: float | None = None
    validation_error: float | None = None
    note: str = ""
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Accuracies to pixels: `low` to `high` percent over PLOT pixels from `left`."""

    left: float
    low: float
    high: float
    step: float

    def x(self, value: float) -> float:
        """Return the place of an accuracy."""
        return self.left + PLOT * (value - self.low) / (self.high - self.low)


def strategy_chart_svg(rows: Sequence[Row], title: str, note: str = "") -> str:
    """Return the chart as an SVG file."""
    return document(strategy_chart(rows, title, note), title)


def strategy_chart(rows: Sequence[Row], title: str, note: str = "") -> Drawing:
    """Return the chart as a drawing, for a page with others; rows from above in the order given."""
    names = max((max(text_width(r.label, 13.5), text_width(r.note, 10.5)) for r in rows), default=0)
    scale = _scale(rows, MARGIN + min(names, 260) + 18)
    bottom = TOP + ROW * len(rows)
    ticks = round((scale.high - scale.low) / scale.step) + 1
    body = [text(MARGIN, 34, title, 18, weight="600"), _key(scale.left)]
    body += [_tick(scale, scale.low + i * scale.step, bottom) for i in range(ticks)]
    body += [_row(row, scale, TOP + ROW * i) for i, row in enumerate(rows)]
    body.append(text(scale.left + PLOT / 2, bottom + 36, "accuracy, %", 11.5, anchor="middle", class_="faint"))
    body.append(text(MARGIN, bottom + 56, note, 11, class_="faint") if note else "")
    texts = max(text_width(title, 18), text_width(note, 11)) + 2 * MARGIN
    return Drawing(max(scale.left + PLOT + VALUES + MARGIN, texts), bottom + BOTTOM, "".join(body))


def _scale(rows: Sequence[Row], left: float) -> Scale:
    """Return a scale over all values and errors, with round numbers at about five to eight ticks."""
    ends = [end for row in rows for end in _ends(row)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 100.0)
    spread = max(high - low, 1.0)
    step = next(s for s in (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, math.inf) if spread / s <= 7)
    return Scale(left, math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step)


def _ends(row: Row) -> list[float]:
    pairs = [(row.held_out, row.held_out_error), (row.validation, row.validation_error)]
    return [value + sign * (error or 0) for value, error in pairs if value is not None for sign in (-1, 1)]


def _tick(scale: Scale, value: float, bottom: float) -> str:
    x = number(scale.x(value))
    label = f"{value:.1f}" if scale.step < 1 else f"{value:.0f}"
    line = f'<path class="rule" d="M{x} {TOP - 8}V{number(bottom)}" stroke-width="1"/>\n'
    return line + text(scale.x(value), bottom + 18, label, 11, anchor="middle", class_="faint")


def _row(row: Row, scale: Scale, top: float) -> str:
    middle, weight = top + ROW / 2, "700" if row.emphasis else "400"
    width = scale.left + PLOT + VALUES
    parts = [f"<g><title>{escaped(_summary(row))}</title>\n"]
    if row.emphasis:
        place = f'x="{MARGIN - 10}" y="{number(top)}" width="{number(width - MARGIN + 10)}" height="{ROW}"'
        parts.append(f'<rect class="card" {place} rx="6"/>\n')
    room = scale.left - MARGIN - 14
    lift = 1 if row.note else 5
    parts.append(text(MARGIN, middle + lift, fit(row.label, room, 13), 13, weight=weight))
    parts.append(text(MARGIN, middle + 13, fit(row.note, room, 10), 10, class_="faint") if row.note else "")
    if row.validation is not None:
        parts.append(_mark(scale, row.validation, row.validation_error, middle + 4, VALIDATION, held_out=False))
    parts.append(_mark(scale, row.held_out, row.held_out_error, middle - 3, HELD_OUT, held_out=True))
    parts.append(text(scale.left + PLOT + 16, middle + 5, _value(row.held_out, row.held_out_error), 13, weight=weight))
    return "".join([*parts, "</g>\n"])


def _mark(scale: Scale, value: float, error: float | None, y: float, colour: str, *, held_out: bool) -> str:
    x = scale.x(value)
    parts = []
    if error:
        a, b = number(scale.x(value - error)), number(scale.x(value + error))
        caps = f"M{a} {number(y - 4)}v8M{b} {number(y - 4)}v8" if held_out else ""
        width = 2 if held_out else 1.2
        parts.append(f'<path d="M{a} {number(y)}H{b}{caps}" stroke="{colour}" stroke-width="{width}" fill="none"/>\n')
    parts.append(_dot(x, y, colour) if held_out else _diamond(x, y, colour))
    return "".join(parts)


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="6" fill="{colour}"/>\n'


def _diamond(x: float, y: float, colour: str) -> str:
    shape = f"M{number(x)} {number(y - 5)}l5 5l-5 5l-5 -5z"
    return f'<path class="hollow" d="{shape}" stroke="{colour}" stroke-width="1.6"/>\n'


def _key(left: float) -> str:
    y = 54.0
    return "".join(
        [
            _dot(left + 6, y - 4, HELD_OUT),
            text(left + 18, y, "held-out domain", 12),
            _diamond(left + 146, y - 4, VALIDATION),
            text(left + 158, y, "validation (training domains)", 12),
        ]
    )


def _value(value: float, error: float | None) -> str:
    return percent(value) + (f" ± {percent(error)}" if error is not None else "")


def _summary(row: Row) -> str:
    validation = "" if row.validation is None else f"; validation {_value(row.validation, row.validation_error)} %"
    return f"{row.label}: held-out {_value(row.held_out, row.held_out_error)} %{validation}"
