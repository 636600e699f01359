"""Versions as sources that can be run on data, alone and averaged: the way to the trainer's networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Listener
from modelgit.formats.source import TensorSource
from modelgit.merge.adapters.naming import is_adapter
from modelgit.merge.engine.plan import Head, content_key
from modelgit.merge.selection.states import State
from modelgit.porcelain.reporting.evaluating import seen_before, told_apart
from modelgit.porcelain.reporting.values import Wanted
from modelgit.porcelain.scores import data_for, known_model, workbench
from modelgit.porcelain.trials.measuring import as_torch
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.store.objects import available_threads
from modelgit.train.answers import Answers, Asker, Examples, asker


@dataclass(frozen=True, slots=True)
class Member:
    """A version that is compared: the name it was called by, its commit, its tensors."""

    name: str
    commit: str
    source: TensorSource


@dataclass(frozen=True, slots=True)
class Panel:
    """The versions, in the order that follows from their content, the data, and what gives answers to it.

    `first` is the place of the one that was named first; `seen` says of each version that was trained on some of the
    examples how many, and by which step.
    """

    members: tuple[Member, ...]
    data: str
    examples: Examples
    ask: Asker
    first: int
    seen: Mapping[str, str]

    def answers(self, state: State) -> Answers:
        """Returns what a model in memory answers."""
        return self.ask(as_torch(state))


def panel(repo: Repository, revs: Sequence[str], wanted: Wanted, listener: Listener) -> Panel:
    """Returns the versions and the data, checked to go together.

    Raises:
        DataError: a version that no record says the network of, or with other classes than the data.
        UsageError: versions of different networks. MergeConflict: tensors that cannot be averaged.
    """
    named: dict[str, str] = {}
    for rev in revs:
        named.setdefault(repo.resolve(rev), rev)
    models = {rev: known_model(repo, rev) for rev in named.values()}
    name = told_apart(data_for(repo, list(models), wanted.on), wanted.by)
    first = next(iter(models.values()))
    other = next((rev for rev, model in models.items() if model != first), None)
    if other is not None:
        hint = "compare versions of one network that know the same classes"
        what = "classes" if models[other].classes != first.classes else "network"
        raise UsageError(f"{other} and {next(iter(models))} cannot be averaged: they differ in {what}", hint=hint)
    bench = workbench(repo, wanted.device, available_threads(), listener)
    examples, ask = asker(bench, first, name.config, name.frozen_stages, splits=name.has_splits)
    members = [Member(rev, commit, weights_of(repo, commit)) for commit, rev in named.items()]
    refuse_adapters(members)
    require_alike(members)
    leading = members[0]
    members.sort(key=lambda one: content_key(Head(one.name, one.source)))
    seen = {one.name: seen_before(bench, repo, one.commit, name.config) for one in members if name.has_splits}
    told = {version: words for version, words in seen.items() if words}
    return Panel(tuple(members), name.label, examples, ask, members.index(leading), told)


def refuse_adapters(members: Sequence[Member]) -> None:
    """Raises UsageError for adapters: what lies between two is no adapter of the mean of their factors."""
    adapter = next((member.name for member in members if is_adapter(member.source.names())), None)
    if adapter is not None:
        hint = "modelgit evaluate REV --on DATA scores an adapter with its base"
        raise UsageError(f"{adapter} is an adapter, and whole models are compared here", hint=hint)


def require_alike(members: Sequence[Member]) -> None:
    """Raises MergeConflict unless all members have the same tensors."""
    first, conflicts = shapes_of(members[0]), list[Conflict]()
    for member in members[1:]:
        own = shapes_of(member)
        for tensor in sorted({*first, *own}):
            expected, got = first.get(tensor, "none"), own.get(tensor, "none")
            if expected != got:
                conflicts.append(Conflict("shape", f"{tensor} in {member.name}", expected, got))
    if conflicts:
        where, wanted, got = conflicts[0].where, conflicts[0].expected, conflicts[0].got
        message = f"the versions cannot be averaged: {where}: expected {wanted} as in {members[0].name}, got {got}"
        raise MergeConflict(message, conflicts, hint="compare versions that have the same tensors")


def shapes_of(member: Member) -> Mapping[str, str]:
    """Returns the type and shape of every tensor, by name."""
    entries = (member.source.entry(name) for name in member.source.names())
    return {entry.name: f"{entry.dtype} {list(entry.shape)}" for entry in entries}
