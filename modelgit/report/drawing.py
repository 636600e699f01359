"""The few pieces of SVG that the pictures are made of, and their colours on light and dark backgrounds.

Colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart; the blue is
lighter than theirs, to be seen on dark backgrounds too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
CHARACTER = 0.56  # average width of a character, in font sizes
BLUE, SKY, GREEN, ORANGE, RED, PURPLE = "#1f83c4", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
GREY = "#848d97"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)  # of series, in turn
UNSEEN = {*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
UNSEEN |= {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # what turns the direction of all that follows
REPLACED = dict.fromkeys(UNSEEN, "\ufffd")
Palette = Mapping[str, str]
LIGHT: Palette = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#59636e", "line": "#d1d9e0", "card": "#f6f8fa"}
DARK: Palette = {"paper": "#0d1117", "ink": "#f0f6fc", "faint": "#9198a1", "line": "#3d444d", "card": "#151b23"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A piece of picture with its size in pixels; `body` is SVG elements."""

    width: float
    height: float
    body: str


def document(drawing: Drawing, title: str) -> str:
    """Return the drawing as a whole SVG file that follows the reader's light or dark setting."""
    width, height = round(drawing.width), round(drawing.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" font-family="{FONT}">\n<title>{escaped(title)}</title>\n<style>{style()}</style>\n'
        f'<rect class="paper" width="{width}" height="{height}"/>\n{drawing.body}</svg>\n'
    )


def style() -> str:
    """Return the colour rules: light ones, and dark ones for the screens of readers who ask for them."""
    return f"{_rules(LIGHT)}@media screen and (prefers-color-scheme: dark){{{_rules(DARK)}}}"


def _rules(colours: Palette) -> str:
    fills = "".join(f".{name}{{fill:{colour}}}" for name, colour in colours.items())
    return f"{fills}.rule{{stroke:{colours['line']}}}.hollow{{fill:{colours['paper']}}}"


def stack(drawings: Sequence[Drawing], gap: float = 0) -> Drawing:
    """Return the drawings one below the other, left edges aligned."""
    body, top = [], 0.0
    for drawing in drawings:
        body.append(f'<g transform="translate(0 {number(top)})">\n{drawing.body}</g>\n')
        top += drawing.height + gap
    return Drawing(max((d.width for d in drawings), default=0), max(0.0, top - gap), "".join(body))


def text(x: float, y: float, content: str, size: float = 12, **attributes: str) -> str:
    """Return a line of text, its baseline at (x, y). `anchor`, `weight` and `class_` are SVG's; it is escaped."""
    names = {"anchor": "text-anchor", "weight": "font-weight", "class_": "class", "fill": "fill"}
    given = {"class_": "ink", **attributes}
    rest = "".join(f' {names[key]}="{escape(value)}"' for key, value in given.items() if value)
    return f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}"{rest}>{escaped(content)}</text>\n'


def escaped(content: str) -> str:
    """Return text that XML and HTML only show; what they may not hold, and what turns other text, is replaced."""
    return escape(content.translate(REPLACED))


def fit(content: str, width: float, size: float) -> str:
    """Return the text, cut with an ellipsis where it would be wider than `width` pixels."""
    most = max(1, int(width / (size * CHARACTER)))
    return content if len(content) <= most else content[: most - 1].rstrip() + "…"


def text_width(content: str, size: float) -> float:
    """Return about how many pixels wide the text is."""
    return len(content) * size * CHARACTER


def number(value: float) -> str:
    """Return a coordinate, short and the same on every machine."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value else "0"


def percent(value: float) -> str:
    """Return a score between 0 and 100 with one digit after the point."""
    return f"{value:.1f}"
