"""How the state of a work tree looks: what has changed, what is under way, what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Line, Span, count_text, faint, identity, line, strong
from modelgit.cli.screen.views import SHOWN, some, view

if TYPE_CHECKING:
    from modelgit.repo.merging.underway import UnderWay, Unmerged
    from modelgit.repo.values import Upstream
    from modelgit.repo.worktree import Change, Status


@view("Status", lambda result: [one.path for one in (*result.conflicts, *result.changes)])
def status(result: "Status") -> Iterator[Block]:
    """What differs from HEAD."""
    if result.head is None:
        yield line("On ", strong(result.branch or "HEAD"), ", no commits yet")
    elif result.branch is None:
        tag: list[str | Span] = [strong(result.tag), " "] if result.tag else []
        yield line("Detached at ", *tag, identity(result.head))
    else:
        yield line("On ", strong(result.branch), " at ", identity(result.head))
    if result.upstream is not None:
        yield upstream_line(result.upstream)
    yield from under_way_lines(result.under_way, result.conflicts)
    if not result.changes and not result.untracked and not result.conflicts:
        yield line("Nothing has changed" if result.head else "No files yet")
    if result.ignored:
        add = f"modelgit add {shlex.quote(result.ignored[0])}"
        yield line(f"  {result.ignored[0]} is ignored (.gitignore): add it by name: ", strong(add))
    if result.elsewhere:
        yield line("  the remote has branches: ", strong(f"modelgit switch {result.elsewhere[0]}"))
    elif not (result.changes or result.head or result.ignored):
        yield line(
            "  begin: ", strong("modelgit import FILE"), ", or put a .safetensors file here and ", commit_words()
        )
    for change in result.changes:
        yield line("  ", Span(f"{change.kind:9}", "changed"), change.path, faint(tensor_summary(change)))
        yield from tensor_lines(change)
    yield from way_back(result.changes)
    if result.manifests:
        yield line("  manifests in the place of weights: ", some(result.manifests))
        yield line("  fill them in: ", strong("modelgit checkout"))
    for path in result.untracked[:SHOWN]:
        yield line("  ", faint("untracked"), " ", path)
    if len(result.untracked) > SHOWN:
        yield line("  ", faint(f"and {len(result.untracked) - SHOWN} more untracked files"))


def under_way_lines(found: "UnderWay | None", conflicts: Sequence["Unmerged"]) -> Iterator[Line]:
    """Yields what git is in the middle of, the paths in conflict, the ways on and out."""
    if found is not None:
        told: list[str | Span] = [" of ", strong(found.what)] if found.what else []
        yield line(f"Under way: {found.verb}", *told)
    for one in conflicts[:SHOWN]:
        yield line("  ", Span("conflict ", "bad"), one.path, faint(f"  {one.kind}"))
    if len(conflicts) > SHOWN:
        yield line("  ", faint(f"and {len(conflicts) - SHOWN} more conflicts"))
    for what, way in ways_to_resolve(found, conflicts):
        yield line(f"  {what}: ", strong(way))
    if found is None and conflicts:
        yield line("  undo what led here (a stash is kept): ", strong("git reset --merge"))
    if found is None:
        return
    yield line("  then go on: " if conflicts else "  go on: ", strong(found.go_on))
    if found.skip and conflicts:
        yield line("  leave this commit out: ", strong(found.skip))
    yield line("  give it up: ", strong(found.give_up))


def ways_to_resolve(found: "UnderWay | None", conflicts: Sequence["Unmerged"]) -> Iterator[tuple[str, str]]:
    """Yields for each sort of conflict what resolves it, with the file if there is one only."""
    whole = [one for one in conflicts if one.kind in ("both modified", "both added")]
    weights = [one.path for one in whole if one.path.endswith(".safetensors")]
    texts = [one.path for one in whole if not one.path.endswith(".safetensors")]
    gone = [one.path for one in conflicts if one not in whole]
    if weights:
        file, ours, theirs = named(weights), found.ours if found else None, found.theirs if found else None
        yield f"take ours{side(ours)}", f"git checkout --ours {file} && git add {file}"
        yield f"take theirs{side(theirs)}", f"git checkout --theirs {file} && git add {file}"
    if texts:
        yield "edit, then", f"git add {named(texts)}"
    if gone:
        yield "keep or delete", f"git add {named(gone)}, or git rm {named(gone)}"


def named(paths: Sequence[str]) -> str:
    """Returns the only path of several, as a word for the shell, else a placeholder."""
    return shlex.quote(paths[0]) if len(paths) == 1 else "FILE"


def side(name: str | None) -> str:
    """Returns what a side of a conflict is called, in brackets."""
    return f" ({name})" if name else ""


def upstream_line(upstream: "Upstream") -> Line:
    """Returns how far a branch and what it follows are apart, and how they come together."""
    counts = ((upstream.ahead, "ahead of"), (upstream.behind, "behind"))
    told = " and ".join(f"{count_text(count, 'commit')} {word}" for count, word in counts if count)
    both = upstream.ahead and upstream.behind
    step = f"modelgit merge {upstream.name}" if both else f"modelgit {'push' if upstream.ahead else 'pull'}"
    if not told:
        return line("  as ", strong(upstream.name), " was at the last fetch")
    return line(f"  {told} ", strong(upstream.name), ": ", strong(step))


def way_back(changes: Sequence["Change"]) -> Iterator[Line]:
    """Yields how a deleted or unreadable file comes back."""
    gone = [change.path for change in changes if change.kind == "deleted" or (change.problem and change.kind != "new")]
    if gone:
        yield line("  bring back: ", strong(f"modelgit restore {shlex.quote(gone[0])}"))


def commit_words() -> Span:
    """Returns the command for a commit."""
    return strong("modelgit commit -m MSG")


def tensor_summary(change: "Change") -> str:
    """Returns how many tensors of a weight file changed."""
    if change.problem:
        return f"  cannot be read: {change.problem.rpartition(f'{change.path}: ')[2]}"
    mode = f"  mode {change.mode}" if change.mode else ""
    if change.tensors is None:
        return mode
    diff = change.tensors
    counts = (
        (len(diff.changed), "changed"),
        (len(diff.added), "new"),
        (len(diff.removed), "removed"),
        (diff.same, "same"),
    )
    return f"{mode}  tensors: {', '.join(f'{count:,} {word}' for count, word in counts if count) or 'none'}"


def tensor_lines(change: "Change") -> Iterator[Line]:
    """Yields the names of the tensors that changed, the first of them."""
    if change.tensors is None:
        return
    diff = change.tensors
    names = [("changed", old.name) for old, _ in diff.changed]
    names += [("new", entry.name) for entry in diff.added] + [("removed", entry.name) for entry in diff.removed]
    for word, name in names[:SHOWN]:
        yield line("            ", faint(f"{word:8}"), Span(name, "name"))
    if len(names) > SHOWN:
        yield line("            ", faint(f"and {len(names) - SHOWN:,} more: modelgit status --json lists all"))
