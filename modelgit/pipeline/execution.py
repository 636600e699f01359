"""Carrying one request out: load from the store, train or score, commit."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from modelgit.events import Event, Noted
from modelgit.pipeline.keys import keep
from modelgit.pipeline.messages import Done, Request, ScoreRequest, TrainRequest
from modelgit.pipeline.worker import serve
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.scores import known_model, split_images, split_values, workbench
from modelgit.porcelain.tensors import Tensor, load_state, load_tensor, numpy_version, raw_tensors, torch_version
from modelgit.porcelain.versions import DEFAULT_PATH, weights_of
from modelgit.repo.repository import Repository
from modelgit.repo.values import CommitDraft
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import stored_header
from modelgit.train.evaluate import Scores
from modelgit.train.fitting.resuming import Resume
from modelgit.train.task import TrainResult, Workbench, fine_tune, probe, score_ensemble
from modelgit.version import VERSION

Say = Callable[[Event], None]
RUNS_FOLDER = "cache/runs"


def execute(repo: Repository, bench: Workbench, request: Request, say: Say) -> Done:
    """Returns the commit that the request made or scored, with its scores.

    Raises:
        ModelgitError: what went wrong; nothing was committed then.
    """
    bench.listener = say
    if isinstance(request, ScoreRequest):
        states = (load_state(weights_of(repo, commit)) for commit in request.members or (request.commit,))
        scores = score_ensemble(bench, states, known_model(repo, request.commit), request.data, request.frozen_stages)
        return Done(request.step, request.commit, as_table(scores))
    result = train(repo, bench, request)
    commit = commit_result(repo, request, result)
    Resume(run_file(repo, request.key)).drop()
    return Done(request.step, commit, as_table(result.scores))


def as_table(scores: Scores) -> dict[str, Any]:
    """Returns scores as they travel and are noted."""
    return {**split_values(scores), "images": split_images(scores)}


def train(repo: Repository, bench: Workbench, request: TrainRequest) -> TrainResult:
    """Returns the outcome of a fine-tuning or a probe."""
    init = starting_state(repo, request)
    if request.kind == "probe":
        return probe(bench, init, request.architecture, request.data, request.config)
    dataset, _ = bench.dataset(request.data)
    origin = read_record(repo, request.head or request.start)
    fresh = origin is None or origin.classes != dataset.classes
    bench.resume = run_file(repo, request.key)
    return fine_tune(bench, init, request.architecture, request.data, request.config, fresh_head=fresh)


def run_file(repo: Repository, key: str) -> Path:
    """Returns where a run under way is kept between its evaluations."""
    return repo.git_dir / "modelgit" / RUNS_FOLDER / f"{key}.safetensors"


def starting_state(repo: Repository, request: TrainRequest) -> dict[str, Tensor]:
    """Returns the start's tensors, with the head of another version if the request names one."""
    init = load_state(weights_of(repo, request.start))
    if request.head is None:
        return init
    record = read_record(repo, request.head)
    source = weights_of(repo, request.head)
    names = record.head if record is not None else ()
    return {**init, **{name: load_tensor(source, name) for name in names}}


def commit_result(repo: Repository, request: TrainRequest, result: TrainResult) -> str:
    """Returns the commit that holds the result; its step's ref keeps it."""
    if result.raw is None:
        made = commit_state(repo, request, result, Part(result.state, request.start, parents(repo, request)))
    else:
        said = f", before {request.config.averaging.name} averaging"
        raw = commit_state(repo, request, result, Part(result.raw, request.start, parents(repo, request), said))
        made = commit_state(repo, request, result, Part(result.state, raw, (raw,)))
    return keep(repo, request.key, made)


@dataclass(frozen=True, slots=True)
class Part:
    """One state of a run to commit: the version it is stored as a difference to, its parents, a word in the subject."""

    state: Mapping[str, Tensor]
    near: str
    parents: tuple[str, ...]
    said: str = ""


def commit_state(repo: Repository, request: TrainRequest, result: TrainResult, part: Part) -> str:
    """Returns the commit of one state of a run."""
    parent = repo.version(part.near).manifests[DEFAULT_PATH]
    metadata = stored_header(repo.store, parent).metadata
    with repo.store.begin() as pack:
        manifest = store_tensors(pack, raw_tensors(part.state), metadata, parent)
        pack.commit()
    record = Record(request.kind, request.architecture, result.classes, result.head, details(request, result))
    kept = {path: blob for path, blob in repo.version(request.start).files.items() if path != RECORD_PATH}
    draft = CommitDraft(
        parents=part.parents,
        files={**kept, DEFAULT_PATH: manifest, RECORD_PATH: write_record(record)},
        message=message(request, result) + part.said,
        trailers=(("Step", request.step), ("Step-Key", request.key), ("Data-Digest", result.data_digest)),
    )
    return repo.commit(draft)


def parents(repo: Repository, request: TrainRequest) -> tuple[str, ...]:
    """Returns the versions that the result descends from: its start, then the one whose head it took."""
    both = [request.start, *([request.head] if request.head else [])]
    return tuple(repo.independent(both))


def message(request: TrainRequest, result: TrainResult) -> str:
    """Returns what the commit says of itself."""
    data = Path(request.data.path).stem
    if request.kind == "probe":
        return f"{request.step}: linear probe on {data}"
    return f"{request.step}: fine-tune on {data}, {request.config.steps} steps, learning rate {request.config.lr:g}"


def details(request: TrainRequest, result: TrainResult) -> dict[str, Any]:
    """Returns all that is needed to repeat the training, and how it went."""
    return {
        "data": {**asdict(request.data), "path": Path(request.data.path).name, "digest": result.data_digest},
        "config": asdict(request.config),
        "start": request.start,
        "head_from": request.head,
        "history": [asdict(point) for point in result.history],
        "device": result.device,
        "seconds": round(result.seconds, 2),
        "versions": {
            "modelgit": VERSION,
            "numpy": numpy_version(),
            "python": platform.python_version(),
            "torch": torch_version(),
        },
    }


def work(place: Path, device: str, requests: IO[str], replies: IO[str]) -> None:
    """Serves requests about the repository at `place` until they end."""
    repo = Repository.open(place)
    bench = workbench(repo, device)

    def carry_out(request: Request, say: Say) -> Done:
        return execute(repo, bench, request, lambda event: say(about(request.step, event)))

    serve(requests, replies, carry_out)


def about(step: str, event: Event) -> Event:
    """Returns the event with the step in its name: two workers may be at like tasks."""
    return event if isinstance(event, Noted) else replace(event, task=f"{step}: {event.task}")
