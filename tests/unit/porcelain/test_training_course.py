"""What a record tells of a training: all that is of the kind expected, and nothing else, whoever wrote it."""

from typing import Any

import pytest

from modelgit.cli.screen.learn_views import course_blocks, some_of
from modelgit.porcelain.records import Record
from modelgit.porcelain.training.course import Course, Seen, course_of

DETAILS: dict[str, Any] = {
    "start": "a" * 40,
    "config": {"steps": 6, "lr": 0.01, "seed": 3, "precision": "bfloat16"},
    "data": {"path": "x.zip", "digest": "d" * 64, "held_out": None, "trial": 2, "trained_on": {"noon": 7}},
    "device": "cuda:0",
    "machine": {"cpu": "EPYC", "threads": 2},
    "seconds": 4,
    "versions": {"torch": "2.13.0"},
    "history": [{"step": 6, "loss": 0.5, "val_accuracy": 0.75, "val_loss": 0.25, "domains": {"noon": 0.75}}],
    "kept_step": 6,
}


def read(changes: dict[str, object] | None = None, kind: str = "train") -> Course:
    found = course_of(Record(kind, "mlp", (), (), {**DETAILS, **(changes or {})}))
    assert found is not None
    return found


def test_a_training_is_told() -> None:
    course = read()
    assert (course.start, course.steps, course.lr, course.seed, course.trial) == ("a" * 40, 6, 0.01, 3, 2)
    assert (course.precision, course.device, course.seconds, course.kept_step) == ("bfloat16", "cuda:0", 4.0, 6)
    assert (course.data, course.trained_on, course.versions) == ("x.zip", {"noon": 7}, {"torch": "2.13.0"})
    assert course.points == (Seen(6, 0.5, 0.75, 0.25, {"noon": 0.75}),)


def test_a_probe_has_no_steps_and_a_merge_no_course() -> None:
    probe = read(kind="probe")
    assert (probe.steps, probe.lr, probe.seed) == (None, None, 3)
    assert course_of(Record("merge", "mlp", (), (), DETAILS)) is None
    assert list(course_blocks(Record("merge", "mlp", (), (), DETAILS))) == []


@pytest.mark.parametrize("wrong", [None, [], "x", 10**400, float("nan"), {"a": {"b": []}}, [[1]], [{"step": True}]])
def test_what_is_of_another_kind_is_left_out(wrong: object) -> None:
    course = read(dict.fromkeys(DETAILS, wrong))
    assert (course.steps, course.lr, course.seed, course.trained_on, course.points) == (None, None, None, {}, ())
    assert (course.seconds, course.kept_step, course.precision) == (None, None, None)
    assert list(course_blocks(Record("train", "mlp", (), (), dict.fromkeys(DETAILS, wrong))))
    row = read({"history": [{**dict.fromkeys(("loss", "val_accuracy", "val_loss", "domains"), wrong), "step": 1}]})
    assert row.points == (Seen(1, None, None, None, {}),)


def test_of_many_points_the_ends_and_the_kept_one_are_shown() -> None:
    points = [{"step": 10 * i, "val_accuracy": i / 100} for i in range(101)]
    shown = [seen.step for seen in some_of(read({"history": points, "kept_step": 130}))]
    assert (shown[0], shown[-1], len(shown)) == (0, 1000, 7)
    assert 130 in shown and shown == sorted(shown)
    assert [seen.step for seen in some_of(read({"history": points[:2], "kept_step": None}))] == [0, 10]
