"""Merging versions: what takes part and the base come from the graph; the result is a commit that can be recomputed.

Everything that could speak against the merge is found before anything is written; the branch moves last of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelgit.certify.gate import check_bars, parse_bar
from modelgit.errors import MergeConflict, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.merge.engine.plan import Step
from modelgit.merge.methods import make, settings_of
from modelgit.porcelain.merging.making import carry_out, draft_of
from modelgit.porcelain.merging.pending import leave
from modelgit.porcelain.merging.preparing import common_base, named_heads, prepare
from modelgit.porcelain.merging.values import Choices, Cost, Made, Merged, Prepared, Request
from modelgit.porcelain.trials.trying import budget, check_trial, try_out
from modelgit.porcelain.work import land, require_clean
from modelgit.repo.repository import Repository


def merge(repo: Repository, request: Request, listener: Listener = ignore) -> Merged:
    """Merges the versions asked for into the branch checked out.

    What takes part are the independent heads among HEAD and those named, HEAD first.

    Raises:
        MergeConflict: naming every reason. GateFailed: the result scores below a bar. DirtyWorktree. UsageError.
        Nothing has changed in each case.
    """
    bars = [parse_bar(text) for text in request.gates]
    make(request.choices.method, request.choices.settings)
    check_trial(request.trial, request.data)
    check_landing(request)
    if bool(bars or request.trial.wanted or needs_data(request.choices)) != bool(request.data):
        raise UsageError("--gate and --on belong together", hint="--on DATA --gate 'accuracy>=0.75'")
    if not request.dry_run:
        require_clean(repo)
    named = named_heads(repo, request.revs)
    head = repo.head()
    taking_part = repo.independent(list(named))
    if taking_part == [head]:
        return Merged("up-to-date", head, repo.branch())
    plain = request.choices.plain and not request.trial.wanted
    forward = len(taking_part) == 1 and request.fast_forward and plain
    if request.landing == "forward" and not forward:
        names = ", ".join(named[commit] for commit in taking_part)
        told = f"{repo.branch() or 'HEAD'} cannot simply move forward: {names} have gone apart"
        raise MergeConflict(told, hint="average them: merge without --ff-only")
    if forward and request.dry_run:
        return Merged("dry-run", taking_part[0], repo.branch())
    if forward:
        scores = gate(repo, taking_part[0], request, listener)
        return Merged(
            "fast-forward", taking_part[0], land(repo, taking_part[0], listener, expected=head), scores=scores
        )
    base = request.choices.base or common_base(repo, list(named), request.choices)
    prepared = prepare(repo, {named[commit]: commit for commit in taking_part}, request.choices, base, listener)
    if request.dry_run:
        return rehearsed(repo, prepared, request)
    if request.trial.wanted:
        prepared = try_out(repo, prepared, request.trial, str(request.data), listener)
        taking_part = [member.commit for member in prepared.heads]
        if taking_part == [head]:
            return Merged("up-to-date", head, repo.branch(), findings=prepared.findings)
    made = carry_out(repo, prepared, listener)
    first = (str(head),) if head and head not in taking_part and needs_head(repo, head, taking_part, request) else ()
    parents = (*first, *taking_part)
    commit = repo.commit(draft_of(repo, prepared, made, parents, request.message))
    scores = gate(repo, commit, request, listener)
    if request.landing == "leave":
        leave(repo, commit, parents, listener)
        return replace(report(prepared, made, commit, repo.branch(), scores), kind="not-committed", commit=None)
    reason = f"merge {', '.join(member.name for member in prepared.heads)}: {prepared.method.name}"
    return report(prepared, made, commit, land(repo, commit, listener, expected=head, reason=reason), scores)


def check_landing(request: Request) -> None:
    """Raises UsageError for ways to land that make no sense together."""
    plain = request.choices.plain and not request.trial.wanted
    if request.landing == "forward" and not (plain and request.fast_forward):
        raise UsageError("--ff-only merges nothing: it goes with no method, weights, --no-ff or trial")
    if request.landing == "leave" and request.dry_run:
        raise UsageError("--dry-run changes nothing, --no-commit changes the work tree: choose one")


def needs_data(choices: Choices) -> bool:
    """Returns whether data is looked at to line units up, or to set the result right."""
    return bool(choices.repair) or (choices.align is not None and choices.align.by == "activations")


def needs_head(repo: Repository, head: str, taking_part: Sequence[str], request: Request) -> bool:
    """Returns whether HEAD, which is not merged, must be a parent: it is asked for, or no head descends from it."""
    return (
        not request.fast_forward
        or request.landing == "leave"
        or not any(repo.is_ancestor(head, commit) for commit in taking_part)
    )


def report(prepared: Prepared, made: Made, commit: str, branch: str | None, scores: Mapping[str, float]) -> Merged:
    """Returns what a merge did."""
    return Merged(
        kind="merge",
        commit=commit,
        branch=branch,
        method=prepared.method.name,
        settings=settings_of(prepared.method),
        base=prepared.base.commit if prepared.base is not None else None,
        heads=prepared.heads,
        copied=made.count("copied"),
        recipes=made.count("recipe"),
        computed=made.count("computed"),
        dropped=tuple(name for result in made.results.values() for name in result.dropped),
        notes=tuple(note for result in made.results.values() for note in result.notes),
        scores=scores,
        findings=prepared.findings,
        aligned=prepared.aligned,
        repaired=made.repaired,
    )


def rehearsed(repo: Repository, prepared: Prepared, request: Request) -> Merged:
    """Returns what a merge would do; which tensors become recipes is known only once it is done."""
    steps = [step for one in prepared.plans.values() for step in one.steps]
    return Merged(
        kind="dry-run",
        commit=None,
        branch=repo.branch(),
        method=prepared.method.name,
        settings=settings_of(prepared.method),
        base=prepared.base.commit if prepared.base is not None else None,
        heads=prepared.heads,
        copied=sum(step.copied for step in steps),
        computed=sum(not step.copied for step in steps),
        dropped=tuple(name for one in prepared.plans.values() for name in one.dropped),
        notes=(*(note for one in prepared.plans.values() for note in one.notes), *budget(prepared, request.trial)),
        aligned=prepared.aligned,
        cost=cost_of(steps),
    )


def cost_of(steps: Sequence[Step]) -> Cost:
    """Returns what merging these tensors reads and makes."""
    merged = [step for step in steps if not step.copied and step.same_as is None]
    sizes = [size_bytes(step.dtype, step.shape) for step in merged]
    read = sum(size * len(step.inputs) for size, step in zip(sizes, merged, strict=True))
    told = [step.why or ("tied to another" if step.same_as else "merged") for step in steps]
    return Cost(read, sum(sizes), {why: told.count(why) for why in sorted(set(told))})


def gate(repo: Repository, commit: str, request: Request, listener: Listener) -> Mapping[str, float]:
    """Returns the scores of a version that is about to become the branch's, once every bar is cleared.

    Raises:
        GateFailed: naming the bars that were missed.
    """
    if not request.gates or request.data is None:
        return {}
    from modelgit.porcelain.scores import evaluate  # brings PyTorch

    measured = evaluate(repo, commit, request.data, listener=listener)
    check_bars([parse_bar(text) for text in request.gates], measured, commit[:10])
    return measured
