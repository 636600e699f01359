"""What a merge is told, what it has decided, what it did."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from modelgit.formats.manifest import Manifest
from modelgit.merge.engine.execution import MergeResult
from modelgit.merge.engine.plan import Plan
from modelgit.merge.methods import Method
from modelgit.merge.methods.registry import Value
from modelgit.porcelain.records import Record
from modelgit.porcelain.trials.values import Findings, Trial
from modelgit.repo.values import Blob, Version

if TYPE_CHECKING:
    from modelgit.porcelain.scores import DataName

Kind = Literal["merge", "fast-forward", "up-to-date", "dry-run", "not-committed", "aborted"]
Landing = Literal["commit", "leave", "forward"]


@dataclass(frozen=True, slots=True)
class Align:
    """How the units of models are lined up before they are merged: all with those of the commit `to` ("ours").

    `data` is where activations are compared. `table` is a permutation spec of the user's own, as its file holds it.
    """

    by: Literal["weights", "activations"] = "weights"
    seed: int = 0
    to: str = ""
    data: str = ""
    table: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AlignedHead:
    """One of the models lined up: how many of its units moved, its distance to "ours" before and after, relative."""

    name: str
    moved: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Aligned:
    """What lining up did. `source` is where the spec came from; `difference` what permuting did to outputs, if run."""

    by: str
    seed: int
    to: str
    source: str
    units: int
    digest: str
    difference: float | None
    heads: tuple[AlignedHead, ...]
    data: str = ""
    data_digest: str = ""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done to the result's activations, on how many images of which data; `tensors` changed."""

    what: str
    images: int
    data: str
    data_digest: str
    tensors: int


@dataclass(frozen=True, slots=True)
class Informing:
    """Where statistics of the models come from: a file for each, or data to compute them on, one for all or for each.

    Data is what a user calls it, or already known with its splits.

    `labels` are those that the model expects itself, or the data's. `shared` says that the data is that which models
    are measured on too. With `fresh`, none are taken from the cache.
    """

    files: tuple[str, ...] = ()
    data: tuple["str | DataName", ...] = ()
    labels: Literal["model", "data"] = "model"
    images: int = 1024
    shared: bool = False
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class InformedHead:
    """One of the models with the digest of its statistics, and the data and number of images they are of.

    `split` says how the data was split, where it was: of which only training examples were looked at.
    """

    name: str
    commit: str
    digest: str
    data: str = ""
    data_digest: str = ""
    images: int = 0
    split: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Informed:
    """The statistics that a merge was made with; `labels` is empty for those of files. `images` is what was asked."""

    kind: str
    heads: tuple[InformedHead, ...]
    labels: str = ""
    images: int = 0


@dataclass(frozen=True, slots=True)
class Choices:
    """How to merge. `weights` is empty (all alike) or one number a head; `base` None means the graph's.

    `head_names` are the classifier's tensors, those that records name if empty. `files` says what to do with
    ordinary files on which the versions disagree, `vocabulary` where their tokens have other numbers. `layers` are
    weights of the heads for tensors whose names begin so, `layer_settings` settings of the method for them.
    `statistics` is where a method that asks for them has them from.
    `repair` is data on which the result's activations are set right, `device` what works on matrices.
    """

    method: str = "linear"
    settings: Mapping[str, Value] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    base: str | None = None
    on_missing: Literal["error", "keep", "drop"] = "error"
    heads: Literal["error", "drop", "ours", "theirs", "mean"] = "error"
    head_names: tuple[str, ...] = ()
    integers: Literal["error", "ours"] = "ours"
    files: Literal["error", "ours"] = "error"
    vocabulary: Literal["error", "ours", "union"] = "error"
    tied: Literal["error", "untie"] = "error"
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    layer_settings: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    align: Align | None = None
    repair: str = ""
    device: str = "cpu"
    statistics: Informing | None = None

    @property
    def plain(self) -> bool:
        """Whether one model merged this way is the model itself: then a branch can simply move forward."""
        more = self.settings or self.weights or self.layers or self.repair or self.statistics
        return self.method == "linear" and not more and not self.layer_settings

    def policy(self) -> dict[str, object]:
        """Returns how to go on where models do not match, as the commit records it."""
        return {
            "on_missing": self.on_missing,
            "heads": self.heads,
            "head_names": list(self.head_names),
            "integers": self.integers,
            "files": self.files,
            **({"vocabulary": self.vocabulary} if self.vocabulary != "error" else {}),
            **({"tied": self.tied} if self.tied != "error" else {}),
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for: `revs` besides HEAD. `gates` are bars the result must clear on `data`.

    `trial` is what is to be found out on `data` first. `landing` is what becomes of the result: a commit, changes in
    the work tree that are not committed yet, or nothing but a branch that moves forward. With `exact`, `revs` take part
    as they are, HEAD and common ancestors too only if they are named; `notes` are told with the result.
    """

    revs: tuple[str, ...]
    choices: Choices = Choices()
    message: str | None = None
    fast_forward: bool = True
    dry_run: bool = False
    gates: tuple[str, ...] = ()
    data: str | None = None
    trial: Trial = field(default_factory=Trial)
    landing: Landing = "commit"
    exact: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a merge would read and make: bytes of all inputs that are merged, of the results; tensors by treatment."""

    read_bytes: int
    merged_bytes: int
    treatments: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MergedHead:
    """One of the versions that took part: the name it was called by, its commit, its weight."""

    name: str
    commit: str
    weight: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did, or with `dry-run` would do. Counts are of tensors; `scores` are those the gates looked at."""

    kind: Kind
    commit: str | None
    branch: str | None
    method: str | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    heads: tuple[MergedHead, ...] = ()
    copied: int = 0
    recipes: int = 0
    computed: int = 0
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    aligned: Aligned | None = None
    repaired: Repaired | None = None
    informed: Informed | None = None
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that nothing speaks against: the versions in order, a plan for each weight file, the other files.

    `classes` are those of classifiers that were lined up by class.
    """

    heads: tuple[MergedHead, ...]
    versions: tuple[Version, ...]
    bases: tuple[Version, ...]
    method: Method
    choices: Choices
    plans: Mapping[str, Plan]
    files: Mapping[str, Blob | bytes]
    records: tuple[Record | None, ...]
    findings: Findings = field(default_factory=Findings)
    aligned: Aligned | None = None
    classes: tuple[str, ...] = ()
    informed: Informed | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """The weight files of a merge, their objects in the store."""

    results: Mapping[str, MergeResult]
    repaired: Repaired | None = None

    def manifests(self) -> dict[str, Manifest]:
        """Returns the merged weight files."""
        return {path: result.manifest for path, result in self.results.items()}

    def count(self, action: Literal["copied", "recipe", "computed"]) -> int:
        """Returns how many tensors came about that way."""
        return sum(result.counts()[action] for result in self.results.values())
