"""Workers as jobs of a cluster: one job for each request, in a folder of its own (see `jobs`).

A *scheduler* starts jobs and knows which have not ended; all that they say comes through their folders. So a job that
ends in whatever way, with its node or without, costs one retry.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelgit.errors import ClusterError, ModelgitError, StorageFull
from modelgit.events import Noted
from modelgit.pipeline.messages import Answer, Began, Ended, Reply, Request
from modelgit.pipeline.workers.jobs import LOG, REPLIES, ROLL, Letters, Roll, write_job
from modelgit.pipeline.workers.pool import Died, Hear, told_of

CLOSE_S = 5.0  # a scheduler that is being asked may take its time
KEPT_S = 24 * 3600.0  # folders of runs that were killed are removed after a day
TAIL = 200
SHARED = "are the repository, the data and Python at the same paths on every node?"


class Scheduler(Protocol):
    """What runs jobs on the machines of a cluster."""

    name: str

    def submit(self, title: str, folder: Path) -> str:
        """Has the script of a job's folder run once, and returns what the job is called. Raises ClusterError."""

    def alive(self) -> Mapping[str, str | None]:
        """Returns the jobs that have not ended: None for one that runs, else why it waits. Raises ClusterError."""

    def ending(self, job: str) -> tuple[str, str]:
        """Returns how a job ended, as far as is known, and what may help."""

    def cancel(self, jobs: Collection[str]) -> None:
        """Ends jobs, waiting or running; those that have ended do no harm."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look into folders, to show that the coordinator lives, to ask the scheduler, to speak of waiting.

    With `patience_s` a scheduler may be silent for so long.
    """

    look_s: float = 0.5
    beat_s: float = 10.0
    ask_s: float = 10.0
    tell_s: float = 30.0
    patience_s: float = 600.0


@dataclass(slots=True)
class Job:
    """One request under way; `missed` counts how often the scheduler did not know the job."""

    request: Request
    hear: Hear
    folder: Path
    letters: Letters
    id: str = ""
    node: str = ""
    missed: int = 0


class Cluster:
    """Jobs of one command, one for each request."""

    def __init__(self, scheduler: Scheduler, command: Sequence[str], folder: Path, pace: Pace | None = None) -> None:
        self._scheduler = scheduler
        self._command = list(command)
        self._pace = pace or Pace()
        self._folder = new_folder(folder)
        self._roll = Roll(self._folder)
        self._jobs: dict[str, Job] = {}
        self._made = 0
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def launch(self, request: Request, hear: Hear) -> None:
        """Has the scheduler run a job for the request."""
        self._made += 1
        name = f"{self._made:04d}"
        folder = self._folder / name
        write_job(folder, request, self._command)
        job = self._jobs[name] = Job(request, hear, folder, Letters(folder / REPLIES))
        self._roll.write(tuple(self._jobs))
        job.id = self._scheduler.submit(request.step, folder)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, args=(hear,), daemon=True)
            self._watcher.start()

    def close(self) -> None:
        """Ends all jobs; the folders of those that died are left to be read."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join(CLOSE_S)
        jobs = [job for job in self._jobs.values() if job.id]
        with suppress(StorageFull):
            self._roll.write(())
        if jobs:
            self._scheduler.cancel([job.id for job in jobs])
        for job in list(self._jobs.values()):
            shutil.rmtree(job.folder, ignore_errors=True)
        if not any(path.is_dir() for path in self._folder.iterdir()):
            shutil.rmtree(self._folder, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- the watcher

    def _watch(self, hear: Hear) -> None:
        """Looks, beats and asks until it is closed."""
        pace, asking = self._pace, Asking(self._scheduler, self._pace)
        beaten = time.monotonic()
        try:
            while not self._closed.wait(pace.look_s):
                for job in list(self._jobs.values()):
                    self._read(job)
                if time.monotonic() - beaten >= pace.beat_s:
                    self._roll.write(tuple(self._jobs))
                    beaten = time.monotonic()
                if self._jobs and asking.due():
                    self._compare(asking.ask(hear))
                    asking.tell(list(self._jobs.values()), hear)
        except ModelgitError as error:
            hear(error)
        finally:
            if not self._closed.is_set():
                hear(ClusterError("jobs are watched no more"))  # unless it was told why: a bug

    def _read(self, job: Job) -> None:
        """Passes on what a job has said; a folder that cannot be read now is read at the next look."""
        try:
            for message in job.letters.new():
                if isinstance(message, Reply):
                    self._pass_on(job, message)
                elif isinstance(message, Began):
                    job.node = message.node
                elif isinstance(message, Ended) and job.folder.name in self._jobs:
                    self._lost(job, *told_of(message.code, f" on {job.node}", SHARED))
        except OSError:
            return
        except (ModelgitError, ValueError, KeyError, TypeError) as error:
            self._lost(job, f"speaking another language: {error}", "is modelgit of one version on every node?")

    def _pass_on(self, job: Job, reply: Reply) -> None:
        if isinstance(reply, Answer):
            self._jobs.pop(job.folder.name, None)
            shutil.rmtree(job.folder, ignore_errors=True)
        job.hear(reply)

    def _compare(self, alive: Mapping[str, str | None] | None) -> None:
        """Gives up jobs that the scheduler does not know: twice, for the last lines may still be on their way."""
        if alive is None:
            return
        for job in list(self._jobs.values()):
            job.missed = 0 if job.id in alive or not job.id else job.missed + 1
            if job.missed > 1:
                self._read(job)
            if job.missed > 1 and job.folder.name in self._jobs:
                self._lost(job, *self._scheduler.ending(job.id))

    def _lost(self, job: Job, how: str, hint: str) -> None:
        self._jobs.pop(job.folder.name, None)
        self._roll.write(tuple(self._jobs))  # should it live somewhere, it stops
        if job.id:
            self._scheduler.cancel([job.id])
        job.hear(Died(job.request, how, f"{log_tail(job.folder / LOG)}{hint}"))


class Asking:
    """When the scheduler was asked, and what was said of it."""

    def __init__(self, scheduler: Scheduler, pace: Pace) -> None:
        self._scheduler = scheduler
        self._pace = pace
        self._asked = time.monotonic()
        self._silent_since: float | None = None
        self._told_at = float("-inf")
        self._told = ""
        self._alive: Mapping[str, str | None] = {}

    def due(self) -> bool:
        """Tells whether it is time to ask."""
        return time.monotonic() - self._asked >= self._pace.ask_s

    def ask(self, hear: Hear) -> Mapping[str, str | None] | None:
        """Returns the jobs that have not ended, None if the scheduler does not answer now.

        Raises:
            ClusterError: it has not for long.
        """
        self._asked = time.monotonic()
        try:
            self._alive = self._scheduler.alive()
        except ClusterError as error:
            if self._silent_since is None:
                self._silent_since = self._asked
                hear(Noted(f"{self._scheduler.name} does not answer; it is asked again: {error.message}"))
            if self._asked - self._silent_since > self._pace.patience_s:
                raise
            return None
        self._silent_since = None
        return self._alive

    def tell(self, jobs: Sequence[Job], hear: Hear) -> None:
        """Says how many jobs wait, and why, when that has changed; not too often."""
        waiting = [self._alive[job.id] for job in jobs if not job.node and self._alive.get(job.id) is not None]
        reasons = ", ".join(sorted({reason for reason in waiting if reason}))
        text = f"waiting in the queue: {len(waiting)}" + (f" ({reasons})" if reasons else "")
        if waiting and text != self._told and time.monotonic() - self._told_at >= self._pace.tell_s:
            self._told, self._told_at = text, time.monotonic()
            hear(Noted(text))


def new_folder(parent: Path) -> Path:
    """Returns a new folder for the jobs of a run; those of runs long gone are removed. Raises StorageFull."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.iterdir():
            with suppress(OSError):
                if time.time() - (old / ROLL).stat().st_mtime > KEPT_S:
                    shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise StorageFull(f"cannot write the jobs into {parent}: {error.strerror}") from error


def log_tail(log: Path) -> str:
    """Returns where a job's log is, and how it ends; nothing if there is none."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its log, {log}, ends: {said[-TAIL:]}; " if said else ""
