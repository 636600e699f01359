"""cherry-pick and revert: all changes asked for are planned, then made, then the branch moves, once."""

from collections.abc import Sequence
from dataclasses import replace

from modelgit.errors import UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.replaying.changes import changes_of, described
from modelgit.porcelain.replaying.making import commit_change, report
from modelgit.porcelain.replaying.origins import Origins, read_origins
from modelgit.porcelain.replaying.planning import image_after, image_of, is_empty, plan_change
from modelgit.porcelain.replaying.values import Change, Options, Planned, Replayed, ReplayedStep, Verb
from modelgit.porcelain.work import land, require_clean
from modelgit.repo import worktree
from modelgit.repo.merging.underway import refuse_conflicts, refuse_merge
from modelgit.repo.repository import Repository


def cherry_pick(repo: Repository, revs: Sequence[str], options: Options, listener: Listener = ignore) -> Replayed:
    """Adds the task vectors of commits to HEAD: HEAD + scale * (commit - parent), each as a commit of its own.

    Raises:
        MergeConflict: naming every reason. UsageError, RevisionError, DirtyWorktree, MissingObject. Neither branch nor
        files have changed then.
    """
    return pick(repo, "cherry-pick", revs, options, listener)


def revert(repo: Repository, revs: Sequence[str], options: Options, listener: Listener = ignore) -> Replayed:
    """Subtracts the task vectors of commits from HEAD. Raises as `cherry_pick`."""
    return pick(repo, "revert", revs, options, listener)


def pick(repo: Repository, verb: Verb, revs: Sequence[str], options: Options, listener: Listener) -> Replayed:
    """Carries out a verb on each of the commits named, and moves the branch to the result."""
    require_ready(repo, options)
    head = repo.resolve("HEAD")
    changes = changes_of(repo, verb, revs, options, head)
    origins = read_origins(repo, head)
    there = {change.source for change in changes if not options.again and has(repo, head, origins, change, options)}
    planned, empty = rehearse(repo, head, [change for change in changes if change.source not in there])
    skipped = tuple(change.source for change in changes if change.source in {*there, *empty})
    if not planned:
        raise nothing_to_do(repo, changes, origins)
    if options.dry_run:
        steps = tuple(report(repo, one, None) for one in planned)
        return Replayed(verb, None, repo.branch(), head, head, steps, skipped, dry_run=True)
    steps = make_all(repo, head, [one.change for one in planned], options.message, listener)
    made = str(steps[-1].commit)
    if not options.commit:
        worktree.put(repo, repo.version(made), listener=listener)
        return Replayed(verb, None, repo.branch(), head, head, uncommitted(steps), skipped)
    reason = f"{verb}: {repo.version(made).entry.subject}"
    return Replayed(verb, made, land(repo, made, listener, expected=head, reason=reason), head, head, steps, skipped)


def has(repo: Repository, head: str, origins: Origins, change: Change, options: Options) -> bool:
    """Tells whether HEAD has a change already, by what its commits say of themselves."""
    return origins.there(change, inside=repo.is_ancestor(change.source, head), scaled=options.scale is not None)


def nothing_to_do(repo: Repository, changes: Sequence[Change], origins: Origins) -> UsageError:
    """Returns the error for changes that are all there already, which says what made them, and how to repeat them."""
    verb, by = changes[0].verb, origins.by(changes[0])
    told = ", ".join(described(repo, change.source) for change in changes[:3])
    what = "without" if verb == "revert" else "with"
    made = f"; see {described(repo, by)}" if by is not None else ""
    hint = f"once more all the same: modelgit {verb} {changes[0].source[:10]} --again"
    return UsageError(f"nothing to do: HEAD is {what} the change of {told} already{made}", hint=hint)


def require_ready(repo: Repository, options: Options) -> None:
    """Refuses a work tree that the step would overwrite, or in which git is in the middle of something."""
    if not options.commit:
        worktree.root_of(repo)
    if repo.worktree is None:
        return
    refuse_conflicts(repo)
    refuse_merge(repo)
    if not options.dry_run:
        require_clean(repo)


def rehearse(repo: Repository, start: str, changes: Sequence[Change]) -> tuple[list[Planned], tuple[str, ...]]:
    """Returns the plans for changes on top of each other, and the commits whose changes are there already.

    Raises:
        MergeConflict: of the first change that cannot be applied; nothing was written.
    """
    image, plans, skipped = image_of(repo, start), list[Planned](), list[str]()
    for change in changes:
        planned = plan_change(repo, image, change)
        if is_empty(planned):
            skipped.append(change.source)
        else:
            plans.append(planned)
            image = image_after(planned)
    return plans, tuple(skipped)


def make_all(
    repo: Repository, start: str, changes: Sequence[Change], message: str | None, listener: Listener
) -> tuple[ReplayedStep, ...]:
    """Returns the reports on changes carried out on top of each other, each a commit; no branch moves."""
    tip, steps = start, list[ReplayedStep]()
    for change in changes:
        planned = plan_change(repo, image_of(repo, tip), change)
        steps.append(commit_change(repo, planned, tip, message, listener))
        tip = str(steps[-1].commit)
    return tuple(steps)


def uncommitted(steps: Sequence[ReplayedStep]) -> tuple[ReplayedStep, ...]:
    """Returns the reports without the commits, which nobody is to know of."""
    return tuple(replace(step, commit=None) for step in steps)
