"""How task vectors added and taken away look to people, and the history of tensors."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Line, Span, Table, count_text, faint, identity, line, strong
from modelgit.cli.screen.views import some, view

if TYPE_CHECKING:
    from modelgit.porcelain.replaying.blaming import Blamed, BlamedLayer, BlamedTensor
    from modelgit.porcelain.replaying.values import Replayed, ReplayedStep

NOTES = 5
SIGNS = {"revert": "-", "cherry-pick": "+", "rebase": "+", "fast-forward": "+"}


@view("Replayed", lambda result: [result.commit] if result.commit else [])
def replayed(result: "Replayed") -> Iterator[Block]:
    """What cherry-pick, revert or rebase did."""
    where = result.branch or "detached HEAD"
    if result.kind == "up-to-date":
        yield line(strong(where), " stands on ", identity(result.onto), " already")
        return
    if result.kind in ("rebase", "fast-forward"):
        yield from rebased(result, where)
    for step in result.steps:
        yield from step_lines(step, result, where)
    for source in result.skipped:
        yield line("  ", faint("skipped "), identity(source), faint(", whose change is there already"))
    if result.dry_run:
        yield line(faint("nothing was changed: a dry run"))
    elif result.commit is None:
        yield line("Changed the files alone; commit them: ", strong("modelgit commit -m MSG"))


def rebased(result: "Replayed", where: str) -> Iterator[Block]:
    """Where a branch went."""
    verb = "Would replay" if result.dry_run else "Replayed"
    if result.kind == "fast-forward":
        moved = "Would move" if result.dry_run else "Moved"
        yield line(f"{moved} ", strong(where), " forward to ", identity(result.onto), ": it had nothing of its own")
        return
    yield line(f"{verb} {count_text(len(result.steps), 'commit')} of ", strong(where), " on ", identity(result.onto))
    if not result.dry_run:
        yield line(faint(f"  it was at {result.old[:10]}; back: modelgit reset --hard ORIG_HEAD"))


def step_lines(step: "ReplayedStep", result: "Replayed", where: str) -> Iterator[Line]:
    """One commit replayed."""
    sign = SIGNS.get(result.kind, "+")
    vector = f"{sign} {'' if step.scale == 1 else f'{step.scale:g} '}({step.source[:10]} - {step.base[:10]})"
    if step.commit is not None:
        yield line(f"[{where} ", identity(step.commit), f"] {step.subject}")
    else:
        yield line(identity(step.source), f" {step.subject}")
    summed, taken = ("subtracted from", "put back") if result.kind == "revert" else ("added to", "taken over")
    counts = ((step.recipes + step.computed, summed), (step.taken, taken), (step.kept, "left alone"))
    told = ", ".join(f"{count:,} {word}" for count, word in counts if count) or "none"
    stored = f"; {step.recipes:,} stored as recipes" if step.recipes else ""
    yield line(faint(f"  {vector}; tensors: {told}{stored}"))
    if step.files:
        yield line(faint(f"  files: {some(step.files)}"))
    for note in step.notes[:NOTES]:
        yield line("  ", Span(note, "changed"))
    if len(step.notes) > NOTES:
        yield line("  ", Span(f"and {len(step.notes) - NOTES} more such tensors", "changed"))


@view("Blamed", lambda result: dict.fromkeys(one.commit for one in (*result.tensors, *result.layers)))
def blamed(result: "Blamed") -> Iterator[Block]:
    """Which commit last changed each tensor."""
    norm = ("change>",) if result.stat else ()
    if result.layers:
        columns = ("layer", "tensors>", "commit", "date", "author~", *norm, "subject~")
        yield Table(columns, tuple(layer_row(layer, result.stat) for layer in result.layers))
    else:
        paths = {tensor.path for tensor in result.tensors}
        columns = (*(("file",) if len(paths) > 1 else ()), "tensor", "commit", "date", "author~", *norm, "subject~")
        yield Table(columns, tuple(tensor_row(tensor, result.stat, len(paths) > 1) for tensor in result.tensors))


def layer_row(layer: "BlamedLayer", stat: bool) -> tuple[str, ...]:
    """A layer's line in the table."""
    norm = (norm_text(layer.largest_relative_norm),) if stat else ()
    return layer.layer, f"{layer.tensors:,}", *facts(layer), *norm, subject(layer)


def tensor_row(tensor: "BlamedTensor", stat: bool, with_path: bool) -> tuple[str, ...]:
    """A tensor's line in the table."""
    norm = (norm_text(tensor.relative_norm),) if stat else ()
    return *((tensor.path,) if with_path else ()), tensor.name, *facts(tensor), *norm, subject(tensor)


def facts(one: "BlamedLayer | BlamedTensor") -> tuple[str, str, str]:
    """Commit, date and author."""
    return one.commit[:10], time.strftime("%Y-%m-%d", time.gmtime(one.date)), one.author.partition(" <")[0]


def subject(one: "BlamedLayer | BlamedTensor") -> str:
    """The commit's subject; a merge that computed the tensor is called one."""
    return f"(merge) {one.subject}" if one.merge else one.subject


def norm_text(norm: float | None) -> str:
    """Returns a relative norm as the table shows it."""
    return "-" if norm is None else f"{norm:.3g}"
