"""How trained versions and programs of one's own look."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Span, Table, bytes_text, count_text, faint, identity, line, strong
from modelgit.cli.screen.views import METRICS, SHOWN, some, view

if TYPE_CHECKING:
    from modelgit.porcelain.executing import Executed
    from modelgit.porcelain.records import Record
    from modelgit.porcelain.reporting.values import Comparison, Report
    from modelgit.porcelain.training.committing import Trained
    from modelgit.porcelain.training.course import Course, Seen
    from modelgit.porcelain.training.rerunning import Retrained

POINTS, DOMAINS, TITLE = 6, 5, 20  # of a curve: rows, columns for domains, characters of their titles


@view("Trained", lambda result: [result.commit])
def trained(result: "Trained") -> Iterator[Block]:
    """A fine-tuning that was committed."""
    yield line(f"[{result.branch or 'detached HEAD'} ", identity(result.commit), f"] {result.subject}")
    steps = f"{count_text(result.steps, 'step')} on " if result.kind == "train" else ""
    threads = f", {count_text(result.threads, 'thread')}" if result.device == "cpu" else ""
    kept = f"; kept step {result.kept_step}" if result.kept_step not in (None, result.steps) else ""
    yield line(f"  {steps}{result.data} took {result.seconds:,.1f} s on {result.device}{threads}{kept}")
    told = [f"{METRICS[name]} {100 * value:.1f} %" for name, value in result.values.items() if name in METRICS]
    before = f" (it began at {100 * result.start_accuracy:.1f} %)" if result.start_accuracy is not None else ""
    told[:1] = [told[0] + before] if told else []
    yield line(f"  {', '.join(told)}")
    stored = f"{bytes_text(result.size_bytes)} of weights stored in {bytes_text(result.stored_bytes)}"
    yield line(faint(f"  tensors: {result.changed:,} changed, {result.same:,} shared; {stored}"))


def course_blocks(record: "Record") -> Iterator[Block]:
    """Yields how a training went, in a few lines; nothing of a version that was not trained here."""
    from modelgit.porcelain.training.course import course_of

    course = course_of(record)
    if course is None:
        return
    yield line("trained ", ", ".join(run_told(course)))
    yield line("on      ", ", ".join(data_told(course)))
    if course.versions:
        yield line("with    ", ", ".join(f"{name} {found}" for name, found in sorted(course.versions.items())[:SHOWN]))
    if course.points:
        yield curve(course)


def run_told(course: "Course") -> Iterator[str]:
    """Yields by which settings, and on what machine, a training ran."""
    if course.start is not None:
        yield f"from {course.start[:10]}"
    if course.steps is not None:
        yield count_text(course.steps, "step")
    if course.lr is not None:
        yield f"learning rate {course.lr:g}"
    if course.seed is not None:
        yield f"seed {course.seed}" + (f" (split {course.trial})" if course.trial is not None else "")
    if course.precision is not None:
        yield course.precision
    if course.device is not None:
        threads = count_text(course.threads, "thread") if course.threads is not None else None
        where = [told for told in (course.cpu, threads) if told and course.device == "cpu"]
        yield course.device + (f" ({', '.join(where)})" if where else "")
    if course.seconds is not None:
        yield f"{course.seconds:,.1f} s"


def data_told(course: "Course") -> Iterator[str]:
    """Yields what was trained on, and what was not."""
    yield course.data or "unknown data"
    if course.digest is not None:
        yield f"digest {course.digest[:16]}…"
    if course.trained_on:
        yield some([f"{domain} {count:,}" for domain, count in sorted(course.trained_on.items())])
    if course.held_out is not None:
        yield f"held out {course.held_out}"


def curve(course: "Course") -> Table:
    """Returns validation over the steps: accuracies in percent, the first, the last, the kept and some between."""
    names = sorted({name for seen in course.points for name in seen.domains})
    named = names if len(names) <= DOMAINS else []
    rows = tuple(seen_row(seen, named, kept=seen.step == course.kept_step) for seen in some_of(course))
    return Table(("step>", "", "loss>", "validation>", "val loss>", *(f"{name[:TITLE]}>" for name in named)), rows)


def seen_row(seen: "Seen", names: Sequence[str], *, kept: bool) -> tuple[str, ...]:
    """Returns a validation's row."""
    losses = ["" if value is None else f"{value:.3g}" for value in (seen.loss, seen.val_loss)]
    accuracies = [percent(value) for value in (seen.accuracy, *(seen.domains.get(name) for name in names))]
    return (f"{seen.step:,}", "kept" if kept else "", losses[0], accuracies[0], losses[1], *accuracies[1:])


def percent(value: float | None) -> str:
    """Returns an accuracy as people say it."""
    return "" if value is None else f"{100 * value:.1f} %"


def some_of(course: "Course") -> list["Seen"]:
    """Returns the points of a curve, of many some at equal distances, with its ends and the one that was kept."""
    last = len(course.points) - 1
    chosen = {round(last * part / (POINTS - 1)) for part in range(POINTS)}
    return [seen for i, seen in enumerate(course.points) if i in chosen or seen.step == course.kept_step]


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
    for name, words in found.seen.items():
        yield line(strong("not unseen: "), f"{name}: {words}")
