"""Where workers run, and how many at a time: this machine, or a cluster that was asked before anything is made."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import UsageError
from modelgit.pipeline.stacking import Stacking
from modelgit.pipeline.workers.cluster import Cluster
from modelgit.pipeline.workers.pool import Launcher
from modelgit.pipeline.workers.processes import GPUS, Processes, gpu_names
from modelgit.pipeline.workers.ray import Ray
from modelgit.pipeline.workers.slurm import Slurm
from modelgit.repo.repository import Repository
from modelgit.store.objects import available_threads
from modelgit.train.task import choose_device, gpu_count
from modelgit.train.trust import trusted_factories

GPU_WORKERS = 3  # small fine-tunings leave a GPU idle between kernels
GPU_TOGETHER = 4  # and in one worker do not fill it; not measured yet
CLUSTER_JOBS = 32  # at a time, waiting ones among them
JOBS_FOLDER = "cache/jobs"
SCHEDULERS: Mapping[str, Callable[[Mapping[str, str]], Slurm | Ray]] = {"slurm": Slurm, "ray": Ray}


@dataclass(frozen=True, slots=True)
class Workplace:
    """How many workers there may be at a time, what starts them for a repository, and how they stack fine-tunings."""

    size: int
    launcher: Callable[[Repository], Launcher]
    stacking: Stacking


def workplace(on: str, settings: Sequence[str], device: str, workers: int, together: int = 0) -> Workplace:
    """Returns where workers are to run, and how many fine-tunings in a stack; 0 is as many as suit the place.

    Raises:
        UsageError: no such place, or settings that it does not have. TrainingError: no such device here.
        DependencyMissing, ClusterError: the cluster cannot be used, or would not take the jobs.
    """
    if on == "local":
        if settings:
            raise UsageError("--cluster is for --on slurm or --on ray")
        return this_machine(device, workers, together)
    if on not in SCHEDULERS:
        raise UsageError(f"--on {on}: no such place", hint=f"known: local, {', '.join(SCHEDULERS)}")
    scheduler = SCHEDULERS[on](table_of(settings))
    scheduler.check()

    def launcher(repo: Repository) -> Cluster:
        folder = repo.git_dir.resolve() / "modelgit" / JOBS_FOLDER
        return Cluster(scheduler, worker_command(repo, device), folder)

    return Workplace(workers or CLUSTER_JOBS, launcher, Stacking(together or 1))


def this_machine(device: str, workers: int, together: int) -> Workplace:
    """Returns this machine; where it has several GPUs, each worker sees one."""
    chosen = choose_device(device)
    count = gpu_count(chosen)
    gpus = gpu_names(count, os.environ.get(GPUS))
    on_gpus = chosen.type == "cuda"
    size = workers or (GPU_WORKERS * max(1, count) if on_gpus else available_threads())
    spread = f"{size} workers, one run each: nothing to stack; --workers 1 puts them together" if together > 1 else ""
    stacking = Stacking(together or GPU_TOGETHER, max(1, count)) if on_gpus else Stacking(together or 1, size, spread)
    return Workplace(size, lambda repo: Processes(worker_command(repo, str(chosen)), gpus), stacking)


def worker_command(repo: Repository, device: str) -> Sequence[str]:
    """Returns the command line of a worker."""
    place = str((repo.worktree or repo.git_dir).resolve())
    trusted = [word for name in trusted_factories() for word in ("--trust-factory", name)]
    return [sys.executable, "-P", "-m", "modelgit", "-C", place, "plumbing-worker", "--device", device, *trusted]


def table_of(settings: Sequence[str]) -> dict[str, str]:
    """Returns settings `KEY=VALUE` as a table; the value of a bare `KEY` is empty."""
    words = [text.partition("=") for text in settings]
    return {key.strip(): value.strip() for key, _, value in words}
