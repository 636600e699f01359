"""What a history of versions has lost of what it once knew."""

from collections.abc import Mapping, Sequence

from modelgit.errors import DataError

History = Sequence[Mapping[str, float]]  # a version's scores by task, oldest first; tasks not measured are absent


def forgetting(history: History) -> dict[str, float]:
    """Returns for every task how far the last version is below the best one before it; negative where it is above.

    max over earlier t of a(t, task), less a(now, task): Chaudhry et al. 2018, arXiv:1801.10112, equation 3. Its mean
    over tasks is what is called forgetting. Tasks without a score now, or before, are left out.

    Raises:
        DataError: there are no versions.
    """
    if not history:
        raise DataError("a history of no versions")
    *before, now = history
    seen = {task: [scores[task] for scores in before if task in scores] for task in now}
    return {task: max(earlier) - now[task] for task, earlier in seen.items() if earlier}


def backward_transfer(history: History) -> dict[str, float]:
    """Returns for every task its score now less the first one it ever had: what learning others did to it.

    Lopez-Paz & Ranzato 2017, arXiv:1706.08840, equation 3. Tasks measured only now are left out.

    Raises:
        DataError: there are no versions.
    """
    if not history:
        raise DataError("a history of no versions")
    *before, now = history
    first = {task: next((s[task] for s in before if task in s), None) for task in now}
    return {task: now[task] - value for task, value in first.items() if value is not None}
