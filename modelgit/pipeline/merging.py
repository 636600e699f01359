"""A pipeline's merges: weighed as is asked, perhaps by what is measured first, and committed."""

from dataclasses import replace
from pathlib import Path

from modelgit.errors import RecipeError
from modelgit.events import Listener
from modelgit.pipeline.messages import MergeRequest
from modelgit.porcelain.merging.making import carry_out, draft_of
from modelgit.porcelain.merging.preparing import common_bases, prepare
from modelgit.porcelain.merging.values import Choices, Informing, Prepared
from modelgit.porcelain.records import read_record
from modelgit.porcelain.scores import DataName, known_model
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.trials.trying import try_out
from modelgit.porcelain.trials.values import Trial
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig
from modelgit.train.evaluate import posterior
from modelgit.train.task import Workbench, outputs

Measured = tuple[DataConfig, int]  # data, and behind how many frozen stages


def merge_commits(repo: Repository, request: MergeRequest, listener: Listener, bench: Workbench | None = None) -> str:
    """Returns the merge commit; no ref leads to it yet. `bench` is for a request that measures models.

    Raises:
        MergeConflict: the versions cannot be merged. DataError: they cannot be measured.
    """
    told = f"{request.step}: {'outer step' if request.outer else 'average'} of {len(request.commits)} versions"
    if request.posterior and bench is not None and request.on is not None:
        weights = posterior_weights(repo, bench, request.commits, (request.on, request.frozen_stages))
        request, told = replace(request, weights=weights), f"{told}, weighed by posterior"
    choices = Choices(
        method=request.method,
        settings=request.settings,  # type: ignore[arg-type]  # checked where the method is made
        weights=request.weights,
        base=request.base,
        heads="drop" if request.drop_heads else "error",
        files="ours",
        statistics=informing(request),
    )
    heads = dict(zip(request.names, request.commits, strict=True))
    prepared = prepare(repo, heads, choices, common_bases(repo, request.commits, choices), listener)
    prepared = tried_out(repo, request, prepared, listener, bench)
    if request.select:
        told = f"{request.step}: {request.select} average of {len(prepared.heads)} of {len(request.commits)} versions"
    made = carry_out(repo, prepared, listener)
    parents = tuple(repo.independent([member.commit for member in prepared.heads]))
    draft = draft_of(repo, prepared, made, parents, told)
    trailers = (*draft.trailers, ("Step", request.step), ("Step-Key", request.key))
    return repo.commit(replace(draft, trailers=trailers))


def tried_out(
    repo: Repository, request: MergeRequest, prepared: Prepared, listener: Listener, bench: Workbench | None
) -> Prepared:
    """Returns the merge of the versions, and with the setting, that score best where that is asked for."""
    trial, name = Trial(request.select, request.search, request.evaluations), measured_on(request)
    if not trial.wanted or name is None or bench is None:
        return prepared
    return try_out(repo, prepared, trial, name.label, listener, (name, bench))


def measured_on(request: MergeRequest) -> DataName | None:
    """Returns the data that versions are measured on, and statistics computed; None if there is none."""
    if request.on is None:
        return None
    return DataName(Path(request.on.path).stem, request.on, request.frozen_stages, has_splits=True)


def informing(request: MergeRequest) -> Informing | None:
    """Returns where a merge has its statistics from: the training examples of its data; None if it wants none."""
    asked, name = request.statistics, measured_on(request)
    if asked is None or name is None:
        return None
    return Informing(data=(name,), labels=asked.labels, images=asked.examples)


def posterior_weights(repo: Repository, bench: Workbench, commits: tuple[str, ...], on: Measured) -> tuple[float, ...]:
    """Returns how likely each version is to explain the validation examples of a data set."""
    states = (state_at(repo, commit) for commit in commits)
    model = known_model(repo, commits[0])
    return posterior([outputs(bench, state, model, *on) for state in states])


def examples_of(repo: Repository, name: str, commit: str) -> int:
    """Returns on how many examples a version was trained. Raises RecipeError if its record does not say."""
    record = read_record(repo, commit)
    data = record.details.get("data") if record is not None else None
    counts = data.get("trained_on") if isinstance(data, dict) else None
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        hint = "give weights as numbers"
        raise RecipeError(f"no record says on how many examples '{name}' was trained", hint=hint)
    return sum(counts.values())
