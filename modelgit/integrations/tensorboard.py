"""Curves for TensorBoard: a listener that writes what trainings measure into event files, as they measure it.

TensorBoard's own records and messages, written at once and here: its writer of files works in a thread, whose errors
come late and as tracebacks.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from modelgit.errors import DependencyMissing, StorageFull
from modelgit.events import Event, Measured

try:
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise DependencyMissing("curves need TensorBoard", hint="pip install 'modelgit[tensorboard]'") from error

UNSAFE = re.compile(r"[^\w.-]+")
LONGEST = 100  # characters of a run's name


class EventFiles:
    """A listener that keeps a file for each task that measures something, in a folder of the task's name."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._files: dict[str, RecordWriter] = {}

    def __call__(self, event: Event) -> None:
        """Writes what was measured. Raises StorageFull if that cannot be."""
        if not isinstance(event, Measured):
            return
        now = self._clock()
        try:
            file = self._file(folder_name(event.task), now)
            file.write(scalars(now, event).SerializeToString())
            file.flush()
        except OSError as error:
            hint = "free some space, or write the curves elsewhere"
            raise StorageFull(f"cannot write curves to {self._folder}: {error.strerror}", hint=hint) from error

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _file(self, run: str, now: float) -> RecordWriter:
        """Returns the file of a run; a new one begins by saying its version."""
        if run not in self._files:
            folder = self._folder / run
            folder.mkdir(parents=True, exist_ok=True)
            file = RecordWriter((folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}.modelgit").open("ab"))
            self._files[run] = file
            file.write(Record(wall_time=now, file_version="brain.Event:2").SerializeToString())
        return self._files[run]


def folder_name(task: str) -> str:
    """Returns a name for the folder of a task: names come from recipes, and are never paths."""
    return UNSAFE.sub("-", task)[:LONGEST].strip(".-") or "run"


def scalars(now: float, event: Measured) -> Record:
    """Returns the message of numbers measured at a step."""
    values = [Summary.Value(tag=name, simple_value=value) for name, value in event.values.items()]
    return Record(wall_time=now, step=event.step, summary=Summary(value=values))
