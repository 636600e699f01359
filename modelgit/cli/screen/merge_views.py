"""How merges look on the screen, and the methods there are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen import align_views, trial_views
from modelgit.cli.screen.blocks import Block, Span, Table, bytes_text, faint, identity, line, strong
from modelgit.cli.screen.views import SHOWN, view

if TYPE_CHECKING:
    from modelgit.merge.methods.describing import MethodInfo, MethodList
    from modelgit.porcelain.merging.values import Merged


@view("Merged", lambda result: [result.commit] if result.commit else [])
def merged(result: "Merged") -> Iterator[Block]:
    """What a merge did."""
    if result.kind == "up-to-date":
        yield line("Already up to date")
    elif result.kind == "dry-run" and not result.heads:
        yield line(f"Would move {result.branch or 'HEAD'} forward to ", identity(result.commit or ""))
    elif result.kind == "fast-forward":
        yield line(f"{result.branch or 'HEAD'} moved forward to ", identity(result.commit or ""))
    elif result.kind == "aborted":
        yield line("Merge given up: the work tree is as ", identity(result.commit or ""), " has it")
    else:
        yield from merged_models(result)
    yield from align_views.lined_up(result)
    yield from trial_views.found(result.findings)
    if result.scores:
        yield line("scores: ", Span(", ".join(f"{name} {value:.4g}" for name, value in result.scores.items()), "good"))


def merged_models(result: "Merged") -> Iterator[Block]:
    """A merge commit, or the one that a dry run would make."""
    names = ", ".join(head.name for head in result.heads)
    settings = ", ".join(f"{key}={each(value)}" for key, value in result.settings.items())
    how = f"{result.method}{f' ({settings})' if settings else ''}"
    if result.commit:
        yield line(f"[{result.branch or 'detached HEAD'} ", identity(result.commit), f"] merged {names} by {how}")
    elif result.kind == "not-committed":
        yield line(f"Merged {names} by {how} into the work tree, not committed")
    else:
        yield line(f"Would merge {names} by {how}; nothing was changed")
    if len({head.weight for head in result.heads}) > 1:
        yield line(f"  weights: {', '.join(f'{head.name} {head.weight:g}' for head in result.heads)}")
    bases = [part for base in result.bases for part in (", ", identity(base))][1:] or ["none"]
    yield line("  base: ", *(["the mean of "] if len(result.bases) > 1 else []), *bases)
    yield line(faint(f"  tensors: {tensors_of(result)}"))
    if result.cost is not None:
        read, made = bytes_text(result.cost.read_bytes), bytes_text(result.cost.merged_bytes)
        yield line(faint(f"  reads {read} to make {made}"))
    if result.kind == "not-committed":
        yield line(faint("  commit it: modelgit merge --continue; give it up: modelgit merge --abort"))
    if result.dropped:
        yield line(f"  dropped: {', '.join(result.dropped[:SHOWN])}{' …' if len(result.dropped) > SHOWN else ''}")
    for note in result.notes:
        yield line(f"  note: {note}")


def tensors_of(result: "Merged") -> str:
    """How many tensors came about, or would, in which way."""
    if result.cost is not None:
        return ", ".join(f"{count:,} {why}" for why, count in result.cost.treatments.items())
    made = ((result.recipes, "as recipes"), (result.computed, "to merge" if result.kind == "dry-run" else "computed"))
    return ", ".join(f"{count:,} {word}" for count, word in ((result.copied, "kept as they are"), *made) if count)


@view("MethodList", lambda result: [method.name for method in result.methods])
def method_list(result: "MethodList") -> Iterator[Block]:
    """All methods in a table, or a few at length."""
    if len(result.methods) > 3:
        yield from overview(result)
        return
    for number, method in enumerate(result.methods):
        if number:
            yield line("")
        yield from at_length(method)


def overview(result: "MethodList") -> Iterator[Block]:
    """A line for each method."""
    rows = tuple(
        (
            m.name,
            m.models,
            m.base,
            m.stored,
            " ".join(f"{s.name}={word(s.default)}" for s in m.settings) or "-",
            m.source,
        )
        for m in result.methods
    )
    yield Table(("method", "models", "base", "stored as", "settings~", "source~"), rows)
    yield line(faint("one at length: modelgit merge --list ties; your own: --method FILE.py:NAME"))


def at_length(method: "MethodInfo") -> Iterator[Block]:
    """What a method does, needs, and can be told."""
    yield line(strong(method.name))
    for row in method.text.splitlines():
        yield line(f"  {row}".rstrip())
    yield line(f"  source: {method.source}")
    needs = f"  models: {method.models}; base: {method.base}; weights: {method.weights}; stored as: {method.stored}"
    yield line(needs)
    if method.settings:
        rows = tuple((f"--set {s.name}={word(s.default)}", s.type, s.meaning) for s in method.settings)
        yield Table(("setting (default)", "type", "meaning"), rows)


def each(value: object) -> str:
    """Returns a setting's value, or those of each model as they are typed."""
    return ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)


def word(value: object) -> str:
    """Returns a setting's value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
