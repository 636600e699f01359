"""A planned change carried out: its sums as recipes, its commit with all that is needed to recompute it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from modelgit.errors import MergeConflict
from modelgit.events import Listener
from modelgit.formats.manifest import Manifest
from modelgit.merge.engine.execution import MergeResult, execute
from modelgit.merge.engine.plan import Head, Plan, Step
from modelgit.merge.methods.linear_form import LinearForm
from modelgit.merge.methods.registry import call_linear
from modelgit.porcelain.plumbing.combining import with_header
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.replaying.values import Change, Decision, Planned, ReplayedStep, WeightPlan
from modelgit.porcelain.versions import contents_id
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, CommitDraft, Version, trailers_of
from modelgit.repo.worktree import refuse_missing
from modelgit.store.files.tensors import StoredTensors, stored_header
from modelgit.store.writing import PackWriter
from modelgit.version import VERSION

OWN_TRAILERS = ("Replay-", "Merge-")
NOTHING = Manifest("", 0, 0, ())


@dataclass(frozen=True)
class TaskVector:
    """ours + scale * (theirs - base), ours and theirs being the heads with the weights 1 and scale.

    A method that no merge can name: it tells its two heads apart. Its sum is linear, so the store keeps a recipe.
    """

    name: ClassVar[str] = "task_vector"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    heads: ClassVar[tuple[int, int | None]] = (2, 2)
    weighted: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return 1 and the scale on the heads, and the scale, taken off, on the base."""
        return LinearForm(tuple(weights), -weights[1])

    __call__ = call_linear


def carry_out(
    repo: Repository, planned: Planned, listener: Listener, *, keep: bool = True
) -> tuple[dict[str, Manifest], list[MergeResult]]:
    """Returns the weight files of the result; their objects are in the store with `keep`, else nowhere.

    Raises:
        MergeConflict: values that are not finite, or too large for their type. MissingObject, CorruptObject.
    """
    bring(repo, planned, listener)
    made = {path: plan for path, plan in planned.weights.items() if isinstance(plan, Manifest)}
    results: list[MergeResult] = []
    plans = {path: plan for path, plan in planned.weights.items() if isinstance(plan, WeightPlan)}
    if plans:
        with repo.store.begin() as pack:
            for path, plan in plans.items():
                result = one_file(repo, plan, planned.change, (pack, listener))
                made[path] = headed(result.manifest, plan)
                results.append(result)
            if keep:
                pack.commit()
    return made, results


def bring(repo: Repository, planned: Planned, listener: Listener) -> None:
    """Gets the objects that the change needs and the store lacks from the remotes. Raises MissingObject."""
    needed = list(inputs_of(planned))
    missing = repo.store.missing({oid for manifest in needed for oid in manifest.oids()})
    if missing:
        from modelgit.repo import transport

        transport.seek(repo, missing, listener)
        refuse_missing(repo, needed)


def inputs_of(planned: Planned) -> Iterable[Manifest]:
    """Yields what the result is put together from, each weight file with the tensors that are needed of it."""
    for path, plan in planned.weights.items():
        if isinstance(plan, Manifest):
            if plan != planned.ours.manifests.get(path):
                yield plan
            continue
        used = [entry for decision in plan.decisions for entry in decision.inputs]
        for side in (plan.ours, plan.theirs, plan.base):
            if side is not None:
                own = set(side.tensors).intersection(used)
                yield Manifest(side.header, side.header_bytes, side.size_bytes, tuple(own))


def one_file(repo: Repository, plan: WeightPlan, change: Change, to: tuple[PackWriter, Listener]) -> MergeResult:
    """Returns one weight file put together."""
    ours, theirs, base = (StoredTensors(repo.store, side or NOTHING) for side in (plan.ours, plan.theirs, plan.base))
    heads = (Head("HEAD", ours), Head(change.source[:10], theirs, change.choices.scale))
    work = Plan(heads, base, TaskVector(), tuple(steps_of(plan.decisions)), (), ())
    headers = [stored_header(repo.store, side).metadata for side in (plan.ours, plan.theirs) if side is not None]
    shared = set(headers[0].items()).intersection(*(header.items() for header in headers[1:]))
    return execute(work, to[0], repo.store, dict(sorted(shared)), to[1])


def steps_of(decisions: Sequence[Decision]) -> Iterable[Step]:
    """Yields what the engine does for each tensor; tied weights stay tied."""
    first: dict[tuple[str, ...], str] = {}
    for decision in decisions:
        entry = decision.inputs[0]
        if decision.side == "sum":
            known = first.setdefault(tuple(i.oid for i in decision.inputs), decision.name)
            same = known if known != decision.name else None
            yield Step(decision.name, entry.dtype, entry.shape, (0, 1), decision.inputs, False, "", True, same)
        else:
            member = 0 if decision.side == "ours" else 1
            yield Step(decision.name, entry.dtype, entry.shape, (member,), (entry,), True, decision.side)


def headed(made: Manifest, plan: WeightPlan) -> Manifest:
    """Returns a weight file with the header of the side that changed it, byte for byte, if it still fits."""
    for side in (plan.ours, plan.theirs):
        if side is not None and (side is plan.ours or plan.ours is None or plan.base is None):
            made = with_header(made, side)
    untouched = plan.ours is not None and plan.base is not None and plan.ours.header == plan.base.header
    return with_header(made, plan.theirs) if untouched and plan.theirs is not None else made


# ------------------------------------------------------------------------------------------------------- commits


def commit_change(
    repo: Repository, planned: Planned, parent: str, message: str | None, listener: Listener
) -> ReplayedStep:
    """Returns the report on a change that was carried out and committed on top of `parent`; no branch moves.

    Raises:
        MergeConflict, MissingObject, CorruptObject, StorageFull.
    """
    change = planned.change
    try:
        manifests, results = carry_out(repo, planned, listener)
    except MergeConflict as error:
        why = error.message.removeprefix("models cannot be merged: ")
        what = f"cannot {change.verb} {change.source[:10]} ({repo.version(change.source).entry.subject})"
        raise MergeConflict(f"{what}: {why}", error.conflicts, hint=error.hint) from error
    files = {path: written(repo, planned, path) for path in planned.files}
    more = record_of(planned)
    author, authored = (None, None) if change.verb == "revert" else authorship(repo, change.source)
    text, trailers = told(repo, planned, parent, message)
    draft = CommitDraft((parent,), {**manifests, **files, **more}, text, trailers, author=author, authored=authored)
    return report(repo, planned, repo.commit(draft), results)


def written(repo: Repository, planned: Planned, path: str) -> Blob:
    """Returns the blob of an ordinary file of the result, its mode that of the version it goes to."""
    content = planned.files[path]
    if isinstance(content, Blob):
        return content
    ours = planned.ours.files.get(path)
    return Blob(repo.write_blob(content).sha, ours.mode if isinstance(ours, Blob) else Blob("").mode)


def authorship(repo: Repository, commit: str) -> tuple[str | None, str | None]:
    """Returns who made a commit, and when: seconds since 1970 and the time zone."""
    look = ("log", "-1", "--no-show-signature", "--date=raw", "--format=%an%x00%ae%x00%ad", commit)
    name, address, date = repo.git.run(*look).split("\0")
    return (f"{name} <{address}>", date) if name.strip() else (None, None)


def record_of(planned: Planned) -> dict[str, bytes]:
    """Returns the record of the result, nothing if nobody knows anything of the model."""
    change, known = planned.change, planned.record
    if known is None:
        return {}
    details = {"verb": change.verb, "commit": change.source, "scale": change.choices.scale}
    return {RECORD_PATH: write_record(Record("commit", known.architecture, known.classes, known.head, details))}


def told(
    repo: Repository, planned: Planned, parent: str, message: str | None
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Returns the message of the new commit, and its trailers."""
    change = planned.change
    source = repo.version(change.source).entry
    trailers = replay_trailers(planned, repo.version(parent))
    if change.verb == "revert":
        return message or reverting(change, source.subject), trailers
    text, kept = split_message(source.message)
    text = message or text
    if change.verb == "cherry-pick":
        text = f"{text}\n\n(cherry picked from commit {change.source})"
    return text, (*kept, *trailers)


def reverting(change: Change, subject: str) -> str:
    """Returns the message of a revert."""
    scale = "" if change.choices.scale == 1 else f", times {change.choices.scale:g}"
    return f'Revert "{subject}"{scale}\n\nThis reverts commit {change.source}.'


def split_message(message: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Returns a message without its trailers, and those trailers that are not about how its weights were made."""
    found = trailers_of(message)
    if not found:
        return message.strip(), ()
    kept = ((key, value) for key, values in found.items() for value in values if not key.startswith(OWN_TRAILERS))
    return message.strip().rpartition("\n\n")[0], tuple(kept)


def replay_trailers(planned: Planned, onto: Version) -> tuple[tuple[str, str], ...]:
    """Returns what a commit says of the change it replays; `read_trailers` of `verifying` is its inverse."""
    change = planned.change
    policy = {key: value for key, value in asdict(change.choices).items() if key != "scale"}
    return (
        ("Replay-Verb", change.verb),
        ("Replay-Of", change.source),
        ("Replay-From", f"{planned.base.commit} {contents_id(planned.base)}"),
        ("Replay-To", f"{planned.theirs.commit} {contents_id(planned.theirs)}"),
        ("Replay-Onto", f"{onto.commit} {contents_id(onto)}"),
        ("Replay-Scale", json.dumps(change.choices.scale)),
        ("Replay-Policy", json.dumps(policy, sort_keys=True, separators=(",", ":"))),
        ("Replay-Tool", f"modelgit {VERSION}"),
    )


def report(
    repo: Repository, planned: Planned, commit: str | None, results: Sequence[MergeResult] | None = None
) -> ReplayedStep:
    """Returns what was done for one change, or without `results` what would be done."""
    sides = [
        decision.side if isinstance(decision, Decision) else decision
        for path, plan in planned.weights.items()
        for decision in (plan.decisions if isinstance(plan, WeightPlan) else whole_file(planned, path, plan))
    ]
    sums = sides.count("sum")
    recipes = sum(result.counts()["recipe"] for result in results) if results is not None else 0
    entry = repo.version(commit or planned.change.source).entry
    changed = {*planned.files, *planned.ours.files}
    files = tuple(p for p in sorted(changed) if planned.files.get(p) != planned.ours.files.get(p))
    counts = (sides.count("ours"), sides.count("theirs"), recipes, sums - recipes)
    change = planned.change
    parent = change.theirs if change.verb == "revert" else change.base
    return ReplayedStep(
        change.source, parent, commit, entry.subject, change.choices.scale, *counts, files, planned.notes
    )


def whole_file(planned: Planned, path: str, made: Manifest) -> list[str]:
    """Returns for each tensor of a weight file that is one side's as a whole whether it is as it was."""
    ours = planned.ours.manifests.get(path)
    before = {entry.name: entry for entry in ours.tensors} if ours is not None else {}
    return ["ours" if before.get(entry.name) == entry else "theirs" for entry in made.tensors]
