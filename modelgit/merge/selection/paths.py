"""The straight path between two models, and the barrier on it.

Two models are linearly mode connected on a data set if no point between them scores less than the same point between
their scores: Acc((1-l) a + l b) >= (1-l) Acc(a) + l Acc(b) for every l in [0, 1] (Ramé et al. 2024, arXiv:2401.12187,
eq. 2; Frankle et al. 2020, arXiv:1912.05671). The barrier is the most that is missing, and 0 when nothing is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelgit.errors import UsageError
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import FRAME_BYTES
from modelgit.merge.selection.states import Raw, State
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, linear

FEWEST, MOST = 3, 101


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the path, from 0 (the first end) to 1: its score, and what the ends' scores promise there."""

    at: float
    score: float
    promised: float


def places(points: int) -> list[float]:
    """Return so many places on the path, evenly spaced, both ends included.

    Raises: UsageError for too few to lie between the ends, or too many.
    """
    if not FEWEST <= points <= MOST:
        raise UsageError(f"{points} points on a path: expected {FEWEST} to {MOST}.", hint="5 to 11 show a barrier")
    return [i / (points - 1) for i in range(points)]


def promised(scores: Sequence[float], at: Sequence[float]) -> list[Point]:
    """Return the points of a path whose scores are given, first and last being the ends."""
    first, last = scores[0], scores[-1]
    return [Point(a, score, (1 - a) * first + a * last) for a, score in zip(at, scores, strict=True)]


def barrier(points: Sequence[Point], *, lower_is_better: bool = False) -> tuple[float, float]:
    """Return how far the path falls below what its ends promise, at most, and where.

    Infinity where a score is not a finite number; (0, 0) where it falls nowhere.
    """
    sign = -1.0 if lower_is_better else 1.0
    gaps = [(sign * (p.promised - p.score) if math.isfinite(p.score) else math.inf, p.at) for p in points]
    height, at = max(gaps, key=lambda gap: (gap[0], -gap[1]))
    return (height, at) if height > 0 else (0.0, 0.0)


def between(a: State, b: State, at: float) -> dict[str, Raw]:
    """Return the model at a place on the straight path; tensors that cannot be summed are the first end's."""
    return {name: (entry, _between(entry, raw, b[name][1], at)) for name, (entry, raw) in a.items()}


def _between(entry: TensorEntry, a: bytearray, b: bytearray, at: float) -> bytearray:
    if entry.dtype not in ARITHMETIC_WIDTHS or a == b:
        return a
    result = bytearray()
    for frames in _frames(a, b):
        result += linear(frames, [1 - at, at], 1.0, entry.dtype)
    return result


def _frames(*tensors: bytearray) -> Iterator[list[memoryview]]:
    for start in range(0, len(tensors[0]), FRAME_BYTES):
        yield [memoryview(tensor)[start : start + FRAME_BYTES] for tensor in tensors]
