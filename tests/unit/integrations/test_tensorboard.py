"""Curves for TensorBoard: read back by TensorBoard itself."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modelgit.errors import StorageFull
from modelgit.events import Advanced, Event, Finished, Measured, Started
from modelgit.integrations.tensorboard import EventFiles, folder_name

EVENTS: list[Event] = [
    Started("main: training on films", 20, "steps"),
    Measured("main: training on films", 10, {"loss": 0.5, "learning_rate": 1e-4}),
    Advanced("main: training on films", 10),
    Measured("main: training on films", 300, {"loss": 0.25, "val_accuracy/days": 0.75}),
    Measured("other", 7, {"loss": float("nan")}),
    Finished("main: training on films"),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    times = iter([1000.0, 1001.5, 1002.0])
    files = EventFiles(tmp_path / "curves", lambda: next(times))
    for event in EVENTS:
        files(event)
    files.close()
    return tmp_path / "curves"


def test_tensorboard_reads_what_was_measured(written: Path) -> None:
    assert sorted(folder.name for folder in written.iterdir()) == ["main-training-on-films", "other"]
    found = EventAccumulator(str(written / "main-training-on-films"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["learning_rate", "loss", "val_accuracy/days"]
    assert [(s.wall_time, s.step, s.value) for s in found.Scalars("loss")] == [(1000.0, 10, 0.5), (1001.5, 300, 0.25)]
    assert found.Scalars("learning_rate")[0].value == pytest.approx(1e-4, rel=1e-6)
    assert found.file_version == 2.0


@pytest.mark.parametrize(
    ("task", "folder"),
    [("../../etc: x", "etc-x"), ("a/b", "a-b"), ("..", "run"), ("", "run"), ("x" * 300, "x" * 100), ("été", "été")],
)
def test_names_are_never_paths(task: str, folder: str) -> None:
    assert folder_name(task) == folder


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match=r"cannot write curves to .*file"):
        EventFiles(tmp_path / "file")(EVENTS[1])
