"""rebase: fine-tunes replayed one by one on another version; all commits are made first, then the branch moves."""

from dataclasses import replace

from modelgit.errors import RevisionError, UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.replaying.changes import check_scale, fine_tunes
from modelgit.porcelain.replaying.making import report
from modelgit.porcelain.replaying.origins import read_origins
from modelgit.porcelain.replaying.picking import make_all, rehearse, require_ready
from modelgit.porcelain.replaying.values import Options, Replayed
from modelgit.porcelain.work import land, refuse_shared_branch, switch
from modelgit.repo import worktree
from modelgit.repo.repository import Repository


def rebase(repo: Repository, onto: str, branch: str | None, options: Options, listener: Listener = ignore) -> Replayed:
    """Replays what a branch (that checked out unless named) has and `onto` has not, on top of `onto`.

    There is no state in between: with a conflict, or stopped, the branch is where it was.

    Raises:
        MergeConflict: naming the commit concerned and every reason. UsageError: no common history, or a merge on the
        way. RevisionError, DirtyWorktree, MissingObject.
    """
    check_scale("rebase", options.scale)
    require_ready(repo, options)
    other = branch is not None and branch != repo.branch()
    old, target = tip_of(repo, branch), repo.resolve(onto)
    if not repo.merge_base([target, old]):
        hint = "average them instead: modelgit merge"
        raise UsageError(f"{onto} and {branch or 'HEAD'} have no common ancestor", hint=hint)
    if options.scale is None and repo.is_ancestor(target, old):
        there = Replayed("up-to-date", old, branch or repo.branch(), target, old, dry_run=options.dry_run)
        return there if options.dry_run else finished(repo, branch if other else None, there, listener)
    origins, changes = read_origins(repo, target), list(fine_tunes(repo, target, old, options))
    fresh = [change for change in changes if not origins.there(change, inside=False, scaled=False)]
    planned, empty = rehearse(repo, target, fresh)
    skipped = tuple(change.source for change in changes if change not in fresh or change.source in empty)
    kind = "fast-forward" if repo.is_ancestor(old, target) else "rebase"
    if options.dry_run:
        steps = tuple(report(repo, one, None) for one in planned)
        return Replayed(kind, None, branch or repo.branch(), target, old, steps, skipped, dry_run=True)
    steps = make_all(repo, target, [one.change for one in planned], None, listener)
    made = str(steps[-1].commit) if steps else target
    result = Replayed(kind, made, None, target, old, steps, skipped)
    return finished(repo, branch if other else None, result, listener)


def tip_of(repo: Repository, branch: str | None) -> str:
    """Returns where a branch is, that checked out unless it is named. Raises RevisionError if it is none."""
    if branch is None:
        return repo.resolve("HEAD")
    found = repo.branches().get(branch)
    if found is None:
        repo.resolve(branch)
        raise RevisionError(f"'{branch}' is no branch", hint=f"make it one: modelgit switch -c NAME {branch}")
    refuse_shared_branch(repo, branch)
    return found


def finished(repo: Repository, other: str | None, result: Replayed, listener: Listener) -> Replayed:
    """Moves the branch to the result, and goes to it if it is another one; `ORIG_HEAD` remembers where it was.

    The files come first, then the branch, as in `land`.
    """
    made, old = str(result.commit), result.old
    reason = f"rebase (finish): {other or repo.branch() or 'HEAD'} onto {result.onto}"
    if made == old:
        return replace(result, branch=switch(repo, other, listener=listener).branch if other else repo.branch())
    if other is None:
        branch = land(repo, made, listener, expected=old, reason=reason)
    else:
        branch = go_to(repo, other, (old, made), reason, listener)
    repo.git.run("update-ref", "ORIG_HEAD", old)
    return replace(result, branch=branch)


def go_to(repo: Repository, branch: str, ends: tuple[str, str], reason: str, listener: Listener) -> str:
    """Makes the work tree a branch's new version, then moves the branch there, and HEAD to the branch."""
    old, made = ends
    if repo.worktree is not None:
        worktree.put(repo, repo.version(made), listener=listener)
    repo.set_ref(f"refs/heads/{branch}", made, expected=old, reason=reason)
    if repo.worktree is not None:
        worktree.point_head(repo, branch, made)
    return branch
