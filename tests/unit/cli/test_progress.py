"""Progress, as logs, programs and terminals get it. Time is an argument."""

import io
import json
from collections.abc import Callable, Iterator

import pytest

from modelgit.cli.screen.progress import (
    BarProgress,
    JsonProgress,
    LineProgress,
    amount,
    listener_for,
    remaining,
    scores_text,
)
from modelgit.events import Advanced, Event, Finished, Measured, Noted, Started, ignore


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def ticking(*times: float) -> Callable[[], float]:
    """Returns a clock that shows these times, one after another."""
    shown: Iterator[float] = iter(times)
    return lambda: next(shown)


def test_a_short_task_leaves_no_line_in_a_log() -> None:
    stream = io.StringIO()
    listener = LineProgress(stream, ticking(0.0, 1.0, 2.0))
    for event in (Started("merge", 10, "tensors"), Advanced("merge", 5), Finished("merge", "10 copied")):
        listener(event)
    assert stream.getvalue() == ""


def test_a_long_task_leaves_a_line_every_few_seconds() -> None:
    stream = io.StringIO()
    listener = LineProgress(stream, ticking(0.0, 6.0, 7.0, 12.0, 24.0))
    events: list[Event] = [
        Started("train", 100, "steps"),
        Advanced("train", 25, "loss 0.5"),
        Advanced("train", 1),
        Advanced("train", 24),
    ]
    events.append(Finished("train", "well"))
    for event in events:
        listener(event)
    assert stream.getvalue().splitlines() == [
        "train: 25 steps of 100 steps, 18 s left, loss 0.5",
        "train: 50 steps of 100 steps, 12 s left",
        "train: done in 24 s, well",
    ]


VALIDATED = Measured("train", 50, {"val_accuracy": 0.75, "val_accuracy/art": 0.7, "val_accuracy/photo": 0.8})


def test_a_log_tells_the_last_validation_domain_by_domain() -> None:
    stream = io.StringIO()
    listener = LineProgress(stream, ticking(0.0, 5.0, 6.0, 10.0))
    for event in (Started("train", 100, "steps"), VALIDATED, Advanced("train", 50, "loss 0.5, 9 samples/s")):
        listener(event)
    listener(Finished("train"))
    assert stream.getvalue().splitlines() == [
        "train: 50 steps of 100 steps, 6 s left, loss 0.5, 9 samples/s, validation 75.0 % (art 70.0, photo 80.0)",
        "train: done in 10 s, validation 75.0 % (art 70.0, photo 80.0)",
    ]


def test_a_terminal_shows_the_last_validation_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    listener = BarProgress(stream, ticking(0.0, 3.0, 4.0, 5.0))
    for event in (Started("train", 100, "steps"), Advanced("train", 50, "loss 0.5, 9 samples/s"), VALIDATED):
        listener(event)
    listener.close()
    assert "loss 0.5, 9 samples/s, validation 75.0 % (art 70.0, photo 80.0)" in stream.getvalue()


def test_programs_get_every_measurement() -> None:
    stream = io.StringIO()
    JsonProgress(stream, ticking(0.0))(VALIDATED)
    assert json.loads(stream.getvalue()) == {
        "event": "measured",
        "task": "train",
        "step": 50,
        "values": {"val_accuracy": 0.75, "val_accuracy/art": 0.7, "val_accuracy/photo": 0.8},
    }


def test_what_is_not_finite_is_null_in_json() -> None:
    stream = io.StringIO()
    JsonProgress(stream, ticking(0.0))(Measured("train", 1, {"loss": float("nan")}))
    assert json.loads(stream.getvalue(), parse_constant=pytest.fail)["values"] == {"loss": None}


def test_many_domains_are_counted_not_listed() -> None:
    values = {"val_accuracy": 0.5, **{f"val_accuracy/{name}": 0.5 for name in "abcdef"}}
    assert scores_text(values) == "validation 50.0 % (a 50.0, b 50.0, c 50.0, d 50.0, 2 more)"
    assert scores_text({"val_accuracy": 0.5, "val_accuracy/only": 0.5}) == "validation 50.0 %"
    assert scores_text({"loss": 0.1}) == ""


def test_notes_are_said_at_once_and_harmless() -> None:
    stream = io.StringIO()
    LineProgress(stream)(Noted("left out \x1b[2J.bin"))
    assert stream.getvalue() == "left out \\x1b[2J.bin\n"


def test_programs_get_json_lines_that_add_up() -> None:
    stream = io.StringIO()
    listener = JsonProgress(stream, ticking(0.0, 0.2, 0.21, 0.22, 0.23))
    for event in (Started("t", 4, "bytes"), Advanced("t", 1), Advanced("t", 2), Advanced("t", 1), Finished("t")):
        listener(event)
    rows = [json.loads(row) for row in stream.getvalue().splitlines()]
    assert [row["event"] for row in rows] == ["started", "advanced", "advanced", "finished"]
    assert sum(row.get("n", 0) for row in rows) == 4
    assert rows[0] == {"event": "started", "task": "t", "total": 4, "unit": "bytes"}


def test_a_terminal_gets_a_bar_that_leaves_no_trace_of_short_tasks() -> None:
    stream = Terminal()
    listener = BarProgress(stream, ticking(0.0, 0.1, 0.2))
    for event in (Started("t", 4, "bytes"), Advanced("t", 4), Finished("t")):
        listener(event)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_for_long_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    listener = BarProgress(stream, ticking(0.0, 3.0, 4.0))
    for event in (
        Started("write model", 4_000_000, "bytes"),
        Advanced("write model", 1_000_000),
        Finished("write model"),
    ):
        listener(event)
    assert "write model" in stream.getvalue()
    assert "1.0 MB / 4.0 MB" in stream.getvalue()


def test_amounts_and_times_left() -> None:
    assert amount(1500, "bytes") == "1.5 kB"
    assert amount(1500, "tensors") == "1,500 tensors"
    assert remaining(25, 100, 6.0) == 18.0
    assert remaining(0, 100, 6.0) is None
    assert remaining(5, None, 6.0) is None
    assert remaining(7, 5, 6.0) is None


def test_who_listens() -> None:
    assert isinstance(listener_for(io.StringIO(), as_json=False, quiet=False), LineProgress)
    assert isinstance(listener_for(io.StringIO(), as_json=True, quiet=True), JsonProgress)
    assert listener_for(io.StringIO(), as_json=False, quiet=True) is ignore
