"""Versions that are LoRA adapters, joined into one: its factors, and the configuration that goes with them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from modelgit.errors import Conflict, UsageError
from modelgit.merge.adapters.configuration import (
    MAX_BYTES,
    Configuration,
    differences,
    merged_configuration,
    read_configuration,
)
from modelgit.merge.adapters.joining import Adapter, Joined, adapter_conflicts, ranks_of
from modelgit.merge.adapters.naming import is_adapter
from modelgit.merge.engine.plan import Head, Plan, Policy, Step, content_key
from modelgit.merge.methods import Method
from modelgit.porcelain.merging.values import MergedHead
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, Version
from modelgit.store.files.tensors import StoredTensors

CONFIG = "adapter_config.json"
Plans = tuple[dict[str, Plan], dict[str, Blob | bytes], list[Conflict]]


def adapter_plans(
    repo: Repository, members: Sequence[MergedHead], versions: Sequence[Version], method: Method, policy: Policy
) -> Plans:
    """Returns a plan for each weight file, the configurations of the results, and all conflicts.

    Raises:
        UsageError: an adapter that is no plain LoRA, or choices that mean nothing for adapters.
    """
    if policy.heads != "error":
        raise UsageError(f"{method.name}: --heads means nothing for adapters", hint="trained heads take the mean")
    if math.fsum(weights := [member.weight for member in members]) == 0:
        raise UsageError(f"{method.name}: weights {weights} add up to 0 and cannot be normalized")
    plans, files, conflicts = dict[str, Plan](), dict[str, Blob | bytes](), list[Conflict]()
    for path in sorted({path for version in versions for path in version.manifests}):
        absent = [m.name for m, version in zip(members, versions, strict=True) if path not in version.manifests]
        config = str(PurePosixPath(path).with_name(CONFIG))
        if absent:
            conflicts.append(Conflict("missing", path, "in every version", f"absent from {', '.join(absent)}"))
            continue
        adapters, found = adapters_at(repo, members, versions, path)
        found += differences({adapter.name: adapter.configuration for adapter in adapters}) if adapters else []
        found += adapter_conflicts(adapters, policy) if not found else []
        conflicts += found
        if not found:
            rank = getattr(method, "truncated", None)
            plans[path] = joined_plan(adapters, method, policy, rank)
            ranks = ranks_of(adapters, rank)
            files[config] = merged_configuration([adapter.configuration for adapter in adapters], ranks)
    return plans, files, conflicts


def adapters_at(
    repo: Repository, members: Sequence[MergedHead], versions: Sequence[Version], path: str
) -> tuple[list[Adapter], list[Conflict]]:
    """Returns the adapters at a path in the order of their content, and what is no adapter."""
    adapters, conflicts = list[Adapter](), list[Conflict]()
    config = str(PurePosixPath(path).with_name(CONFIG))
    for member, version in zip(members, versions, strict=True):
        source, blob = StoredTensors(repo.store, version.manifests[path]), version.file(config)
        if not is_adapter(source.names()) or blob is None:
            got = f"no {CONFIG} in {member.name}" if blob is None else f"none in {member.name}"
            conflicts.append(Conflict("adapter", path, f"LoRA factors, with {CONFIG} beside them", got))
            continue
        table: Configuration = read_configuration(repo.read_blob(blob, MAX_BYTES), f"{config} in {member.name}")
        adapters.append(Adapter(member.name, source, member.weight, table))
    order: Mapping[str, object] = {a.name: content_key(Head(a.name, a.source, a.weight)) for a in adapters}
    return sorted(adapters, key=lambda adapter: order[adapter.name]), conflicts  # type: ignore[arg-type, return-value]


def joined_plan(adapters: Sequence[Adapter], method: Method, policy: Policy, rank: int | None) -> Plan:
    """Returns the plan that takes every tensor as joining makes it; reads them, for their ids."""
    joined = Joined(adapters, policy, rank)
    entries = [joined.entry(name) for name in joined.names()]
    why = "joined factors and means"
    steps = tuple(Step(e.name, e.dtype, e.shape, (0,), (e,), True, why) for e in entries)
    notes = list[str]()
    if joined.shares:
        error, worst, most = joined.error()
        count = len(joined.shares)
        notes.append(f"rank {rank}: relative error {error:.3g} over {count} modules, {most:.3g} in {worst}")
    return Plan((Head("the adapters", joined),), None, method, steps, (), tuple(notes))
