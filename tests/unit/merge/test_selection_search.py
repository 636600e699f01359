"""Searching coefficients with a budget, and barriers on a straight path, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.formats.manifest import TensorEntry
from modelgit.merge.selection.paths import Point, barrier, between, places, promised
from modelgit.merge.selection.search import Log, ascent, line, simplex
from modelgit.merge.selection.states import Raw


def test_one_coefficient_by_a_grid_and_golden_sections() -> None:
    log = line(lambda p: -((p[0] - 0.337) ** 2), 0.0, 1.0, 25)
    assert [row.point[0] for row in log.rows()][:11] == [round(i / 10, 4) for i in range(11)]
    assert len(log.rows()) <= 25
    assert log.best().point[0] == pytest.approx(0.337, abs=0.001)


def test_equal_scores_go_to_the_smaller_coefficient_and_few_evaluations_are_kept_to() -> None:
    assert line(lambda p: 1.0, 0.0, 1.0, 3).best().point == (0.0,)
    assert [row.point for row in line(lambda p: p[0], 0.0, 2.0, 3).rows()] == [(0.0,), (1.0,), (2.0,)]
    assert len(line(lambda p: p[0], 0.0, 1.0, 14).rows()) == 14


def test_weights_that_add_up_to_one() -> None:
    wanted = np.array([0.7, 0.2, 0.1])
    log = simplex(lambda p: -float(((np.array(p) - wanted) ** 2).sum()), 3, 150, seed=1)
    rows = log.rows()
    assert [row.point for row in rows[:2]] == [(0.3333, 0.3333, 0.3333), (1.0, 0.0, 0.0)]
    assert len(rows) == 150
    assert all(sum(row.point) == pytest.approx(1, abs=2e-4) and min(row.point) >= 0 for row in rows)
    assert log.best().point == pytest.approx(tuple(wanted), abs=0.02)
    again = simplex(lambda p: -float(((np.array(p) - wanted) ** 2).sum()), 3, 150, seed=1)
    assert again.rows() == rows


def test_weights_that_never_matter_end_within_the_budget() -> None:
    assert len(simplex(lambda p: 0.5, 1, 5, seed=0).rows()) == 1
    assert len(simplex(lambda p: 0.5, 4, 30, seed=0).rows()) == 30


def test_coordinate_ascent_moves_only_for_more() -> None:
    log = ascent(lambda p: -abs(p[0] - 1.5) - abs(p[1] - 0.25), (1.0, 1.0), (0.0, 2.0), 60)
    assert log.best().point == (1.5, 0.25)
    flat = ascent(lambda p: 1.0, (1.0, 1.0), (0.0, 2.0), 60)
    assert flat.best().point == (1.0, 1.0)


def test_no_point_is_measured_twice_and_what_is_not_a_number_loses() -> None:
    asked: list[tuple[float, ...]] = []

    def score(point: tuple[float, ...]) -> float:
        asked.append(point)
        return math.nan if point[0] > 0.5 else point[0]

    log = Log(score, 3)
    assert [log([0.25]), log([0.250001]), log([0.75]), log([0.5]), log([0.1])] == [
        0.25,
        0.25,
        -math.inf,
        0.5,
        -math.inf,
    ]
    assert asked == [(0.25,), (0.75,), (0.5,)]
    assert log.best().point == (0.5,)


# ------------------------------------------------------------------------------------------------------- paths


def test_a_barrier_is_what_is_missing_from_the_line_between_the_ends() -> None:
    points = promised([0.8, 0.78, 0.5, 0.7, 0.6], places(5))
    assert [point.promised for point in points] == pytest.approx([0.8, 0.75, 0.7, 0.65, 0.6])
    assert barrier(points) == pytest.approx((0.2, 0.5))
    assert barrier(promised([0.8, 0.9, 0.8], places(3))) == (0.0, 0.0)


def test_for_a_loss_the_barrier_is_what_lies_above() -> None:
    points = promised([1.0, 3.0, 2.0], places(3))
    assert barrier(points, lower_is_better=True) == pytest.approx((1.5, 0.5))
    assert barrier(points) == (0.0, 0.0)


def test_a_point_without_a_score_is_a_barrier() -> None:
    height, at = barrier([Point(0.0, 1.0, 1.0), Point(0.5, math.nan, 1.0), Point(1.0, 1.0, 1.0)])
    assert (height, at) == (math.inf, 0.5)


def test_points_on_a_path() -> None:
    assert places(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for count in (2, 102):
        with pytest.raises(UsageError, match=f"{count} points on a path: expected 3 to 101"):
            places(count)


def test_models_between_two_ends() -> None:
    def state(values: list[float], count: int) -> dict[str, Raw]:
        tensor = bytearray(np.array(values, "<f4").tobytes())
        counter = bytearray(np.array([count], "<i8").tobytes())
        return {"n": (TensorEntry("n", "I64", (1,), ""), counter), "w": (TensorEntry("w", "F32", (2,), ""), tensor)}

    a, b = state([1.0, -2.0], 3), state([3.0, 2.0], 9)
    mixed = between(a, b, 0.25)
    assert np.frombuffer(mixed["w"][1], "<f4").tolist() == [1.5, -1.0]
    assert np.frombuffer(mixed["n"][1], "<i8").tolist() == [3]
    assert {n: bytes(raw) for n, (_, raw) in between(a, b, 1.0).items()}["w"] == bytes(b["w"][1])
