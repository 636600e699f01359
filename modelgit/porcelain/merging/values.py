"""What a merge is told, what it has decided, what it did."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelgit.formats.manifest import Manifest
from modelgit.merge.engine.execution import MergeResult
from modelgit.merge.engine.plan import Plan
from modelgit.merge.methods import Method
from modelgit.merge.methods.registry import Value
from modelgit.porcelain.records import Record
from modelgit.porcelain.trials.values import Findings, Trial
from modelgit.repo.values import Blob, Version

Kind = Literal["merge", "fast-forward", "up-to-date", "dry-run"]


@dataclass(frozen=True, slots=True)
class Choices:
    """How to merge. `weights` is empty (all alike) or one number a head; `base` None means the graph's.

    `head_names` are the classifier's tensors, those that records name if empty. `files` says what to do with
    ordinary files on which the versions disagree. `layers` are weights of the heads for tensors whose names begin so.
    """

    method: str = "linear"
    settings: Mapping[str, Value] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    base: str | None = None
    on_missing: Literal["error", "keep", "drop"] = "error"
    heads: Literal["error", "drop", "ours"] = "error"
    head_names: tuple[str, ...] = ()
    integers: Literal["error", "ours"] = "ours"
    files: Literal["error", "ours"] = "error"
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether one model merged this way is the model itself: then a branch can simply move forward."""
        return self.method == "linear" and not (self.settings or self.weights or self.layers)

    def policy(self) -> dict[str, object]:
        """Returns how to go on where models do not match, as the commit records it."""
        return {
            "on_missing": self.on_missing,
            "heads": self.heads,
            "head_names": list(self.head_names),
            "integers": self.integers,
            "files": self.files,
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for: `revs` besides HEAD. `gates` are bars the result must clear on `data`.

    `trial` is what is to be found out on `data` first.
    """

    revs: tuple[str, ...]
    choices: Choices = Choices()
    message: str | None = None
    fast_forward: bool = True
    dry_run: bool = False
    gates: tuple[str, ...] = ()
    data: str | None = None
    trial: Trial = field(default_factory=Trial)


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
    base: str | None = None
    heads: tuple[MergedHead, ...] = ()
    copied: int = 0
    recipes: int = 0
    computed: int = 0
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that nothing speaks against: the versions in order, a plan for each weight file, the other files."""

    heads: tuple[MergedHead, ...]
    versions: tuple[Version, ...]
    base: Version | None
    method: Method
    choices: Choices
    plans: Mapping[str, Plan]
    files: Mapping[str, Blob]
    records: tuple[Record | None, ...]
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True, slots=True)
class Made:
    """The weight files of a merge, their objects in the store."""

    results: Mapping[str, MergeResult]

    def manifests(self) -> dict[str, Manifest]:
        """Returns the merged weight files."""
        return {path: result.manifest for path, result in self.results.items()}

    def count(self, action: Literal["copied", "recipe", "computed"]) -> int:
        """Returns how many tensors came about that way."""
        return sum(result.counts()[action] for result in self.results.values())
