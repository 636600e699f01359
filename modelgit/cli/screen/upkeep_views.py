"""How the results of upkeep look to people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Span, Table, bytes_text, count_text, faint, line, strong
from modelgit.cli.screen.views import view

if TYPE_CHECKING:
    from modelgit.porcelain.upkeep.collecting import Swept
    from modelgit.porcelain.upkeep.damage import Checked
    from modelgit.porcelain.upkeep.usage import BranchUse, TensorUse, Usage, VersionUse

SHOWN, BAR = 20, 24
CODECS = {"delta": "difference", "linear": "recipe", "full": "itself", "zstd": "text", "raw": "text"}


@view("Checked", lambda _: [])
def checked(result: "Checked") -> Iterator[Block]:
    """A sound repository."""
    how = "every byte recomputed" if result.full else "checksums and structure; --full recomputes every byte"
    told = f"{count_text(result.versions, 'version')}, {count_text(result.objects, 'object')}"
    yield line(Span("ok", "good"), f" {told} ({how})")
    if result.salvaged or result.brought:
        salvaged = f"{count_text(result.salvaged, 'object')} copied out of damaged packs"
        yield line(f"  {salvaged}, {result.brought:,} brought from elsewhere")
    for name in result.put_aside:
        yield line(faint(f"  put aside in modelgit/damaged: {name}"))


@view("Swept", lambda _: [])
def swept(result: "Swept") -> Iterator[Block]:
    """What a collection let go of."""
    would = "would be " if result.dry_run else ""
    before = f"{bytes_text(result.bytes_before)} in {count_text(result.packs_before, 'pack')}"
    after = f"{bytes_text(result.bytes_after)} in {count_text(result.packs_after, 'pack')}"
    if before == after and not result.freed_bytes:
        yield line(f"Nothing to let go of: {before}")
    else:
        yield line(f"{before} {would or 'are now '}{after}")
    if result.deeper is not None:
        yield line(f"  {bytes_text(result.deeper)} saved by storing everything better")
    if result.freed_bytes:
        yield line(f"  {bytes_text(result.freed_bytes)} of condemned packs {would or 'were '}deleted")
    if result.waiting_bytes:
        yield line(
            faint(f"  {bytes_text(result.waiting_bytes)} in condemned packs {would}deleted after the grace period")
        )
    if result.postponed:
        yield line(faint("  somebody is writing: condemned packs stay for now"))
    for path in result.leftovers:
        yield line(faint(f"  left by a killed command{', would go' if result.dry_run else ', removed'}: {path}"))


@view("Usage", lambda result: [use.commit for use in result.versions])
def usage(result: "Usage") -> Iterator[Block]:
    """What uses the bytes."""
    if not result.versions and not result.disk_bytes:
        yield line("No weights are stored here yet")
        return
    share = f" ({100 * result.stored_bytes / result.size_bytes:.1f} %)" if result.size_bytes else ""
    files = f"{count_text(len(result.versions), 'version')}, {bytes_text(result.size_bytes)} of weight files"
    yield line(f"{files}, stored in ", strong(bytes_text(result.stored_bytes)), share)
    yield from saved_lines(result)
    if result.versions:
        yield line("")
        yield Table(("version", "files>", "stored>", "own>", "~", "subject~"), tuple(version_rows(result)))
    if len(result.versions) > SHOWN:
        yield line(faint(f"and {len(result.versions) - SHOWN} more with less of their own: modelgit du --json"))
    if result.branches:
        yield line("")
        most = max(use.stored_bytes for use in result.branches)
        rows = [(use.branch, f"{use.versions:,}", *bytes_row(use, most)) for use in result.branches[:SHOWN]]
        yield Table(("branch", "versions>", "stored>", "own>", "~"), tuple(rows))
    if result.tensors:
        yield line("")
        columns = ("largest tensors", "size>", "stored>", "as", "depth>", "versions>")
        yield Table(columns, tuple(tensor_row(use) for use in result.tensors))


def saved_lines(result: "Usage") -> Iterator[Block]:
    """What was saved, and what could go."""
    saved = result.saved
    parts = (
        (saved.sharing, "sharing tensors"),
        (saved.recipes, "recipes"),
        (saved.differences, "differences"),
        (saved.coding, "coding"),
    )
    told = ", ".join(f"{word} {bytes_text(count)}" for count, word in parts if count > 0)
    if told:
        yield line(f"  saved by {told}")
    rest = ((result.dead_bytes, "needed by nothing"), (result.waiting_bytes, "condemned"))
    told = ", ".join(f"{bytes_text(count)} {word}" for count, word in rest if count)
    yield line(faint(f"  {bytes_text(result.disk_bytes)} on disk{f': {told} (modelgit gc)' if told else ''}"))


def version_rows(result: "Usage") -> Iterator[tuple[str, ...]]:
    """The versions with most of their own; all in their order if they are few."""
    shown = list(result.versions)
    if len(shown) > SHOWN:
        shown = sorted(shown, key=lambda use: -use.own_bytes)[:SHOWN]
    most = max((use.stored_bytes for use in result.versions), default=0)
    for use in shown:
        refs = f"({', '.join(use.refs)}) " if use.refs else ""
        yield use.commit[:10], bytes_text(use.size_bytes), *bytes_row(use, most), f"{refs}{use.subject}"


def bytes_row(use: "VersionUse | BranchUse", most: int) -> tuple[str, str, str]:
    """Stored and own bytes, and both as a bar."""
    return bytes_text(use.stored_bytes), bytes_text(use.own_bytes), bar(use.own_bytes, use.stored_bytes, most)


def bar(own: int, stored: int, most: int) -> str:
    """Returns a bar as long as `stored` is of `most`, its own part dark."""
    length = round(BAR * stored / most) if most else 0
    dark = min(length, round(BAR * own / most)) if most else 0
    return "█" * dark + "░" * (length - dark)


def tensor_row(use: "TensorUse") -> tuple[str, ...]:
    """A tensor's line in the table."""
    sizes = bytes_text(use.size_bytes), bytes_text(use.stored_bytes)
    return use.name, *sizes, CODECS.get(use.codec, use.codec), str(use.depth), f"{use.versions:,}"
