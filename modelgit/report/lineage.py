"""The family tree of a set of models: who came from whom, and how good each is.

Models stand in columns by generation, from left to right. The fullest column is set first, the others beside it at the
height of their neighbours. The caller's order is kept inside a column, so a picture changes only where the history did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from modelgit.errors import UsageError
from modelgit.report import drawing
from modelgit.report.drawing import Drawing, document, escaped, fit, number, percent, text, text_width

Kind = Literal["base", "aux", "probe", "target", "merge", "fused", "commit"]
KINDS: Mapping[Kind, tuple[str, str]] = {
    "base": (drawing.BLUE, "foundation model"),
    "aux": (drawing.ORANGE, "auxiliary fine-tuning"),
    "probe": (drawing.SKY, "linear probe"),
    "fused": (drawing.PURPLE, "fused start"),
    "target": (drawing.GREEN, "target fine-tuning"),
    "merge": (drawing.RED, "merge commit"),
    "commit": (drawing.GREY, "other commit"),
}
RESULT = "#8f3f00"  # the merge colour, dark enough for white letters
SCORE = "held-out accuracy, %"
Neighbours = Mapping[str, tuple[str, ...]]
MARGIN, HEADING, LEGEND, GAP, ROW_GAP, GROUP_GAP = 28, 62, 46, 96, 6, 24
SIZES: Mapping[bool, tuple[float, float]] = {False: (196, 24), True: (196, 44)}  # by is-it-a-merge: width, height


@dataclass(frozen=True, slots=True)
class Node:
    """A model: `parents` are ids of nodes, `score` is held-out accuracy in percent, `group` heads a run of nodes.

    `emphasis` marks the model that the picture is about.
    """

    id: str
    label: str
    kind: Kind
    parents: tuple[str, ...] = ()
    score: float | None = None
    group: str = ""
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node stands: the top left corner and the size, in pixels."""

    node: Node
    x: float
    y: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return SIZES[self.node.kind == "merge"]

    @property
    def middle(self) -> float:
        """The height of the middle."""
        return self.y + self.size[1] / 2


def lineage_svg(nodes: Sequence[Node], title: str, score: str = SCORE) -> str:
    """Return the picture as an SVG file. Raises UsageError for parents that are not nodes, or a cycle."""
    return document(lineage(nodes, title, score), title)


def lineage(nodes: Sequence[Node], title: str, score: str = SCORE) -> Drawing:
    """Return the picture as a drawing, for a page with others; `score` says what the numbers are."""
    boxes = arrange(nodes)
    by_id = {box.node.id: box for box in boxes}
    right = max((box.x + box.size[0] for box in boxes), default=0)
    bottom = max((box.y + box.size[1] for box in boxes), default=0)
    used = [kind for kind in KINDS if any(node.kind == kind for node in nodes)]
    width = max(right, text_width(title, 18) + MARGIN, _legend_width(used, score)) + MARGIN
    scores = [node.score for node in nodes if node.score is not None]
    body = [text(MARGIN, 34, title, 18, weight="600"), *_edges(boxes, by_id)]
    body += [_group_label(boxes, i) for i in range(len(boxes))]
    body += [_node(box, scores) for box in boxes]
    body.append(_legend(used, bottom + 34, score if scores else ""))
    return Drawing(width, bottom + LEGEND + MARGIN / 2, "".join(body))


# --------------------------------------------------------------------------------------------------- layout


def generations(nodes: Sequence[Node]) -> dict[str, int]:
    """Return for each id the length of the longest way from a model without parents."""
    parents = {node.id: node.parents for node in nodes}
    unknown = sorted({parent for node in nodes for parent in node.parents} - set(parents))
    if unknown:
        raise UsageError(f"the lineage names parents that are no nodes: {', '.join(unknown[:5])}")
    depth: dict[str, int] = {}
    waiting = list(parents)
    while waiting:
        ready = [id for id in waiting if all(parent in depth for parent in parents[id])]
        if not ready:
            raise UsageError(f"the lineage runs in a circle through {', '.join(waiting[:5])}")
        depth.update({id: 1 + max((depth[parent] for parent in parents[id]), default=-1) for id in ready})
        waiting = [id for id in waiting if id not in depth]
    return depth


def arrange(nodes: Sequence[Node]) -> list[Box]:
    """Return where every node stands, in the order of columns and inside them from above."""
    depth = generations(nodes)
    columns = [_grouped([n for n in nodes if depth[n.id] == g]) for g in range(max(depth.values(), default=-1) + 1)]
    if not columns:
        return []
    fullest = max(range(len(columns)), key=lambda g: (_height(columns[g]), -g))
    tops = dict(zip((n.id for n in columns[fullest]), _packed(columns[fullest]), strict=True))
    for g in range(fullest - 1, -1, -1):
        tops.update(_beside(columns[g], _children(nodes), tops))
    for g in range(fullest + 1, len(columns)):
        tops.update(_beside(columns[g], {n.id: n.parents for n in nodes}, tops))
    lift = HEADING + GROUP_GAP - min(tops.values())
    boxes, x = list[Box](), float(MARGIN)
    for column in columns:
        boxes += [Box(node, x, tops[node.id] + lift) for node in column]
        x += max(Box(node, 0, 0).size[0] for node in column) + GAP
    return boxes


def _grouped(column: list[Node]) -> list[Node]:
    order = {group: i for i, group in reversed(list(enumerate(node.group for node in column)))}
    return sorted(column, key=lambda node: order[node.group])


def _children(nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    return {node.id: tuple(child.id for child in nodes if node.id in child.parents) for node in nodes}


def _spacing(column: Sequence[Node], row_gap: float = ROW_GAP) -> list[float]:
    """Return the free space above each node of a column; a group's first one has room for its heading."""
    before = ["", *(node.group for node in column)]
    pairs = [(node.group, last) for node, last in zip(column, before, strict=False)]
    least = [ROW_GAP if group == last else GROUP_GAP if group else GROUP_GAP / 2 for group, last in pairs]
    return [max(space, row_gap) for space in least]


def _height(column: Sequence[Node]) -> float:
    return sum(Box(node, 0, 0).size[1] for node in column) + sum(_spacing(column))


def _packed(column: Sequence[Node], row_gap: float = ROW_GAP) -> list[float]:
    tops, at = [], 0.0
    for node, space in zip(column, _spacing(column, row_gap), strict=True):
        tops.append(at + space)
        at += space + Box(node, 0, 0).size[1]
    return tops


def _beside(column: list[Node], neighbours: Neighbours, tops: Mapping[str, float]) -> dict[str, float]:
    """Return tops at the mean height of each node's neighbours, moved apart: short columns stand more loosely."""
    room = 0.7 * (max(tops.values()) - min(tops.values())) - _height(column)
    packed = _packed(column, ROW_GAP + min(30.0, max(0.0, room / len(column))))
    wanted = []
    for node, fallback in zip(column, packed, strict=True):
        known = [tops[id] for id in neighbours[node.id] if id in tops]
        wanted.append(fmean(known) if known else fallback)
    return {node.id: top for node, top in zip(column, _in_order(wanted, packed), strict=True)}


def _in_order(wanted: list[float], packed: list[float]) -> list[float]:
    """Return the heights nearest to `wanted` (least squares) that keep the distances of `packed` at least.

    Pool adjacent violators: what is left of each height after the packed one must not decrease.
    """
    blocks: list[tuple[float, int]] = []  # mean, how many
    for free in (w - p for w, p in zip(wanted, packed, strict=True)):
        blocks.append((free, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks.pop(-2), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    shifts = [mean for mean, n in blocks for _ in range(n)]
    return [p + shift for p, shift in zip(packed, shifts, strict=True)]


# -------------------------------------------------------------------------------------------------- drawing


def _edges(boxes: Sequence[Box], by_id: Mapping[str, Box]) -> list[str]:
    return [_edge(by_id[parent], box) for box in boxes for parent in box.node.parents]


def _edge(parent: Box, child: Box) -> str:
    x0, y0, x1, y1 = parent.x + parent.size[0], parent.middle, child.x, child.middle
    reach = min(GAP * 0.75, (x1 - x0) / 2)
    start = x1 - GAP if x1 - x0 > GAP else x0  # a long edge stays level until the last gap
    curve = f"M{number(x0)} {number(y0)}H{number(start)}C{number(start + reach)} {number(y0)} "
    curve += f"{number(x1 - reach)} {number(y1)} {number(x1)} {number(y1)}"
    into_merge = child.node.kind == "merge"
    colour = KINDS["merge" if into_merge else parent.node.kind][0]
    look = f'stroke="{colour}" stroke-width="1.3" opacity="{0.4 if into_merge else 0.6}"'
    return f'<path d="{curve}" fill="none" {look}/>\n'


def _group_label(boxes: Sequence[Box], i: int) -> str:
    box, before = boxes[i], boxes[i - 1] if i else None
    first = before is None or before.x != box.x or before.node.group != box.node.group
    if not box.node.group or not first:
        return ""
    return text(box.x + 2, box.y - 6, fit(box.node.group, box.size[0], 11), 11, class_="faint")


def _node(box: Box, scores: Sequence[float]) -> str:
    node = box.node
    colour, meaning = KINDS[node.kind]
    score = "" if node.score is None else percent(node.score)
    title = f"<title>{escaped(f'{node.label} ({meaning})' + (f': {score} %' if score else ''))}</title>"
    draw = _merge_card if node.kind == "merge" else _card
    inside = draw(node, score, colour, _share(node.score, scores))
    return f'<g transform="translate({number(box.x)} {number(box.y)})">{title}\n{inside}</g>\n'


def _share(score: float | None, scores: Sequence[float]) -> float:
    """Return how long a score's bar is, from 0.06 for the lowest of all to 1 for the highest."""
    if score is None:
        return 0.0
    low, high = min(scores), max(scores)
    return 1.0 if high == low else 0.06 + 0.94 * (score - low) / (high - low)


def _card(node: Node, score: str, colour: str, share: float) -> str:
    width, height = SIZES[False]
    room = width - 22 - (text_width(score, 12) + 8 if score else 0)
    bar = f'<rect x="6" y="{height - 4}" width="{number((width - 12) * share)}" height="2.4" rx="1" fill="{colour}"/>\n'
    return (
        f'<rect class="card" width="{width}" height="{height}" rx="5" stroke="{colour}" stroke-width="1.4"/>\n'
        f'<rect width="5" height="{height}" rx="2.5" fill="{colour}"/>\n'
        + (bar if score else "")
        + text(13, 16, fit(node.label, room, 11.5), 11.5)
        + (text(width - 8, 16, score, 12, anchor="end", weight="600") if score else "")
    )


def _merge_card(node: Node, score: str, colour: str, share: float) -> str:
    """Return a larger card, filled where the model is the one that the picture is about."""
    width, height = SIZES[True]
    room = width - 26 - (text_width(score, 18) + 10 if score else 0)
    full = node.emphasis
    card, bar_colour, stroke = (f'fill="{RESULT}"', "#ffffff", 3.2) if full else ('class="card"', colour, 2.2)
    ink = {"fill": "#ffffff", "class_": ""} if full else {"class_": "ink"}
    place = f'x="11" y="{height - 9}" width="{number((width - 22) * share)}" height="3.4" rx="1.7"'
    bar = f'<rect {place} fill="{bar_colour}"/>\n'
    return (
        f'<rect width="{width}" height="{height}" rx="9" {card} stroke="{colour}" stroke-width="{stroke}"/>\n'
        + (bar if score else "")
        + text(12, 24, fit(node.label, room, 13), 13, weight="700" if full else "600", **ink)
        + (text(width - 11, 26, score, 18, anchor="end", weight="700", **ink) if score else "")
    )


def _legend_width(kinds: Sequence[Kind], score: str) -> float:
    return MARGIN + sum(34 + text_width(KINDS[kind][1], 12) for kind in kinds) + text_width(f"0.0  {score}", 12)


def _legend(kinds: Sequence[Kind], y: float, score: str) -> str:
    parts, x = [], float(MARGIN)
    for kind in kinds:
        colour, meaning = KINDS[kind]
        parts.append(f'<rect x="{number(x)}" y="{number(y - 10)}" width="12" height="12" rx="3" fill="{colour}"/>\n')
        parts.append(text(x + 18, y, meaning, 12))
        x += 34 + text_width(meaning, 12)
    if score:
        parts.append(text(x, y, "00.0", 12, weight="600"))
        parts.append(text(x + 34, y, score, 12, class_="faint"))
    return "".join(parts)
