"""Whether a model serves all groups of people or things alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError

Integers = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Accuracy of each group, and gaps between the best and the worst served.

    `cells` are accuracies of label and group together (label, group): the worst one is what a model that relies on a
    spurious attribute fails at (Sagawa et al. 2020, arXiv:1911.08731). `parity_gap` is the widest difference between
    groups in how often any one class is answered (demographic parity), `odds_gap` the same among examples of one
    label (equalised odds: Hardt et al. 2016, arXiv:1610.02413).
    """

    accuracy: Mapping[str, float]
    cells: Mapping[tuple[str, str], float]
    counts: Mapping[str, int]
    parity_gap: float
    odds_gap: float

    @property
    def worst(self) -> tuple[str, float]:
        """The group with the lowest accuracy, the first by name of equals."""
        return min(sorted(self.accuracy.items()), key=lambda item: item[1])

    @property
    def worst_cell(self) -> tuple[tuple[str, str], float]:
        """Label and group with the lowest accuracy, the first by name of equals."""
        return min(sorted(self.cells.items()), key=lambda item: item[1])

    @property
    def accuracy_gap(self) -> float:
        """The best group's accuracy less the worst one's."""
        return max(self.accuracy.values()) - min(self.accuracy.values())


def group_scores(answers: Integers, labels: Integers, groups: Sequence[str], classes: Sequence[str]) -> GroupScores:
    """Returns how the groups fare; answers and labels (n,) are numbers of classes, groups (n,) names.

    Raises:
        DataError: not one answer and one group for every example.
    """
    if not len(answers) == len(labels) == len(groups) > 0:
        raise DataError(f"{len(answers)} answers and {len(groups)} groups for {len(labels)} examples")
    right, of = answers == labels, np.array(groups, dtype=object)
    members = {name: of == name for name in sorted(set(groups))}
    cells = {
        (classes[label], name): float(right[cell].mean())
        for label in range(len(classes))
        for name, inside in members.items()
        if (cell := inside & (labels == label)).any()
    }
    return GroupScores(
        accuracy={name: float(right[inside].mean()) for name, inside in members.items()},
        cells=cells,
        counts={name: int(inside.sum()) for name, inside in members.items()},
        parity_gap=answer_gap(answers, list(members.values()), len(classes)),
        odds_gap=max(
            answer_gap(answers, [inside & (labels == label) for inside in members.values()], len(classes))
            for label in range(len(classes))
        ),
    )


def answer_gap(answers: Integers, members: Sequence[npt.NDArray[np.bool_]], classes: int) -> float:
    """Returns the widest difference between sets of examples in the share of an answer; empty sets do not count."""
    shares = [np.bincount(answers[m], minlength=classes) / m.sum() for m in members if m.any()]
    return float(np.ptp(np.stack(shares), axis=0).max()) if shares else 0.0
