"""Curves for MLflow: read back by MLflow itself, from its store of files."""

import math
import socket
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from modelgit.errors import RemoteError
from modelgit.events import Event, Finished, Measured, Noted, Started, ignore
from modelgit.integrations.mlflow import Tracking, metric_name

TASK = "main: training on films"
EVENTS: list[Event] = [
    Started(TASK, 20, "steps"),
    Measured(TASK, 10, {"loss": 0.5, "val_accuracy/-90%": 0.25}),
    Measured(TASK, 300, {"loss": math.nan}),
    Measured("other", 7, {"loss": 1.0}),
    Finished(TASK),
    Finished("never measured"),
]


@pytest.fixture(autouse=True)
def _store_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_mlflow_reads_what_was_measured(tmp_path: Path) -> None:
    times = iter([1000.0, 1001.5, 1002.0])
    for _ in range(2):  # a second training finds the experiment of the first
        tracking = Tracking(str(tmp_path), ignore, lambda: next(times, 1003.0))
        for event in EVENTS:
            tracking(event)
        tracking.close()
    client = MlflowClient(tracking_uri=str(tmp_path))
    experiment = client.get_experiment_by_name("films")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert [(run.info.run_name, run.info.status) for run in runs[:2]] == [(TASK, "FINISHED"), ("other", "KILLED")]
    assert len(runs) == 4
    loss = client.get_metric_history(runs[0].info.run_id, "loss")
    assert [(m.timestamp, m.step) for m in loss] == [(1000_000, 10), (1001_500, 300)]
    assert loss[0].value == 0.5 and math.isnan(loss[1].value)
    assert runs[0].data.metrics["val_accuracy/-90-"] == 0.25


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://here"])
def test_a_server_that_is_not_there_is_told_at_once(uri: str) -> None:
    with pytest.raises(RemoteError, match=f"MLflow at {uri} cannot be used"):
        Tracking(uri, ignore)


def test_a_server_that_never_answers_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteError, match=r"MLflow at .*timed out"):
        Tracking(f"http://127.0.0.1:{silent.getsockname()[1]}", ignore)


def test_an_experiment_that_was_thrown_away_is_told_at_once(tmp_path: Path) -> None:
    Tracking(str(tmp_path), ignore).close()
    client = MlflowClient(tracking_uri=str(tmp_path))
    experiment = client.get_experiment_by_name("films")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(RemoteError, match="experiment 'films' was deleted") as caught:
        Tracking(str(tmp_path), ignore)
    assert "mlflow experiments restore" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("val_accuracy/night", "val_accuracy/night"),
        ("val_accuracy/-90%, left", "val_accuracy/-90-- left"),
        ("val_accuracy/n//a/..", "val_accuracy/n/-/a/-"),
        ("val_accuracy/", "val_accuracy/-"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_are_such_as_mlflow_takes(tmp_path: Path, name: str, wanted: str) -> None:
    assert metric_name(name) == wanted
    heard = list[Event]()
    tracking = Tracking(str(tmp_path), heard.append)
    tracking(Measured("t", 1, {name: 1.0}))
    tracking.close()
    assert not heard


def test_an_experiment_lost_on_the_way_costs_the_curves_only(tmp_path: Path) -> None:
    heard = list[Event]()
    tracking = Tracking(str(tmp_path), heard.append)
    client = MlflowClient(tracking_uri=str(tmp_path))
    experiment = client.get_experiment_by_name("films")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    for event in EVENTS:
        tracking(event)
    tracking.close()
    assert len(heard) == 1 and isinstance(heard[0], Noted) and "the curves end here" in heard[0].message
