"""Carrying one request out: load from the store, train or score, commit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from modelgit.errors import TrainingError
from modelgit.events import Event, Noted
from modelgit.pipeline.keys import keep, kept
from modelgit.pipeline.merging import merge_commits, posterior_weights
from modelgit.pipeline.messages import Answer, Done, MergeRequest, Request, ScoreRequest, StackDone, StackRequest
from modelgit.pipeline.worker import Execute, serve
from modelgit.pipeline.workers.jobs import attend
from modelgit.porcelain.scores import known_model, split_answers, split_images, split_values, workbench
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.training.running import commit_result, run_file, train, train_together
from modelgit.porcelain.training.values import TrainRequest
from modelgit.repo.repository import Repository
from modelgit.train.evaluate import Scores
from modelgit.train.fitting.resuming import Resume
from modelgit.train.task import TrainResult, Workbench, score_ensemble, score_mixture

Say = Callable[[Event], None]


def execute(repo: Repository, bench: Workbench, request: Request, say: Say) -> Answer:
    """Returns what came of a request.

    Raises:
        ModelgitError: what went wrong; what was committed stays.
    """
    if isinstance(request, StackRequest):
        return StackDone(request.step, execute_stack(repo, bench, request, say))
    return execute_one(repo, bench, request, named(request.step, say))


def execute_stack(repo: Repository, bench: Workbench, request: StackRequest, say: Say) -> tuple[Done, ...]:
    """Returns what came of each member: one after another where that is asked for, or they do not go together."""
    members = request.members
    results = None if request.apart else side_by_side(repo, bench, members, say)
    if results is None:
        return tuple(execute_one(repo, bench, member, named(member.step, say)) for member in members)
    return tuple(committed(repo, *each) for each in zip(members, results, strict=True))


def side_by_side(
    repo: Repository, bench: Workbench, members: Sequence[TrainRequest], say: Say
) -> list[TrainResult] | None:
    """Returns the outcomes of fine-tunings in one stack; None, and the reason is told, if they cannot be."""
    listeners = [named(member.step, say) for member in members]
    bench.listener = listeners[0]
    try:
        return train_together(repo, bench, members, listeners)
    except (TrainingError, RuntimeError, ValueError, TypeError) as error:  # PyTorch's own, of what has no stacked form
        reason = str(error).strip().partition("\n")[0]
        steps = ", ".join(member.step for member in members)
        say(Noted(f"not in one stack but one by one: {steps}: {reason}"))
        return None


def execute_one(
    repo: Repository, bench: Workbench, request: TrainRequest | ScoreRequest | MergeRequest, say: Say
) -> Done:
    """Returns the commit that the request made or scored, with its scores.

    Raises:
        ModelgitError: what went wrong; nothing was committed then.
    """
    bench.listener = say
    if isinstance(request, ScoreRequest):
        return Done(request.step, request.commit, as_table(scores_of(repo, bench, request)))
    if isinstance(request, MergeRequest):
        return Done(request.step, keep(repo, request.key, merge_commits(repo, request, say, bench)), {})
    if (commit := kept(repo, request.key)) is not None:  # by a worker that died before it could say so
        Resume(run_file(repo, request.key)).drop()
        done = ScoreRequest(request.step, commit, request.data, request.config.frozen_stages)
        return Done(request.step, commit, as_table(scores_of(repo, bench, done)))
    return committed(repo, request, train(repo, bench, request))


def committed(repo: Repository, request: TrainRequest, result: TrainResult) -> Done:
    """Returns the commit of a fine-tuning or a probe, kept by the ref of its key, with its scores."""
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
    return partial(execute, repo, workbench(repo, device))


def named(step: str, say: Say) -> Say:
    """Returns what tells events with the step in their names."""
    return lambda event: say(about(step, event))


def about(step: str, event: Event) -> Event:
    """Returns the event with the step in its name: two workers may be at like tasks."""
    if isinstance(event, Noted):
        return Noted(f"{step}: {event.message}")
    return replace(event, task=f"{step}: {event.task}")
