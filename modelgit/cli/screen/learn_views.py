"""How trained versions and programs of one's own look."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Span, Table, bytes_text, count_text, faint, identity, line, strong
from modelgit.cli.screen.views import METRICS, some, view

if TYPE_CHECKING:
    from modelgit.porcelain.executing import Executed
    from modelgit.porcelain.reporting.values import Comparison, Report
    from modelgit.porcelain.training.committing import Trained
    from modelgit.porcelain.training.rerunning import Retrained


@view("Trained", lambda result: [result.commit])
def trained(result: "Trained") -> Iterator[Block]:
    """A fine-tuning that was committed."""
    yield line(f"[{result.branch or 'detached HEAD'} ", identity(result.commit), f"] {result.subject}")
    steps = f"{count_text(result.steps, 'step')} on " if result.kind == "train" else ""
    threads = f", {count_text(result.threads, 'thread')}" if result.device == "cpu" else ""
    kept = f"; kept step {result.kept_step}" if result.kept_step not in (None, result.steps) else ""
    yield line(f"  {steps}{result.data} took {result.seconds:,.1f} s on {result.device}{threads}{kept}")
    told = [f"{METRICS[name]} {100 * value:.1f} %" for name, value in result.values.items() if name in METRICS]
    yield line(f"  {', '.join(told)}")
    stored = f"{bytes_text(result.size_bytes)} of weights stored in {bytes_text(result.stored_bytes)}"
    yield line(faint(f"  tensors: {result.changed:,} changed, {result.same:,} shared; {stored}"))


@view("Retrained", lambda result: [result.commit])
def retrained(result: "Retrained") -> Iterator[Block]:
    """A fine-tuning that was carried out again."""
    allowed = f"of {100 * result.tolerance:g} % allowed"
    near = f"not bit for bit: {100 * result.apart:.2g} % of the way from its start, {allowed}"
    what = f"{count_text(result.tensors, 'tensor')}, {'every bit the same' if result.exact else near}"
    yield line(Span("ok", "good"), " ", identity(result.commit), f" trained again on {result.device}: {what}")
    if result.first is not None:
        yield line(f"  first to differ: {result.first}, by {result.largest:.2g} at most")
    for note in result.notes:
        yield line(faint(f"  not as it was: {note}"))


@view("Executed", lambda result: [result.commit] if result.commit else [])
def executed(result: "Executed") -> Iterator[Block]:
    """A program that was run, and what it wrote."""
    took = f"{shlex.join(result.command)} took {result.seconds:,.1f} s"
    if result.commit is None:
        yield line(f"{took} and wrote nothing that git does not ignore: no commit")
        return
    yield line(f"[{result.branch or 'detached HEAD'} ", identity(result.commit), f"] {took}")
    yield line(f"  files: {some(result.paths)}")
    for name, digest in result.data.items():
        yield line(faint(f"  data: {name}, digest {digest[:16]}…"))


@view("Report", lambda result: [result.page] if result.page else [])
def report(result: "Report") -> Iterator[Block]:
    """Where the page is, and the figures of most interest."""
    shown = f" of {len(result.versions) + result.left_out:,}" if result.left_out else ""
    what = f"{len(result.versions):,}{shown} versions, scores on {count_text(len(result.boards), 'data set')}"
    if result.comparison is not None:
        yield from compared(result.comparison)
    yield line(what)
    yield line("wrote ", strong(str(result.page)))


def compared(found: "Comparison") -> Iterator[Block]:
    """Yields how versions compare: each alone, and their mean."""
    rows = tuple(
        (
            one.name,
            f"{100 * one.accuracy.value:.1f} %",
            f"{100 * min(d.value for d in one.domains.values()):.1f} %",
            f"{100 * one.ece:.1f}",
        )
        for one in (*found.versions, found.mean)
    )
    yield line(f"on {found.measured} of {found.data}, {count_text(found.examples, 'example')}:")
    yield Table(("version", "accuracy>", "worst domain>", "ECE, points>"), rows)
