"""What is to be measured before versions are merged, and what came out. Light: nothing here loads numpy or PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

EVALUATIONS, POINTS, DEPTH = 30, 11, 2
Metric = Callable[[Mapping[str, Any], str], float]


@dataclass(frozen=True, slots=True)
class Aim:
    """What scores are of: a data set, and a metric of it by name, as `FILE.py:FUNCTION`, or a function.

    An empty metric is the data set's own: `accuracy`, or `val_accuracy` where it has splits. Higher is better, unless
    `lower_is_better`.
    """

    data: str
    metric: "str | Metric" = ""
    lower_is_better: bool = False

    @property
    def sign(self) -> float:
        """What scores are multiplied by so that higher is better."""
        return -1.0 if self.lower_is_better else 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What a merge is to find out first.

    `select` is uniform, greedy or greedier. `search` is `weights`, `layers`, or a setting of the method, perhaps with
    its range: `alpha=0:1`; at most `evaluations` points are measured, `layers` groups tensors by so many parts of
    their names. A path whose barrier is above `barrier_max` is a conflict. `holdout` is data on which the result is
    measured once.
    """

    select: str = ""
    search: str = ""
    evaluations: int = EVALUATIONS
    seed: int = 0
    depth: int = DEPTH
    barrier_max: float | None = None
    points: int = POINTS
    metric: "str | Metric" = ""
    lower_is_better: bool = False
    holdout: str = ""

    @property
    def wanted(self) -> bool:
        """Whether anything is to be measured."""
        return bool(self.select or self.search) or self.barrier_max is not None


@dataclass(frozen=True, slots=True)
class Measured:
    """What scores were measured on, and by what; `digest` identifies the data, where that can be known."""

    data: str
    digest: str | None
    metric: str
    lower_is_better: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """A model that was tried in some round: its own score, that of the mean with it, and whether it stayed.

    `known` tells that its own score was noted before, and not measured again.
    """

    name: str
    commit: str
    alone: float
    together: float
    kept: bool
    round: int
    known: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which models were chosen, and how: the curve of marginal gains, in the order tried.

    `singles` and `means` count evaluations; `reads` is how often a model was read at most.
    """

    mode: str
    on: Measured
    tried: tuple[Tried, ...]
    score: float
    singles: int
    means: int
    reads: int

    @property
    def kept(self) -> tuple[Tried, ...]:
        """The models that are merged."""
        return tuple(row for row in self.tried if row.kept)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Coefficients by name, and what the merge with them scored."""

    values: Mapping[str, float]
    score: float


@dataclass(frozen=True, slots=True)
class Search:
    """Coefficients that were looked for, every evaluation in order, and the best."""

    what: str
    on: Measured
    seed: int
    budget: int
    attempts: tuple[Attempt, ...]
    best: Attempt


@dataclass(frozen=True, slots=True)
class PathPoint:
    """A place between two models, from 0 to 1: its score, and what the scores of the ends promise there."""

    at: float
    score: float
    promised: float


@dataclass(frozen=True, slots=True)
class Path:
    """The straight path between two models; `barrier` is the most that its points lack, and `at` is where."""

    start: str
    end: str
    points: tuple[PathPoint, ...]
    barrier: float
    at: float


@dataclass(frozen=True, slots=True)
class Barriers:
    """The paths between models; `plot` is the file that a picture of them went to."""

    on: Measured
    paths: tuple[Path, ...]
    evaluations: int
    plot: str | None = None

    @property
    def highest(self) -> float:
        """The highest barrier."""
        return max(path.barrier for path in self.paths)


@dataclass(frozen=True, slots=True)
class Holdout:
    """What the result scores on data that nothing was chosen by."""

    data: str
    score: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found out before a merge."""

    selection: Selection | None = None
    search: Search | None = None
    barriers: Barriers | None = None
    holdout: Holdout | None = None
    notes: tuple[str, ...] = field(default=())
