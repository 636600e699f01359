"""Merging versions: what takes part and the base come from the graph; the result is a commit that can be recomputed.

Everything that could speak against the merge is found before anything is written; the branch moves last of all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from modelgit.certify.gate import check_bars, parse_bar
from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.merge.engine import MergeResult, execute
from modelgit.merge.methods import Method, check_arguments, make, settings_of
from modelgit.merge.plan import Head, Plan, Policy, conflict_error, plan
from modelgit.merge.registry import Value
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.versions import contents_id
from modelgit.porcelain.work import land, require_clean
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, CommitDraft, Version
from modelgit.store.files.tensors import StoredTensors, stored_header
from modelgit.store.writing import PackWriter
from modelgit.version import VERSION

NO_TENSORS = Manifest("", 0, 0, ())
Kind = Literal["merge", "fast-forward", "up-to-date", "dry-run"]
Files = Mapping[str, Manifest | Blob | bytes]


@dataclass(frozen=True, slots=True)
class Choices:
    """How to merge. `weights` is empty (all alike) or one number a head; `base` None means the graph's.

    `head_names` are the classifier's tensors, those that records name if empty. `files` says what to do with
    ordinary files on which the versions disagree.
    """

    method: str = "linear"
    settings: Mapping[str, Value] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    base: str | None = None
    on_missing: Literal["error", "keep", "drop"] = "error"
    heads: Literal["error", "drop", "ours"] = "error"
    head_names: tuple[str, ...] = ()
    integers: Literal["error", "ours"] = "ours"
    files: Literal["error", "ours"] = "error"

    @property
    def plain(self) -> bool:
        """Whether one model merged this way is the model itself: then a branch can simply move forward."""
        return self.method == "linear" and not self.settings and not self.weights

    def policy(self) -> dict[str, object]:
        """Returns how to go on where models do not match, as the commit records it."""
        return {
            "on_missing": self.on_missing,
            "heads": self.heads,
            "head_names": list(self.head_names),
            "integers": self.integers,
            "files": self.files,
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for: `revs` besides HEAD. `gates` are bars the result must clear on `data`."""

    revs: tuple[str, ...]
    choices: Choices = Choices()
    message: str | None = None
    fast_forward: bool = True
    dry_run: bool = False
    gates: tuple[str, ...] = ()
    data: str | None = None


@dataclass(frozen=True, slots=True)
class MergedHead:
    """One of the versions that took part: the name it was called by, its commit, its weight."""

    name: str
    commit: str
    weight: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did, or with `dry-run` would do. Counts are of tensors; `scores` are those the gates looked at."""

    kind: Kind
    commit: str | None
    branch: str | None
    method: str | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    base: str | None = None
    heads: tuple[MergedHead, ...] = ()
    copied: int = 0
    recipes: int = 0
    computed: int = 0
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that nothing speaks against: the versions in order, a plan for each weight file, the other files."""

    heads: tuple[MergedHead, ...]
    versions: tuple[Version, ...]
    base: Version | None
    method: Method
    choices: Choices
    plans: Mapping[str, Plan]
    files: Mapping[str, Blob]
    records: tuple[Record | None, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """The weight files of a merge, their objects in the store."""

    results: Mapping[str, MergeResult]

    def manifests(self) -> dict[str, Manifest]:
        """Returns the merged weight files."""
        return {path: result.manifest for path, result in self.results.items()}

    def count(self, action: Literal["copied", "recipe", "computed"]) -> int:
        """Returns how many tensors came about that way."""
        return sum(result.counts()[action] for result in self.results.values())


def merge(repo: Repository, request: Request, listener: Listener = ignore) -> Merged:
    """Merges the versions asked for into the branch checked out.

    What takes part are the independent heads among HEAD and those named, HEAD first.

    Raises:
        MergeConflict: naming every reason. GateFailed: the result scores below a bar. DirtyWorktree. UsageError.
        Nothing has changed in each case.
    """
    bars = [parse_bar(text) for text in request.gates]
    make(request.choices.method, request.choices.settings)
    if bool(bars) != bool(request.data):
        raise UsageError("--gate and --on belong together", hint="--on DATA --gate 'accuracy>=0.75'")
    if not request.dry_run:
        require_clean(repo)
    named = named_heads(repo, request.revs)
    head = repo.head()
    taking_part = repo.independent(list(named))
    if taking_part == [head]:
        return Merged("up-to-date", head, repo.branch())
    forward = len(taking_part) == 1 and request.fast_forward and request.choices.plain
    if forward and request.dry_run:
        return Merged("dry-run", taking_part[0], repo.branch())
    if forward:
        scores = gate(repo, taking_part[0], request, listener)
        return Merged("fast-forward", taking_part[0], land(repo, taking_part[0], listener), scores=scores)
    base = request.choices.base or common_base(repo, list(named), request.choices)
    prepared = prepare(repo, {named[commit]: commit for commit in taking_part}, request.choices, base)
    if request.dry_run:
        return rehearsed(repo, prepared)
    made = carry_out(repo, prepared, listener)
    parents = tuple(taking_part) if request.fast_forward or head in (None, *taking_part) else (str(head), *taking_part)
    commit = repo.commit(draft_of(repo, prepared, made, parents, request.message))
    scores = gate(repo, commit, request, listener)
    return report(prepared, made, commit, land(repo, commit, listener), scores)


def named_heads(repo: Repository, revs: Sequence[str]) -> dict[str, str]:
    """Returns the name of each commit that is to be merged, HEAD first if there is one."""
    if not revs:
        raise UsageError("nothing to merge", hint="name branches: modelgit merge BRANCH…")
    head = repo.head()
    found = {head: repo.branch() or "HEAD"} if head else {}
    for rev in revs:
        found.setdefault(repo.resolve(rev), rev)
    return found


def common_base(repo: Repository, commits: Sequence[str], choices: Choices) -> str | None:
    """Returns the best common ancestor of the commits, None if they share no history.

    Raises:
        UsageError: there are several, and the method needs one.
    """
    bases = repo.merge_base(commits) if len(commits) > 1 else []
    if len(bases) > 1 and make(choices.method, choices.settings).needs_base:
        names = ", ".join(base[:10] for base in bases)
        raise UsageError(f"there are {len(bases)} best common ancestors: {names}", hint="choose one with --base")
    return min(bases, default=None)


# -------------------------------------------------------------------------------------------------- preparing


def prepare(repo: Repository, heads: Mapping[str, str], choices: Choices, base: str | None) -> Prepared:
    """Returns the merge of versions, commits by their names, decided but not begun; the first one is "ours".

    Raises:
        MergeConflict: naming every reason. UsageError: choices that make no sense together.
    """
    method = make(choices.method, choices.settings)
    weights = choices.weights or (1.0,) * len(heads)
    if len(weights) != len(heads):
        raise UsageError(f"{len(weights)} weights for {len(heads)} models", hint=f"in this order: {', '.join(heads)}")
    check_arguments(method, weights, has_base=base is not None)
    members = tuple(MergedHead(n, c, w) for (n, c), w in zip(heads.items(), weights, strict=True))
    versions = tuple(repo.version(member.commit) for member in members)
    records = tuple(read_record(repo, member.commit) for member in members)
    ancestor = repo.version(base) if base else None
    policy = policy_of(choices, records)
    plans, conflicts = weight_plans(repo, members, versions, (ancestor, records, method, policy))
    files, more = ordinary_files(members, versions, ancestor, choices)
    if conflicts or more:
        raise conflicts_error([*conflicts, *more])
    return Prepared(members, versions, ancestor, method, choices, plans, files, records)


def policy_of(choices: Choices, records: Sequence[Record | None]) -> Policy:
    """Returns the policy for tensors; which of them are the head is what records say, unless the user does.

    Raises:
        UsageError: heads are to be dropped or kept, and nobody says which tensors they are.
    """
    recorded = sorted({name for record in records if record is not None for name in record.head})
    names = choices.head_names or tuple(recorded)
    if choices.heads != "error" and not names:
        hint = "name the classifier's tensors or modules: --head-name classifier"
        raise UsageError(f"--heads {choices.heads}: no record says which tensors are the head", hint=hint)
    return Policy(choices.on_missing, choices.heads, names, choices.integers)


Setting = tuple[Version | None, Sequence[Record | None], Method, Policy]


def weight_plans(
    repo: Repository, members: Sequence[MergedHead], versions: Sequence[Version], setting: Setting
) -> tuple[dict[str, Plan], list[Conflict]]:
    """Returns a plan for each weight file, and the conflicts of all of them."""
    base, records, method, policy = setting
    plans: dict[str, Plan] = {}
    conflicts: list[Conflict] = []
    for path in sorted({path for version in versions for path in version.manifests}):
        have = [i for i, version in enumerate(versions) if path in version.manifests]
        if len(have) < len(versions) and policy.on_missing != "keep":
            absent = ", ".join(m.name for i, m in enumerate(members) if i not in have)
            if policy.on_missing == "error":
                conflicts.append(Conflict("missing", path, "in every version", f"absent from {absent}"))
            continue
        heads = [member_head(repo, members[i], versions[i].manifests[path], records[i]) for i in have]
        origin = None if base is None else StoredTensors(repo.store, base.manifests.get(path, NO_TENSORS))
        try:
            plans[path] = plan(heads, origin, method, policy)
        except MergeConflict as error:
            conflicts.extend(error.conflicts)
    if not plans and not conflicts:
        conflicts.append(Conflict("empty", "the result", "at least one weight file", "none is left"))
    return plans, list(dict.fromkeys(conflicts))


def member_head(repo: Repository, member: MergedHead, manifest: Manifest, record: Record | None) -> Head:
    """Returns one model as the merge sees it."""
    classes = record.classes if record is not None and record.classes else None
    return Head(member.name, StoredTensors(repo.store, manifest), member.weight, classes)


def ordinary_files(
    members: Sequence[MergedHead], versions: Sequence[Version], base: Version | None, choices: Choices
) -> tuple[dict[str, Blob], list[Conflict]]:
    """Returns the other files of the result, merged three-way as git does, and those on which versions disagree."""
    files: dict[str, Blob] = {}
    conflicts: list[Conflict] = []
    for path in sorted({path for version in versions for path in version.files} - {RECORD_PATH}):
        found = [version.files.get(path) for version in versions]
        origin = base.files.get(path) if base is not None else None
        changed = list(dict.fromkeys(blob for blob in found if blob != origin or base is None))
        if len(changed) > 1 and choices.files == "error":
            names = ", ".join(m.name for m, blob in zip(members, found, strict=True) if blob != found[0])
            conflicts.append(Conflict("file", path, f"as in {members[0].name}", f"another content in {names}"))
            continue
        chosen = found[0] if len(changed) > 1 else (changed[0] if changed else origin)
        if chosen is not None:
            files[path] = chosen
    return files, conflicts


def conflicts_error(conflicts: Sequence[Conflict]) -> MergeConflict:
    """Returns the error for conflicts of tensors and of files."""
    tensors = [conflict for conflict in conflicts if conflict.kind != "file"]
    if tensors:
        error = conflict_error(tensors)
        return MergeConflict(error.message, conflicts, hint=error.hint)
    more = f" ({len(conflicts)} files)" if len(conflicts) > 1 else ""
    hint = "Take those of the version you are on: --files ours."
    return MergeConflict(f"versions disagree on {conflicts[0].where}{more}", conflicts, hint=hint)


# ---------------------------------------------------------------------------------------------------- doing it


def carry_out(repo: Repository, prepared: Prepared, listener: Listener = ignore, *, keep: bool = True) -> Made:
    """Returns the merged weight files; their objects are in the store with `keep`, else nowhere.

    Raises:
        MergeConflict: values that are not finite, or too large for their type. MissingObject, CorruptObject.
    """
    with repo.store.begin() as pack:
        results = {path: one_file(repo, prepared, path, (pack, listener)) for path in prepared.plans}
        if keep:
            pack.commit()
    return Made(results)


def one_file(repo: Repository, prepared: Prepared, path: str, to: tuple[PackWriter, Listener]) -> MergeResult:
    """Returns one merged weight file; its header says what all the models' headers say."""
    headers = [stored_header(repo.store, v.manifests[path]) for v in prepared.versions if path in v.manifests]
    shared = set(headers[0].metadata.items()).intersection(*(header.metadata.items() for header in headers[1:]))
    return execute(prepared.plans[path], to[0], repo.store, dict(sorted(shared)), to[1])


def draft_of(
    repo: Repository, prepared: Prepared, made: Made, parents: tuple[str, ...], message: str | None
) -> CommitDraft:
    """Returns the merge commit to be made, with all that is needed to recompute it in its trailers."""
    names = [member.name for member in prepared.heads]
    text = message or f"Merge {', '.join(names)} ({prepared.method.name})"
    record = write_record(merge_record(prepared, made))
    files: Files = {**made.manifests(), **prepared.files, RECORD_PATH: record}
    return CommitDraft(parents, files, text, merge_trailers(prepared))


def merge_trailers(prepared: Prepared) -> tuple[tuple[str, str], ...]:
    """Returns what a merge commit says of itself; `read_trailers` of `checking` is its inverse."""
    inputs = [("Merge-Input", f"{v.commit} {contents_id(v)}") for v in prepared.versions]
    base = [("Merge-Base", prepared.base.commit)] if prepared.base is not None else []
    return (
        ("Merge-Method", prepared.method.name),
        ("Merge-Settings", compact(settings_of(prepared.method))),
        ("Merge-Weights", compact([member.weight for member in prepared.heads])),
        ("Merge-Policy", compact(prepared.choices.policy())),
        *base,
        *inputs,
        ("Merge-Tool", f"modelgit {VERSION}"),
    )


def compact(value: object) -> str:
    """Returns a value as one line of JSON, keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def merge_record(prepared: Prepared, made: Made) -> Record:
    """Returns the record of the result: what the models agree on, unless their heads were dropped or one was taken."""
    known = [record for record in prepared.records if record is not None]
    first, heads = prepared.records[0], prepared.choices.heads
    agreed = len(known) == len(prepared.records)
    architectures = {record.architecture for record in known} if agreed else {None}
    classes: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    if heads == "ours" and first is not None:
        classes, head = first.classes, first.head
    elif heads == "error" and agreed:
        classes = known[0].classes if len({record.classes for record in known}) == 1 else ()
        head = known[0].head if len({record.head for record in known}) == 1 else ()
    details = {
        "method": prepared.method.name,
        "settings": dict(settings_of(prepared.method)),
        "base": prepared.base.commit if prepared.base is not None else None,
        "inputs": [{"name": m.name, "commit": m.commit, "weight": m.weight} for m in prepared.heads],
        "dropped": sorted({name for result in made.results.values() for name in result.dropped}),
    }
    return Record("merge", architectures.pop() if len(architectures) == 1 else None, classes, head, details)


# ---------------------------------------------------------------------------------------------------- reporting


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
    )


def rehearsed(repo: Repository, prepared: Prepared) -> Merged:
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
        notes=tuple(note for one in prepared.plans.values() for note in one.notes),
    )


def gate(repo: Repository, commit: str, request: Request, listener: Listener) -> Mapping[str, float]:
    """Returns the scores of a version that is about to become the branch's, once every bar is cleared.

    Raises:
        GateFailed: naming the bars that were missed.
    """
    if request.data is None:
        return {}
    from modelgit.porcelain.scores import evaluate  # brings PyTorch

    measured = evaluate(repo, commit, request.data, listener=listener)
    check_bars([parse_bar(text) for text in request.gates], measured, commit[:10])
    return measured
