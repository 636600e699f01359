"""Accuracies with their intervals, from counts; no numpy is loaded before one is asked for."""

from collections.abc import Mapping, Sequence

from modelgit.porcelain.reporting.values import Estimate


def estimated(value: float, counts: Sequence[int]) -> Estimate:
    """Returns an accuracy, the mean over domains with so many examples each, with Wilson's interval.

    The examples count as D times the harmonic mean of the domains' numbers: as many as give one share the variance
    that the mean over D domains has. Without counts there is no interval.
    """
    if not counts or min(counts) < 1:
        return Estimate(value)
    from modelgit.train.measuring.intervals import wilson

    n = max(1, round(len(counts) ** 2 / sum(1 / count for count in counts)))
    found = wilson(min(n, max(0, round(value * n))), n)
    return Estimate(value, min(found.low, value), max(found.high, value), sum(counts))


def over_domains(domains: Mapping[str, tuple[int, int]]) -> Estimate:
    """Returns the mean over domains of (correct, n)."""
    return estimated(sum(c / n for c, n in domains.values()) / len(domains), [n for _, n in domains.values()])


def counted(correct: int, n: int) -> Estimate:
    """Returns the share of correct answers."""
    return estimated(correct / n, [n])
