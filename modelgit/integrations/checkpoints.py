"""A checkpoint of a framework as a commit: its weights and small text files, with step, epoch and metrics."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from modelgit.errors import FormatError, ModelgitError, UsageError
from modelgit.formats.manifest import relatives
from modelgit.porcelain.executing import environment
from modelgit.porcelain.importing import Files, imported_record, kept, ordinary
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.tensors import Tensor, raw_tensors
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.porcelain.work import land, refuse_shared_branch
from modelgit.repo.gitdir import GitDirectory, check_path
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import CommitDraft, Version
from modelgit.store.files.intake import store_file, store_tensors

TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".md")
LEFT_OUT = ("trainer_state.json",)
DEFAULT_MESSAGE = "Checkpoint at step {step}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a training logged, and the step at which it did."""

    name: str
    value: float
    step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved, a folder or a state dict, and where the training was; `details` is for the record too."""

    saved: Path | Mapping[str, object]
    message: str
    step: int
    epoch: float
    metrics: tuple[Metric, ...] = ()
    details: Mapping[str, Any] | None = None

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Returns step, epoch and metrics as trailers; of a metric of another step, which one."""
        rows = [
            f"{metric.name}={metric.value:.6g}" + ("" if metric.step == self.step else f" at step {metric.step}")
            for metric in self.metrics
        ]
        place = (("Training-Step", str(self.step)), ("Training-Epoch", f"{self.epoch:.6g}"))
        return (*place, *(("Metric", row) for row in rows))


def commit_checkpoint(repo: Repository, checkpoint: Checkpoint, branch: str | None = None) -> str:
    """Commits a checkpoint to `branch`, the one checked out unless named, and returns the commit.

    Other files of the branch stay; shards that the model has no more go. A branch that is not there yet begins at HEAD.
    The work tree follows if the branch is checked out.

    Raises:
        FormatError: no safetensors files there, or something malformed. DirtyWorktree: local changes lie in the way.
        RepositoryError: the branch has moved meanwhile, or another work tree is on it. StorageFull.
    """
    current = repo.branch()
    target = branch or current
    if target is not None and target != current:
        refuse_shared_branch(repo, target)
    tip = repo.head() if target == current else repo.branches().get(target or "")
    parent = tip or repo.head()
    old = repo.version(parent) if parent else None
    store = stored if isinstance(checkpoint.saved, Path) else stored_state
    files = store(repo, checkpoint.saved, old)  # type: ignore[arg-type]  # the one for what was saved
    record = record_of(repo, checkpoint, files, parent)
    tree = {**kept(old, files), **files, RECORD_PATH: record}
    draft = CommitDraft((parent,) if parent else (), tree, checkpoint.message, checkpoint.trailers())
    made = repo.commit(draft)
    if target == current:
        land(repo, made, expected=tip, reason=f"commit: checkpoint of step {checkpoint.step}")
    else:
        repo.set_ref(f"refs/heads/{target}", made, expected=tip, reason=f"commit: checkpoint of step {checkpoint.step}")
    return made


def stored(repo: Repository, folder: Path, old: Version | None) -> Files:
    """Returns the files of a checkpoint that belong to the model, its tensors stored. Raises FormatError."""
    files: Files = {}
    with repo.store.begin() as pack:
        for file in saved_files(folder):
            path = check_path(file.name, str(folder))
            if path.endswith(WEIGHTS_SUFFIX):
                files[path] = store_file(pack, file, relatives(old.manifests if old else {}, path))
            else:
                files[path] = ordinary(file, path)
        pack.commit()
    return files


def stored_state(repo: Repository, state: Mapping[str, object], old: Version | None) -> Files:
    """Returns the weight file of a state dict, its tensors stored. Raises FormatError for what is no tensor."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state) or not tensors:
        others = (f"'{name}' is a {type(value).__name__}" for name, value in state.items() if name not in tensors)
        told = f"the state dict: expected tensors by name, got {next(others, 'none')}"
        hint = "a sharded training state is to be gathered first"
        raise FormatError(told, hint=hint)
    parent = old.manifests.get(DEFAULT_PATH) if old else None
    with repo.store.begin() as pack:
        manifest = store_tensors(pack, raw_tensors(tensors), {"format": "pt"}, parent)
        pack.commit()
    return {DEFAULT_PATH: manifest}


def saved_files(folder: Path) -> list[Path]:
    """Returns weights, configuration and tokenizer of a checkpoint; not what only a resumed training needs.

    Raises:
        FormatError: no such folder, or no safetensors files in it.
    """
    try:
        found = sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink())
    except OSError as error:
        raise FormatError(f"{folder}: no checkpoint to commit: {error.strerror}") from error
    if not any(file.name.endswith(WEIGHTS_SUFFIX) for file in found):
        names = ", ".join(file.name for file in found[:5]) or "nothing"
        hint = "save the model as safetensors; sharded training states (FSDP, DeepSpeed) are to be gathered first"
        raise FormatError(f"{folder}: expected .safetensors files, got {names}", hint=hint)
    return [
        file for file in found if file.name.endswith((WEIGHTS_SUFFIX, *TEXT_SUFFIXES)) and file.name not in LEFT_OUT
    ]


def record_of(repo: Repository, checkpoint: Checkpoint, files: Files, parent: str | None) -> bytes:
    """Returns the record: what the model is, and where in its training it was saved."""
    old = read_record(repo, parent) if parent else None
    details = {
        **(checkpoint.details or {}),
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "metrics": {m.name: {"value": m.value, "step": m.step} for m in checkpoint.metrics if math.isfinite(m.value)},
        "environment": environment(),
    }
    saved = checkpoint.saved
    described = saved if isinstance(saved, Path) and "config.json" in files else None
    said = imported_record(described, files) if described is not None else old or Record("commit")
    return write_record(replace(said, kind="commit", details=details))


def latest(log: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Returns the last value of each number in a log of rows with a `step`; times and speeds are no metrics."""
    found: dict[str, Metric] = {}
    for row in log:
        for name, value in row.items():
            if is_metric(name, value):
                found[name] = Metric(name, float(value), int(row.get("step", 0)))
    return tuple(found[name] for name in sorted(found))


def is_metric(name: str, value: object) -> bool:
    """Tells whether an entry of a log is a number that says how good a model is."""
    if name in ("step", "epoch", "total_flos") or name.endswith(("_runtime", "_per_second")):
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def filled(template: str, **fields: object) -> str:
    """Returns a message with the fields put in. Raises UsageError, naming those that there are."""
    try:
        text = template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join("{" + name + "}" for name in fields)
        raise UsageError(f"message {template!r}: {error}", hint=f"fields: {known}; a brace is written twice") from error
    if not text.strip():
        raise UsageError("empty commit message", hint='say what is saved: message="BERT, step {step}"')
    return text


# ------------------------------------------------------------------------------------- what callbacks have in common


class Committing:
    """What callbacks do with checkpoints, whoever calls them: one that cannot be committed ends no training.

    `commits` are those made, `failed` the steps whose checkpoints could not be committed.
    """

    def begin(self, repository: str | PathLike[str], branch: str | None, message: str, *, strict: bool) -> None:
        """Makes the repository if it is not there. Raises RepositoryError, UsageError: what cannot be."""
        made_ready(Path(repository), branch, message)
        self.repository, self.branch, self.message, self.strict = Path(repository), branch, message, strict
        self.commits: list[str] = []
        self.failed: list[int] = []

    def attempt(self, step: int, checkpoint: Callable[[], Checkpoint]) -> None:
        """Commits the checkpoint of a step; an error is a warning unless the callback is strict."""
        try:
            self.commits.append(commit_checkpoint(Repository.open(self.repository), checkpoint(), self.branch))
        except Exception as error:  # days of training are worth more than any one commit
            if self.strict:
                raise
            self.failed.append(step)
            warnings.warn(not_committed(step, error), RuntimeWarning, stacklevel=3)

    def end(self, place: str) -> None:
        """Says once more, where it is not scrolled away, which checkpoints were not committed."""
        if self.failed:
            warnings.warn(all_not_committed(self.failed, place), RuntimeWarning, stacklevel=3)


def made_ready(repository: Path, branch: str | None, message: str) -> None:
    """Makes a repository if it is not there.

    Raises:
        RepositoryError, UsageError: a place, branch or message that cannot be.
    """
    filled(message, step=0, epoch=0.0, run="")
    check_branch(branch)
    new = not repository.exists()
    Repository.init(repository, branch=branch if new and branch else "main")


def check_branch(branch: str | None) -> None:
    """Refuses what may not be a branch's name. Raises UsageError."""
    if branch is None:
        return
    code, _, _ = GitDirectory(Path.cwd()).attempt("check-ref-format", f"refs/heads/{branch}")
    if code or branch.startswith("-"):
        raise UsageError(f"'{branch}' may not be a branch's name", hint="letters, digits, -, _ and / may")


def not_committed(step: int, error: Exception) -> str:
    """Returns what to say of a checkpoint that could not be committed."""
    hint = f" ({error.hint})" if isinstance(error, ModelgitError) and error.hint else ""
    what = f"{error}" if isinstance(error, ModelgitError) else f"{type(error).__name__}: {error}"
    return f"modelgit: the checkpoint of step {step} was not committed: {what}{hint}"


def all_not_committed(steps: Sequence[int], place: str) -> str:
    """Returns what to say at the end of all of them; `place` is where the framework saved them."""
    listed = ", ".join(map(str, steps))
    return (
        f"modelgit: {len(steps)} checkpoints were not committed, those of steps {listed}; what was saved is in {place}"
    )
