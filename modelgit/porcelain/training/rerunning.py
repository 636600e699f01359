"""Training again what a commit says was trained, and comparing: the record is enough, but for the data itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelgit.errors import DataError, DifferencesFound, FormatError, RecipeError, UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.records import Record, read_record
from modelgit.porcelain.scores import workbench
from modelgit.porcelain.tensors import Tensor, load_state, torch_version
from modelgit.porcelain.training.running import train
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.recipe.binding import bind
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.task import Workbench

TRAINED = ("train", "probe")
TOLERANCE = 0.05  # of the length of the way from the start, where two devices cannot agree bit for bit
MAX_NAMED = 5
FOUND_OUT = ("digest", "trained_on")  # what the record says of the data beyond how it was asked for
State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Retrained:
    """A fine-tuning that was carried out again: `exact` if every bit agrees.

    Else `apart` is the distance of both results over the length of the way from the start, within the tolerance.
    """

    commit: str
    kind: str
    device: str
    tensors: int
    exact: bool
    apart: float


def rerun(repo: Repository, rev: str, data: str | None, device: str = "auto", listener: Listener = ignore) -> Retrained:
    """Trains again from what the commit's record says, on `data`, and compares. Stores nothing.

    Raises:
        UsageError: no data was named. DataError: it is other data. FormatError: the record is malformed.
        DifferencesFound: the weights are others: bit for bit where both runs were on a CPU, else beyond the tolerance.
    """
    commit, record = repo.resolve(rev), read_record(repo, rev)
    if record is None or record.kind not in TRAINED:
        raise UsageError(f"{rev} was not trained here", hint="verify --rerun wants a merge, or a step of a pipeline")
    if data is None:
        name = described(record, "data").get("path", "…")
        raise UsageError(f"{rev} was trained on {name}: say where that is", hint=f"--on PATH/TO/{name}")
    request = request_of(repo, commit, record, data)
    bench = workbench(repo, device, listener=listener)
    check_data(bench, request, described(record, "data"))
    result = train(repo, bench, request)
    recorded = load_state(weights_of(repo, commit))
    found = nearer(recorded, result.state, result.raw)
    different = [name for name in sorted(recorded) if not same_bits(recorded[name], found.get(name))]
    start = load_state(weights_of(repo, request.start))
    apart = distance(recorded, found, start) if different else 0.0
    both_cpu = result.device == "cpu" and record.details.get("device") == "cpu"
    if different and (both_cpu or apart > TOLERANCE):
        raise unlike(commit, record, different, apart)
    return Retrained(commit, record.kind, result.device, len(recorded), not different, apart)


def described(record: Record, key: str) -> Mapping[str, Any]:
    """Returns a table of the record. Raises FormatError if it has none."""
    table = record.details.get(key)
    if not isinstance(table, dict):
        raise FormatError(f"the record has no table '{key}'", hint="it was written by hand, or by another modelgit")
    return table


def request_of(repo: Repository, commit: str, record: Record, data: str) -> TrainRequest:
    """Returns what was asked for when the commit was made; `data` is where the data lies now."""
    try:
        config = bind(FineTune, described(record, "config"), "the record's config")
        split = {key: value for key, value in described(record, "data").items() if key not in FOUND_OUT}
        place = replace(bind(DataConfig, split, "the record's data"), path=data)
    except RecipeError as error:
        raise FormatError(f"{commit[:10]}: {error.message}", hint="the commit was made by another modelgit") from error
    inputs = [record.details.get("start"), record.details.get("head_from")]
    for name in inputs:
        if name is not None and not (isinstance(name, str) and repo.is_ancestor(repo.resolve(name), commit)):
            raise DifferencesFound(f"{commit[:10]} does not descend from {str(name)[:10]}, which its record names")
    start, head = inputs
    if start is None or record.architecture is None:
        raise FormatError(f"{commit[:10]}: the record names no start, or no architecture")
    kind: Literal["probe", "train"] = "probe" if record.kind == "probe" else "train"
    return TrainRequest(commit[:10], kind, "", record.architecture, start, head, place, config)


def check_data(bench: Workbench, request: TrainRequest, recorded: Mapping[str, Any]) -> None:
    """Raises DataError unless the data is what the commit was trained on."""
    digest = bench.dataset(request.data)[0].digest
    if digest != recorded.get("digest"):
        wanted = str(recorded.get("digest"))[:16]
        raise DataError(
            f"{request.data.path}: other data than {request.step} was trained on: expected digest {wanted}…, "
            f"got {digest[:16]}…",
            hint="the same files, and the same limit_per_class",
        )


def same_bits(one: Tensor, other: Tensor | None) -> bool:
    """Tells whether two tensors are equal, type, shape and values."""
    return other is not None and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def nearer(
    recorded: Mapping[str, Tensor], state: dict[str, Tensor], raw: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """Returns the result to compare with: the weights before averaging if the commit holds those."""
    holds_raw = raw is not None and all(same_bits(recorded[name], raw.get(name)) for name in recorded)
    return raw if raw is not None and holds_raw else state


def distance(one: State, other: State, start: State) -> float:
    """Returns |one - other| over |one - start|, over all tensors that the three have in one shape."""
    shared = [n for n in one if n in other and n in start and one[n].shape == other[n].shape == start[n].shape]
    apart = sum(float((one[n].double() - other[n].double()).square().sum()) for n in shared)
    way = sum(float((one[n].double() - start[n].double()).square().sum()) for n in shared)
    return float((apart / way) ** 0.5) if way else float("inf")


def unlike(commit: str, record: Record, different: list[str], apart: float) -> DifferencesFound:
    """Returns the error for a result that is another."""
    told = ", ".join(different[:MAX_NAMED]) + (f" and {len(different) - MAX_NAMED} more" * (len(different) > MAX_NAMED))
    versions = record.details.get("versions")
    made = versions.get("torch") if isinstance(versions, dict) else None
    other = f"; it was made with PyTorch {made}, this is {torch_version()}" if made != torch_version() else ""
    return DifferencesFound(
        f"training {commit[:10]} again gave other weights: {told}; "
        f"{100 * apart:.2g} % of the way from its start{other}",
        hint="bits agree on a CPU with the same PyTorch; else the commit is not what its record says",
    )
