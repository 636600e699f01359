"""How models measured before a merge look to people: gains, coefficients, paths."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Span, Table, count_text, faint, line, strong
from modelgit.cli.screen.views import view

if TYPE_CHECKING:
    from modelgit.porcelain.trials.values import Barriers, Findings, Measured, Path, Search, Selection

BEST, PLOT, SHOWN = 5, 32, 24


def found(findings: "Findings") -> Iterator[Block]:
    """Yields all that was found out before a merge."""
    if findings.selection is not None:
        yield from selection(findings.selection)
    if findings.search is not None:
        yield from search(findings.search)
    if findings.barriers is not None:
        height = number(findings.barriers.highest)
        yield line(f"  highest barrier {height} in {measured(findings.barriers.on)}")
    if findings.holdout is not None:
        yield line("  held out: ", Span(f"{findings.holdout.data} {number(findings.holdout.score)}", "good"))
    for note in findings.notes:
        yield line(faint(f"  note: {note}"))


def selection(result: "Selection") -> Iterator[Block]:
    """Yields the curve of marginal gains; of a greedier selection, what each round took, and the last in full."""
    last = max(row.round for row in result.tried)
    rows = [row for row in result.tried if row.kept or row.round == last or result.mode != "greedier"]
    means = f"{count_text(result.means, 'mean')} measured, each model read at most {count_text(result.reads, 'time')}"
    singles = count_text(result.singles, "single model")
    kept = strong(f"{count_text(len(result.kept), 'model')} kept")
    yield line(f"{result.mode} selection by {measured(result.on)}: ", kept)
    table = [
        (
            row.name,
            number(row.alone) + ("*" if row.known else " "),
            number(row.together),
            "kept" if row.kept else "left",
        )
        for row in rows[:SHOWN]
    ]
    if len(rows) > SHOWN:
        table.append((f"and {len(rows) - SHOWN} more (--json)", "", "", ""))
    yield Table(("model", "alone >", "mean with it>", ""), tuple(table))
    known = "; * known from before" if any(row.known for row in rows) else ""
    yield line(faint(f"  {singles} and {means}{known}"))


def search(result: "Search") -> Iterator[Block]:
    """Yields the best coefficients that were found, and the few next to them."""
    count = count_text(len(result.attempts), "evaluation")
    best = ", ".join(f"{name} {value:g}" for name, value in list(result.best.values.items())[:SHOWN])
    yield line(f"search of {result.what} by {measured(result.on)}, {count}: ", strong(number(result.best.score)))
    yield line(f"  {best}")
    sign = 1 if result.on.lower_is_better else -1
    ranked = sorted(result.attempts, key=lambda one: sign * one.score if math.isfinite(one.score) else math.inf)
    if len(result.best.values) > BEST:
        return
    rows = tuple((*(f"{value:g}" for value in one.values.values()), number(one.score)) for one in ranked[:BEST])
    yield Table((*(f"{name}>" for name in result.best.values), f"{result.on.metric}>"), rows)


@view("Barriers", lambda result: [])
def barriers(result: "Barriers") -> Iterator[Block]:
    """Scores along the straight paths between models."""
    for path in result.paths:
        yield from path_blocks(path, result.on)
    yield line(faint(f"{count_text(result.evaluations, 'evaluation')} of {measured(result.on)}; nothing was stored"))
    if result.plot is not None:
        yield line(f"wrote {result.plot}")


def path_blocks(path: "Path", on: "Measured") -> Iterator[Block]:
    """Yields one path: its points, and how far it falls."""
    verdict = (
        Span(f"barrier {number(path.barrier)} at {path.at:g}", "bad") if path.barrier else Span("no barrier", "good")
    )
    yield line(strong(f"{path.start} – {path.end}"), ": ", verdict)
    drawn = plot([point.score for point in path.points], [point.promised for point in path.points])
    rows = tuple(
        (f"{point.at:g}", number(point.score), number(point.promised), picture)
        for point, picture in zip(path.points, drawn, strict=True)
    )
    yield Table(("at>", f"{on.metric}>", "straight line>", ""), rows)


def plot(scores: Sequence[float], promised: Sequence[float]) -> list[str]:
    """Returns a picture of each point: ● its score, | the straight line between the ends' scores."""
    finite = [value for value in (*scores, *promised) if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    rows = []
    for score, line_at in zip(scores, promised, strict=True):
        row = [" "] * (PLOT + 1)
        for value, mark in ((line_at, "|"), (score, "●")):
            if math.isfinite(value):
                row[round(PLOT * (value - low) / (high - low)) if high > low else PLOT] = mark
        rows.append("".join(row).rstrip())
    return rows


def measured(on: "Measured") -> str:
    """Returns what scores are of."""
    return f"{on.metric} on {on.data}{' (lower is better)' if on.lower_is_better else ''}"


def number(value: float) -> str:
    """Returns a score in four digits."""
    return f"{value:.4f}" if math.isfinite(value) else f"{value}"
