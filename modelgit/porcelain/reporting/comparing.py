"""Versions compared on data: each alone, pair by pair, averaged one after another, and along straight paths.

Every version is read three times, and in memory are two of them, the running sum, and the answers of all.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.merge.selection.greedy import ranking
from modelgit.merge.selection.paths import between, places
from modelgit.merge.selection.states import Raw, Soup, read_state
from modelgit.porcelain.reporting.asking import Panel, panel
from modelgit.porcelain.reporting.tallying import (
    Asked,
    Bools,
    Floats,
    accuracy,
    answered,
    asked,
    gain,
    law,
    line,
    pair,
    validation_accuracy,
)
from modelgit.porcelain.reporting.values import Comparison, Gain, Line, Pair, Wanted
from modelgit.porcelain.trials.barriers import PAIRWISE
from modelgit.repo.repository import Repository

TASK, MEAN = "report", "their mean"


@dataclass(slots=True)
class Work:
    """A comparison under way: who is compared, on which examples, and what every version answered."""

    panel: Panel
    on: Asked
    listener: Listener
    logits: list[Floats] = field(default_factory=list)
    features: list[Floats] = field(default_factory=list)
    evaluations: int = 0

    @property
    def names(self) -> list[str]:
        """What the versions are called."""
        return [member.name for member in self.panel.members]

    def answers(self, state: Mapping[str, Raw], what: str, *, keep: bool = False) -> Floats:
        """Returns the logits of a model in memory; with `keep` it is the next version, and its features are kept."""
        found = self.panel.answers(state)
        self.evaluations += 1
        if keep:
            self.logits.append(found.logits)
            self.features.append(self.on.sampled(found))
        self.listener(Advanced(TASK, 1, what))
        return found.logits

    def read(self, number: int) -> dict[str, Raw]:
        """Returns a version's tensors. Raises MergeConflict where a value is not finite."""
        member = self.panel.members[number]
        return read_state(member.source, member.name)


def compare(repo: Repository, revs: Sequence[str], wanted: Wanted, listener: Listener) -> Comparison:
    """Returns how the versions compare on the data. Nothing is stored.

    Raises:
        UsageError: versions that cannot be averaged, too few points. DataError: a version that cannot be run on it.
        MergeConflict: tensors of different shapes, or values that are not finite.
    """
    at = places(wanted.points)
    found = panel(repo, revs, wanted, listener)
    work = Work(found, asked(found.examples), listener)
    count = len(found.members)
    listener(Started(TASK, evaluations(count, wanted.points), "evaluations"))
    for number, name in enumerate(work.names):
        work.answers(work.read(number), name, keep=True)
    order, ordered_by = ranked(work)
    gains, mean, together = means(work, order)
    paths = lines(work, mean, together, at)
    listener(Finished(TASK, f"{work.evaluations} evaluations"))
    best = [(found.members[i], work.logits[i]) for i in order]
    return Comparison(
        data=found.data,
        digest=found.examples.digest,
        measured=measured(work.on),
        examples=len(work.on.rows),
        domains=tuple(sorted(set(work.on.domains))),
        ordered_by=ordered_by,
        versions=tuple(answered(one.name, one.commit, work.on, logits) for one, logits in best),
        mean=answered(f"mean of all {count}", None, work.on, together),
        pairs=tuple(pairs(work, order)),
        gains=gains,
        law=law([each.accuracy.value for each in gains]),
        paths=paths,
        evaluations=work.evaluations,
        by=wanted.by,
        seen=found.seen,
    )


def evaluations(count: int, points: int) -> int:
    """Returns how often models are run: alone, as means, and between the ends of paths."""
    return count + (count - 1) + (count if count > PAIRWISE else count - 1) * (points - 2)


def measured(on: Asked) -> str:
    """Returns which examples versions are compared on, in words."""
    apart = sorted(set(on.domains))
    return f"the held-out domain {apart[0]}" if on.examples.held_out.any() else "every domain"


def ranked(work: Work) -> tuple[list[int], str]:
    """Returns the versions, best first, and what they are ranked by: never a held-out domain."""
    inner = [validation_accuracy(work.on, logits) for logits in work.logits]
    known = [score for score in inner if score is not None]
    if len(known) == len(inner):
        return ranking(known), "validation accuracy on the training domains"
    plain = [accuracy(work.on.right(logits), work.on.domains).value for logits in work.logits]
    return ranking(plain), f"accuracy on {work.panel.data}"


def means(work: Work, order: Sequence[int]) -> tuple[tuple[Gain, ...], dict[str, Raw], Floats]:
    """Returns what each version adds to the mean of the better ones, the mean of all, and its answers."""
    soup = Soup([member.source for member in work.panel.members], work.names, lambda _state: 0.0)
    taken, found = [work.logits[order[0]]], list[Gain]()
    found.append(gain(1, work.names[order[0]], work.on, taken[0], taken))
    soup.keep(order[0])
    mean, together = dict[str, Raw](), taken[0]
    for k, head in enumerate(order[1:], 2):
        mean = soup.mean_with(head)
        together = work.answers(mean, f"mean of {k}")
        taken.append(work.logits[head])
        found.append(gain(k, work.names[head], work.on, together, taken))
        soup.keep(head)
    return tuple(found), mean, together


def pairs(work: Work, order: Sequence[int]) -> list[Pair]:
    """Returns how each two versions differ, the better one first."""
    return [
        pair(
            (work.names[i], work.names[j]),
            work.on,
            (work.logits[i], work.logits[j]),
            (work.features[i], work.features[j]),
        )
        for i, j in itertools.combinations(order, 2)
    ]


def lines(work: Work, mean: dict[str, Raw], together: Floats, at: Sequence[float]) -> tuple[Line, ...]:
    """Returns paths from the first version named to each other one; from the mean to each, where they are many."""
    many = len(work.names) > PAIRWISE
    first = work.panel.first
    start = mean if many else work.read(first)
    name, right = (MEAN, work.on.right(together)) if many else (work.names[first], work.on.right(work.logits[first]))
    found = []
    for number, end in enumerate(work.names):
        if many or number != first:
            inner = path(work, start, number, at)
            found.append(line((name, end), at, [right, *inner, work.on.right(work.logits[number])], work.on))
    return tuple(found)


def path(work: Work, start: dict[str, Raw], number: int, at: Sequence[float]) -> list[Bools]:
    """Returns which answers are right at the places between a model and a version."""
    end, name = work.read(number), work.names[number]
    return [work.on.right(work.answers(between(start, end, a), f"path to {name}")) for a in at[1:-1]]
