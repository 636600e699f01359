"""Carrying one request out: load from the store, train or score, commit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from modelgit.events import Event, Noted
from modelgit.pipeline.keys import keep
from modelgit.pipeline.merging import merge_commits, posterior_weights
from modelgit.pipeline.messages import Done, MergeRequest, Request, ScoreRequest
from modelgit.pipeline.worker import Execute, serve
from modelgit.pipeline.workers.jobs import attend
from modelgit.porcelain.scores import known_model, split_answers, split_images, split_values, workbench
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.training.running import commit_result, run_file, train
from modelgit.repo.repository import Repository
from modelgit.train.evaluate import Scores
from modelgit.train.fitting.resuming import Resume
from modelgit.train.task import Workbench, score_ensemble, score_mixture

Say = Callable[[Event], None]


def execute(repo: Repository, bench: Workbench, request: Request, say: Say) -> Done:
    """Returns the commit that the request made or scored, with its scores.

    Raises:
        ModelgitError: what went wrong; nothing was committed then.
    """
    bench.listener = say
    if isinstance(request, ScoreRequest):
        return Done(request.step, request.commit, as_table(scores_of(repo, bench, request)))
    if isinstance(request, MergeRequest):
        return Done(request.step, keep(repo, request.key, merge_commits(repo, request, say, bench)), {})
    result = train(repo, bench, request)
    commit = keep(repo, request.key, commit_result(repo, request, result))
    Resume(run_file(repo, request.key)).drop()
    return Done(request.step, commit, as_table(result.scores))


def scores_of(repo: Repository, bench: Workbench, request: ScoreRequest) -> Scores:
    """Returns the scores of a commit, or of several together."""
    model, frozen = known_model(repo, request.commit), request.frozen_stages
    if request.posterior is None:
        states = (state_at(repo, commit) for commit in request.members or (request.commit,))
        return score_ensemble(bench, states, model, request.data, frozen)
    weights = posterior_weights(repo, bench, request.members, (request.posterior, frozen))
    states = (state_at(repo, commit) for commit in request.members)
    return score_mixture(bench, states, model, request.data, (weights, frozen))


def as_table(scores: Scores) -> dict[str, Any]:
    """Returns scores as they travel and are noted."""
    return {**split_values(scores), "images": split_images(scores), "answers": split_answers(scores)}


def work(place: Path, device: str, requests: IO[str], replies: IO[str]) -> None:
    """Serves requests about the repository at `place` until they end."""
    serve(requests, replies, executor(place, device))


def work_job(place: Path, device: str, folder: Path) -> None:
    """Carries out the one request of a job's folder, about the repository at `place`."""
    attend(folder, executor(place, device))


def executor(place: Path, device: str) -> Execute:
    """Returns what carries requests out about the repository at `place`, on one workbench."""
    repo = Repository.open(place)
    bench = workbench(repo, device)

    def carry_out(request: Request, say: Say) -> Done:
        return execute(repo, bench, request, lambda event: say(about(request.step, event)))

    return carry_out


def about(step: str, event: Event) -> Event:
    """Returns the event with the step in its name: two workers may be at like tasks."""
    return event if isinstance(event, Noted) else replace(event, task=f"{step}: {event.task}")
