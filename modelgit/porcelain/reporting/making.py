"""The report of a repository: what its history tells, and with data how the versions named compare."""

from collections.abc import Sequence

from modelgit.errors import UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.reporting.history import boards, lineage, newest
from modelgit.porcelain.reporting.values import Comparison, Report, Wanted
from modelgit.porcelain.scorebook import all_scores
from modelgit.repo.repository import Repository


def report(repo: Repository, revs: Sequence[str], wanted: Wanted, listener: Listener = ignore) -> Report:
    """Returns the state of the versions named and what leads to them, of all branches if none is named. Reads only.

    Raises:
        UsageError: there are no versions, or data for fewer than two named ones; as `compare` does.
        DataError: the data is missing, or a version cannot be run on it.
    """
    commits = [repo.resolve(rev) for rev in revs]
    if wanted.by is not None and not wanted.on:
        raise UsageError("--by tells groups of data apart, and none is named", hint="--on FILE --by COLUMN")
    if wanted.on and len(set(commits)) < 2:
        raise too_few(repo, commits)
    entries = list(repo.log(commits, everything=not commits)) if commits or repo.refs("refs/heads") else []
    if not entries:
        hint = "modelgit import FILE, or modelgit commit"
        raise UsageError("there are no versions yet, nothing to report on", hint=hint)
    shown, scores = newest(entries, wanted.newest), all_scores(repo)
    compared = compared_on(repo, revs, wanted, listener) if wanted.on else None
    return Report(
        repository=(repo.worktree or repo.git_dir).name,
        revs=tuple(revs),
        versions=lineage(repo, shown),
        left_out=len(entries) - len(shown),
        boards=boards(shown, entries, scores),
        comparison=compared,
    )


def too_few(repo: Repository, commits: Sequence[str]) -> UsageError:
    """Returns the error for data on which there is nothing to compare."""
    some = " ".join(list(repo.branches())[:2]) or "A B"
    named = "no versions are named" if not commits else "one version is named"
    message = f"--on: {named}, and paths, pairs and means need two or more"
    hint = f"modelgit report {some} --on DATA; for one version: modelgit evaluate REV --on DATA"
    return UsageError(message, hint=hint)


def compared_on(repo: Repository, revs: Sequence[str], wanted: Wanted, listener: Listener) -> Comparison:
    """Returns how the versions compare; PyTorch is loaded for this only."""
    from modelgit.porcelain.reporting.comparing import compare

    return compare(repo, revs, wanted, listener)
