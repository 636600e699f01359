"""How each kind of result looks to people, and which ids stand for it with --quiet."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from modelgit.cli.screen.blocks import (
    Block,
    Line,
    Span,
    Table,
    bytes_text,
    count_text,
    faint,
    identity,
    line,
    seconds_text,
    strong,
)
from modelgit.cli.screen.output import View

if TYPE_CHECKING:
    from modelgit.pipeline.outcome import Row, Spread
    from modelgit.pipeline.start import Ran, RanEach
    from modelgit.porcelain.checking import Verified
    from modelgit.porcelain.comparing import Difference, TensorChange
    from modelgit.porcelain.plumbing.headers import DtypeChange, MetadataChange
    from modelgit.porcelain.reporting.evaluating import Evaluation
    from modelgit.porcelain.reporting.values import GroupGap
    from modelgit.porcelain.scorebook import Score
    from modelgit.porcelain.sharing import Cloned, Exported, Initialised, Transferred
    from modelgit.porcelain.versions import History, HistoryEntry, VersionReport
    from modelgit.porcelain.work import Added, CheckedOut, Committed

SHOWN = 12
COLUMNS = ("tensor", "", "type", "shape", "changed>", "norm>", "cosine>")
MAX_VALUE = 80  # characters of a value of the metadata
METRICS = {"val_accuracy": "validation", "ood_accuracy": "held out"}
VIEWS: dict[str, View] = {}
Blocks = Callable[[Any], Iterable[Block]]


def view(kind: str, ids: Callable[[Any], Iterable[str]]) -> Callable[[Blocks], Blocks]:
    """Enters the decorated function as the view of results of the class called `kind`."""

    def register(blocks: Blocks) -> Blocks:
        VIEWS[kind] = View(blocks, ids)
        return blocks

    return register


def view_of(value: object) -> View:
    """Returns the view of a result."""
    return VIEWS[type(value).__name__]


# ---------------------------------------------------------------------------------------------------- versions


@view("Initialised", lambda result: [result.path])
def initialised(result: "Initialised") -> Iterator[Block]:
    """A new repository."""
    kind = "bare repository" if result.bare else "repository"
    yield line(f"{kind.capitalize()} ready for weights in ", strong(result.path), f", on branch {result.branch}")


@view("Committed", lambda result: [result.commit])
def committed(result: "Committed") -> Iterator[Block]:
    """A new version."""
    where = result.branch or "detached HEAD"
    yield line(f"[{where} ", identity(result.commit), f"] {result.subject}")
    counts = ((result.changed, "changed"), (result.added, "new"), (result.removed, "removed"), (result.same, "shared"))
    told = ", ".join(f"{count:,} {word}" for count, word in counts if count) or "none"
    if result.files:
        yield line(f"  files: {some(result.files)}")
    if result.parents and not result.files and not result.deleted:
        yield line("  no file differs from the version before")
    if result.deleted:
        yield line("  deleted: ", Span(some(result.deleted), "bad"))
    if result.size_bytes or result.removed:
        stored = f"{bytes_text(result.size_bytes)} of weights stored in {bytes_text(result.stored_bytes)}"
        yield line(faint(f"  tensors: {told}; {stored}"))


def some(names: Sequence[str]) -> str:
    """Returns names in a row, the first of them if they are many."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


@view("Added", lambda result: result.paths)
def added(result: "Added") -> Iterator[Block]:
    """Files for the next commit."""
    yield line(f"{count_text(len(result.paths), 'file')} added: {', '.join(result.paths)}")


@view("CheckedOut", lambda result: [result.commit])
def checked_out(result: "CheckedOut") -> Iterator[Block]:
    """Where the work tree is now."""
    if result.branch is None:
        yield line("Detached at ", identity(result.commit))
    else:
        at: list[str | Span] = [" at ", identity(result.commit)] if result.commit else []
        verb = "On new branch" if result.created else "On branch"
        yield line(f"{verb} ", strong(result.branch), *at)
    for change in result.kept[:SHOWN]:
        yield line("  ", Span(f"{change.kind:9}", "changed"), change.path)
    if len(result.kept) > SHOWN:
        yield line("  ", faint(f"and {len(result.kept) - SHOWN} more local changes"))
    if result.left:
        yield line("Left behind ", identity(result.left), ", which is on no branch")
        yield line("  keep it: ", strong(f"git branch NAME {result.left[:10]}"))


# ----------------------------------------------------------------------------------------------------- looking


@view("History", lambda result: [entry.commit for entry in result.entries])
def history(result: "History") -> Iterator[Block]:
    """Versions, one a line."""
    if not result.graph:
        for entry in result.entries:
            yield history_line(entry)
        return
    from modelgit.cli.screen.graph import draw

    by_commit = {entry.commit: entry for entry in result.entries}
    for row in draw([(entry.commit, entry.parents) for entry in result.entries]):
        told: list[str | Span] = [" ", *history_line(by_commit[row.commit]).spans] if row.commit else []
        yield line(faint(row.drawing), *told)


def history_line(entry: "HistoryEntry") -> Line:
    """Returns a version in one line."""
    refs = [faint("("), Span(", ".join(entry.refs), "name"), faint(") ")] if entry.refs else []
    method = [faint(f" [{entry.method} of {entry.inputs}]")] if entry.method else []
    scores = [Span(f" {told}", "good")] if (told := scores_text(entry.scores)) else []
    return line(identity(entry.commit), " ", *refs, entry.subject, *method, *scores, faint(f" {day(entry.date)}"))


def scores_text(scores: Sequence["Score"]) -> str:
    """Returns scores in a few words; those of single domains are left to `show --json`."""
    told = []
    for score in scores:
        values = {name: value for name, value in score.values.items() if "/" not in name and "accuracy" in name}
        if values:
            parts = [f"{METRICS.get(name, name)} {100 * value:.1f} %" for name, value in values.items()]
            told.append(f"{score.data}: {', '.join(parts)}" if score.data else ", ".join(parts))
    return "; ".join(told)


def day(seconds: int) -> str:
    """Returns the day of a time, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


@view("VersionReport", lambda result: [result.commit])
def version_report(result: "VersionReport") -> Iterator[Block]:
    """Everything about a version."""
    refs = f" ({', '.join(result.refs)})" if result.refs else ""
    yield line("commit  ", Span(result.commit, "id"), Span(refs, "name"))
    for parent in result.parents:
        yield line("parent  ", Span(parent, "id"))
    yield line(f"author  {result.author}")
    yield line(f"date    {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(result.date))} UTC")
    size = f"{count_text(result.tensors, 'tensor')}, {count_text(result.parameters, 'parameter')}"
    yield line(f"model   {size}, {bytes_text(result.size_bytes)}")
    if result.record is not None:
        yield from record_lines(result)
    if told := scores_text(result.scores):
        yield line("scores  ", Span(told, "good"))
    if result.record is not None and not result.inherited:
        yield from _learn.course_blocks(result.record)
    yield line("")
    for row in result.message.splitlines():
        yield line(f"    {row}" if row else "")
    yield line("")
    yield Table(("file", "tensors>", "parameters>", "size>"), tuple(file_row(file) for file in result.files))
    yield from beside(result, sum(file.weights for file in result.files) > 1)
    ordinary = [file for file in result.files if file.kind == "file" and not file.weights]
    whole = [file.path for file in ordinary if file.path.endswith(".safetensors")]
    if whole:
        yield line(f"no tensors, an ordinary file of git's: {some(whole)}")
        yield line("  if it is not empty, git took it without modelgit: ", strong("git add --renormalize ."))


def file_row(file: Any) -> tuple[str, str, str, str]:
    """Returns a file's line in the table."""
    if not file.weights:
        return file.path, "", "", "" if file.kind == "file" else file.kind
    return file.path, f"{file.tensors:,}", f"{file.parameters:,}", bytes_text(file.size_bytes)


def record_lines(result: "VersionReport") -> Iterator[Line]:
    """Yields what the record says."""
    record = result.record
    if record is None:
        return
    same = " (its parent has the same)" if result.inherited and record.kind != "commit" else ""
    yield line(f"record  {record.kind}{f', {record.architecture}' if record.architecture else ''}{same}")
    if record.classes:
        more = ", …" if len(record.classes) > SHOWN else ""
        yield line(f"classes {len(record.classes)}: {', '.join(record.classes[:SHOWN])}{more}")


# ---------------------------------------------------------------------------------------------------- differences


class Beside(Protocol):
    """What differs beside the values of tensors."""

    @property
    def dtypes(self) -> "Sequence[DtypeChange]":
        """Returns how many tensors are of another type."""

    @property
    def metadata(self) -> "Sequence[MetadataChange] | None":
        """Returns the keys of the metadata that differ, None if they were not read."""

    @property
    def rewritten(self) -> Sequence[str]:
        """Returns the files whose tensors lie another way."""


@view("Difference", lambda result: [change.name for change in result.tensors] or [row.layer for row in result.layers])
def difference(result: "Difference") -> Iterator[Block]:
    """How two versions differ."""
    yield line(identity(result.old), " → ", identity(result.new) if result.new else "work tree")
    if result.layers:
        rows = tuple(
            (
                row.layer,
                f"{row.changed:,} of {row.tensors:,}",
                share(row.changed_share),
                number(row.largest_relative_norm),
            )
            for row in result.layers
        )
        yield Table(("layer", "changed tensors>", "changed elements>", "largest norm>"), rows)
    yield from difference_tables(result)
    if not result.tensors and not result.layers:
        yield line("No tensor differs")
    yield line(faint(f"{count_text(result.same, 'tensor')} the same"))
    yield from not_finite([(row.layer, row.nan, row.inf) for row in result.layers])
    yield from not_finite([(full_name(row, result.weight_files > 1), row.nan, row.inf) for row in result.tensors])
    yield from beside(result, result.weight_files > 1)
    for old, new in result.renamed:
        yield line(f"file renamed: {old} → {new}")
    for path in result.files:
        yield line("file differs: ", path)


def difference_tables(result: "Difference") -> Iterator[Block]:
    """The tensors that differ, a table a weight file; a file is named where several were compared."""
    paths = list(dict.fromkeys(change.path for change in result.tensors))
    for path in paths:
        if result.weight_files > 1:
            yield line(strong(path))
        yield Table(COLUMNS, tuple(difference_row(change) for change in result.tensors if change.path == path))


def difference_row(change: "TensorChange") -> tuple[str, ...]:
    """Returns a tensor's line in the table."""
    kind = "" if change.kind == "changed" else change.kind
    dtype = moved(change.old_dtype, change.dtype)
    shape = moved(None if change.old_shape is None else shape_text(change.old_shape), shape_text(change.shape))
    cosine = "" if change.cosine is None else f"{change.cosine:.6f}"
    return change.name, kind, dtype, shape, share(change.changed_share), number(change.relative_norm), cosine


def moved(old: str | None, new: str) -> str:
    """Returns a word that differs with what it was before."""
    return new if old in (None, new) else f"{old} → {new}"


def shape_text(shape: Sequence[int]) -> str:
    """Returns a shape as it is written."""
    return f"[{', '.join(map(str, shape))}]"


def full_name(change: "TensorChange", several: bool) -> str:
    """Returns a tensor's name, with its file's where there are several."""
    return f"{change.path}: {change.name}" if several else change.name


def not_finite(counts: Sequence[tuple[str, int, int]]) -> Iterator[Line]:
    """Yields a line for each tensor, or layer, into which values came that are NaN or infinite."""
    found = [row for row in counts if row[1] or row[2]]
    for name, nan, inf in found[:SHOWN]:
        told = ", ".join(f"{n:,} {word}" for n, word in ((nan, "NaN"), (inf, "Inf")) if n)
        yield line("not finite: ", Span(f"{name}: {told}", "bad"))
    if len(found) > SHOWN:
        yield line(Span(f"not finite: {len(found) - SHOWN:,} more", "bad"))


def beside(result: Beside, several: bool = False) -> Iterator[Line]:
    """Yields a line for each change of types, each key of the metadata, each file that is written another way."""
    for change in result.dtypes:
        yield line(f"dtype {change.old} → {change.new}: {count_text(change.tensors, 'tensor')}")
    if result.metadata is None:
        yield line("metadata: not read, the objects are not here (modelgit fetch)")
    metadata = result.metadata or ()
    for key in metadata[:SHOWN]:
        where = f"metadata of {key.path}" if several else "metadata"
        yield line(f"{where}: {key.key} {turned(key)}")
    if len(metadata) > SHOWN:
        yield line(f"metadata: {len(metadata) - SHOWN:,} more keys differ")
    for path in result.rewritten:
        yield line(f"header of {path} differs: another order of tensors, or padding")


def turned(change: "MetadataChange") -> str:
    """Returns what became of a value of the metadata."""
    if change.old is None or change.new is None:
        return f"added, {value(change.new)}" if change.old is None else f"removed, was {value(change.old)}"
    return f"{value(change.old)} → {value(change.new)}"


def value(text: str | None) -> str:
    """Returns a value of the metadata, quoted and cut."""
    text = text or ""
    return json.dumps(text[:MAX_VALUE], ensure_ascii=False) + ("…" if len(text) > MAX_VALUE else "")


def share(value: float | None) -> str:
    """Returns a share in percent."""
    return "" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """Returns a number with three digits that say something."""
    return "" if value is None else f"{value:.3g}"


# ----------------------------------------------------------------------------------------------------- merging


# ---------------------------------------------------------------------------------------- training and scoring


@view("Ran", lambda result: [result.main] if result.main else [])
def ran(result: "Ran") -> Iterator[Block]:
    """What a pipeline did."""
    done = "nothing was left to do" if not result.made else f"{count_text(len(result.made), 'step')} made"
    found = f", {len(result.found)} found done" if result.found else ""
    yield line(strong(result.pipeline), f": {done}{found} in {seconds_text(result.seconds)}")
    if result.rows:
        names = list(dict.fromkeys(name for row in result.rows for name in row.against))
        rows = tuple(
            (row.title, str(row.runs), spread_text(row.ood), spread_text(row.val), *against_texts(row, names))
            for row in result.rows
        )
        yield Table(("strategy", "models>", "held out>", "validation>", *(f"less {name}>" for name in names)), rows)
    over = {row.ood.over for row in result.rows if row.ood is not None}
    if over:
        yield line(faint(f"± is the standard error over {' or '.join(sorted(over))}"))
    if any(row.against for row in result.rows):
        yield line(faint("differences in points, on the same test examples, with the 95 % interval over these"))
    main: list[str | Span] = ["main is ", identity(result.main), "; "] if result.main else []
    yield line(*main, "the repository is ", strong(result.repository))
    for path in result.reports:
        yield line(f"wrote {path}")


@view("RanEach", lambda result: [run.main for run in result.runs if run.main])
def ran_each(result: "RanEach") -> Iterator[Block]:
    """What several pipelines did."""
    for run in result.runs:
        yield from ran(run)


def against_texts(row: "Row", names: list[str]) -> list[str]:
    """Returns a row's differences to other strategies, in points, with their 95 % intervals."""
    found = [row.against.get(name) for name in names]
    return [f"{100 * i.mean:+.1f} ({100 * i.low:+.1f} to {100 * i.high:+.1f})" if i else "" for i in found]


def spread_text(spread: "Spread | None") -> str:
    """Returns a mean with its standard error, in percent."""
    if spread is None:
        return ""
    error = f" ± {100 * spread.stderr:.1f}" if spread.stderr == spread.stderr else ""
    return f"{100 * spread.mean:.1f}{error} %"


@view("Evaluation", lambda result: [result.commit])
def evaluation(result: "Evaluation") -> Iterator[Block]:
    """What a version scored."""
    yield line(identity(result.commit), f" on {result.data}")
    images, ends = result.images, result.intervals
    rows = tuple(
        (
            name,
            f"{100 * value:.1f} %",
            f"{100 * ends[name][0]:.1f}–{100 * ends[name][1]:.1f}" if name in ends else "",
            f"{images[name]:,}" if name in images else "",
        )
        for name, value in result.values.items()
    )
    yield Table(("metric", "value>", "95%>", "examples>"), rows)
    if result.seen:
        yield line(strong("not unseen: "), result.seen)
    if result.worst_group:
        yield line(f"worst group: class {result.worst_group[0]} in {result.worst_group[1]}")
    for gap in result.gaps:
        if gap.more != gap.less:
            yield line(f"{gap.kind} gap: {gap_text(gap)}")


def gap_text(gap: "GroupGap") -> str:
    """Returns between whom a gap is, and in what."""
    share = f", in how often the answer is {gap.answer}" if gap.answer else ""
    of = f" to what is {gap.label}" if gap.label else ""
    return f"{gap.more} above {gap.less}{share}{of}"


# ---------------------------------------------------------------------------------------------------- sharing


@view("Cloned", lambda result: [result.commit] if result.commit else [])
def cloned(result: "Cloned") -> Iterator[Block]:
    """A copy of a repository."""
    if result.commit is None:
        yield line("Cloned an empty repository into ", strong(result.path))
    else:
        yield line("Cloned into ", strong(result.path), f", on branch {result.branch} at ", identity(result.commit))


@view("Transferred", lambda result: dict.fromkeys([*result.refs.values(), *(result.forwarded or ())[1:]]))
def transferred(result: "Transferred") -> Iterator[Block]:
    """What travelled."""
    if not result.refs and result.forwarded is None:
        told = "branches already up to date; objects that were missing:" if result.objects else "already up to date"
        yield line(f"{result.remote}: {told}")
    for ref, commit in result.refs.items():
        yield line("  ", identity(commit), " ", ref.removeprefix("refs/remotes/").removeprefix("refs/heads/"))
    if result.forwarded is not None:
        branch, commit = result.forwarded
        yield line(strong(branch), " moved forward to ", identity(commit))
    if result.objects:
        yield line(faint(f"  {count_text(result.objects, 'object')}, {bytes_text(result.bytes)}"))


@view("Exported", lambda result: result.files)
def exported(result: "Exported") -> Iterator[Block]:
    """A version as a folder."""
    what = f"{count_text(len(result.files), 'file')}, {bytes_text(result.size_bytes)}"
    yield line("Wrote ", identity(result.commit), f" to {result.path}: {what}")


@view("Verified", lambda result: [result.commit])
def verified(result: "Verified") -> Iterator[Block]:
    """A merge that was recomputed."""
    what = f"{count_text(result.tensors, 'tensor')} from {count_text(len(result.inputs), 'input')} by {result.method}"
    yield line(Span("ok", "good"), " ", identity(result.commit), f" recomputed: {what}, every id the same")
    if result.taken:
        told = " and ".join(f"its {word}" for word in result.taken)
        yield line(faint(f"  {told} as recorded; the same merge from its parents repeats the measuring"))


from modelgit.cli.screen import learn_views as _learn  # noqa: E402  enters its views
from modelgit.cli.screen import merge_views as _merges  # noqa: E402, F401
from modelgit.cli.screen import replay_views as _replays  # noqa: E402, F401
from modelgit.cli.screen import status_views as _status  # noqa: E402, F401
from modelgit.cli.screen import trial_views as _trials  # noqa: E402, F401
from modelgit.cli.screen import upkeep_views as _upkeep  # noqa: E402, F401
