"""The page: what is to be seen first, then the sections."""

from modelgit.cli.reporting.comparison import comparison_sections
from modelgit.cli.reporting.history import (
    board_name,
    day,
    forgetting_section,
    lineage_section,
    scored_by,
    scores_section,
)
from modelgit.cli.reporting.words import percent, points
from modelgit.cli.screen.blocks import count_text
from modelgit.porcelain.reporting.values import Board, Comparison, Estimate, Report, Standing
from modelgit.report.sheet import Sheet, Tile


def page(report: Report) -> Sheet:
    """Returns the page of a report."""
    history = [lineage_section(report), scores_section(report), forgetting_section(report)]
    compared = comparison_sections(report.comparison) if report.comparison is not None else []
    return Sheet(f"Models of {report.repository}", sentences(report), [*compared, *history], tiles(report))


def sentences(report: Report) -> list[str]:
    """Returns what the page is of."""
    newest = max(model.date for model in report.versions)
    which = f"{', '.join(report.revs)}, and what led there" if report.revs else "All branches and tags"
    return [f"{which}; the newest version is of {day(newest)}."]


def tiles(report: Report) -> list[Tile]:
    """Returns the figures that are to be seen first."""
    merges = sum(model.kind == "merge" for model in report.versions)
    count = len(report.versions) + report.left_out
    found = [
        Tile(f"{count:,}", "version" if count == 1 else "versions", f"{count_text(merges, 'merge')} among those shown")
    ]
    found += best_tile(report, report.boards[0]) if report.boards else []
    found += compared_tiles(report.comparison) if report.comparison is not None else []
    return found


def best_tile(report: Report, board: Board) -> list[Tile]:
    """Returns the version with the highest accuracy on the data set that most were scored on."""

    def of(row: Standing) -> Estimate | None:
        return row.held_out if scored_by(board) == "held-out accuracy" else row.accuracy

    scored = [(found, row.number) for row in board.rows if (found := of(row)) is not None]
    if not scored:
        return []
    best, number = max(scored, key=lambda pair: (pair[0].value, -pair[1]))
    name = next(model.name for model in report.versions if model.number == number)
    return [Tile(f"{percent(best.value)} %", f"best {scored_by(board)}", f"{name}, on {board_name(board)}")]


def compared_tiles(found: Comparison) -> list[Tile]:
    """Returns what averaging brings, and whether it may be done."""
    last = found.gains[-1]
    gap = max(found.paths, key=lambda one: one.barrier)
    even = sum(pair.q_diversity for pair in found.pairs) / len(found.pairs)
    sure = f"95 % interval {ends(last.low, last.high)}"
    return [
        Tile(f"{percent(last.accuracy.value)} %", f"mean of all {last.k}", f"on {found.measured} of {found.data}"),
        Tile(points(last.difference), "points above the best single", sure),
        Tile(
            points(gap.barrier).lstrip("+"),
            "points, highest barrier",
            f"{gap.start} – {gap.end}, {ends(gap.low, gap.high)}",
        ),
        Tile(f"{even:.2f}", "q-diversity of pairs", "0 same errors, 1 independent"),
    ]


def ends(low: float, high: float) -> str:
    """Returns the ends of an interval in points."""
    return f"{points(low)} to {points(high)}"
