"""Progress: what runs, how far it is, how long it will still take.

Bars on a terminal, a line now and then when piped, JSON lines with --json; always on stderr.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from modelgit.cli.screen.blocks import bytes_text, seconds_text
from modelgit.cli.screen.output import as_table, is_terminal, json_text, safe
from modelgit.events import Advanced, Event, Finished, Listener, Measured, Noted, Started, ignore

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_S = 5.0
JSON_EVERY_S = 0.1
SHOW_AFTER_S = 0.4
MAX_DOMAINS = 4
DOMAIN = "val_accuracy/"
Clock = Callable[[], float]


@dataclass(slots=True)
class Task:
    """A task under way: since when, how far, when it was last spoken of."""

    started: Started
    began: float
    spoken: float
    done: int = 0
    unsaid: int = 0
    note: str = ""
    scores: str = ""

    def describe(self, now: float) -> str:
        """Returns how far the task is, and how long it will still take."""
        total, unit = self.started.total, self.started.unit
        far = amount(self.done, unit) if total is None else f"{amount(self.done, unit)} of {amount(total, unit)}"
        left = remaining(self.done, total, now - self.began)
        parts = [
            f"{safe(self.started.task)}: {far}",
            f"{seconds_text(left)} left" if left is not None else "",
            self.notes(),
        ]
        return ", ".join(filter(None, parts))

    def notes(self) -> str:
        """Returns the last status, and what the last validation found."""
        return ", ".join(filter(None, (self.note, self.scores)))

    def measured(self, values: Mapping[str, float]) -> None:
        """Takes what the task measured."""
        self.scores = safe(scores_text(values)) or self.scores


def scores_text(values: Mapping[str, float]) -> str:
    """Returns what a validation found, a few domains by name; nothing if it is not one."""
    if "val_accuracy" not in values:
        return ""
    domains = {name.removeprefix(DOMAIN): value for name, value in values.items() if name.startswith(DOMAIN)}
    named = [f"{name} {100 * value:.1f}" for name, value in list(domains.items())[:MAX_DOMAINS]]
    more = [f"{len(domains) - MAX_DOMAINS} more"] if len(domains) > MAX_DOMAINS else []
    listed = f" ({', '.join([*named, *more])})" if len(domains) > 1 else ""
    return f"validation {100 * values['val_accuracy']:.1f} %{listed}"


def amount(count: int, unit: str) -> str:
    """Returns a count with its unit."""
    return bytes_text(count) if unit == "bytes" else f"{count:,} {unit}"


def remaining(done: int, total: int | None, elapsed_s: float) -> float | None:
    """Returns the seconds a task will still take at the rate so far; None while that is unknown."""
    if not total or not 0 < done <= total:
        return None
    return elapsed_s * (total - done) / done


class LineProgress:
    """A listener for logs: silent for short tasks, then one line every few seconds."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._tasks: dict[str, Task] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        now = self._clock()
        if isinstance(event, Started):
            self._tasks[event.task] = Task(event, now, now)
        elif isinstance(event, Noted):
            self._print(safe(event.message))
        elif event.task in self._tasks:
            task = self._tasks[event.task]
            if isinstance(event, Measured):
                task.measured(event.values)
            else:
                self._advance(event, task, now)

    def _advance(self, event: Advanced | Finished, task: Task, now: float) -> None:
        task.note = safe(event.note)
        if isinstance(event, Finished):
            del self._tasks[event.task]
            if task.spoken != task.began:
                note = f", {task.scores or task.note}" if task.notes() else ""
                self._print(f"{safe(event.task)}: done in {seconds_text(now - task.began)}{note}")
            return
        task.done += event.n
        if now - task.spoken >= EVERY_S:
            task.spoken = now
            self._print(task.describe(now))

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class JsonProgress:
    """A listener for programs: one JSON object a line; advances are summed up to ten a second."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._tasks: dict[str, Task] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        now = self._clock()
        if isinstance(event, Started):
            self._tasks[event.task] = Task(event, now, now)
        if isinstance(event, Advanced) and event.task in self._tasks:
            task = self._tasks[event.task]
            task.unsaid += event.n
            if now - task.spoken < JSON_EVERY_S:
                return
            event = Advanced(event.task, task.unsaid, event.note)
            task.spoken, task.unsaid = now, 0
        if isinstance(event, Finished) and event.task in self._tasks:
            task = self._tasks.pop(event.task)
            if task.unsaid:
                self._print(Advanced(event.task, task.unsaid))
        self._print(event)

    def _print(self, event: Event) -> None:
        self._stream.write(json_text({"event": type(event).__name__.lower(), **as_table(event)}) + "\n")
        self._stream.flush()


class BarProgress:
    """A listener for terminals: bars that appear when a task takes longer than a moment, and leave no trace."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, after_s: float = SHOW_AFTER_S) -> None:
        self._stream, self._clock, self._after_s = stream, clock, after_s
        self._tasks: dict[str, Task] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        now = self._clock()
        if isinstance(event, Started):
            self._tasks[event.task] = Task(event, now, now)
        elif isinstance(event, Noted):
            self._note(safe(event.message))
        elif isinstance(event, Finished):
            self._finish(event.task)
        elif event.task in self._tasks:
            task = self._tasks[event.task]
            if isinstance(event, Measured):
                task.measured(event.values)
            else:
                task.done, task.note = task.done + event.n, safe(event.note)
            if event.task in self._bars or now - task.began >= self._after_s:
                self._draw(event.task, task)

    def _draw(self, name: str, task: Task) -> None:
        if self._progress is None:
            self._progress = new_bars(self._stream)
            self._progress.start()
        first = name not in self._bars
        if first:
            self._bars[name] = self._progress.add_task(safe(name), total=task.started.total, note="", far="")
        far = amount(task.done, task.started.unit)
        if task.started.total is not None:
            far += f" / {amount(task.started.total, task.started.unit)}"
        self._progress.update(self._bars[name], completed=task.done, note=task.notes(), far=far, refresh=first)

    def _note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text)
        else:
            self._stream.write(text + "\n")

    def _finish(self, name: str) -> None:
        self._tasks.pop(name, None)
        bar = self._bars.pop(name, None)
        if self._progress is not None and bar is not None:
            self._progress.remove_task(bar)
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Takes the bars off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._bars.clear()


def new_bars(stream: TextIO) -> "Progress":
    """Returns rich's progress display in our columns."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from modelgit.cli.screen.output import console

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[far]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    return Progress(*columns, console=console(stream), transient=True)


def listener_for(stream: TextIO, *, as_json: bool, quiet: bool) -> Listener:
    """Returns the listener that suits where progress goes."""
    if as_json:
        return JsonProgress(stream)
    if quiet:
        return ignore
    return BarProgress(stream) if is_terminal(stream) else LineProgress(stream)
