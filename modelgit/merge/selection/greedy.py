"""Which models a soup is made of: all, greedily, or greedier. Pure: scores come from a `Tasting`, higher is better.

Greedy (Wortsman et al. 2022, arXiv:2203.05482; Ramé et al. 2022, arXiv:2205.09739): models in the order of their own
scores, each kept if the mean with it scores at least as much as the mean without (`>=`, as the paper has it; the
released code of model soups asks for more). Greedier: every round tries all models that are left and keeps the best of
them, as long as the mean does not score less.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Mode = Literal["uniform", "greedy", "greedier"]
MODES = ("uniform", "greedy", "greedier")


class Tasting(Protocol):
    """Models by number, in the order that follows from their content, and a mean that grows."""

    def tasted(self, head: int) -> float:
        """Return the score of the mean of the models kept and this one."""

    def keep(self, head: int) -> None:
        """Put a model into the mean."""


@dataclass(frozen=True, slots=True)
class Try:
    """A model that was tried in some round: its own score, that of the mean with it, and whether it stayed."""

    head: int
    alone: float
    together: float
    kept: bool
    round: int


def evaluations(mode: Mode, heads: int) -> int:
    """Return how many means are measured at most, besides every model alone."""
    return heads * (heads - 1) // 2 if mode == "greedier" else heads - 1


def ranking(alone: Sequence[float]) -> list[int]:
    """Return the models, best first; equal ones in the order of their content."""
    return sorted(range(len(alone)), key=lambda head: (-alone[head], head))


def select(mode: Mode, alone: Sequence[float], tasting: Tasting) -> list[Try]:
    """Return every model tried, in order. A mean whose score is not a number is never kept, but by `uniform`."""
    ask: Callable[[Sequence[float], Tasting], list[Try]] = greedier if mode == "greedier" else one_by_one
    return ask(alone, tasting) if mode != "uniform" else one_by_one(alone, tasting, everything=True)


def one_by_one(alone: Sequence[float], tasting: Tasting, *, everything: bool = False) -> list[Try]:
    """Return the tries of a greedy soup, each model once; with `everything` all are kept."""
    first, *rest = ranking(alone)
    tries, best = [started(first, alone, tasting)], alone[first]
    for number, head in enumerate(rest, 1):
        together = tasting.tasted(head)
        kept = everything or together >= best
        if kept:
            tasting.keep(head)
            best = together
        tries.append(Try(head, alone[head], together, kept, number))
    return tries


def greedier(alone: Sequence[float], tasting: Tasting) -> list[Try]:
    """Return the tries of a greedier soup: one kept a round, none in the last unless all are in."""
    first, *left = ranking(alone)
    tries, best = [started(first, alone, tasting)], alone[first]
    for number in range(1, len(alone)):
        scores = [tasting.tasted(head) for head in left]
        place = max(range(len(left)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
        better = scores[place] >= best
        rows = zip(left, scores, strict=True)
        tries += [Try(h, alone[h], s, better and h == left[place], number) for h, s in rows]
        if not better:
            break
        tasting.keep(left.pop(place))
        best = scores[place]
    return tries


def started(first: int, alone: Sequence[float], tasting: Tasting) -> Try:
    """Return the try of the best model alone, which a soup begins with; nothing is measured for it."""
    tasting.keep(first)
    return Try(first, alone[first], alone[first], True, 0)
