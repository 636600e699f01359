"""From answers to figures: accuracy, calibration, groups, diversity, barriers. Pure: arrays in, values out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError
from modelgit.porcelain.reporting.estimates import counted, over_domains
from modelgit.porcelain.reporting.values import (
    Answered,
    Estimate,
    Gain,
    GroupGap,
    Law,
    Line,
    Pair,
    Place,
    Sureness,
)
from modelgit.train.answers import Answers, Examples
from modelgit.train.measuring.calibration import reliability
from modelgit.train.measuring.diversity import agreement, linear_cka
from modelgit.train.measuring.groups import group_scores
from modelgit.train.measuring.intervals import Interval, bootstrap, tabulated
from modelgit.train.measuring.paired import harmonic_fit
from modelgit.train.measuring.serving import FEWEST, Gap, serving

DRAWS = 2000  # of each bootstrap: an end of a 95 % interval is then sure to a twentieth of its width
FEATURE_ROWS = 2000  # on how many examples features are compared
Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Asked:
    """Examples, and those of them that versions are compared on: the held-out domain where there is one, else all."""

    examples: Examples
    rows: npt.NDArray[np.int64]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The right answers to what is compared."""
        return self.examples.labels[self.rows]

    @property
    def domains(self) -> list[str]:
        """The domains of what is compared."""
        return [self.examples.domains[i] for i in self.rows]

    @property
    def things(self) -> list[str]:
        """What is shown in what is compared."""
        return [self.examples.things[i] for i in self.rows]

    def right(self, logits: Floats) -> Bools:
        """Returns which of the answers to what is compared are right."""
        return np.asarray(logits[self.rows].argmax(1) == self.labels)

    def sampled(self, answers: Answers) -> Floats:
        """Returns the features of what is compared, of evenly spaced examples where they are many."""
        step = -(-len(self.rows) // FEATURE_ROWS)
        return answers.features[self.rows[::step]]


def asked(examples: Examples) -> Asked:
    """Returns the examples with those that versions are compared on."""
    everything = np.arange(len(examples.labels))
    return Asked(examples, everything[examples.held_out] if examples.held_out.any() else everything)


def by_domain(right: Bools, domains: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns (correct, n) of every domain, by name."""
    found: dict[str, tuple[int, int]] = {}
    for domain in sorted(set(domains)):
        inside = np.array([own == domain for own in domains])
        found[domain] = int(right[inside].sum()), int(inside.sum())
    return found


def accuracy(right: Bools, domains: Sequence[str]) -> Estimate:
    """Returns the mean over domains of the share of right answers."""
    return over_domains(by_domain(right, domains))


def validation_accuracy(on: Asked, logits: Floats) -> float | None:
    """Returns the accuracy on the domains that were trained on, None where no domain is held out."""
    inside = np.flatnonzero(~on.examples.held_out)
    if not on.examples.held_out.any() or not len(inside):
        return None
    right = logits[inside].argmax(1) == on.examples.labels[inside]
    return accuracy(right, [on.examples.domains[i] for i in inside]).value


def probabilities(logits: Floats) -> Floats:
    """Returns the softmax of each row."""
    raised = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def answered(name: str, commit: str | None, on: Asked, logits: Floats) -> Answered:
    """Returns how a model does."""
    likely, labels = probabilities(logits[on.rows]), on.labels
    everywhere = by_domain(logits.argmax(1) == on.examples.labels, on.examples.domains)
    group, worst = worst_group(on, logits)
    found = serving(likely, labels, on.domains, on.things, on.examples.classes)
    return Answered(
        name=name,
        commit=commit,
        accuracy=accuracy(on.right(logits), on.domains),
        domains={domain: counted(*pair) for domain, pair in everywhere.items()},
        worst_group=group,
        worst=worst,
        ece=found.ece.mean,
        ece_ends=(found.ece.low, found.ece.high),
        gaps=tuple(gap_between(one) for one in found.gaps),
        reliability=tuple(Sureness(b.n, b.confidence, b.accuracy) for b in reliability(likely, labels)),
    )


def gap_between(found: Gap) -> GroupGap:
    """Returns a gap as a report has it."""
    size = found.size
    return GroupGap(found.kind, found.more, found.less, found.answer, found.label, size.mean, size.low, size.high)


def worst_group(on: Asked, logits: Floats) -> tuple[tuple[str, str] | None, Estimate | None]:
    """Returns class and domain with the lowest accuracy among those of enough examples, and that accuracy."""
    domains, classes = on.domains, on.examples.classes
    found = group_scores(logits[on.rows].argmax(1), on.labels, domains, classes)
    members = list(zip((classes[i] for i in on.labels), domains, strict=True))
    counts = {cell: members.count(cell) for cell in found.cells}
    large = sorted(cell for cell, n in counts.items() if n >= FEWEST)
    if not large:
        return None, None
    worst = min(large, key=lambda cell: found.cells[cell])
    return worst, counted(round(found.cells[worst] * counts[worst]), counts[worst])


def over_things(values: Floats, on: Asked) -> Interval:
    """Returns the mean over domains of one value for each example, with the bootstrap's interval over things."""
    return bootstrap(tabulated(values, on.things, on.domains), domains=False, draws=DRAWS)


def pair(names: tuple[str, str], on: Asked, logits: tuple[Floats, Floats], inner: tuple[Floats, Floats]) -> Pair:
    """Returns how two models differ."""
    first, second = (each[on.rows].argmax(1) for each in logits)
    found = agreement(first, second, on.labels)
    apart = over_things(on.right(logits[0]).astype(float) - on.right(logits[1]), on)
    try:
        alike = linear_cka(*inner)
    except DataError:
        alike = None
    errors = found.ratio_error
    ratio = errors if np.isfinite(errors) else None
    return Pair(*names, found.q_diversity, ratio, found.disagreement, alike, apart.mean, apart.low, apart.high)


def gain(k: int, added: str, on: Asked, mean: Floats, members: Sequence[Floats]) -> Gain:
    """Returns what the mean of the best k, whose answers `mean` are, does more than the best one: `members[0]`."""
    domains, best = on.domains, on.right(members[0]).astype(float)
    right = on.right(mean)
    more = over_things(right - best, on)
    ensemble = on.right(np.mean(members, axis=0))
    return Gain(k, added, accuracy(right, domains), accuracy(ensemble, domains), more.mean, more.low, more.high)


def law(accuracies: Sequence[float]) -> Law | None:
    """Returns limit - slope / k through the accuracies for k = 1, 2, …; None for two points or fewer."""
    if len(accuracies) < 3:
        return None
    found = harmonic_fit(accuracies)
    left = [found.at(k) - accuracy for k, accuracy in enumerate(accuracies, 1)]
    return Law(found.limit, found.gain, float(np.sqrt(np.mean(np.square(left)))))


def line(ends: tuple[str, str], at: Sequence[float], right: Sequence[Bools], on: Asked) -> Line:
    """Returns a path from which answers at every place are right, ends included."""
    domains = on.domains
    found = [accuracy(each, domains) for each in right]
    first, last = found[0].value, found[-1].value
    promised = [(1 - a) * first + a * last for a in at]
    gaps = [p - f.value for p, f in zip(promised, found, strict=True)]
    worst = max(range(1, len(at) - 1), key=lambda i: (gaps[i], -i))
    a = at[worst]
    apart = over_things((1 - a) * right[0].astype(float) + a * right[-1] - right[worst], on)
    points = tuple(Place(a, f, p) for a, f, p in zip(at, found, promised, strict=True))
    return Line(*ends, points, max(0.0, gaps[worst]), a, apart.low, apart.high)
