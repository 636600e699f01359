"""Merging versions: what takes part and the base come from the graph; the result is a commit that can be recomputed.

Everything that could speak against the merge is found before anything is written; the branch moves last of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modelgit.certify.gate import check_bars, parse_bar
from modelgit.errors import DataError, MergeConflict, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.merge.blocks.linalg import require
from modelgit.merge.engine.plan import Step
from modelgit.merge.methods import make, settings_of
from modelgit.porcelain.merging.making import carry_out, draft_of
from modelgit.porcelain.merging.pending import leave
from modelgit.porcelain.merging.preparing import common_bases, named_heads, prepare
from modelgit.porcelain.merging.values import Choices, Cost, Made, Merged, Prepared, Request
from modelgit.porcelain.records import read_record
from modelgit.porcelain.trials.trying import budget, check_trial, judges, try_out
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
    require(request.choices.device)
    if request.choices.weights and not any(request.choices.weights):
        raise UsageError("weights are all 0: no model would take part", hint="leave out what is not to be merged")
    check_trial(request.trial, request.data)
    check_landing(request)
    if bool(bars or request.trial.wanted or needs_data(request.choices)) != bool(request.data):
        raise UsageError("--gate and --on belong together", hint="--on DATA --gate 'accuracy>=0.75'")
    if not request.dry_run:
        require_clean(repo)
    head, named = repo.head(), participants(repo, request)
    taking_part = list(named)
    if taking_part == [head]:
        return Merged("up-to-date", head, repo.branch())
    check_gate(repo, request, list(named.values()))
    plain = request.choices.plain and not request.trial.wanted
    if len(taking_part) == 1 and request.fast_forward and plain:
        return moved_forward(repo, taking_part[0], request, listener)
    if request.landing == "forward":
        told = f"{repo.branch() or 'HEAD'} cannot simply move forward: {', '.join(named.values())} have gone apart"
        raise MergeConflict(told, hint="average them: merge without --ff-only")
    every = taking_part if request.exact else list(named_heads(repo, request.revs))
    bases = common_bases(repo, every, request.choices)
    prepared = prepare(repo, {name: commit for commit, name in named.items()}, request.choices, bases, listener)
    if request.dry_run:
        if request.trial.wanted:
            judges(repo, prepared, request.trial, str(request.data), listener)
        return told_more(rehearsed(repo, prepared, request), request)
    if request.trial.wanted:
        prepared = try_out(repo, prepared, request.trial, str(request.data), listener)
        if [member.commit for member in prepared.heads] == [head]:
            return Merged("up-to-date", head, repo.branch(), findings=prepared.findings)
    return told_more(averaged(repo, prepared, request, listener), request)


def participants(repo: Repository, request: Request) -> dict[str, str]:
    """Returns what takes part, the names by the commits: the independent heads, HEAD first, or exactly those named."""
    if not request.exact:
        named = named_heads(repo, request.revs)
        return {commit: named[commit] for commit in repo.independent(list(named))}
    found = dict[str, str]()
    for rev in request.revs:
        commit = repo.resolve(rev)
        if commit in found:
            raise UsageError(f"{rev} and {found[commit]} are the same version", hint="name it once, with both weights")
        found[commit] = rev
    return found


def moved_forward(repo: Repository, commit: str, request: Request, listener: Listener) -> Merged:
    """Moves the branch to a commit that descends from it."""
    if request.dry_run:
        return Merged("dry-run", commit, repo.branch())
    head = repo.head()
    scores = gate(repo, commit, request, listener)
    return Merged("fast-forward", commit, land(repo, commit, listener, expected=head), scores=scores)


def averaged(repo: Repository, prepared: Prepared, request: Request, listener: Listener) -> Merged:
    """Makes the merge, and puts it where it is to be."""
    head, taking_part = repo.head(), [member.commit for member in prepared.heads]
    made = carry_out(repo, prepared, listener)
    parents = parents_of(repo, head, taking_part, request)
    commit = repo.commit(draft_of(repo, prepared, made, parents, request.message))
    scores = gate(repo, commit, request, listener)
    if request.landing == "leave":
        leave(repo, commit, parents, listener)
        return replace(report(prepared, made, commit, repo.branch(), scores), kind="not-committed", commit=None)
    reason = f"merge {', '.join(member.name for member in prepared.heads)}: {prepared.method.name}"
    return report(prepared, made, commit, land(repo, commit, listener, expected=head, reason=reason), scores)


def parents_of(repo: Repository, head: str | None, taking_part: Sequence[str], request: Request) -> tuple[str, ...]:
    """Returns the parents of a merge commit: HEAD first, where it takes part or must be one, then what was merged."""
    first = head is not None and (head in taking_part or needs_head(repo, head, taking_part, request))
    return (*((str(head),) if first else ()), *(commit for commit in taking_part if commit != head))


def told_more(result: Merged, request: Request) -> Merged:
    """Returns the report with what was known beforehand."""
    choices = request.choices
    count = len({*choices.layers, *choices.layer_settings})
    own = (f"{count} layers or tensors have weights or settings of their own; the commit lists them",) if count else ()
    return replace(result, notes=(*request.notes, *own, *result.notes))


def check_landing(request: Request) -> None:
    """Raises UsageError for ways to land that make no sense together."""
    plain = request.choices.plain and not request.trial.wanted
    if request.landing == "forward" and not (plain and request.fast_forward):
        raise UsageError("--ff-only merges nothing: it goes with no method, weights, --no-ff or trial")
    if request.landing == "leave" and request.dry_run:
        raise UsageError("--dry-run changes nothing, --no-commit changes the work tree: choose one")


def check_gate(repo: Repository, request: Request, revs: Sequence[str]) -> None:
    """Refuses a gate that could not be asked of the result, before anything is merged.

    Raises:
        UsageError: no record says what network a version is of. DataError: there is no such data.
    """
    if not request.gates:
        return
    records = {rev: read_record(repo, rev) for rev in revs}
    if unknown := [rev for rev, record in records.items() if record is None or record.architecture is None]:
        hint = "merge without --gate; versions that were trained here say it, and merges of such"
        raise UsageError(f"--gate: no record says which architecture to run: {', '.join(unknown)}", hint=hint)
    place = Path(str(request.data).partition("#")[0])
    if not place.exists():
        hint = "--on DATA: a folder, .zip, table, arrays, RECIPE.toml, or PIPELINE.toml#NAME"
        raise DataError(f"{place}: no such data set", hint=hint)


def needs_data(choices: Choices) -> bool:
    """Returns whether data is looked at to line units up, to know more of models, or to set the result right."""
    shared = choices.statistics is not None and choices.statistics.shared
    return bool(choices.repair) or shared or (choices.align is not None and choices.align.by == "activations")


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
        bases=tuple(base.commit for base in prepared.bases),
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
        informed=prepared.informed,
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
        bases=tuple(base.commit for base in prepared.bases),
        heads=prepared.heads,
        copied=sum(step.copied for step in steps),
        computed=sum(not step.copied for step in steps),
        dropped=tuple(name for one in prepared.plans.values() for name in one.dropped),
        notes=(*(note for one in prepared.plans.values() for note in one.notes), *budget(prepared, request.trial)),
        aligned=prepared.aligned,
        informed=prepared.informed,
        cost=cost_of(prepared, steps),
    )


def cost_of(prepared: Prepared, steps: Sequence[Step]) -> Cost:
    """Returns what merging these tensors reads and makes; adapters are read whole."""
    if hasattr(prepared.method, "adapters"):
        files = [manifest for version in prepared.versions for manifest in version.manifests.values()]
        made = sum(size_bytes(step.dtype, step.shape) for step in steps)
        return Cost(
            sum(size_bytes(e.dtype, e.shape) for m in files for e in m.tensors), made, {steps[0].why: len(steps)}
        )
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
    from modelgit.porcelain.reporting.evaluating import evaluate  # brings PyTorch

    measured = evaluate(repo, commit, request.data, listener=listener)
    check_bars([parse_bar(text) for text in request.gates], measured, commit[:10])
    return measured
