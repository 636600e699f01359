"""Setting right what averaging did to activations: the result's running statistics, or its hidden layers, on data."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from modelgit.errors import DataError, MergeConflict, UsageError
from modelgit.events import Finished, Listener, Started
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.align.graph import derive
from modelgit.merge.align.repair import normalised, reestimate, restore
from modelgit.merge.engine.execution import MergeResult, Outcome
from modelgit.porcelain.merging.matching.running import Running, Sample, running, sample
from modelgit.porcelain.merging.values import Prepared, Repaired
from modelgit.porcelain.scores import data_for
from modelgit.porcelain.tensors import dtype_name, tensor_bytes, tensor_of
from modelgit.porcelain.trials.contenders import contenders, merged, require_whole
from modelgit.repo.repository import Repository
from modelgit.store.writing import PackWriter

if TYPE_CHECKING:
    from modelgit.merge.selection.states import Raw

TASK = "repairing"
Results = dict[str, MergeResult]
State = Mapping[str, Tensor]


def repair(
    repo: Repository, prepared: Prepared, results: Results, to: tuple[PackWriter, Listener]
) -> tuple[Results, Repaired]:
    """Returns the merged weight files with their activations set right on the data of `choices.repair`.

    Raises:
        DataError: no record says which network it is, or no such data. MergeConflict: values out of range.
    """
    require_whole(prepared)
    torch.set_num_threads(1)
    pack, listener = to
    listener(Started(TASK, None, "examples"))
    plain = merged(repo, prepared.plans)
    if plain is None:
        raise MergeConflict("values beyond the range of their type", hint="merge with a smaller scale")
    state = as_state(plain)
    network = running(prepared.records, state)
    if network is None:
        hint = "only versions made by a pipeline, or by merging such, say which network they are weights of"
        raise DataError("--repair: no record says which architecture these versions are of", hint=hint)
    commits = [head.commit for head in prepared.heads]
    images = sample(network, data_for(repo, commits, prepared.choices.repair))
    what, tensors = repaired_tensors(prepared, network, state, images)
    changed = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, state[name])}
    listener(Finished(TASK, f"{len(changed)} tensors"))
    told = Repaired(what, images.images, images.label, images.digest, len(changed))
    return {path: with_tensors(result, changed, pack) for path, result in results.items()}, told


def repaired_tensors(
    prepared: Prepared, network: Running, state: State, images: Sample
) -> tuple[str, dict[str, Tensor]]:
    """Returns what was done, and the tensors it gave."""
    built = cast(nn.Module, network.whole.network)
    if normalised(built):
        built.load_state_dict(dict(state))
        found = reestimate(built, network.whole, images.batches)
        return "statistics", {name: tensor.to(state[name].dtype) for name, tensor in found.items()}
    weights = {member.name: member.weight for member in prepared.heads}
    if min(weights.values()) < 0 or not sum(weights.values()):
        raise UsageError("--repair: expected weights of 0 or more for a network without batch normalisation")
    heads = [(read(one.source), weights[one.name]) for one in contenders(prepared)]
    inputs = torch.cat(images.batches)
    return "moments", restore(network, state, heads, inputs, derive(network, state, network.drawn()))


def read(source: TensorSource) -> dict[str, Tensor]:
    """Returns the tensors of a model, permuted if it is."""
    from modelgit.merge.selection.states import read_state

    return as_state(read_state(source, "a model"))


def as_state(raw: "Mapping[str, Raw]") -> dict[str, Tensor]:
    """Returns raw tensors as PyTorch's."""
    return {name: tensor_of(entry, entry.shape, data) for name, (entry, data) in raw.items()}


def with_tensors(result: MergeResult, changed: State, pack: PackWriter) -> MergeResult:
    """Returns a merged file with some tensors replaced, stored as differences to what the merge made."""
    entries, outcomes = [], []
    for entry in result.manifest.tensors:
        if entry.name in changed:
            tensor = changed[entry.name].contiguous()
            oid = pack.add_tensor(tensor_bytes(tensor), dtype_name(entry.name, tensor), entry.oid)
            entry = TensorEntry(entry.name, entry.dtype, entry.shape, oid)
        entries.append(entry)
    for outcome in result.outcomes:
        outcomes.append(Outcome(outcome.name, "computed", "repaired") if outcome.name in changed else outcome)
    manifest = replace(result.manifest, tensors=tuple(entries))
    return replace(result, manifest=manifest, outcomes=tuple(outcomes))
