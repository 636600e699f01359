"""Training again what a commit says was trained, and comparing: the record is enough, but for the data itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelgit.errors import DifferencesFound, FormatError, RecipeError, UsageError
from modelgit.events import Listener, Noted, ignore
from modelgit.porcelain.records import Record, read_record
from modelgit.porcelain.scores import workbench
from modelgit.porcelain.tensors import Tensor, load_state, torch_version
from modelgit.porcelain.training.adapting import together
from modelgit.porcelain.training.finding import find_data
from modelgit.porcelain.training.leaking import FOUND_OUT
from modelgit.porcelain.training.running import cpu_name, train, train_together
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.recipe.binding import bind
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.networks.factory import source_digest
from modelgit.train.task import TrainResult, Workbench
from modelgit.version import VERSION

TRAINED = ("train", "probe")
TOLERANCE = 0.05  # of the length of the way from the start, where two devices cannot agree bit for bit
MOST_THREADS = 1024  # records come from other people
MOST_TOGETHER = 64
State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Retrained:
    """A fine-tuning that was carried out again: `exact` if every bit agrees.

    Else `apart` is the distance of both results over the length of the way from the start, within `tolerance`; `first`
    is the first tensor that differs, by `largest` at most. `notes` say what is not as it was then.
    """

    commit: str
    kind: str
    device: str
    tensors: int
    exact: bool
    apart: float
    tolerance: float = TOLERANCE
    first: str | None = None
    largest: float = 0.0
    notes: tuple[str, ...] = ()


def rerun(
    repo: Repository, rev: str, places: Sequence[str] = (), device: str = "auto", listener: Listener = ignore
) -> Retrained:
    """Trains again from what the commit's record says, and compares. Stores nothing.

    The data is looked for at `places` and where the record says, and known by its digest.

    Raises:
        UsageError, DataError: the data is not found. FormatError: the record is malformed.
        DifferencesFound: the weights are others: bit for bit where both runs were on a CPU, else beyond the tolerance.
    """
    commit, record = repo.resolve(rev), read_record(repo, rev)
    if record is None or record.kind not in TRAINED:
        raise UsageError(f"{rev} was not trained here", hint="verify --rerun wants a merge, or a fine-tuning")
    request = request_of(repo, commit, record)
    place = find_data(repo, request.data, described(record, "data"), places, listener)
    request = replace(request, data=replace(request.data, path=place))
    bench = workbench(repo, device, request.threads, progress_alone(listener))
    copies = shared_by(record, "together")
    result = train(repo, bench, request) if copies == 1 else train_copies(repo, bench, request, copies)
    recorded = load_state(weights_of(repo, commit))
    found = nearer(recorded, result.state, result.raw)
    different = [name for name in sorted(recorded) if not same_bits(recorded[name], found.get(name))]
    apart = far_apart(repo, commit, request, recorded, found) if different else 0.0
    notes = changes_since(record, result.device)
    both_cpu = result.device == "cpu" and record.details.get("device") == "cpu"
    alone = shared_by(record, "processes") == copies == 1
    if different and ((both_cpu and alone) or apart > TOLERANCE):
        largest = furthest(recorded, found, different[0])
        raise unlike(commit, different, f"by {largest:.3g}", apart, notes)
    if not different:
        return Retrained(commit, record.kind, result.device, len(recorded), True, 0.0, notes=notes)
    largest = furthest(recorded, found, different[0])
    report = Retrained(commit, record.kind, result.device, len(recorded), False, apart)
    return replace(report, first=different[0], largest=largest, notes=notes)


def progress_alone(listener: Listener) -> Listener:
    """Returns a listener that is told how far things are: what is to be said of a training was said at the commit."""
    return lambda event: None if isinstance(event, Noted) else listener(event)


def train_copies(repo: Repository, bench: Workbench, request: TrainRequest, copies: int) -> TrainResult:
    """Returns the outcome of a run that was one of a stack, trained in a stack of copies of itself.

    A run's bits depend on how many there were beside it, not on what these were.
    """
    several = min(copies, MOST_TOGETHER)
    listeners = [bench.listener, *[ignore] * (several - 1)]
    return train_together(repo, bench, [request] * several, listeners)[0]


def far_apart(repo: Repository, commit: str, request: TrainRequest, recorded: State, found: State) -> float:
    """Returns the distance of two results over the length of the way from the start; of adapters, folded into it."""
    start = load_state(weights_of(repo, request.start))
    if request.config.lora is None or recorded.keys() != found.keys():
        return distance(recorded, found, start)
    version = repo.version(commit)
    return distance(together(repo, version, start, recorded), together(repo, version, start, found), start)


def described(record: Record, key: str) -> Mapping[str, Any]:
    """Returns a table of the record. Raises FormatError if it has none."""
    table = record.details.get(key)
    if not isinstance(table, dict):
        raise FormatError(f"the record has no table '{key}'", hint="it was written by hand, or by another modelgit")
    return table


def request_of(repo: Repository, commit: str, record: Record) -> TrainRequest:
    """Returns what was asked for when the commit was made."""
    try:
        config = bind(FineTune, described(record, "config"), "the record's config")
        split = {key: value for key, value in described(record, "data").items() if key not in FOUND_OUT}
        data = bind(DataConfig, split, "the record's data")
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
    machine = record.details.get("machine")
    threads = machine.get("threads") if isinstance(machine, dict) else 1
    sane = threads if isinstance(threads, int) and 1 <= threads <= MOST_THREADS else 1
    return TrainRequest(commit[:10], kind, "", record.architecture, start, head, data, config, sane)


def shared_by(record: Record, what: str) -> int:
    """Returns how many `processes` a run was carried out by, or runs went `together` with it: as its record says."""
    machine = record.details.get("machine")
    found = machine.get(what, 1) if isinstance(machine, dict) else 1
    return found if isinstance(found, int) and found >= 1 else 1


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


def furthest(one: State, other: State, name: str) -> float:
    """Returns the largest difference of two tensors of one name, infinity where they cannot be compared."""
    left, right = one[name], other.get(name)
    if right is None or left.shape != right.shape:
        return float("inf")
    return float((left.double() - right.double()).abs().max()) if left.numel() else 0.0


def changes_since(record: Record, device: str) -> tuple[str, ...]:
    """Returns what decides bits and is not as it was when the commit was made."""
    versions, machine = record.details.get("versions"), record.details.get("machine")
    then = versions if isinstance(versions, dict) else {}
    then_cpu = machine.get("cpu") if isinstance(machine, dict) else None
    now = {"modelgit": (then.get("modelgit"), VERSION), "PyTorch": (then.get("torch"), torch_version())}
    now |= {"device": (record.details.get("device"), device)}
    if (processes := shared_by(record, "processes")) > 1:
        now["processes"] = (str(processes), "1")
    if (digest := source_digest(record.architecture or "")) is not None:
        now["factory"] = (record.details.get("factory_digest"), digest)
    if device == "cpu":
        now["CPU"] = (then_cpu, cpu_name())
    return tuple(f"{what}: then {old}, now {new}" for what, (old, new) in now.items() if old is not None and old != new)


def unlike(commit: str, different: list[str], largest: str, apart: float, notes: tuple[str, ...]) -> DifferencesFound:
    """Returns the error for a result that is another."""
    first, more = different[0], f" and {len(different) - 1} more" * (len(different) > 1)
    changed = f"; not as it was: {'; '.join(notes)}" if notes else ""
    return DifferencesFound(
        f"training {commit[:10]} again gave other weights: {first}{more}; {first} differs {largest} at most, "
        f"all together by {100 * apart:.2g} % of the way from its start{changed}",
        hint="bits agree on one kind of CPU with one PyTorch and modelgit; else the commit is not what its record says",
    )
