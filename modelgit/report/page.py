"""One page with everything about a run: the strategies' accuracies and the lineage behind them."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.chart import Row, strategy_chart
from modelgit.report.drawing import Drawing, document, percent, stack, text, text_width
from modelgit.report.lineage import Node, lineage
from modelgit.report.sheet import Picture, Section, Sheet, Table, sheet_html

MARGIN = 28


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows; `summary` are sentences under the title, `note` says what errors and scores are."""

    title: str
    rows: tuple[Row, ...]
    nodes: tuple[Node, ...]
    summary: tuple[str, ...] = ()
    note: str = ""


def report_svg(report: Report) -> str:
    """Return the page as one SVG file."""
    return document(stack([_heading(report), *(drawing for _, drawing in _drawings(report))], gap=6), report.title)


def report_html(report: Report) -> str:
    """Return the page as one HTML file with the pictures inside and the numbers as a table."""
    sections = [Section(name, (), [Picture(drawing, name)]) for name, drawing in _drawings(report)]
    sections += [Section("Numbers", (), [_table(report.rows)])] if report.rows else []
    return sheet_html(Sheet(report.title, report.summary, sections))


def _drawings(report: Report) -> list[tuple[str, Drawing]]:
    drawings = [("Strategies", strategy_chart(report.rows, "Strategies", report.note))] if report.rows else []
    return drawings + ([("Lineage", lineage(report.nodes, "Lineage"))] if report.nodes else [])


def _heading(report: Report) -> Drawing:
    lines = [text(MARGIN, 44, report.title, 24, weight="700")]
    lines += [text(MARGIN, 70 + 20 * i, line, 13, class_="faint") for i, line in enumerate(report.summary)]
    widest = max([text_width(report.title, 24), *(text_width(line, 13) for line in report.summary)])
    return Drawing(widest + 2 * MARGIN, 58 + 20 * len(report.summary), "".join(lines))


def _table(rows: Sequence[Row]) -> Table:
    cells = [(r.label, *map(_cell, (r.held_out, r.held_out_error, r.validation, r.validation_error))) for r in rows]
    head = ("strategy", "held-out, %", "±", "validation, %", "±")
    return Table(head, cells, strong=frozenset(i for i, row in enumerate(rows) if row.emphasis))


def _cell(value: float | None) -> str:
    return "" if value is None else percent(value)
