"""One page with everything about a run: the strategies' accuracies and the lineage behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from modelgit.report.chart import Row, strategy_chart
from modelgit.report.drawing import DARK, FONT, LIGHT, Drawing, Palette, document, percent, stack, text, text_width
from modelgit.report.lineage import Node, lineage

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
    parts = [_heading(report)]
    parts += [strategy_chart(report.rows, "Strategies", report.note)] if report.rows else []
    parts += [lineage(report.nodes, "Lineage")] if report.nodes else []
    return document(stack(parts, gap=6), report.title)


def report_html(report: Report) -> str:
    """Return the page as one HTML file with the pictures inside and the numbers as a table."""
    pictures = [document(strategy_chart(report.rows, "Strategies", report.note), "Strategies")] if report.rows else []
    pictures += [document(lineage(report.nodes, "Lineage"), "Lineage")] if report.nodes else []
    sentences = "".join(f"<p>{escape(line)}</p>\n" for line in report.summary)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(report.title)}</title>\n'
        f"<style>{_page_style()}</style>\n<h1>{escape(report.title)}</h1>\n{sentences}"
        + "\n".join(f"<figure>\n{picture}</figure>" for picture in pictures)
        + _table(report.rows)
        + "\n</html>\n"
    )


def _heading(report: Report) -> Drawing:
    lines = [text(MARGIN, 44, report.title, 24, weight="700")]
    lines += [text(MARGIN, 70 + 20 * i, line, 13, class_="faint") for i, line in enumerate(report.summary)]
    widest = max([text_width(report.title, 24), *(text_width(line, 13) for line in report.summary)])
    return Drawing(widest + 2 * MARGIN, 58 + 20 * len(report.summary), "".join(lines))


def _page_style() -> str:
    def rules(colours: Palette) -> str:
        return (
            f"body{{background:{colours['paper']};color:{colours['ink']}}}"
            f"td,th{{border-bottom:1px solid {colours['line']}}}"
        )

    layout = (
        f"body{{font-family:{FONT};max-width:1200px;margin:2rem auto;padding:0 1rem;line-height:1.5}}"
        "figure{margin:1.5rem 0;overflow-x:auto}table{border-collapse:collapse}"
        "td,th{padding:.3rem .8rem;text-align:right}td:first-child,th:first-child{text-align:left}"
    )
    return f"{layout}{rules(LIGHT)}@media (prefers-color-scheme: dark){{{rules(DARK)}}}"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = "<tr><th>strategy<th>held-out, %<th>±<th>validation, %<th>±</tr>\n"
    return f"\n<table>\n{head}{''.join(_table_row(row) for row in rows)}</table>"


def _table_row(row: Row) -> str:
    numbers = (row.held_out, row.held_out_error, row.validation, row.validation_error)
    cells = "".join(f"<td>{'' if value is None else percent(value)}" for value in numbers)
    name = f"<strong>{escape(row.label)}</strong>" if row.emphasis else escape(row.label)
    return f"<tr><td>{name}{cells}</tr>\n"
