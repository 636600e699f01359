"""Slurm as a scheduler: sbatch, squeue, scontrol and scancel; no accounting database is asked, for many have none."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from modelgit.errors import ClusterError, DependencyMissing, UsageError
from modelgit.pipeline.workers.cluster import SHARED
from modelgit.pipeline.workers.jobs import LOG, SCRIPT

ANSWER_S = 20.0  # signs of life wait while Slurm is asked
TAKE_S = 60.0
NOTHING = "#!/bin/sh\n"
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
OURS = ("output", "error", "input", "job-name", "parsable", "wrap", "array", "chdir", "test-only", "wait", "requeue")
HINTS = {
    "TIMEOUT": "--cluster time=HH:MM:SS gives each job longer; it goes on from its last evaluation",
    "DEADLINE": "--cluster time=HH:MM:SS gives each job longer; it goes on from its last evaluation",
    "OUT_OF_MEMORY": "--cluster mem=SIZE gives each job more",
}
FOREIGN = re.compile("SLURM_|SQUEUE_")  # of the job that this runs in, of other ways to look at the queue
LIMIT = re.compile("limit", re.IGNORECASE)


class Slurm:
    """The Slurm whose programs are on the path; `settings` are options of sbatch."""

    name = "Slurm"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._options = options(settings)

    def check(self) -> None:
        """Has Slurm judge the settings, without a job.

        Raises:
            DependencyMissing: there is no Slurm here. ClusterError: it does not answer, or would not take such jobs.
        """
        if shutil.which("sbatch") is None:
            hint = "run this where jobs are submitted, a login node for instance"
            raise DependencyMissing("--on slurm: sbatch is not on this machine's path", hint=hint)
        asked = " ".join(self._options) or "the usual settings"
        ask(["sbatch", "--test-only", *self._options], f"a job with {asked} is refused", NOTHING, TAKE_S)

    def submit(self, title: str, folder: Path) -> str:
        """Has the script of a job's folder run once, and returns the job's id. Raises ClusterError."""
        log = str(folder / LOG).replace("%", "%%")
        ours = ["--parsable", "--no-requeue", f"--job-name=modelgit {title}", f"--output={log}", f"--chdir={folder}"]
        said = ask(["sbatch", *ours, *self._options, str(folder / SCRIPT)], f"step '{title}' is refused", "", TAKE_S)
        return said.strip().partition(";")[0]

    def alive(self) -> Mapping[str, str | None]:
        """Returns the user's jobs that have not ended: None for one that runs, else why it waits.

        Raises:
            ClusterError: Slurm does not answer.
        """
        return read_queue(ask(["squeue", "--me", "--noheader", "--format=%i|%T|%r"], "the queue cannot be read"))

    def ending(self, job: str) -> tuple[str, str]:
        """Returns how a job ended, as far as is known, and what may help."""
        try:
            said = ask(["scontrol", "--oneliner", "show", "job", job], "the job cannot be read")
        except ClusterError:
            said = ""
        state = found[1] if (found := re.search(r"\bJobState=(\w+)", said)) else "an unknown end"
        return f"by {state} (Slurm job {job})", HINTS.get(state, SHARED)

    def cancel(self, jobs: Collection[str]) -> None:
        """Ends jobs, waiting or running."""
        try:
            ask(["scancel", "--quiet", *jobs], "jobs cannot be ended")
        except ClusterError:
            return  # each of them sees within two minutes that it is not wanted


def options(settings: Mapping[str, str]) -> list[str]:
    """Returns the settings as options of sbatch.

    Raises:
        UsageError: one is no option, or one that modelgit sets.
    """
    for key in settings:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise UsageError(f"--cluster {key}: not an option of sbatch", hint="for instance: --cluster partition=gpu")
        if key in OURS:
            raise UsageError(f"--cluster {key}: modelgit sets this itself")
    return [f"--{key}={value}" if value else f"--{key}" for key, value in settings.items()]


def read_queue(text: str) -> dict[str, str | None]:
    """Returns the jobs of squeue's lines `id|STATE|reason` that have not ended: None for one that runs."""
    rows = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
    running: dict[str, str | None] = {job.strip(): None for job, state, _ in rows if state in RUNNING}
    reasons = {job.strip(): reason.strip() for job, state, reason in rows if state in WAITING}
    return running | {job: "" if reason == "None" else reason for job, reason in reasons.items()}


def ask(command: Sequence[str], what: str, stdin: str = "", timeout_s: float = ANSWER_S) -> str:
    """Returns what one of Slurm's programs answers. Raises ClusterError."""
    inherited = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not FOREIGN.match(key)}
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=inherited,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Slurm: {what}: no answer from {command[0]} in {timeout_s:.0f} s") from error
    except OSError as error:
        raise ClusterError(f"Slurm: {what}: {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise refusal(what, done.stderr)
    return done.stdout


def refusal(what: str, said: str) -> ClusterError:
    """Returns the error that one of Slurm's programs told of."""
    lines = [re.sub(r"^\w+: (fatal: |error: )?", "", line).strip() for line in said.splitlines() if line.strip()]
    told = lines[-1] if lines else "no reason given"
    hint = "--workers N has fewer jobs in the queue at a time" if LIMIT.search(told) else "see sinfo, and man sbatch"
    return ClusterError(f"Slurm: {what}: {told}", hint=hint)
