"""Carrying a training out: from commits in the store to a commit, with all that is needed to repeat it."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelgit.errors import TrainingError, UsageError
from modelgit.events import Listener
from modelgit.formats.manifest import Manifest
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.tensors import Tensor, load_state, numpy_version, raw_tensors, torch_version
from modelgit.porcelain.training.adapting import CONFIG, refuse_adapter, state_at
from modelgit.porcelain.training.adapting import FILE as ADAPTER_FILE
from modelgit.porcelain.training.adapting import written as adapter_config
from modelgit.porcelain.training.designs import design_of
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob, CommitDraft, Version
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import stored_header
from modelgit.train.memory import ANYTHING, memory_for
from modelgit.train.networks.factory import source_digest
from modelgit.train.task import Start, TrainResult, Workbench, fine_tune, fine_tune_many, probe
from modelgit.version import VERSION

RUNS_FOLDER = "cache/runs"
CPU_INFO = Path("/proc/cpuinfo")


@memory_for("training", ANYTHING)
def train(repo: Repository, bench: Workbench, request: TrainRequest) -> TrainResult:
    """Returns the outcome of a fine-tuning or a probe."""
    init, design = starting_state(repo, request), design_of(repo, request.start, request.architecture)
    if request.kind == "probe":
        return probe(bench, init, design, request.data, request.config)
    fresh, bench.resume = wants_head(repo, bench, request), saved_in(repo, request)
    return fine_tune(bench, init, design, request.data, request.config, fresh_head=fresh)


@memory_for("training", ANYTHING)
def train_together(
    repo: Repository, bench: Workbench, requests: Sequence[TrainRequest], listeners: Sequence[Listener]
) -> list[TrainResult]:
    """Returns the outcomes of fine-tunings that share their passes, each with a listener of its own.

    Raises:
        TrainingError: they do not go together, or one of them went wrong.
    """
    first = requests[0]
    design = design_of(repo, first.start, first.architecture)
    if any(design_of(repo, other.start, other.architecture) != design for other in requests):
        raise TrainingError("their networks are described differently")
    starts = []
    for one, listener in zip(requests, listeners, strict=True):
        init, fresh = starting_state(repo, one), wants_head(repo, bench, one)
        starts.append(Start(init, one.config, fresh, listener, saved_in(repo, one)))
    return fine_tune_many(bench, design, first.data, starts)


def wants_head(repo: Repository, bench: Workbench, request: TrainRequest) -> bool:
    """Tells whether a fine-tuning begins with a new head: where it starts there is none for the data's classes."""
    dataset, _ = bench.dataset(request.data)
    origin = read_record(repo, request.head or request.start)
    return origin is None or origin.classes != dataset.classes


def saved_in(repo: Repository, request: TrainRequest) -> Path | None:
    """Returns the file that a run goes on from, None if it is not to be kept."""
    return run_file(repo, request.key) if request.key else None


def run_file(repo: Repository, key: str) -> Path:
    """Returns where a run under way is kept between its evaluations."""
    return repo.git_dir / "modelgit" / RUNS_FOLDER / f"{key}.safetensors"


def starting_state(repo: Repository, request: TrainRequest) -> dict[str, Tensor]:
    """Returns the start's tensors, with the head of another version if the request names one."""
    source = weights_of(repo, request.start)
    refuse_adapter(source, request.start)
    init = load_state(source)
    if request.head is None:
        return init
    record = read_record(repo, request.head)
    names = record.head if record is not None else ()
    return {**init, **state_at(repo, request.head, names)}


# ------------------------------------------------------------------------------------------------ the commit


def commit_result(
    repo: Repository, request: TrainRequest, result: TrainResult, files: Mapping[str, Blob] | None = None
) -> str:
    """Returns the commit that holds the result; no ref leads to it yet. Its other files are `files`, or the start's."""
    kept = repo.version(request.start).files if files is None else files
    chosen = chosen_step(request, result)
    if result.raw is None:
        whole = Part(result.state, request.start, parents(repo, request), kept, chosen)
        return commit_state(repo, request, result, whole)
    said = f", before {request.config.averaging.name} averaging"
    below = Part(result.raw, request.start, parents(repo, request), kept, said)
    raw = commit_state(repo, request, result, below)
    return commit_state(repo, request, result, Part(result.state, raw, (raw,), kept, chosen))


def chosen_step(request: TrainRequest, result: TrainResult) -> str:
    """Returns a word for the subject, unless it was given, where the weights kept are not those of the last step."""
    last = result.history[-1].step if result.history else 0
    return "" if request.message or result.kept_step in (None, last) else f", step {result.kept_step} kept"


Place = tuple[str, Manifest | None, Mapping[str, str], dict[str, Blob | bytes]]  # path, parent, metadata, other files


@dataclass(frozen=True, slots=True)
class Part:
    """One state of a run to commit: the version it is stored as a difference to, its parents, the other files.

    `said` is a word for the subject.
    """

    state: Mapping[str, Tensor]
    near: str
    parents: tuple[str, ...]
    files: Mapping[str, Blob]
    said: str = ""


def commit_state(repo: Repository, request: TrainRequest, result: TrainResult, part: Part) -> str:
    """Returns the commit of one state of a run."""
    path, parent, metadata, files = place_of(repo, request, result, part)
    with repo.store.begin() as pack:
        manifest = store_tensors(pack, raw_tensors(part.state), metadata, parent)
        pack.commit()
    record = Record(request.kind, request.architecture, result.classes, result.head, details(repo, request, result))
    step = (("Step", request.step), ("Step-Key", request.key)) if request.step else ()
    draft = CommitDraft(
        parents=part.parents,
        files={**files, path: manifest, RECORD_PATH: write_record(record)},
        message=(request.message or message(request)) + part.said,
        trailers=(*step, ("Data-Digest", result.data_digest)),
    )
    return repo.commit(draft)


def place_of(repo: Repository, request: TrainRequest, result: TrainResult, part: Part) -> Place:
    """Returns where the weights of a state go; an adapter stands alone, with its configuration, for its base."""
    kept: dict[str, Blob | bytes] = {path: blob for path, blob in part.files.items() if path != RECORD_PATH}
    lora = request.config.lora
    if lora is None or request.kind == "probe":
        path = weights_path(repo.version(part.near))
        parent = repo.version(part.near).manifests[path]
        return path, parent, stored_header(repo.store, parent).metadata, kept
    kept = {path: blob for path, blob in kept.items() if not path.endswith(WEIGHTS_SUFFIX)}
    head = (result.head[0], result.head[1])
    table = adapter_config(lora, part.state, head, request.start, turned=result.turned)
    return ADAPTER_FILE, repo.version(part.near).manifests.get(ADAPTER_FILE), {"format": "pt"}, {**kept, CONFIG: table}


def weights_path(version: Version) -> str:
    """Returns the path of a version's only weight file. Raises UsageError if it has none, or several."""
    if len(version.manifests) != 1:
        found = ", ".join(sorted(version.manifests)) or "none"
        hint = "train a version whose weights are in one file"
        raise UsageError(f"{version.commit[:10]}: expected one weight file to train, got {found}", hint=hint)
    return next(iter(version.manifests))


def parents(repo: Repository, request: TrainRequest) -> tuple[str, ...]:
    """Returns the versions that the result descends from: its start, then the one whose head it took."""
    both = [request.start, *([request.head] if request.head else [])]
    return tuple(repo.independent(both))


def message(request: TrainRequest) -> str:
    """Returns what the commit says of itself."""
    data, name = Path(request.data.path).stem, f"{request.step}: " if request.step else ""
    if request.kind == "probe":
        return f"{name}{'linear' if name else 'Linear'} probe on {data}"
    word = "fine-tune" if name else "Fine-tune"
    return f"{name}{word} on {data}, {request.config.steps} steps, learning rate {request.config.lr:g}"


def details(repo: Repository, request: TrainRequest, result: TrainResult) -> dict[str, Any]:
    """Returns all that is needed to repeat the training, and how it went."""
    return {
        "data": {
            **asdict(request.data),
            "path": told_path(repo, Path(request.data.path)),
            "digest": result.data_digest,
            "trained_on": dict(result.trained_on),
        },
        "config": asdict(request.config),
        "start": request.start,
        "head_from": request.head,
        "history": [asdict(point) for point in result.history],
        **({"kept_step": result.kept_step} if result.kept_step is not None else {}),
        "device": result.device,
        **({"factory_digest": found} if (found := source_digest(request.architecture)) is not None else {}),
        "machine": {
            "cpu": cpu_name(),
            "threads": request.threads,
            "processes": request.processes,
            "together": result.together,
        },
        "seconds": round(result.seconds, 2),
        "versions": {
            "modelgit": VERSION,
            "numpy": numpy_version(),
            "python": platform.python_version(),
            "torch": torch_version(),
        },
    }


def told_path(repo: Repository, path: Path) -> str:
    """Returns where the data lies as others may read it: relative to the work tree, or its name alone."""
    inside = repo.worktree is not None and path.resolve().is_relative_to(repo.worktree.resolve())
    return path.resolve().relative_to(repo.worktree.resolve()).as_posix() if inside and repo.worktree else path.name


def cpu_name() -> str:
    """Returns what the processor calls itself, the architecture where it does not say."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())
