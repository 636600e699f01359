"""Curves for MLflow: a listener that logs what trainings measure to a tracking server, as they measure it.

Calls to the server go out from a thread of their own, as many measurements in one as have come meanwhile: a slow server
does not hold a training up. One that cannot be reached at the start is an error, before a step is done; one that is
lost on the way costs the rest of the curves, not the training.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Callable

from modelgit.errors import DependencyMissing, RemoteError
from modelgit.events import Event, Finished, Listener, Measured, Noted

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would tell its makers of every call

try:
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
except ImportError as error:
    raise DependencyMissing("curves need MLflow", hint="pip install 'modelgit[mlflow]'") from error

EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"  # MLflow's own variable
REFUSED = re.compile(r"[^A-Za-z0-9_\-. :/]")  # what MLflow has no place for in the name of a metric
NAME, BATCH = 250, 1000  # how long a metric's name may be, and how many metrics a call may hold
USUAL = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 tries of 2 minutes each keep people waiting for a quarter of an hour
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # there is the result, one JSON object for instance
}
SAID = 120  # characters of an error from its beginning, and from its end
CLOSE_S = 15.0  # for what is still to be sent when the trainings are over
Waiting = tuple[int, Measured | Finished]  # milliseconds, and what was heard then


class Tracking:
    """A listener that keeps a run of an MLflow experiment for each task that measures something.

    The experiment is the one that MLFLOW_EXPERIMENT_NAME names, else `modelgit`; it is made if it is not there.
    """

    def __init__(self, uri: str, listener: Listener, clock: Callable[[], float] = time.time) -> None:
        """Looks the experiment up. Raises RemoteError if that fails; `listener` hears if a later call does."""
        self._uri, self._tell, self._clock = uri, listener, clock
        self._runs: dict[str, str] = {}
        self._metrics: dict[str, list[Metric]] = {}
        self._waiting: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._lost, self._told = "", False
        for name, value in USUAL.items():
            os.environ.setdefault(name, value)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = experiment(self._client, os.environ.get(EXPERIMENT) or "modelgit")
        except (MlflowException, OSError, ImportError) as error:
            hint = "a tracking server's address such as http://127.0.0.1:5000; is it running?"
            raise RemoteError(f"MLflow at {uri} cannot be used: {line(error)}", hint=hint) from error
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._sender.start()

    def __call__(self, event: Event) -> None:
        """Takes down what was measured, and that a task is over."""
        self._say_if_lost()
        if isinstance(event, Measured | Finished) and not self._lost:
            self._waiting.put((int(1000 * self._clock()), event))

    def close(self) -> None:
        """Sends what waits, and says that what is still under way was broken off."""
        self._waiting.put(None)
        self._sender.join(CLOSE_S)
        if self._sender.is_alive():
            self._lost = self._lost or f"no answer in {CLOSE_S:.0f} s"
        self._say_if_lost()

    def _say_if_lost(self) -> None:
        """Tells the listener once, in its own thread."""
        if self._lost and not self._told:
            self._told = True
            self._tell(Noted(f"MLflow at {self._uri} is lost, the curves end here: {self._lost}"))

    # ------------------------------------------------------------------------------------------ the sender's

    def _send_all(self) -> None:
        """Sends what comes until the end is said, or the server is lost."""
        try:
            going = True
            while going:
                going = self._take()
                for task in list(self._metrics):
                    self._send(task)
            for run in self._runs.values():
                self._client.set_terminated(run, "KILLED")
        except (MlflowException, OSError) as error:
            self._lost = line(error)

    def _take(self) -> bool:
        """Takes what has come, waiting for the first; tells whether there may be more."""
        found = self._waiting.get()
        while found is not None:
            at, event = found
            if isinstance(event, Measured):
                metrics = [Metric(metric_name(name), value, at, event.step) for name, value in event.values.items()]
                self._metrics.setdefault(event.task, []).extend(metrics)
            else:
                self._end(event.task)
            if self._waiting.empty():
                return True
            found = self._waiting.get()
        return False

    def _send(self, task: str) -> None:
        metrics = self._metrics.pop(task, [])
        if metrics and task not in self._runs:
            run = self._client.create_run(self._experiment, start_time=metrics[0].timestamp, run_name=task)
            self._runs[task] = run.info.run_id
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._runs[task], metrics=metrics[start : start + BATCH])

    def _end(self, task: str) -> None:
        self._send(task)
        if task in self._runs:
            self._client.set_terminated(self._runs.pop(task), "FINISHED")


def experiment(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, made if it is not there. Raises RemoteError if it was thrown away."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        hint = f"mlflow experiments restore -x {found.experiment_id}, or another name: {EXPERIMENT}=…"
        raise RemoteError(f"MLflow's experiment '{name}' was deleted", hint=hint)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def metric_name(name: str) -> str:
    """Returns a name as MLflow takes it: as a path that says nothing twice."""
    parts = (part if part.strip(".") else "-" for part in REFUSED.sub("-", name).split("/"))
    return "/".join(parts)[:NAME].rstrip("/")


def line(error: Exception) -> str:
    """Returns what an error says, in one line: where there is much of it, how it begins and how it ends."""
    text = " ".join(str(error).split())
    return text if len(text) <= 2 * SAID else f"{text[:SAID]} … {text[-SAID:]}"
