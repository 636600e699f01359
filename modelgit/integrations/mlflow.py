"""Curves for MLflow: a listener that logs what trainings measure to a tracking server, as they measure it.

A server that cannot be reached at the start is an error, before a step is done; one that is lost on the way costs the
rest of the curves, not the training.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress

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
RETRIES = "2"  # MLflow's own 7 keep a training waiting for minutes


class Tracking:
    """A listener that keeps a run of an MLflow experiment for each task that measures something.

    The experiment is the one that MLFLOW_EXPERIMENT_NAME names, else `modelgit`; it is made if it is not there.
    """

    def __init__(self, uri: str, listener: Listener, clock: Callable[[], float] = time.time) -> None:
        """Looks the experiment up. Raises RemoteError if that fails; `listener` hears if a later call does."""
        self._uri, self._tell, self._clock = uri, listener, clock
        self._runs: dict[str, str] = {}
        self._lost = False
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = experiment(self._client, os.environ.get(EXPERIMENT) or "modelgit")
        except (MlflowException, OSError, ImportError) as error:
            hint = "a tracking server's address such as http://127.0.0.1:5000; is it running?"
            raise RemoteError(f"MLflow at {uri} cannot be used: {line(error)}", hint=hint) from error

    def __call__(self, event: Event) -> None:
        """Logs what was measured, and that a task is over."""
        if self._lost or not isinstance(event, Measured | Finished):
            return
        try:
            if isinstance(event, Measured):
                self._log(event)
            elif event.task in self._runs:
                self._client.set_terminated(self._runs.pop(event.task), "FINISHED")
        except (MlflowException, OSError) as error:
            self._lost = True
            self._tell(Noted(f"MLflow at {self._uri} is lost, the curves end here: {line(error)}"))

    def close(self) -> None:
        """Says that what is still under way was broken off."""
        with suppress(MlflowException, OSError):
            for run in () if self._lost else self._runs.values():
                self._client.set_terminated(run, "KILLED")

    def _log(self, event: Measured) -> None:
        now = int(1000 * self._clock())
        if event.task not in self._runs:
            run = self._client.create_run(self._experiment, start_time=now, run_name=event.task)
            self._runs[event.task] = run.info.run_id
        found = [Metric(REFUSED.sub("-", name), value, now, event.step) for name, value in event.values.items()]
        self._client.log_batch(self._runs[event.task], metrics=found)


def experiment(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, made if it is not there."""
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def line(error: Exception) -> str:
    """Returns what an error says, in one line."""
    return " ".join(str(error).split())[:200]
