"""A long history: a row for each version, newest first, lines of descent at the left, scores at the right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.drawing import Drawing, document, escaped, fit, number, percent, text, text_width
from modelgit.report.lineage import KINDS, SCORE, Kind, Node
from modelgit.report.plane import Axis, Range, label, spanned

ROW, TOP, MARGIN, LANE, NAMES, PLOT, BOTTOM = 22, 78, 28, 13, 300, 300, 70


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a version stands: its row and lane; `lines` are (lane, parent) of the lines that leave it downwards."""

    row: int
    lane: int
    lines: tuple[tuple[int, str], ...]

    @property
    def widest(self) -> int:
        """The last lane that the version or a line of it is in."""
        return max([self.lane, *(lane for lane, _ in self.lines)])


def track_svg(nodes: Sequence[Node], title: str, score: str = SCORE) -> str:
    """Returns the picture as an SVG file."""
    return document(track(nodes, title, score), title)


def track(nodes: Sequence[Node], title: str, score: str = SCORE) -> Drawing:
    """Returns the picture as a drawing; nodes come children before parents, parents that are no nodes are left out."""
    stands = lanes(nodes)
    left = MARGIN + LANE * (1 + max((s.widest for s in stands.values()), default=0)) + 12
    scores = [node.score for node in nodes if node.score is not None]
    across = spanned(scores, Axis(score))
    bottom = TOP + ROW * len(nodes)
    body = [text(MARGIN, 30, title, 16, weight="600"), *_legend(nodes)]
    body += [_tick(value, across, left + NAMES + 16, bottom) for value in across.ticks()] if scores else []
    leaving = [(node, lane, parent) for node in nodes for lane, parent in stands[node.id].lines]
    body += [_line(stands[node.id], stands[parent], lane, node.kind) for node, lane, parent in leaving]
    body += [_row(node, stands[node.id], left, across) for node in nodes]
    if scores:
        body.append(text(left + NAMES + 16 + PLOT / 2, bottom + 38, score, 11, anchor="middle", class_="faint"))
    return Drawing(max(left + NAMES + PLOT + 80, text_width(title, 16) + 2 * MARGIN), bottom + BOTTOM, "".join(body))


def lanes(nodes: Sequence[Node]) -> dict[str, Stand]:
    """Returns where every version stands: a line of descent keeps its lane until it ends."""
    known, free = {node.id for node in nodes}, list[str | None]()
    found: dict[str, Stand] = {}
    for row, node in enumerate(nodes):
        at = free.index(node.id) if node.id in free else _empty(free)
        free[:] = [None if target == node.id else target for target in free]
        lines = []
        for parent in dict.fromkeys(p for p in node.parents if p in known):
            known_at = free.index(parent) if parent in free else len(free)
            lane = at if free[at] is None and at < known_at else known_at if known_at < len(free) else _empty(free)
            free[lane] = parent
            lines.append((lane, parent))
        found[node.id] = Stand(row, at, tuple(lines))
    return found


def _empty(free: list[str | None]) -> int:
    if None not in free:
        free.append(None)
    return free.index(None)


def _x(lane: int) -> float:
    return MARGIN + 6 + LANE * lane


def _y(row: int) -> float:
    return TOP + ROW * row + ROW / 2


def _line(child: Stand, parent: Stand, lane: int, kind: Kind) -> str:
    x0, y0, x1, x2, y2 = _x(child.lane), _y(child.row), _x(lane), _x(parent.lane), _y(parent.row)
    bend = ROW * 0.5
    path = f"M{number(x0)} {number(y0)}C{number(x0)} {number(y0 + bend)} {number(x1)} {number(y0 + bend)} "
    path += f"{number(x1)} {number(y0 + ROW)}V{number(max(y0 + ROW, y2 - ROW))}"
    if x2 != x1 or y2 > y0 + ROW:
        path += f"C{number(x1)} {number(y2 - bend)} {number(x2)} {number(y2 - bend)} {number(x2)} {number(y2)}"
    colour = KINDS["merge" if kind == "merge" else "commit"][0]
    return f'<path d="{path}" stroke="{colour}" stroke-width="1.4" opacity="0.6" fill="none"/>\n'


def _row(node: Node, stand: Stand, left: float, across: Range) -> str:
    colour, meaning = KINDS[node.kind]
    y = _y(stand.row)
    parts = [f"<g><title>{escaped(f'{node.label} ({meaning})')}</title>\n"]
    parts.append(f'<circle cx="{number(_x(stand.lane))}" cy="{number(y)}" r="5" fill="{colour}"/>\n')
    parts.append(text(left, y + 4, fit(node.label, NAMES, 12), 12, weight="700" if node.emphasis else "400"))
    if node.score is not None and math.isfinite(node.score):
        start, x = left + NAMES + 16, left + NAMES + 16 + PLOT * across.part(node.score)
        parts.append(f'<path class="rule" d="M{number(start)} {number(y)}H{number(x)}" stroke-width="1.5"/>\n')
        parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="4" fill="{colour}"/>\n')
        parts.append(text(start + PLOT + 12, y + 4, percent(node.score), 12, weight="600"))
    return "".join([*parts, "</g>\n"])


def _tick(value: float, across: Range, left: float, bottom: float) -> str:
    x = left + PLOT * across.part(value)
    rule = f'<path class="rule" d="M{number(x)} {TOP - 6}V{number(bottom)}" stroke-width="1"/>\n'
    return rule + text(x, bottom + 18, label(value, across.step), 11, anchor="middle", class_="faint")


def _legend(nodes: Sequence[Node]) -> list[str]:
    parts, x = [], float(MARGIN)
    for kind in (kind for kind in KINDS if any(node.kind == kind for node in nodes)):
        colour, meaning = KINDS[kind]
        parts.append(f'<circle cx="{number(x + 5)}" cy="50" r="5" fill="{colour}"/>\n' + text(x + 16, 54, meaning, 12))
        x += 34 + text_width(meaning, 12)
    return parts
