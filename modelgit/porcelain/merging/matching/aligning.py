"""Lining up the units of versions before they are merged: all with those of "ours", whose numbering stays.

The spec comes from a file, from the network's own graph, or from the names of its tensors. Permuted models are views:
nothing of them is stored. What was done is recorded, so that it can be recomputed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from modelgit.errors import Conflict, DataError, UsageError
from modelgit.events import Listener
from modelgit.formats.source import TensorSource
from modelgit.merge.align.activations import match_activations
from modelgit.merge.align.function import require_same, shuffled
from modelgit.merge.align.graph import derive
from modelgit.merge.align.layouts import layout_spec
from modelgit.merge.align.matching import Array, Pair, match_weights, permuted, told
from modelgit.merge.align.sources import PermutedTensors
from modelgit.merge.align.spec import Permutations, Spec, digest, identity, parse_spec
from modelgit.merge.engine.reading import whole
from modelgit.merge.engine.ways import conflict_error
from modelgit.porcelain.merging.matching.running import Running, Sample, running, sample
from modelgit.porcelain.merging.values import Align, Aligned, AlignedHead, Choices, MergedHead
from modelgit.porcelain.records import read_record
from modelgit.porcelain.scores import data_for
from modelgit.porcelain.tensors import load_state
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS

View = Callable[[TensorSource], TensorSource]
KEPT = 512  # tensors in float64 that are kept in memory
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Ours:
    """The model that all others are lined up with; `network` runs it, where that can be."""

    commit: str
    source: TensorSource
    state: Mapping[str, Tensor]
    network: Running | None
    spec: Spec
    sample: Sample | None


def line_up(
    repo: Repository, members: Sequence[MergedHead], choices: Choices, listener: Listener
) -> tuple[Aligned, dict[str, View]]:
    """Returns what was done, and for each commit but "ours" its tensors with the units in their new order.

    Raises:
        FormatError: no spec can be derived, or it does not leave the function as it is. MergeConflict: tensors of other
        shapes. UsageError: activations of a network that cannot be run. DataError.
    """
    align = choices.align or Align()
    torch.set_num_threads(1)
    ours = reference(repo, members, align)
    difference = None
    if ours.network is not None:
        found = shuffled(ours.spec, align.seed)
        difference = require_same(ours.network, ours.spec, ours.state, found, ours.network.drawn())
    views, heads, total = dict[str, View](), list[AlignedHead](), blake3()
    for member in sorted(members, key=lambda one: one.commit):
        if member.commit == ours.commit:
            continue
        found, head = matched(repo, ours, member, align, listener)
        views[member.commit] = partial(PermutedTensors, spec=ours.spec, found=found)
        heads.append(head)
        total.update(f"{member.commit} {digest(found)}\n".encode())
    lined = Aligned(
        by=align.by,
        seed=align.seed,
        to=ours.commit,
        source=ours.spec.source,
        units=ours.spec.units(),
        digest=total.hexdigest()[:32],
        difference=difference,
        heads=tuple(sorted(heads, key=lambda head: head.name)),
    )
    if ours.sample is not None:
        lined = replace(lined, data=ours.sample.label, data_digest=ours.sample.digest)
    return lined, views


def reference(repo: Repository, members: Sequence[MergedHead], align: Align) -> Ours:
    """Returns "ours" with its spec. Raises as `line_up`."""
    source = weights_of(repo, align.to)
    state = load_state(source)
    commits = sorted({align.to, *(member.commit for member in members)})
    network = running([read_record(repo, commit) for commit in commits], state)
    spec = spec_of(repo, align, network, state)
    if align.by == "activations" and network is None:
        hint = "--align weights needs no run; an architecture is known of versions that a pipeline made"
        raise UsageError("--align activations: no record says which network these are weights of", hint=hint)
    images = None
    if align.by == "activations" and network is not None:
        images = sample(network, data_for(repo, commits, align.data))
    return Ours(align.to, source, state, network, spec, images)


def spec_of(repo: Repository, align: Align, network: Running | None, state: Mapping[str, Tensor]) -> Spec:
    """Returns which units may change places. Raises FormatError where nobody can tell, with the way on."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if align.table is not None:
        return parse_spec(align.table, shapes, "--align-spec")
    if network is not None:
        return derive(network, state, network.drawn())
    return layout_spec(shapes, config_of(repo, align.to))


def config_of(repo: Repository, commit: str) -> Mapping[str, Any]:
    """Returns a version's config.json, empty where it has none. Raises DataError for one that is no table."""
    data = repo.read_file(commit, CONFIG)
    try:
        table = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{CONFIG} in {commit[:10]}: not JSON: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{CONFIG} in {commit[:10]}: expected a table, got {type(table).__name__}")
    return table


def matched(
    repo: Repository, ours: Ours, member: MergedHead, align: Align, listener: Listener
) -> tuple[Permutations, AlignedHead]:
    """Returns the permutations of one model, checked, and what they did. Raises as `line_up`."""
    source = weights_of(repo, member.commit)
    require_alike(ours, source, member.name)
    common = [name for name in ours.spec.tensors() if source.entry(name).shape == ours.source.entry(name).shape]
    spec = restricted(ours.spec, common)
    pair = Pair(*(lru_cache(KEPT)(partial(values, each)) for each in (ours.source, source)))
    found: Permutations
    if align.by == "activations" and ours.network is not None and ours.sample is not None:
        models = ours.state, load_state(source)
        found = match_activations(ours.network, models, ours.sample.batches, spec, listener)
    else:
        found = match_weights(spec, pair, align.seed, listener)
    if ours.network is not None:
        require_same(ours.network, ours.spec, load_state(source), found, ours.network.drawn())
    still = identity(spec)
    moved = sum(int((rows != still[name]).sum()) for name, rows in found.items())
    apart = [distance(spec, pair, common, rows) for rows in (still, found)]
    return found, AlignedHead(member.name, moved, *apart)


def restricted(spec: Spec, names: Sequence[str]) -> Spec:
    """Returns a spec with the places in some tensors only."""
    kept = set(names)
    groups = [replace(g, places=tuple(p for p in g.places if p.tensor in kept)) for g in spec.groups]
    return replace(spec, groups=tuple(groups))


def require_alike(ours: Ours, source: TensorSource, name: str) -> None:
    """Raises MergeConflict unless a model has all tensors that are permuted, as long where they are."""
    conflicts, have = [], set(source.names())
    for tensor, axes in ours.spec.tensors().items():
        wanted = ours.source.entry(tensor).shape
        got = source.entry(tensor).shape if tensor in have else None
        if got is None:
            conflicts.append(Conflict("missing", tensor, "in every model", f"absent from {name}"))
        elif len(got) != len(wanted) or any(got[axis] != wanted[axis] for axis in axes):
            conflicts.append(Conflict("shape", tensor, f"{list(wanted)} as in ours", f"{list(got)} in {name}"))
    if conflicts:
        raise conflict_error(conflicts)


def values(source: TensorSource, name: str) -> Array:
    """Returns a tensor in float64; one that is never averaged counts as zeros."""
    entry = source.entry(name)
    return whole(source, entry) if entry.dtype in ARITHMETIC_WIDTHS else np.zeros(entry.shape)


def distance(spec: Spec, pair: Pair, names: Sequence[str], found: Permutations) -> float:
    """Returns how far a model is from "ours" over the permuted tensors, as a share of the size of "ours"."""
    axes, apart, size = spec.tensors(), 0.0, 0.0
    for name in filter(told, names):
        ours = pair.ours(name)
        apart += float(((ours - permuted(pair.theirs(name), axes[name], found)) ** 2).sum())
        size += float((ours**2).sum())
    return (apart / size) ** 0.5 if size else 0.0
