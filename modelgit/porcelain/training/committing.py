"""Committing a fine-tuning: what a recipe says is carried out on HEAD, and the branch moves to the result.

Everything that could speak against it is looked at before the first step; the files and the branch come last.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from blake3 import blake3

from modelgit.errors import DataError, DirtyWorktree, ModelgitError, RecipeError, RepositoryError, StorageFull
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.porcelain.records import read_record
from modelgit.porcelain.scores import note_scores, split_images, split_values, trained_size, workbench
from modelgit.porcelain.training.leaking import refuse_leaks
from modelgit.porcelain.training.running import commit_result, run_file, train, weights_path
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import contents_id
from modelgit.porcelain.work import land, some, tensor_changes
from modelgit.recipe.single import Recipe
from modelgit.repo import worktree
from modelgit.repo.merging.underway import refuse_conflicts, refuse_merge
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob
from modelgit.store.objects import available_threads
from modelgit.train.data.splits import refuse_untrained_class
from modelgit.train.fitting.crews import SOLO, Crew, joining
from modelgit.train.fitting.resuming import Resume
from modelgit.train.networks.registry import check_architecture
from modelgit.train.task import TrainResult, Workbench

COPIES = 4  # of the weights on disk at most, while a run is saved: weights, two moments, an average


@dataclass(frozen=True, slots=True)
class Trained:
    """A fine-tuning that was committed: where it went, on what it ran, what it scored (on how many examples each).

    `kept_step` is after which of the steps the weights were there, where those are kept that validated best, else None.
    `start_accuracy` is the validation accuracy before the first step, where it is known; `fell` tells that the result's
    is below it, by more than a standard error.
    `changed` and `same` count tensors; `stored_bytes` is what it added to the object store, of `size_bytes`.
    """

    commit: str
    branch: str | None
    subject: str
    parents: tuple[str, ...]
    kind: Literal["train", "probe"]
    data: str
    device: str
    threads: int
    steps: int
    seconds: float
    values: Mapping[str, float]
    images: Mapping[str, int]
    changed: int
    same: int
    size_bytes: int
    stored_bytes: int
    kept_step: int | None = None
    start_accuracy: float | None = None
    fell: bool = False


def starting_size(repo: Repository) -> int | None:
    """Returns the pixels to a side that HEAD was trained at: what a recipe goes on with where it sets none."""
    head = repo.head()
    return trained_size(repo, head) if head is not None else None


def commit_recipe(repo: Repository, recipe: Recipe, listener: Listener = ignore, crew: Crew = SOLO) -> Trained:
    """Carries the recipe out on HEAD and commits the result to the branch checked out.

    Changed files and staged ones are committed with it, as `commit` does; changed weights are refused. Of a crew the
    first process does all that, the others `assist`.

    Raises:
        DirtyWorktree, RepositoryError, RecipeError, DataError, StorageFull, TrainingError: before the first step, where
        that can be known; nothing has changed then.
    """
    refuse_weights(repo)
    before = repo.packed_bytes()
    request, result = carried_out(repo, recipe, listener, crew)
    made = commit_result(repo, request, result, files_of(repo, listener))
    arrive(repo, made, request.start, listener)
    Resume(run_file(repo, request.key)).drop()
    note_scores(repo, made, Path(request.data.path).stem, (request.data, result.data_digest), result.scores)
    return report(repo, request, result, made, repo.packed_bytes() - before)


def assist(repo: Repository, recipe: Recipe, crew: Crew) -> None:
    """Takes this process's part in a recipe that the first of the crew commits; changes nothing. Raises as it does."""
    carried_out(repo, recipe, ignore, crew)


def carried_out(repo: Repository, recipe: Recipe, listener: Listener, crew: Crew) -> tuple[TrainRequest, TrainResult]:
    """Returns what a recipe asks of HEAD, and what came of it."""
    head = repo.head()
    if head is None:
        raise RepositoryError("there is no version to train yet", hint="begin with weights: modelgit import FILE")
    threads = recipe.threads or max(1, available_threads() // crew.size)
    request = replace(request_of(repo, head, replace(recipe, threads=threads)), processes=crew.size)
    bench = workbench(repo, recipe.device, threads, listener)
    bench.crew = crew
    request = replace(request, key=checked(repo, bench, request))
    with joining(crew, bench.device):
        return request, train(repo, bench, request)


def refuse_weights(repo: Repository) -> None:
    """Refuses changed weights: what is trained is a version, so that the commit can name it. Raises DirtyWorktree."""
    if repo.worktree is None:
        return
    refuse_conflicts(repo)
    refuse_merge(repo)
    changed = [change.path for change in worktree.status(repo).changes if change.path.endswith(WEIGHTS_SUFFIX)]
    if changed:
        hint = "commit them first: modelgit commit -m MSG; or set them aside: modelgit stash"
        raise DirtyWorktree(f"training starts from HEAD, and there are changed weights: {some(changed)}", hint=hint)


def request_of(repo: Repository, head: str, recipe: Recipe) -> TrainRequest:
    """Returns what is asked for, by value and by commit.

    Raises:
        RecipeError: no architecture, an unknown one, or another than the version's. RevisionError: no such head.
    """
    record = read_record(repo, head)
    known = record.architecture if record is not None else None
    architecture = recipe.architecture or known
    if architecture is None:
        hint = 'say it in the recipe: architecture = "…"'
        raise RecipeError(f"no record says which network {head[:10]} is, nor does the recipe", hint=hint)
    if known is not None and architecture != known:
        raise RecipeError(f"architecture = '{architecture}': {head[:10]} is {known}", hint="leave it out")
    check_architecture(architecture)
    source = repo.resolve(recipe.head) if recipe.head else None
    if recipe.message is not None and not recipe.message.strip():
        raise RecipeError("message: expected some words, got none", hint='-m "…", or leave it out')
    asked = TrainRequest("", recipe.kind, "", architecture, head, source, recipe.data, recipe.train)
    return replace(asked, threads=recipe.threads, message=recipe.message)


def checked(repo: Repository, bench: Workbench, request: TrainRequest) -> str:
    """Returns what names the run, once data, head and disk are as it needs them.

    Raises:
        DataError: data that is missing, does not fit, or was trained on before what is tested now. StorageFull.
    """
    dataset, parts = bench.dataset(request.data)
    refuse_untrained_class(dataset, parts, request.data)
    version = repo.version(request.start)
    manifest = version.manifests[weights_path(version)]
    if request.head is not None:
        taken = read_record(repo, request.head)
        if taken is None or taken.classes != dataset.classes or not taken.head:
            known = ", ".join(taken.classes) if taken is not None else ""
            told = (
                f"head = {request.head[:10]}: expected a head for {', '.join(dataset.classes)}, got {known or 'none'}"
            )
            raise DataError(told, hint="leave head out: a new one is learned")
    refuse_leaks(repo, request.start, dataset, request.data)
    refuse_full_disk(repo, manifest, saved=bool(request.config.eval_every))
    settings = {key: value for key, value in asdict(request.data).items() if key != "path"}
    config = asdict(request.config)
    whole: list[object] = [request.kind, contents_id(version), request.head, dataset.digest, settings, config]
    whole += [request.threads, request.processes]
    return blake3(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def refuse_full_disk(repo: Repository, manifest: Manifest, *, saved: bool) -> None:
    """Refuses to begin what could not be kept at the end. Raises StorageFull."""
    wanted = manifest.size_bytes * (COPIES + 2 if saved else 2)
    free = shutil.disk_usage(repo.git_dir).free
    if free < wanted:
        what = f"{free / 1e6:,.0f} MB free at {repo.git_dir}, expected {wanted / 1e6:,.0f} MB for the result"
        raise StorageFull(what, hint="free some space first; modelgit du shows what is kept")


def files_of(repo: Repository, listener: Listener) -> dict[str, Blob] | None:
    """Returns the ordinary files as they are now, staged, for the commit; None where there is no work tree."""
    if repo.worktree is None:
        return None
    staged = worktree.add(repo, listener=listener)
    return {path: blob for path, blob in staged.items() if not path.endswith(WEIGHTS_SUFFIX)}


def arrive(repo: Repository, made: str, head: str, listener: Listener, reason: str = "commit: recipe") -> None:
    """Moves branch and files to the result. Raises what stood in the way, saying where the result is."""
    try:
        land(repo, made, listener, expected=head, reason=reason)
    except ModelgitError as error:
        hint = f"the result is commit {made}: modelgit merge {made[:10]} takes it in"
        raise type(error)(error.message, hint=hint) from error


def report(repo: Repository, request: TrainRequest, result: TrainResult, made: str, stored: int) -> Trained:
    """Returns what came of it."""
    version = repo.version(made)
    added, changed, _, same = tensor_changes(repo.version(request.start).manifests, version.manifests)
    return Trained(
        commit=made,
        branch=repo.branch(),
        subject=version.entry.subject,
        parents=version.entry.parents,
        kind=request.kind,
        data=Path(request.data.path).stem,
        device=result.device,
        threads=request.threads,
        steps=result.history[-1].step if result.history else 0,
        seconds=result.seconds,
        values=split_values(result.scores),
        images=split_images(result.scores),
        changed=changed + added,
        same=same,
        size_bytes=sum(manifest.size_bytes for manifest in version.manifests.values()),
        stored_bytes=stored,
        kept_step=result.kept_step,
        start_accuracy=next((point.val_accuracy for point in result.history if point.step == 0), None),
        fell=result.fell,
    )
