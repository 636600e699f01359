"""Measuring models that are in no commit: one data set, one metric; what single versions scored is remembered.

Nothing is stored for a model that is only tried. The scores of versions go into the repository's cache, and those that
a pipeline noted are taken from there.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from modelgit.errors import Conflict, DataError, MergeConflict, UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.merging.own_code import loaded
from modelgit.porcelain.records import read_record
from modelgit.porcelain.trials.values import Aim, Measured, Metric
from modelgit.porcelain.versions import contents_id
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version

if TYPE_CHECKING:
    from modelgit.merge.selection.states import State
    from modelgit.porcelain.scores import DataName
    from modelgit.train.task import Model, Workbench

    Given = tuple[DataName, Workbench]

CACHE_FOLDER, GENERATION = "cache/scores", "1"  # the generation counts changes of how metrics are computed
Values = Mapping[str, float]
Gauge = Callable[["State"], Values]


@dataclass(slots=True)
class Judge:
    """Gives the score of a model; `on` says of what. `split` names the data for the cache; empty: keep no scores."""

    repo: Repository
    aim: Aim
    on: Measured
    gauge: Gauge
    split: str = ""
    evaluations: int = field(default=0)

    def __call__(self, state: "State") -> float:
        """Return the score of a model."""
        self.evaluations += 1
        return self.gauge(state)[self.on.metric]

    def known(self, version: Version) -> float | None:
        """Return the score of a version that was measured before, None for any other."""
        if not self.split:
            return None
        for values in (self._cached(version), self._noted(version)):
            if values is not None and isinstance(found := values.get(self.on.metric), float):
                return found
        return None

    def own(self, version: Version, state: "State") -> float:
        """Return the score of a version, measured now and remembered."""
        self.evaluations += 1
        values = self.gauge(state)
        if self.split:
            remember(self._place(version), values)
        return values[self.on.metric]

    def _place(self, version: Version) -> Path:
        key = blake3(f"{GENERATION}\0{contents_id(version)}\0{self.split}".encode()).hexdigest()
        return self.repo.git_dir / "modelgit" / CACHE_FOLDER / f"{key}.json"

    def _cached(self, version: Version) -> Mapping[str, object] | None:
        with suppress(OSError, ValueError):
            table = json.loads(self._place(version).read_bytes())
            return table if isinstance(table, dict) else None
        return None

    def _noted(self, version: Version) -> Mapping[str, object] | None:
        from modelgit.porcelain.scores import noted

        return noted(self.repo, version.commit, self.split)


def remember(place: Path, values: Values) -> None:
    """Keep scores for further use; where that cannot be done, they are measured again."""
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict(values), sort_keys=True))
        temporary.replace(place)


def judge_of(
    repo: Repository,
    aim: Aim,
    commits: Mapping[str, str],
    listener: Listener = ignore,
    given: "Given | None" = None,
) -> Judge:
    """Return the judge of models like the versions named; `given` is data that no text names, with a workbench.

    Raises:
        UsageError: a version that no record says the architecture of; no such metric, or a file that is none.
        MergeConflict: the data has other classes than a version. DataError: the data is missing.
    """
    own = aim.metric if callable(aim.metric) else function_at(aim.metric) if ".py:" in aim.metric else None
    if own is not None:
        name = aim.metric if isinstance(aim.metric, str) else getattr(aim.metric, "__name__", "function")
        on = Measured(aim.data, file_digest(aim.data), name, aim.lower_is_better)
        return Judge(repo, aim, on, own_gauge(own, name, aim.data))
    return named_judge(repo, aim, commits, listener, given)


def named_judge(
    repo: Repository, aim: Aim, commits: Mapping[str, str], listener: Listener, given: "Given | None"
) -> Judge:
    """Return the judge by one of the metrics that `evaluate` reports."""
    from modelgit.porcelain.scores import data_for, gauge_of, split_key
    from modelgit.store.objects import available_threads
    from modelgit.train.data.loading import load_dataset
    from modelgit.train.data.splits import split
    from modelgit.train.task import Workbench

    model = model_of(repo, commits)
    name = given[0] if given is not None else data_for(repo, list(commits.values()), aim.data)
    dataset = load_dataset(name.config)
    check_classes(repo, commits, dataset.classes, aim.data)
    bench = given[1] if given is not None else Workbench("auto", None, available_threads(), listener)
    metric = str(aim.metric) or ("val_accuracy" if name.has_splits else "accuracy")
    domains = list(split(dataset, name.config).validation) if name.has_splits else dataset.domains
    known = metrics_of(domains, name.config.held_out, has_splits=name.has_splits)
    if metric not in known:
        hint = f"measured: {', '.join(known)}; FILE.py:FUNCTION is a metric of your own"
        raise UsageError(f"metric '{metric}': none of that name on {name.label}", hint=hint)
    on = Measured(name.label, dataset.digest, metric, aim.lower_is_better)
    measure = gauge_of(bench, model, name)
    key = f"{split_key(name.config, dataset.digest)}"
    return Judge(repo, aim, on, lambda state: measure(as_torch(state)), key)


def metrics_of(domains: Sequence[str], held_out: str | None, *, has_splits: bool) -> list[str]:
    """Return the names of the accuracies that `evaluate` reports on a data set, validated on those domains."""
    if not has_splits:
        return ["accuracy", "worst_domain_accuracy", *(f"accuracy/{domain}" for domain in domains)]
    trained = [f"val_accuracy/{domain}" for domain in domains]
    return ["val_accuracy", *(["ood_accuracy"] if held_out is not None else []), *trained]


def model_of(repo: Repository, commits: Mapping[str, str]) -> "Model":
    """Return what network the versions are weights of. Raises UsageError unless all say so, and the same."""
    from modelgit.porcelain.training.designs import design_of
    from modelgit.train.task import Model

    records = {name: read_record(repo, commit) for name, commit in commits.items()}
    unknown = [name for name, record in records.items() if record is None or record.architecture is None]
    if unknown:
        hint = "a metric of your own measures weights of any kind: --metric FILE.py:FUNCTION"
        raise UsageError(f"{', '.join(unknown)}: no record says which architecture to run", hint=hint)
    found = {str(record.architecture) for record in records.values() if record is not None}
    if len(found) > 1:
        raise UsageError(f"the models are of different architectures: {', '.join(sorted(found))}")
    classes = next((record.classes for record in records.values() if record is not None), ())
    return Model(design_of(repo, next(iter(commits.values())), found.pop()), classes)


def check_classes(repo: Repository, commits: Mapping[str, str], classes: tuple[str, ...], data: str) -> None:
    """Raise MergeConflict naming every version whose classes are not the data's."""
    records = {name: read_record(repo, commit) for name, commit in commits.items()}
    known = {name: record.classes if record is not None else () for name, record in records.items()}
    wanted = outline(classes)
    conflicts = [
        Conflict("classes", data, f"the classes of {name}: {outline(own)}", wanted)
        for name, own in known.items()
        if own != classes
    ]
    if conflicts:
        first = conflicts[0]
        message = f"the models cannot be measured: {data}: expected {first.expected}, got {first.got}"
        raise MergeConflict(message, conflicts, hint="measure on data with the classes of the models: --on DATA")


def outline(classes: tuple[str, ...]) -> str:
    """Return a list of classes in a few words."""
    return f"{', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}" or "none"


def require_score(name: str, score: float, on: Measured) -> float:
    """Return the score of a single model. Raises MergeConflict where it is no finite number."""
    if not math.isfinite(score):
        conflict = Conflict("score", name, f"a finite {on.metric} on {on.data}", f"{score}")
        hint = "merge without that model, or measure by another metric"
        raise MergeConflict(f"{name}: its {on.metric} on {on.data} is {score}", [conflict], hint=hint)
    return score


# ----------------------------------------------------------------------------------------- metrics of one's own


def function_at(text: str) -> Metric:
    """Return the function that `FILE.py:FUNCTION` names: a file the user names, never one out of a repository.

    Raises:
        UsageError: no such file or function, or the file cannot be run.
    """
    found: Metric = loaded(text, "metric", "--metric")
    return found


def own_gauge(metric: Metric, name: str, data: str) -> Gauge:
    """Return what measures by a function of the user's, called with a state dict of its own and the data's name."""

    def measure(state: "State") -> Values:
        tensors = {key: tensor.clone() for key, tensor in as_torch(state).items()}
        try:
            return {name: float(metric(tensors, data))}
        except DataError:
            raise
        except Exception as error:  # whatever somebody's function raises
            raise UsageError(f"metric '{name}' failed: {type(error).__name__}: {error}") from error

    return measure


def as_torch(state: "State"):  # type: ignore[no-untyped-def]  # torch is loaded only where something is measured
    """Return a state dict over the same memory."""
    from modelgit.porcelain.tensors import tensor_of

    return {name: tensor_of(entry, entry.shape, raw) for name, (entry, raw) in state.items()}


def file_digest(data: str) -> str | None:
    """Return the digest of a file; None for what is none."""
    path, state = Path(data), blake3()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()
