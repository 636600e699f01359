"""What a report holds. Light: nothing here loads numpy or PyTorch.

Accuracies are fractions. An interval is of 95 %: Wilson's for accuracies, a bootstrap's for differences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

NEWEST, POINTS = 60, 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is to be of; `on` names data on which the versions named are compared, `by` a column of it.

    `newest` is how many versions it goes back, `points` how many places of a path are measured, ends included.
    """

    on: str = ""
    newest: int = NEWEST
    points: int = POINTS
    device: str = "auto"
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """An accuracy with the ends of its interval, from `n` examples; without ends where n is not known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A version in the lineage: `kind` is import, train, probe, merge, or commit for what no record tells more of.

    `parents` are numbers of versions that the report shows too; `data` is what the record says it was trained on.
    """

    number: int
    commit: str
    name: str
    kind: str
    date: int
    parents: tuple[int, ...]
    data: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What a version's note says of it on one data set; `forgotten` is the best ancestor's accuracy less its own.

    `worst_group` is the accuracy on a class in a domain, `ece` the expected calibration error: of the held-out domain
    where there is one.
    """

    number: int
    accuracy: Estimate | None
    worst_domain: str | None
    worst: Estimate | None
    held_out: Estimate | None
    forgotten: float | None
    worst_group: Estimate | None = None
    ece: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """One split of one data set: what versions scored on it, oldest first. `held_out` names the unseen domain.

    `part` tells which fold and trial it is, where it is not the first.
    """

    data: str
    split: str
    held_out: str | None
    rows: tuple[Standing, ...]
    part: str = ""


@dataclass(frozen=True, slots=True)
class Sureness:
    """Examples of about one confidence: their number, mean confidence and accuracy."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class GroupGap:
    """The widest gap between two groups, with its interval: of `kind` accuracy, parity or odds.

    The groups are apart in how often they are answered right, how often `answer` is given, and how often it is given to
    those whose label is `label`.
    """

    kind: str
    more: str
    less: str
    answer: str
    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answered:
    """How a version, or a mean of them, does on the data that versions are compared on.

    `accuracy` is the mean over domains; `domains` are the accuracies of each, those for validation among them.
    `worst_group` is the class and domain with the lowest accuracy among those with enough examples.
    `ece` is the expected calibration error, with the ends of its interval; `gaps` are between domains, where there are
    several.
    """

    name: str
    commit: str | None
    accuracy: Estimate
    domains: Mapping[str, Estimate]
    worst_group: tuple[str, str] | None
    worst: Estimate | None
    ece: float
    ece_ends: tuple[float, float]
    gaps: tuple[GroupGap, ...]
    reliability: tuple[Sureness, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions: how differently they err, how alike their features are, and the first's accuracy less the second's.

    `ratio_error` is None where no example is answered wrong alike, `cka` where features are constant.
    """

    first: str
    second: str
    q_diversity: float
    ratio_error: float | None
    disagreement: float
    cka: float | None
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """The mean of the best `k` versions, `added` being the last: its accuracy, and that of their ensemble.

    `difference` is its accuracy less the best single version's.
    """

    k: int
    added: str
    accuracy: Estimate
    ensemble: Estimate
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Law:
    """accuracy(k) = limit - slope / k, by least squares; `error` is the root of the mean squared residual."""

    limit: float
    slope: float
    error: float


@dataclass(frozen=True, slots=True)
class Place:
    """A place on a path, from 0 to 1: its accuracy, and what the ends promise there."""

    at: float
    accuracy: Estimate
    promised: float


@dataclass(frozen=True, slots=True)
class Line:
    """The straight path between two models; `barrier` is the most it lacks, at `at`, with its interval."""

    start: str
    end: str
    places: tuple[Place, ...]
    barrier: float
    at: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Versions compared on data; `measured` says on which of its examples, `ordered_by` what ranks versions.

    `by` is the column whose values are the domains, where one was named. `seen` says of each version that was trained
    on some of the examples how many, and by whom: it is no judge of those.
    """

    data: str
    digest: str
    measured: str
    examples: int
    domains: tuple[str, ...]
    ordered_by: str
    versions: tuple[Answered, ...]
    mean: Answered
    pairs: tuple[Pair, ...]
    gains: tuple[Gain, ...]
    law: Law | None
    paths: tuple[Line, ...]
    evaluations: int
    by: str | None = None
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a repository's models. `left_out` counts older versions that are not shown.

    `versions` is the lineage, oldest first; `boards` are scores from git notes by data set; `comparison` is what was
    measured on data, if that was asked for; `page` is the file that the page went to.
    """

    repository: str
    revs: tuple[str, ...]
    versions: tuple[Model, ...]
    left_out: int
    boards: tuple[Board, ...]
    comparison: Comparison | None
    page: str | None = None
