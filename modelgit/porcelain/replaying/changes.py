"""Which commits are meant, and which task vector each of them is: everything about names, nothing about tensors."""

import math
from collections.abc import Iterator, Sequence

from modelgit.errors import UsageError
from modelgit.porcelain.replaying.values import Change, Choices, Options, Verb
from modelgit.repo.repository import Repository

RANGE = ".."
OTHER: dict[Verb, Verb] = {"cherry-pick": "revert", "revert": "cherry-pick"}


def changes_of(repo: Repository, verb: Verb, revs: Sequence[str], options: Options, head: str) -> list[Change]:
    """Returns the changes that revisions and ranges name, in the order in which they are applied.

    Raises:
        UsageError: no change can be told from them. RevisionError.
    """
    check_scale(verb, options.scale)
    commits = [commit for rev in revs for commit in named(repo, verb, rev)]
    if not commits:
        raise UsageError(f"nothing to {verb}", hint=f"name commits: modelgit {verb} REV, or A..B for all after A")
    if options.message is not None and len(commits) > 1:
        raise UsageError(f"one message for {len(commits)} commits", hint="leave -m out: each keeps its own")
    if options.commit is False and options.message is not None:
        raise UsageError("--no-commit makes no commit that a message could be for", hint="leave -m out")
    return [change_of(repo, verb, commit, options, head) for commit in commits]


def check_scale(verb: Verb, scale: float | None) -> None:
    """Raises UsageError for a scale that makes no sense."""
    if scale is None:
        return
    if not math.isfinite(scale):
        raise UsageError(f"--scale {scale}: expected a finite number", hint="1 is the change as it was made")
    if scale == 0:
        raise UsageError("--scale 0 would change nothing", hint="1 is the change as it was made")
    if scale < 0:
        other = OTHER.get(verb)
        hint = f"the other way round: modelgit {other} --scale {-scale:g}" if other else "modelgit revert subtracts"
        raise UsageError(f"--scale {scale:g}: expected a number above 0", hint=hint)


def named(repo: Repository, verb: Verb, rev: str) -> list[str]:
    """Returns the commits that a revision or a range A..B names; a revert takes the newest first."""
    if RANGE not in rev:
        return [repo.resolve(rev)]
    start, _, end = rev.partition(RANGE)
    if end.startswith("."):
        raise UsageError(f"{rev}: expected a commit, or a range A..B", hint="A..B is what B has and A has not")
    span = f"{repo.resolve(start or 'HEAD')}..{repo.resolve(end or 'HEAD')}"
    found = repo.git.run("rev-list", "--topo-order", span).split()
    if not found:
        raise UsageError(
            f"{rev} holds no commit", hint=f"is it the other way round? {end or 'HEAD'}..{start or 'HEAD'}"
        )
    return found if verb == "revert" else found[::-1]


def change_of(repo: Repository, verb: Verb, commit: str, options: Options, head: str) -> Change:
    """Returns the change that a commit made to its parent, or for a revert what undoes it.

    Raises:
        UsageError: it has no parent, or several and none was chosen.
    """
    parent = parent_of(repo, commit, options.mainline)
    undo = verb == "revert" and repo.is_ancestor(commit, head)  # what HEAD never had can only be subtracted
    alike = options.scale is None and not options.again and (verb != "revert" or undo)
    choices = Choices(options.scale or 1.0, "keep" if alike else "add", options.tensors, options.files)
    ends = (commit, parent) if verb == "revert" else (parent, commit)
    return Change(verb, commit, *ends, choices)


def parent_of(repo: Repository, commit: str, mainline: int | None) -> str:
    """Returns the parent that a commit's change is counted from. Raises UsageError."""
    parents = repo.version(commit).entry.parents
    told = described(repo, commit)
    if not parents:
        hint = f"take it as a model: modelgit merge {commit[:10]}"
        raise UsageError(f"{told} has no parent that a task vector could begin at", hint=hint)
    if len(parents) == 1:
        if mainline not in (None, 1):
            raise UsageError(f"--mainline {mainline}: {told} is no merge", hint="leave --mainline out")
        return parents[0]
    if mainline is None:
        numbered = ", ".join(f"{i} is {described(repo, parent)}" for i, parent in enumerate(parents, 1))
        raise UsageError(f"{told} is a merge", hint=f"say which parent to count from: --mainline N ({numbered})")
    if not 1 <= mainline <= len(parents):
        raise UsageError(f"--mainline {mainline}: {told} has {len(parents)} parents", hint="parents count from 1")
    return parents[mainline - 1]


def described(repo: Repository, commit: str) -> str:
    """Returns a commit as messages name it."""
    return f"{commit[:10]} ({repo.version(commit).entry.subject})"


def fine_tunes(repo: Repository, onto: str, tip: str, options: Options) -> Iterator[Change]:
    """Yields the changes between the merge base and a branch's tip, oldest first.

    Raises:
        UsageError: one of them is a merge, or a first commit.
    """
    choices = Choices(options.scale or 1.0, "keep" if options.scale is None else "add", options.tensors, options.files)
    for commit in reversed(repo.git.run("rev-list", "--topo-order", f"{onto}..{tip}").split()):
        if len(repo.version(commit).entry.parents) > 1:
            hint = (
                "redo merges too: modelgit rebase --rebase-merges ONTO (git's); or merge instead: modelgit merge ONTO"
            )
            raise UsageError(f"{described(repo, commit)} is a merge, and has no one task vector", hint=hint)
        yield Change("rebase", commit, parent_of(repo, commit, None), commit, choices)
