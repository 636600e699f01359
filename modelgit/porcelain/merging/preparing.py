"""A merge decided but not begun: everything that could speak against it is found here, before anything is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.ancestors import MeanTensors
from modelgit.merge.engine.layers import Methods, Weights, layered
from modelgit.merge.engine.plan import Head, Plan, Policy
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.methods import Method, check_arguments, make, of_heads
from modelgit.porcelain.merging.values import Choices, Informed, MergedHead, Prepared
from modelgit.porcelain.records import RECORD_PATH, Record, read_record
from modelgit.repo.merging.texts import merge_blobs
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, Version
from modelgit.store.files.tensors import StoredTensors

if TYPE_CHECKING:
    from modelgit.porcelain.merging.matching.vocabularies import Tokens

NO_TENSORS = Manifest("", 0, 0, ())


def named_heads(repo: Repository, revs: Sequence[str]) -> dict[str, str]:
    """Returns the name of each commit that is to be merged, HEAD first if there is one."""
    if not revs:
        raise UsageError("nothing to merge", hint="name branches: modelgit merge BRANCH…")
    head = repo.head()
    found = {head: repo.branch() or "HEAD"} if head else {}
    for rev in revs:
        found.setdefault(repo.resolve(rev), rev)
    return found


def common_bases(repo: Repository, commits: Sequence[str], choices: Choices) -> tuple[str, ...]:
    """Returns the best common ancestors of the commits: none if they share no history, several if it criss-crosses."""
    if choices.base is not None:
        return (repo.resolve(choices.base),)
    return tuple(sorted(repo.merge_base(commits))) if len(commits) > 1 else ()


def prepare(
    repo: Repository,
    heads: Mapping[str, str],
    choices: Choices,
    bases: Sequence[str],
    listener: Listener = ignore,
) -> Prepared:
    """Returns the merge of versions, commits by their names, decided but not begun; the first one is "ours".

    With several `bases`, the base is their mean.

    Raises:
        MergeConflict: naming every reason. UsageError: choices that make no sense together.
    """
    method = make(choices.method, choices.settings)
    weights = choices.weights or (1.0,) * len(heads)
    if len(weights) != len(heads):
        raise UsageError(f"{len(weights)} weights for {len(heads)} models", hint=f"in this order: {', '.join(heads)}")
    check_arguments(method, weights, has_base=bool(bases))
    members = tuple(MergedHead(n, c, w) for (n, c), w in zip(heads.items(), weights, strict=True))
    versions = tuple(repo.version(member.commit) for member in members)
    records = tuple(read_record(repo, member.commit) for member in members)
    ancestors = tuple(repo.version(base) for base in bases)
    policy = policy_of(choices, records)
    aligned, views = None, dict[str, View]()
    if choices.align is not None and (choices.vocabulary != "error" or choices.heads == "mean"):
        hint = "line up one of them first, then merge the result"
        raise UsageError("--align does not go with --vocabulary, nor with --heads mean", hint=hint)
    if choices.align is not None:
        from modelgit.porcelain.merging.matching.aligning import line_up  # brings PyTorch

        choices = replace(choices, align=replace(choices.align, to=choices.align.to or members[0].commit))
        aligned, views = line_up(repo, members, choices, listener)
    tokens, told = tokens_of(repo, members, versions, ancestors, choices)
    if tokens is not None:
        views.update({commit: partial(tokens.view, commit) for commit in tokens.layout.models})
    classes: tuple[str, ...] = ()
    if choices.heads == "mean":
        from modelgit.porcelain.merging.matching.classes import line_up_classes

        lined = line_up_classes(repo, versions, records, ancestors if method.needs_base else (), policy)
        classes, views = lined.names, {**views, **chained(views, lined.view, lined.layout.models)}
        records = tuple(record and replace(record, classes=classes) for record in records)
    setting = ancestors, records, method, policy, layers_of(choices), views
    settled: Mapping[str, Blob | bytes] = {} if tokens is None else tokens.files
    informed: Informed | None = None
    if hasattr(method, "adapters"):
        from modelgit.porcelain.merging.matching.adapters import adapter_plans

        plans, settled, conflicts = adapter_plans(repo, members, versions, method, policy)
    elif hasattr(method, "statistics") or choices.statistics is not None:
        from modelgit.porcelain.merging.matching.informing import informed_plans

        plans, conflicts, informed = informed_plans(repo, members, versions, setting, choices, listener)
    else:
        plans, conflicts = weight_plans(repo, members, versions, setting)
    merge_text = partial(merge_blobs, repo)
    files, more = ordinary_files(members, versions, files_of(ancestors), choices, settled, merge_text)
    if told or conflicts or more:
        raise conflict_error([*told, *conflicts, *more], policy.head_names)
    settled_so = members, versions, ancestors, method, choices, plans, files, records
    return Prepared(*settled_so, aligned=aligned, classes=classes, informed=informed)


def policy_of(choices: Choices, records: Sequence[Record | None]) -> Policy:
    """Returns the policy for tensors; which of them are the head is what records say, unless the user does.

    Raises:
        UsageError: heads are to be dropped or kept, and nobody says which tensors they are.
    """
    recorded = sorted({name for record in records if record is not None for name in record.head})
    names = choices.head_names or tuple(recorded)
    if choices.heads != "error" and not names:
        hint = "name the classifier's tensors or modules: --head-name classifier; without --heads, conflicts name them"
        raise UsageError(f"--heads {choices.heads}: no record says which tensors are the head", hint=hint)
    heads = "error" if choices.heads == "mean" else choices.heads  # lined up, they are merged as any tensor
    return Policy(choices.on_missing, heads, names, choices.integers, choices.tied)


MergeText = Callable[[str, Blob, Blob, Blob], Blob | int]  # a path, base, ours, theirs
View = Callable[[TensorSource], TensorSource]  # a model's tensors, its units in another order
Layers = tuple[Weights, Methods]
Setting = tuple[Sequence[Version], Sequence[Record | None], Method, Policy, Layers, Mapping[str, View]]


def layers_of(choices: Choices) -> Layers:
    """Returns the weights by layer, and the method with the settings of each layer that has its own."""
    own = choices.layer_settings.items()
    return choices.layers, {layer: make(choices.method, {**choices.settings, **these}) for layer, these in own}


def among_heads(layers: Layers, heads: Sequence[int]) -> Layers:
    """Returns the weights and methods by layer for some of the heads."""
    weights, methods = layers
    rows = {layer: [row[i] for i in heads] for layer, row in weights.items()}
    return rows, {layer: of_heads(method, heads) for layer, method in methods.items()}


def chained(
    views: Mapping[str, View], view: Callable[[str, TensorSource], TensorSource], commits: Iterable[str]
) -> dict[str, View]:
    """Returns views that look through those there are."""

    def through(commit: str, source: TensorSource) -> TensorSource:
        return view(commit, views[commit](source) if commit in views else source)

    return {commit: partial(through, commit) for commit in commits}


def weight_plans(
    repo: Repository, members: Sequence[MergedHead], versions: Sequence[Version], setting: Setting
) -> tuple[dict[str, Plan], list[Conflict]]:
    """Returns a plan for each weight file, and the conflicts of all of them."""
    bases, records, method, policy, layers, views = setting
    plans: dict[str, Plan] = {}
    conflicts: list[Conflict] = []
    for path in sorted({path for version in versions for path in version.manifests}):
        have = [i for i, version in enumerate(versions) if path in version.manifests]
        if len(have) < len(versions) and policy.on_missing != "keep":
            absent = ", ".join(m.name for i, m in enumerate(members) if i not in have)
            if policy.on_missing == "error":
                conflicts.append(Conflict("missing", path, "in every version", f"absent from {absent}"))
            continue
        heads = [member_head(repo, members[i], versions[i].manifests[path], records[i], views) for i in have]
        origin = base_tensors(repo, bases, path, views) if bases else None
        try:
            plans[path] = layered(heads, origin, of_heads(method, have), policy, *among_heads(layers, have))
        except MergeConflict as error:
            conflicts.extend(error.conflicts)
    if not plans and not conflicts:
        conflicts.append(Conflict("empty", "the result", "at least one weight file", "none is left"))
    return plans, list(dict.fromkeys(conflicts))


def member_head(
    repo: Repository, member: MergedHead, manifest: Manifest, record: Record | None, views: Mapping[str, View]
) -> Head:
    """Returns one model as the merge sees it."""
    classes = record.classes if record is not None and record.classes else None
    source: TensorSource = StoredTensors(repo.store, manifest)
    if member.commit in views:
        source = views[member.commit](source)
    return Head(member.name, source, member.weight, classes)


def base_tensors(repo: Repository, bases: Sequence[Version], path: str, views: Mapping[str, View]) -> TensorSource:
    """Returns the base's tensors of one weight file as the merge sees them: the mean of several bases'."""
    sources: list[TensorSource] = []
    for base in bases:
        source = StoredTensors(repo.store, base.manifests.get(path, NO_TENSORS))
        sources.append(views[base.commit](source) if base.commit in views else source)
    return sources[0] if len(sources) == 1 else MeanTensors(sources)


def files_of(bases: Sequence[Version]) -> Mapping[str, Blob] | None:
    """Returns the ordinary files on which all bases agree, None without a base."""
    if not bases:
        return None
    return {path: blob for path, blob in bases[0].files.items() if all(b.files.get(path) == blob for b in bases[1:])}


def tokens_of(
    repo: Repository,
    members: Sequence[MergedHead],
    versions: Sequence[Version],
    bases: Sequence[Version],
    choices: Choices,
) -> tuple["Tokens | None", list[Conflict]]:
    """Returns how the rows of tokens are lined up, if they are to be; else the conflicts of vocabularies."""
    from modelgit.porcelain.merging.matching.vocabularies import differ, line_up_tokens, vocabulary_conflicts

    if not differ([*versions, *bases]):
        return None, []
    if choices.vocabulary == "error":
        named = [*((member.name, version) for member, version in zip(members, versions, strict=True))]
        if make(choices.method, choices.settings).needs_base:
            named.extend(("the merge base", base) for base in bases)
        return None, vocabulary_conflicts(repo, named)
    return line_up_tokens(repo, versions, bases, choices.vocabulary), []


def ordinary_files(
    members: Sequence[MergedHead],
    versions: Sequence[Version],
    before: Mapping[str, Blob] | None,
    choices: Choices,
    settled: Mapping[str, Blob | bytes] = MappingProxyType({}),
    merge_text: MergeText | None = None,
) -> tuple[dict[str, Blob | bytes], list[Conflict]]:
    """Returns the other files of the result, merged three-way as git does, and those on which versions disagree.

    `before` are the base's, None without a base. Those that are `settled` are so. With `merge_text`, which returns a
    file or in how many places changes meet, texts are merged line by line.
    """
    files: dict[str, Blob | bytes] = {**settled}
    conflicts: list[Conflict] = []
    for path in sorted({path for version in versions for path in version.files} - {RECORD_PATH} - settled.keys()):
        found = [version.files.get(path) for version in versions]
        origin = before.get(path) if before is not None else None
        changed = list(dict.fromkeys(blob for blob in found if blob != origin or before is None))
        made = together(path, origin, changed, merge_text) if len(changed) > 1 else (changed or [origin])[0]
        if isinstance(made, int) and choices.files == "error":
            names = ", ".join(m.name for m, blob in zip(members, found, strict=True) if blob != found[0])
            lines = f"other lines in {made} place{'s' * (made > 1)}" if made else "another content"
            conflicts.append(Conflict("file", path, f"as in {members[0].name}", f"{lines} in {names}"))
            continue
        chosen = found[0] if isinstance(made, int) else made
        if chosen is not None:
            files[path] = chosen
    return files, conflicts


def together(
    path: str, origin: Blob | None, changed: Sequence[Blob | None], merge_text: MergeText | None
) -> Blob | int:
    """Returns a file with the changes of all versions, or in how many places they meet; 0 if it is no text for all."""
    first, *others = changed
    if merge_text is None or origin is None or first is None:
        return 0
    made = first
    for other in others:
        found = 0 if other is None else merge_text(path, origin, made, other)
        if isinstance(found, int):
            return found
        made = found
    return made
