"""Averages along a run: each against its definition, on weights that are single numbers."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from modelgit.train.choices import NO_AVERAGING, Averaging, Ema, Lawa, Sma, Swa, Swad
from modelgit.train.fitting.averaging import Average, average_of

EVERY: list[Averaging] = [
    NO_AVERAGING,
    Sma(start=2),
    Ema(decay=0.5),
    Swa(start=1, every=2),
    Lawa(2, 2),
    Swad(2, 2, 1.3),
]


def parameter(value: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([value], dtype=torch.float64))]


def run(average: Average, values: Sequence[float], first: int = 1) -> None:
    for step, value in enumerate(values, first):
        average.add(parameter(value), step)


def value_of(average: Average) -> float | None:
    found = average.weights()
    return None if found is None else float(found[0])


@pytest.mark.parametrize(
    ("choice", "values", "expected"),
    [
        (NO_AVERAGING, [1.0, 2.0], None),
        (Sma(), [1.0, 2.0, 6.0], 3.0),
        (Sma(start=2), [10.0, 20.0, 1.0, 3.0], 8.0),
        (Sma(start=9), [10.0, 20.0], 20.0),
        (Ema(decay=0.5), [4.0, 8.0, 2.0], 4.0),
        (Swa(start=1, every=2), [1.0, 50.0, 5.0, 50.0, 9.0], 5.0),
        (Lawa(keep=2, every=2), [9.0, 1.0, 9.0, 3.0, 9.0, 5.0], 4.0),
        (Lawa(keep=2, every=5), [9.0], None),
    ],
)
def test_the_average_is_what_its_definition_says(
    choice: Averaging, values: list[float], expected: float | None
) -> None:
    average = average_of(choice)
    run(average, values)
    assert value_of(average) == (None if expected is None else pytest.approx(expected))


def swad(choice: Swad, losses: Sequence[float]) -> tuple[float | None, int]:
    """Returns the average and the number of validations; segment i holds the values 10 i and 10 i + 2."""
    average = average_of(choice)
    for number, loss in enumerate(losses):
        run(average, [10.0 * number, 10.0 * number + 2], 2 * number + 1)
        if average.validated(loss):
            return value_of(average), number + 1
    return value_of(average), len(losses)


def mean_of(segments: Sequence[int]) -> float:
    return sum(10.0 * n + 1 for n in segments) / len(segments)


def test_swad_averages_the_valley() -> None:
    # Falls until segment 2, which stays the lowest of three; ratio * mean(1.0, 1.2, 1.1) = 1.43.
    losses = [3.0, 2.0, 1.0, 1.2, 1.1, 1.3, 2.0, 2.0, 9.0]
    found, seen = swad(Swad(converge=3, tolerance=2, ratio=1.3), losses)
    assert found == pytest.approx(mean_of([2, 3, 4, 5]))
    assert seen == 8  # two validations above 1.43 end it


def test_a_single_bad_validation_does_not_end_the_valley() -> None:
    found, seen = swad(Swad(converge=2, tolerance=2, ratio=1.3), [1.0, 1.2, 9.0, 1.0, 9.0, 9.0, 1.0])
    assert found == pytest.approx(mean_of([0, 1, 2, 3]))
    assert seen == 6


def test_a_run_that_ends_inside_the_valley_keeps_the_low_tail() -> None:
    choice = Swad(converge=2, tolerance=4, ratio=1.3)
    assert swad(choice, [1.0, 1.1, 1.2])[0] == pytest.approx(mean_of([0, 1, 2]))
    assert swad(choice, [1.0, 1.1, 1.2, 9.0])[0] == pytest.approx(mean_of([0, 1, 2]))


def test_a_loss_that_never_stops_falling_gives_the_last_segment() -> None:
    assert swad(Swad(converge=3), [5.0, 4.0, 3.0, 2.0])[0] == pytest.approx(mean_of([3]))


@pytest.mark.parametrize("choice", EVERY, ids=[choice.name for choice in EVERY])
def test_an_average_that_is_saved_and_restored_goes_on_the_same(choice: Averaging) -> None:
    losses = [1.0, 1.1, 1.05, 1.2, 1.1]
    whole, first = average_of(choice), average_of(choice)
    for number, loss in enumerate(losses):
        for average in (whole, first):
            run(average, [number + 0.25, number * number], 2 * number + 1)
            average.validated(loss)
        second = average_of(choice)
        groups, values = first.state()
        second.restore([[t.clone() for t in group] for group in groups], values)
        first = second
    run(whole, [7.0], 11)
    run(first, [7.0], 11)
    assert value_of(first) == value_of(whole)
