"""Every error that modelgit raises on purpose, with the exit code a command ends with.

ModelgitError                  an error a person can act on
├── AnswerIsNo             1   the command worked and the answer is no
│   ├── MergeConflict      1   models that cannot be averaged as they are (`conflicts` lists why)
│   ├── GateFailed         1   a score lies below its bar
│   ├── DifferencesFound   1   a recomputation gave other ids
│   └── DamageFound        1   fsck found objects that are missing or wrong
├── UsageError             2   arguments that make no sense together
├── RepositoryError       10   not a repository, or one in a state that forbids the step
│   └── DirtyWorktree     10   changes that the step would overwrite
├── RevisionError         11   a name that no commit answers to
├── FormatError           12   a file that is not what it should be (safetensors, manifest, pack)
├── StoreError            13   objects
│   ├── MissingObject     13   an object that is not in the store
│   └── CorruptObject     13   an object whose bytes do not match its id
├── StorageFull           14   no space left, read-only, not permitted
├── RemoteError           15   a remote that is absent, refuses, or lacks objects
├── RecipeError           16   a recipe or pipeline that cannot be carried out as written
├── DataError             17   a data set that is missing, empty, or does not fit the model
├── TrainingError         18   a fine-tuning that went wrong (loss not finite, no device)
│   └── OutOfMemory       18   memory ran out in training, scoring, or whatever else is computed
├── DependencyMissing     19   an optional package that the step needs
├── ClusterError          20   a cluster that is out of reach, or does not take a job
└── NotEvaluated         125   a version that a gate cannot be asked about; `git bisect run` skips it

130 is the exit code of an interruption (Ctrl-C). Codes are only ever added.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ModelgitError(Exception):
    """An error a person can act on: what, where, expected, got; `hint` names the next step."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class AnswerIsNo(ModelgitError):
    """The command did its work, and the answer is no."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Conflict:
    """One reason why models cannot be merged: `kind` is a stable word, `where` a tensor or setting."""

    kind: str
    where: str
    expected: str
    got: str


class MergeConflict(AnswerIsNo):
    """Models that cannot be averaged as they are."""

    def __init__(self, message: str, conflicts: Sequence[Conflict] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.conflicts = tuple(conflicts)


class GateFailed(AnswerIsNo):
    """A score lies below its bar."""


class DifferencesFound(AnswerIsNo):
    """A recomputation gave other ids than those recorded."""


class DamageFound(AnswerIsNo):
    """Objects are missing or wrong."""


class UsageError(ModelgitError):
    """Arguments that make no sense, alone or together."""

    exit_code = 2


class RepositoryError(ModelgitError):
    """Not a repository, or one in a state that forbids the step."""

    exit_code = 10


class DirtyWorktree(RepositoryError):
    """The work tree holds changes that the step would overwrite."""


class RevisionError(ModelgitError):
    """A name that no commit answers to."""

    exit_code = 11


class FormatError(ModelgitError):
    """A file that is not what it should be."""

    exit_code = 12


class StoreError(ModelgitError):
    """The object store cannot give or take an object."""

    exit_code = 13


class MissingObject(StoreError, KeyError):
    """An object that is not in the store."""

    def __str__(self) -> str:
        return self.message


class CorruptObject(StoreError):
    """An object whose stored bytes do not give its id."""


class StorageFull(ModelgitError):
    """The file system refused a write: no space, read-only, or not permitted."""

    exit_code = 14


class RemoteError(ModelgitError):
    """A remote that is absent, refuses, or lacks objects."""

    exit_code = 15


class RecipeError(ModelgitError):
    """A recipe or pipeline that cannot be carried out as written."""

    exit_code = 16


class DataError(ModelgitError):
    """A data set that is missing, empty, or does not fit the model."""

    exit_code = 17


class TrainingError(ModelgitError):
    """A fine-tuning that went wrong."""

    exit_code = 18


class OutOfMemory(TrainingError):
    """Memory ran out, the machine's or a GPU's; the hint says what to turn down."""


class DependencyMissing(ModelgitError):
    """An optional package that the step needs is not installed."""

    exit_code = 19


class ClusterError(ModelgitError):
    """A cluster that is out of reach, or does not take a job."""

    exit_code = 20


class NotEvaluated(ModelgitError):
    """A version that cannot be scored, where a gate was to judge it; the code is the one that git bisect skips."""

    exit_code = 125
