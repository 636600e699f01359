"""Ray as a scheduler: one task for each job, on any node with the resources; retries are the pool's."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modelgit.errors import ClusterError, DependencyMissing, UsageError
from modelgit.pipeline.workers.cluster import SHARED
from modelgit.pipeline.workers.jobs import LOG, SCRIPT
from modelgit.pipeline.workers.pool import told_of

TOKEN = "one with a token wants RAY_AUTH_MODE=token and the token here too"
RESOURCES = ("num_cpus", "num_gpus", "memory")
CARRIED = re.compile(r"(GIT_(AUTHOR|COMMITTER|CONFIG)_|PYTHON|OMP_|MKL_|CUBLAS_|NVIDIA_|TORCH_).*")


class Ray:
    """A Ray cluster that runs; `settings` are its address, and the resources of each job."""

    name = "Ray"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._address = settings.get("address", os.environ.get("RAY_ADDRESS", "auto"))
        self._resources = resources({key: value for key, value in settings.items() if key != "address"})
        self._ray: Any = None  # the package has no types that hold with the ones of its versions
        self._task: Any = None
        self._jobs: dict[str, Any] = {}

    def check(self) -> None:
        """Connects to the cluster.

        Raises:
            DependencyMissing: Ray is not installed. ClusterError: no cluster answers, or no node could run such a job.
        """
        try:
            import ray
        except ImportError as error:
            raise DependencyMissing("--on ray needs the package ray", hint="pip install 'modelgit[ray]'") from error
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            hint = f"--cluster address=HOST:PORT names another, ray start --head starts one; {TOKEN}"
            raise ClusterError(
                f"Ray: no cluster answers at '{self._address}': {first_sentence(error)}", hint=hint
            ) from error
        self._ray = ray
        self._refuse_impossible()
        self._task = ray.remote(runner())

    def _refuse_impossible(self) -> None:
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {names[key]: value for key, value in self._resources.items()}
        if not any(all(node.get(name, 0) >= value for name, value in wanted.items()) for node in nodes):
            told = ", ".join(f"{name} {value:g}" for name, value in wanted.items())
            has = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in wanted) for node in nodes)
            raise ClusterError(f"Ray: no node can run a job with {told}; the nodes have {has}")

    def submit(self, title: str, folder: Path) -> str:
        """Has the script of a job's folder run once, as a task, and returns the task's id. Raises ClusterError."""
        environment = {key: value for key, value in os.environ.items() if CARRIED.fullmatch(key)}
        options = {"name": f"modelgit {title}", "max_retries": 0, **self._resources}
        try:
            task = self._task.options(**options).remote(str(folder / SCRIPT), str(folder / LOG), environment)
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"Ray: step '{title}' is refused: {first_sentence(error)}") from error
        job = str(task.hex())
        self._jobs[job] = task
        return job

    def alive(self) -> Mapping[str, str | None]:
        """Returns the tasks that have not ended, as waiting: those that run are known by what they said."""
        if not self._jobs:
            return {}
        try:
            _, alive = self._ray.wait(list(self._jobs.values()), num_returns=len(self._jobs), timeout=0)
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"Ray: the tasks cannot be read: {first_sentence(error)}") from error
        return {str(task.hex()): "no free node" for task in alive}

    def ending(self, job: str) -> tuple[str, str]:
        """Returns how a task ended, as far as is known, and what may help."""
        task = self._jobs.pop(job, None)
        try:
            code = self._ray.get(task, timeout=1)
        except self._ray.exceptions.RayError as error:
            return f"with its task: {first_sentence(error)}", SHARED
        return told_of(code, "", SHARED)

    def cancel(self, jobs: Collection[str]) -> None:
        """Ends tasks, waiting or running."""
        for job in jobs:
            task = self._jobs.pop(job, None)
            if task is not None:
                self._ray.cancel(task, force=True)


def resources(settings: Mapping[str, str]) -> dict[str, float]:
    """Returns what each job takes of a node: a CPU unless told otherwise.

    Raises:
        UsageError: an unknown setting, or one that is no number.
    """
    found = {"num_cpus": 1.0}
    for key, value in settings.items():
        if key not in RESOURCES:
            hint = f"known: address, {', '.join(RESOURCES)}"
            raise UsageError(f"--cluster {key}: not a setting of --on ray", hint=hint)
        try:
            found[key] = float(value)
        except ValueError as error:
            raise UsageError(f"--cluster {key}={value}: expected a number") from error
    return found


def first_sentence(error: Exception) -> str:
    """Returns what an error of Ray's says, without the pages that may follow."""
    return str(error).strip().split("\n")[0].split(". ")[0]


def runner() -> Any:
    """Returns what a task does. It is a function inside another, so that Ray carries it to nodes by value."""

    def run(script: str, log: str, environment: dict[str, str]) -> int:
        import os
        import subprocess

        with open(log, "ab") as out:  # noqa: PTH123  # nothing of ours is imported there
            return subprocess.call(
                ["/bin/sh", script], env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    return run
