"""The models of a prepared merge, whole and in memory when they are wanted: what trials work on."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelgit.errors import FormatError, MergeConflict, UsageError
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.layers import layered
from modelgit.merge.engine.plan import Head, Plan, content_key
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.methods import make, of_heads, settings_of
from modelgit.porcelain.merging.preparing import (
    MergeText,
    among_heads,
    files_of,
    layers_of,
    ordinary_files,
    policy_of,
)
from modelgit.porcelain.merging.values import Choices, Prepared
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version

if TYPE_CHECKING:
    from modelgit.merge.selection.states import Raw


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the models: the name it was called by, its version, its tensors from all weight files."""

    name: str
    version: Version
    source: TensorSource


class Joined:
    """Several sources as one (a `TensorSource`). Raises FormatError where two of them have a tensor of one name."""

    def __init__(self, sources: Sequence[TensorSource]) -> None:
        self._by_name: dict[str, TensorSource] = {}
        for source in sources:
            for name in source.names():
                if name in self._by_name:
                    raise FormatError(f"tensor '{name}' is in several weight files")
                self._by_name[name] = source

    def names(self) -> Sequence[str]:
        """Return the tensors' names, sorted."""
        return sorted(self._by_name, key=str.encode)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id."""
        return self._by_name[name].entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in frames."""
        return self._by_name[name].frames(name)


def contenders(prepared: Prepared) -> list[Contender]:
    """Return the models of a merge, in the order that follows from their content."""
    found = []
    for member, version in zip(prepared.heads, prepared.versions, strict=True):
        parts = [head.source for plan in prepared.plans.values() for head in plan.heads if head.name == member.name]
        found.append(Contender(member.name, version, parts[0] if len(parts) == 1 else Joined(parts)))
    return sorted(found, key=lambda one: content_key(Head(one.name, one.source)))


def commits_of(prepared: Prepared) -> dict[str, str]:
    """Return the commit of each model by its name."""
    return {member.name: member.commit for member in prepared.heads}


def require_whole(prepared: Prepared) -> None:
    """Raise UsageError for choices that leave a model incomplete: it could not be measured."""
    choices = prepared.choices
    for option, value in (("--on-missing", choices.on_missing), ("--heads", choices.heads)):
        if value != "error":
            hint = "merge without --select, --search and --barrier-max, and evaluate the result"
            raise UsageError(f"{option} {value}: models that lack parts cannot be measured", hint=hint)


def held(prepared: Prepared) -> Prepared:
    """Return the merge with models that stay in memory once read, as far as there is room."""
    from modelgit.merge.selection.states import Held

    shelf: dict[str, bytes] = {}

    def kept(plan: Plan) -> Plan:
        heads = tuple(replace(head, source=Held(head.source, shelf)) for head in plan.heads)
        return replace(plan, heads=heads, base=None if plan.base is None else Held(plan.base, shelf))

    return replace(prepared, plans={path: kept(plan) for path, plan in prepared.plans.items()})


def among(
    prepared: Prepared, names: Collection[str], choices: Choices, merge_text: MergeText | None = None
) -> Prepared:
    """Return the merge of those of the models that are named, by other choices; asks nothing of git itself.

    Raises: MergeConflict, UsageError as `prepare` does.
    """
    if choices.vocabulary != "error" or choices.heads == "mean":
        hint = "merge with those first, then select among the results"
        raise UsageError("--select does not go with --vocabulary, nor with --heads mean", hint=hint)
    kept = [i for i, member in enumerate(prepared.heads) if member.name in names]
    weights = choices.weights or (1.0,) * len(kept)
    heads = tuple(replace(prepared.heads[i], weight=w) for i, w in zip(kept, weights, strict=True))
    versions = tuple(prepared.versions[i] for i in kept)
    records = tuple(prepared.records[i] for i in kept)
    files, conflicts = ordinary_files(heads, versions, files_of(prepared.bases), choices, merge_text=merge_text)
    if conflicts:
        raise conflict_error(conflicts)
    if len(kept) < len(prepared.heads):
        choices = settings_among(choices, kept)
    method = make(choices.method, choices.settings)
    fewer = replace(prepared, heads=heads, versions=versions, records=records, files=files)
    return replace(fewer, choices=choices, method=method, plans=replanned(fewer, choices))


def settings_among(choices: Choices, kept: Sequence[int]) -> Choices:
    """Return the choices with the settings of some of the heads, where the method has one for each."""
    if choices.plain:
        return choices
    own = {layer: settings_of(method) for layer, method in among_heads(layers_of(choices), kept)[1].items()}
    method = of_heads(make(choices.method, choices.settings), kept)
    return replace(choices, settings=settings_of(method), layer_settings=own)


def replanned(prepared: Prepared, choices: Choices) -> dict[str, Plan]:
    """Return what the merge does to each weight file by other choices of the same models; asks nothing of git."""
    method, policy = make(choices.method, choices.settings), policy_of(choices, prepared.records)
    weights = dict(zip((m.name for m in prepared.heads), choices.weights or [1.0] * len(prepared.heads), strict=True))
    plans, layers = {}, layers_of(choices)
    for path, old in prepared.plans.items():
        known = {head.name: head for head in old.heads}
        have = [(i, m.name) for i, m in enumerate(prepared.heads) if m.name in known]
        heads = [replace(known[name], weight=weights[name]) for _, name in have]
        numbers = [i for i, _ in have]
        plans[path] = layered(heads, old.base, of_heads(method, numbers), policy, *among_heads(layers, numbers))
    return plans


def merged(repo: Repository, plans: Mapping[str, Plan]) -> "dict[str, Raw] | None":
    """Return the model that a merge makes, in memory; None if a value is too large for its type."""
    from modelgit.merge.engine.windows import Workshop
    from modelgit.merge.selection.states import merged_state

    shop = Workshop(repo.store.pool, repo.store.threads)
    found: dict[str, Raw] = {}
    try:
        for plan in plans.values():
            found.update(merged_state(plan, shop))
    except MergeConflict as error:
        if all(conflict.kind == "overflow" for conflict in error.conflicts):
            return None
        raise
    return found
