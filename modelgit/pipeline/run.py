"""Carrying a pipeline out: each step once, in parallel where it can be, and never twice.

The coordinator decides and keeps the books; workers train and score; git refs remember (see `keys`).
"""

import time
from collections import deque
from dataclasses import dataclass, field

from modelgit import errors
from modelgit.events import Advanced, Finished, Listener, Noted, Started
from modelgit.pipeline.keys import step_key
from modelgit.pipeline.messages import Done, Failed, Request, ScoreRequest, StackDone, StackRequest
from modelgit.pipeline.outcome import Row, StepScore, compared, table
from modelgit.pipeline.stacking import Stacking, left_alone, taken
from modelgit.pipeline.steps import Steps
from modelgit.pipeline.workers.pool import Pool
from modelgit.porcelain.training.values import TrainRequest
from modelgit.recipe.expanding import Job
from modelgit.recipe.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: steps made now and found done, their commits, their scores, the table."""

    made: tuple[str, ...]
    found: tuple[str, ...]
    commits: dict[str, str]
    scores: dict[str, StepScore]
    rows: tuple[Row, ...]
    seconds: float


@dataclass(slots=True)
class Books:
    """What the coordinator knows while it runs."""

    commits: dict[str, str] = field(default_factory=dict)
    scores: dict[str, StepScore] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)  # key by step
    made: list[str] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    spread: str = ""  # what to say, once, where nothing was stacked


class Coordinator:
    """Runs one pipeline in one repository with one pool of workers."""

    def __init__(self, pipeline: Pipeline, steps: Steps, pool: Pool, stacking: Stacking, listener: Listener) -> None:
        self._pipeline = pipeline
        self._steps = steps
        self._pool = pool
        self._say = listener
        self._stacking = stacking
        self._books = Books(spread=stacking.spread)

    def run(self) -> Outcome:
        """Returns the outcome when every step has its commit and its scores.

        Raises:
            ModelgitError: the first step that failed; all that was committed stays.
        """
        began = time.monotonic()
        self._steps.refuse_changes(tuple(job.name for job in self._pipeline.jobs))
        self._say(Started(self._pipeline.info.name, sum(cost(job) for job in self._pipeline.jobs), "steps"))
        while not self._finished():
            self._advance()
            self._dispatch()
            if self._pool.busy:
                self._hear()
        books = self._books
        found = tuple(name for name in books.commits if name not in books.made)
        note = f"{len(books.made)} steps made, {len(found)} found done"
        self._say(Finished(self._pipeline.info.name, note))
        rows = compared(self._pipeline, books.scores, table(self._pipeline, books.scores))
        return Outcome(tuple(books.made), found, books.commits, books.scores, rows, time.monotonic() - began)

    def _finished(self) -> bool:
        jobs = self._pipeline.jobs
        return all(
            (job.name in self._books.commits or job.kind == "ensemble")
            and (not job.evaluate or job.name in self._books.scores)
            for job in jobs
        )

    def _advance(self) -> None:
        """Takes every step whose needs are met as far as it goes without a worker."""
        for job in self._pipeline.jobs:
            books = self._books
            if job.name in books.commits or job.name in books.asked or any(n not in books.commits for n in job.needs):
                continue
            if job.kind == "ensemble":
                self._ask_ensemble(job)
                continue
            digests = self._steps.data_digest(job.data), self._steps.data_digest(job.on)
            key = step_key(job, self._steps.inputs(job, books.commits), *digests)
            commit = self._steps.recorded(key)
            if commit is None and key in books.asked.values():
                continue  # another step is just the same: its result will do
            if commit is None and job.config is not None:
                books.asked[job.name] = key
                books.waiting.append(train_request(job, key, books))
                continue
            if commit is None and job.on is not None:  # models are measured first
                books.asked[job.name] = key
                frozen = self._pipeline.frozen_stages
                books.waiting.append(self._steps.merge_request(job, key, books.commits, frozen))
                continue
            if commit is None:
                self._say(Noted(f"{job.kind} {job.name}"))
                commit = self._steps.make(job, key, books.commits)
                books.made.append(job.name)
            self._take(job, commit)

    def _take(self, job: Job, commit: str) -> None:
        """Enters a step's commit, moves its branch, and asks for its scores unless they are known."""
        self._steps.move_branch(job.name, commit)
        self._books.commits[job.name] = commit
        if job.evaluate is None:
            self._say(Advanced(self._pipeline.info.name, cost(job), job.name))
            return
        known = self._steps.known_score(job, commit)
        if known is not None:
            self._enter(job, known)
        else:
            self._books.waiting.append(ScoreRequest(job.name, commit, job.evaluate, self._pipeline.frozen_stages))

    def _ask_ensemble(self, job: Job) -> None:
        """Asks for the scores of an ensemble unless they are known; it has no weights, and so no commit."""
        members = tuple(self._books.commits[name] for name in job.heads)
        self._books.asked[job.name] = job.name
        known = self._steps.known_score(job, members[0], members)
        if known is not None:
            self._enter(job, known)
        elif job.evaluate is not None:
            request = ScoreRequest(job.name, members[0], job.evaluate, self._pipeline.frozen_stages, members, job.on)
            self._books.waiting.append(request)

    def _enter(self, job: Job, score: StepScore) -> None:
        self._books.scores[job.name] = score
        self._say(Advanced(self._pipeline.info.name, cost(job), describe(score)))

    def _dispatch(self) -> None:
        while self._pool.free and self._books.waiting:
            request = taken(self._books.waiting, self._stacking, self._pool.busy)
            self._tell_spread(request)
            self._pool.submit(request)

    def _tell_spread(self, request: Request) -> None:
        """Says, once, that runs that could be stacked have a worker each, unless there was a stack."""
        books = self._books
        alone = left_alone(request, books.waiting, self._stacking)
        if alone and books.spread:
            self._say(Noted(books.spread))
        if alone or isinstance(request, StackRequest):
            books.spread = ""

    def _hear(self) -> None:
        reply = self._pool.next_reply()
        if isinstance(reply, Failed):
            raise failure(reply)
        if isinstance(reply, Done | StackDone):
            for done in reply.members if isinstance(reply, StackDone) else (reply,):
                self._done(done)
        else:
            self._say(reply)

    def _done(self, reply: Done) -> None:
        job, books = self._pipeline.job(reply.step), self._books
        if job.kind != "ensemble" and job.name not in books.commits:
            self._steps.remember(books.asked[job.name], reply.commit)
            books.made.append(job.name)
            if job.evaluate == job.data and job.evaluate is not None:  # a training's own scores are those wanted
                self._steps.keep_score(job, reply.commit, reply.scores)
            self._take(job, reply.commit)
            return
        ensemble = tuple(books.commits[name] for name in job.heads) if job.kind == "ensemble" else ()
        self._enter(job, self._steps.keep_score(job, reply.commit, reply.scores, ensemble))


def train_request(job: Job, key: str, books: Books) -> TrainRequest:
    """Returns what a worker must know to carry the job out."""
    assert job.data is not None and job.config is not None and job.kind in ("train", "probe")  # checked by the recipe
    return TrainRequest(
        step=job.name,
        kind="probe" if job.kind == "probe" else "train",
        key=key,
        architecture=job.architecture,
        start=books.commits[job.needs[0]],
        head=books.commits[job.head] if job.head else None,
        data=job.data,
        config=job.config,
    )


def cost(job: Job) -> int:
    """Returns about how long a job takes, in training steps: what progress and time left are reckoned by."""
    evaluation = 15 if job.evaluate else 0
    if job.kind == "probe":
        return 60 + evaluation
    return (job.config.steps if job.config else 4) + evaluation


def describe(score: StepScore) -> str:
    """Returns a step's scores in a few words."""
    parts = [
        f"{word} {100 * value:.1f} %"
        for word, value in (("validation", score.val_accuracy), ("held out", score.ood_accuracy))
        if value is not None
    ]
    return f"{score.step}: {', '.join(parts)}" if parts else score.step


def failure(reply: Failed) -> errors.ModelgitError:
    """Returns the error that a worker met, as the class it was."""
    shape = getattr(errors, reply.kind, errors.TrainingError)
    return shape(f"step '{reply.step}': {reply.message}", hint=reply.hint)
