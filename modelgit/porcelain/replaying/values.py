"""What a replay is told, what it is made of, what it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modelgit.errors import Conflict
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.porcelain.records import Record
from modelgit.repo.values import Blob, Version

Verb = Literal["cherry-pick", "revert", "rebase"]
Side = Literal["ours", "theirs", "sum"]
Content = Blob | bytes


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asks for. `scale` None is git's meaning: the change as a whole, and what is there already stays.

    `tensors` and `files` say what happens where a change cannot be added: refuse, or leave HEAD's as they are. `again`
    applies a change that HEAD has already once more.
    """

    scale: float | None = None
    message: str | None = None
    mainline: int | None = None
    tensors: Literal["error", "ours"] = "error"
    files: Literal["error", "ours"] = "error"
    commit: bool = True
    dry_run: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """How one change is applied, as its commit records it.

    `alike` is what happens to a tensor that is already as the change would leave it: it is kept, or added to again.
    """

    scale: float = 1.0
    alike: Literal["keep", "add"] = "keep"
    tensors: Literal["error", "ours"] = "error"
    files: Literal["error", "ours"] = "error"


@dataclass(frozen=True, slots=True)
class Change:
    """The task vector of the commit `source`: from the version `base` to `theirs`, which a revert has the other way."""

    verb: Verb
    source: str
    base: str
    theirs: str
    choices: Choices


@dataclass(frozen=True, slots=True)
class Image:
    """The content of a version, made or only planned: planned tensors have ids that no object has."""

    name: str
    manifests: Mapping[str, Manifest]
    files: Mapping[str, Content]  # without the record
    record: Record | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one tensor: ours, theirs, or ours + scale * (theirs - base); `inputs` in that order."""

    name: str
    side: Side
    inputs: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """One weight file that is put together from three; where a version has no such file, None."""

    base: Manifest | None
    ours: Manifest | None
    theirs: Manifest | None
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A change to which nothing structural stands in the way: each weight file as it is to be, the other files."""

    change: Change
    ours: Image
    base: Version
    theirs: Version
    weights: Mapping[str, Manifest | WeightPlan]
    files: Mapping[str, Content]
    record: Record | None  # what it will say of the model
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about weight files or others; `conflicts` are reasons against going on."""

    weights: Mapping[str, Manifest | WeightPlan]
    conflicts: tuple[Conflict, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """One commit replayed: `source` is the original, `commit` the new one, None where none was made.

    Counts are of tensors: `kept` are as they were, `taken` those of the change, `recipes` and `computed` sums.
    """

    source: str
    base: str
    commit: str | None
    subject: str
    scale: float
    kept: int
    taken: int
    recipes: int
    computed: int
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replayed:
    """What cherry-pick, revert or rebase did, or with `dry_run` would do.

    `kind` is the verb, or for a rebase `fast-forward` or `up-to-date`; `onto` is the version the steps began at, `old`
    where the branch was. `commit` is None where nothing was committed. `skipped` are commits whose change was there
    already.
    """

    kind: str
    commit: str | None
    branch: str | None
    onto: str
    old: str
    steps: tuple[ReplayedStep, ...] = ()
    skipped: tuple[str, ...] = ()
    dry_run: bool = False
