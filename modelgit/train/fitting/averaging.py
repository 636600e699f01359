"""What is kept of a run's path through weight space: the arithmetic of `choices.Averaging`.

An average sees the parameters after every step, and the loss of every validation. Its state is a dict of tensors and
numbers, so a run that was interrupted goes on with the same average.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from modelgit.train.choices import Averaging, Ema, Lawa, NoAveraging, Sma, Swa, Swad

Weights = list[Tensor]
Parameters = Sequence[nn.Parameter]


class Average(Protocol):
    """The average of a run, as far as it has come."""

    validates_raw: bool  # whether validations look at the weights themselves instead of their average

    def add(self, parameters: Parameters, step: int) -> None:
        """Takes the weights after `step` in."""

    def validated(self, loss: float) -> bool:
        """Takes the loss of a validation in; returns whether the run is over."""

    def weights(self) -> Weights | None:
        """Returns the average so far, None where the weights themselves count."""

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns all that `restore` needs: groups of tensors, and plain values for JSON."""

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Goes on from what `state` returned."""


def average_of(choice: Averaging) -> Average:
    """Returns an average that has seen nothing yet."""
    if isinstance(choice, NoAveraging):
        return Last()
    if isinstance(choice, Sma):
        return Mean(choice.start, 1)
    if isinstance(choice, Swa):
        return Mean(choice.start, choice.every)
    if isinstance(choice, Ema):
        return Exponential(choice.decay)
    return Latest(choice) if isinstance(choice, Lawa) else Valley(choice)


def copies(parameters: Sequence[Tensor]) -> Weights:
    """Returns copies of the values."""
    return [parameter.detach().clone() for parameter in parameters]


def lerp(mean: Weights, values: Sequence[Tensor], share: float) -> None:
    """Moves a mean towards values, in place."""
    torch._foreach_lerp_(mean, [value.detach() for value in values], share)


class Last:
    """No average."""

    validates_raw = False

    def add(self, parameters: Parameters, step: int) -> None:
        """Forgets them."""

    def validated(self, loss: float) -> bool:
        """Returns False."""
        return False

    def weights(self) -> Weights | None:
        """Returns None."""
        return None

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns nothing."""
        return [], {}

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Does nothing."""


class Mean(Last):
    """The mean of the weights after every `every`-th step from `start` on; before, the weights themselves."""

    def __init__(self, start: int, every: int) -> None:
        self._start, self._every = start, every
        self._count = 0
        self._mean: Weights = []

    def add(self, parameters: Parameters, step: int) -> None:
        """Takes them in if it is their turn."""
        if not self._mean or step <= self._start:
            self._mean, self._count = copies(parameters), 1
        elif (step - self._start) % self._every == 0:
            self._count += 1
            lerp(self._mean, parameters, 1 / self._count)

    def weights(self) -> Weights | None:
        """Returns the mean."""
        return self._mean or None

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns mean and count."""
        return [self._mean], {"count": self._count}

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Takes mean and count."""
        (self._mean,), self._count = groups, int(str(values["count"]))


class Exponential(Last):
    """An exponential moving average, begun at the first weights it sees."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._mean: Weights = []

    def add(self, parameters: Parameters, step: int) -> None:
        """Takes a share of them in."""
        if self._mean:
            lerp(self._mean, parameters, 1 - self._decay)
        else:
            self._mean = copies(parameters)

    def weights(self) -> Weights | None:
        """Returns the average."""
        return self._mean or None

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns the average."""
        return [self._mean], {}

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Takes the average."""
        (self._mean,) = groups


class Latest(Last):
    """The mean of the last few checkpoints; before there is one, the weights themselves."""

    def __init__(self, choice: Lawa) -> None:
        self._every = choice.every
        self._kept: deque[Weights] = deque(maxlen=choice.keep)

    def add(self, parameters: Parameters, step: int) -> None:
        """Keeps them if it is their turn."""
        if step % self._every == 0:
            self._kept.append(copies(parameters))

    def weights(self) -> Weights | None:
        """Returns the mean of what is kept."""
        return [torch.stack(values).mean(0) for values in zip(*self._kept, strict=True)] or None

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns the checkpoints."""
        return list(self._kept), {}

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Takes the checkpoints."""
        self._kept.extend(groups)


class Valley(Last):
    """The mean over the loss valley. A segment is what lies between two validations: its mean, and their loss."""

    validates_raw = True

    def __init__(self, choice: Swad) -> None:
        self._choice = choice
        self._open = Mean(0, 1)
        self._segments: list[tuple[Weights, int, float]] = []  # those not yet in the valley: mean, steps, loss
        self._valley: Weights = []
        self._steps = 0
        self._threshold: float | None = None

    def add(self, parameters: Parameters, step: int) -> None:
        """Takes them into the open segment."""
        self._open.add(parameters, max(1, step))

    def validated(self, loss: float) -> bool:
        """Closes the segment; returns whether the valley has ended."""
        groups, values = self._open.state()
        self._segments.append((groups[0], int(str(values["count"])), loss))
        self._open = Mean(0, 1)
        if self._threshold is None:
            self._seek_start()
            return False
        return self._go_on()

    def _seek_start(self) -> None:
        """Begins the valley when the loss has not fallen for `converge` validations."""
        window = self._segments[-self._choice.converge :]
        losses = [loss for _, _, loss in window]
        if len(window) == self._choice.converge and losses[0] == min(losses):
            self._segments = window
            self._threshold = self._choice.ratio * sum(losses) / len(losses)

    def _go_on(self) -> bool:
        """Takes the oldest segments into the valley once they are known to belong to it."""
        count, threshold = self._choice.tolerance, self._threshold
        while threshold is not None and len(self._segments) >= count:
            if min(loss for _, _, loss in self._segments[:count]) > threshold:
                self._segments = []
                return True
            self._take(self._segments.pop(0))
        return False

    def _take(self, segment: tuple[Weights, int, float]) -> None:
        mean, steps, _ = segment
        self._steps += steps
        if self._valley:
            lerp(self._valley, mean, steps / self._steps)
        else:
            self._valley = copies(mean)

    def weights(self) -> Weights | None:
        """Returns the mean over the valley, its tail with it while that is low; without a valley the last segment's."""
        if self._threshold is None:
            groups, _ = self._open.state()
            return groups[0] or (self._segments[-1][0] if self._segments else None)
        whole = Valley(self._choice)
        whole._valley, whole._steps = copies(self._valley), self._steps
        for number, segment in enumerate(self._segments):
            if min(loss for _, _, loss in self._segments[number:]) > self._threshold:
                break
            whole._take(segment)
        return whole._valley or None

    def state(self) -> tuple[list[Weights], dict[str, object]]:
        """Returns the segments, the valley, and what is known of them."""
        groups, values = self._open.state()
        rows = [[steps, loss] for _, steps, loss in self._segments]
        plain = {"open": values["count"], "rows": rows, "steps": self._steps, "threshold": self._threshold}
        return [groups[0], self._valley, *(mean for mean, _, _ in self._segments)], plain

    def restore(self, groups: list[Weights], values: dict[str, object]) -> None:
        """Takes all of it."""
        first, self._valley, *means = groups
        self._open.restore([first], {"count": values["open"]})
        rows, threshold = values["rows"], values["threshold"]
        assert isinstance(rows, list)  # as `state` gave it
        self._segments = [(mean, int(n), float(loss)) for mean, (n, loss) in zip(means, rows, strict=True)]
        self._steps = int(str(values["steps"]))
        self._threshold = None if threshold is None else float(str(threshold))
