"""A pipeline looked at whole, with its data, before anything runs: a mistake in the last step fails at once.

What each version will be follows from the steps: its architecture, the classes its head knows, the examples that it
was trained on. So what cannot be averaged, scored, or honestly tested is known beforehand.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelgit.errors import DataError, RecipeError, StorageFull
from modelgit.merge.methods import Method, make
from modelgit.pipeline.steps import weights_file
from modelgit.porcelain.training.leaking import seen
from modelgit.recipe.expanding import BY_POSTERIOR, Job, StatisticsInfo
from modelgit.recipe.pipeline import Pipeline
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset, contents_of
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import Split, refuse_untrained_class, split
from modelgit.train.fitting.beginnings import refuse_small_batch
from modelgit.train.networks.registry import (
    check_architecture,
    check_frozen,
    check_untrained,
    is_ours,
    weights_bytes,
)

NAMED = 4
STORED = 0.25  # of a version's size, about what a fine-tuning takes as a difference

Loaded = Mapping[DataConfig, tuple[Dataset, Split]]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a step's version will be; `classes` None: not known, (): it has no head for any."""

    architecture: str
    classes: tuple[str, ...] | None
    trained: Mapping[str, DataConfig]  # the steps that trained it, itself among them, and on what


def checked(pipeline: Pipeline) -> Pipeline:
    """Returns the pipeline with the architecture that each step works on.

    Raises:
        RecipeError, DataError: what cannot be carried out, or tests on what was trained on.
    """
    for job in pipeline.jobs:
        if job.kind == "import":
            check_import(job)
    pipeline = replace(pipeline, jobs=tuple(with_statistics(job) for job in pipeline.jobs))
    used = [data for job in pipeline.jobs for data in (job.data, job.on, job.evaluate) if data is not None]
    sets = {data: load_dataset(data) for data in dict.fromkeys(used)}
    loaded = {data: (dataset, split(dataset, data)) for data, dataset in sets.items()}
    expected: dict[str, Expected] = {}
    for job in pipeline.jobs:
        expected[job.name] = expect(job, expected, loaded)
        check_measured(job, expected, loaded)
    if pipeline.info.leakage == "refuse":
        refuse_leaks(pipeline, expected, loaded)
    informed_one = replace(pipeline, jobs=tuple(informed(job, expected, loaded) for job in pipeline.jobs))
    check_choices(informed_one)
    check_stages(informed_one)
    check_trainings(informed_one, loaded)
    return informed_one


def check_choices(pipeline: Pipeline) -> None:
    """Raises RecipeError for a report that chooses runs by validation on what these, or their starts, trained on."""
    for row in pipeline.report:
        judges = pipeline.matching(row.by or row.of) if row.pick == "best" else ()
        if seen := [name for name in judges if pipeline.job(name).validation_seen]:
            hint = "let it start from what was not trained on those examples, or leave out pick"
            told = f"[[report]] '{row.strategy}': runs cannot be chosen by step '{seen[0]}'"
            raise RecipeError(f"{told}: it, or its start, was trained on what it would be validated on", hint=hint)


def check_stages(pipeline: Pipeline) -> None:
    """Raises RecipeError for a training that freezes more stages than its network has, as far as that is known."""
    asked = {(job.architecture, job.config.frozen_stages): job.name for job in pipeline.jobs if job.config is not None}
    for (architecture, frozen), step in asked.items():
        try:
            check_frozen(architecture, frozen)
        except RecipeError as error:
            raise RecipeError(f"step '{step}': {error.message}", hint=error.hint) from error


def check_trainings(pipeline: Pipeline, loaded: Loaded) -> None:
    """Raises RecipeError for a training whose batches have no room for every domain, DataError for a class gone."""
    for job in pipeline.jobs:
        if job.config is None or job.data is None:
            continue
        refuse_untrained_class(*loaded[job.data], job.data)
        if job.kind != "train":
            continue
        try:
            refuse_small_batch(job.config, list(loaded[job.data][1].train))
        except RecipeError as error:
            raise RecipeError(f"step '{job.name}': {error.message}", hint=error.hint) from error


def check_import(job: Job) -> None:
    """Raises RecipeError for an import of nothing, or of a network that there is none of."""
    if job.seed is not None:
        check_untrained(job.architecture)
    elif not weights_file(job).exists():
        raise RecipeError(f"step '{job.name}': there are no weights at {job.weights_file}")
    check_architecture(job.architecture)


def with_statistics(job: Job) -> Job:
    """Returns a job that says which statistics are computed first, where its method asks for some.

    Raises:
        RecipeError, UsageError: there is no such method or setting; data without a use, or a use without data.
    """
    if job.kind != "merge":
        return job
    where = f"step '{job.name}'"
    method: Method = make(job.method, job.settings)  # type: ignore[arg-type]  # the settings are checked here
    asks = hasattr(method, "statistics")
    if asks and job.on is None:
        hint = 'on = "DATA": the data set whose training examples they are computed on'
        raise RecipeError(f"{where}: method {job.method} needs statistics of every version", hint=hint)
    if asks and job.select:
        hint = "search = 'weights' finds weights; other methods merge all that is named"
        raise RecipeError(f"{where}: select chooses what a plain mean is made of, and not by {job.method}", hint=hint)
    if job.statistics is not None and not asks:
        raise RecipeError(f"{where}: statistics: method {job.method} asks for none", hint="for fisher, regmean")
    if job.on is not None and not (asks or measures(job)):
        hint = f"it goes with select, search, weights = '{BY_POSTERIOR}', and methods that ask for statistics"
        raise RecipeError(f"{where}: on: nothing is measured", hint=hint)
    return replace(job, statistics=job.statistics or StatisticsInfo()) if asks else job


def measures(job: Job) -> bool:
    """Tells whether versions are measured on validation examples before they are merged."""
    return bool(job.select or job.search) or job.weights == BY_POSTERIOR or job.kind == "ensemble"


def informed(job: Job, known: Mapping[str, Expected], loaded: Loaded) -> Job:
    """Returns the job with its architecture, and whether a validation score of it would mean anything."""
    lost = job.evaluate is not None and validation_seen(job, job.evaluate, known, loaded) is not None
    return replace(job, architecture=known[job.name].architecture, validation_seen=lost)


def validation_seen(job: Job, on: DataConfig, known: Mapping[str, Expected], loaded: Loaded) -> str | None:
    """Returns a step that trained a version on the validation examples of a data set, None if none did."""
    dataset, parts = loaded[on]
    looked_at = {int(i) for group in parts.validation.values() for i in group}
    for name, data in sorted(known[job.name].trained.items()):
        theirs = loaded[data]
        if theirs[0].digest == dataset.digest and looked_at & seen(replace(theirs[1], validation={})):
            return name
    return None


def expect(job: Job, known: Mapping[str, Expected], loaded: Loaded) -> Expected:
    """Returns what a step's version will be. Raises RecipeError where its parts do not go together."""
    if job.kind == "import":
        return Expected(job.architecture, None if job.seed is None else (), {})
    parts = {name: known[name] for name in job.needs}
    where = f"step '{job.name}'"
    architectures = {name: part.architecture for name, part in parts.items()}
    if len(set(architectures.values())) > 1:
        told = some(f"{name} ({architecture})" for name, architecture in architectures.items())
        raise RecipeError(f"{where}: weights of different architectures do not go together: {told}")
    architecture = next(iter(architectures.values()))
    if job.statistics is not None and not is_ours(architecture):
        hint = "another method; or compute them yourself, and merge by hand: modelgit merge --stats FILE"
        raise RecipeError(f"{where}: statistics of '{architecture}' cannot be computed", hint=hint)
    trained = {name: data for part in parts.values() for name, data in part.trained.items()}
    if job.data is None:
        looked_at = {job.name: job.on} if job.statistics is not None and job.on is not None else {}
        return Expected(architecture, merged_classes(job, known), {**trained, **looked_at})
    classes = loaded[job.data][0].classes
    if job.head is not None and known[job.head].classes not in (classes, None):
        raise RecipeError(f"{where}: the head of '{job.head}' knows other classes than the data", hint="leave head out")
    return Expected(architecture, classes, {**trained, job.name: job.data})


def merged_classes(job: Job, known: Mapping[str, Expected]) -> tuple[str, ...] | None:
    """Returns the classes that an average knows. Raises RecipeError where heads know different ones."""
    if job.drop_heads:
        return ()
    found = {name: known[name].classes for name in job.heads}
    different = {classes for classes in found.values() if classes is not None}
    if len(different) > 1:
        told = some(f"{name} ({len(classes or ())})" for name, classes in found.items())
        hint = "drop_heads = true averages all but the heads"
        raise RecipeError(f"step '{job.name}': heads know different classes: {told}", hint=hint)
    return next(iter(different), None)


def check_measured(job: Job, known: Mapping[str, Expected], loaded: Loaded) -> None:
    """Refuses to measure a version on classes that it does not know, or select by examples that were trained on."""
    classes = known[job.name].classes
    for what, data in (("evaluate", job.evaluate), ("on", job.on if measures(job) else None)):
        if data is not None and classes is not None and classes != loaded[data][0].classes:
            raise RecipeError(f"step '{job.name}': {what}: the version knows other classes than {data.path}")
    if job.statistics is not None and job.statistics.labels == "data":
        refuse_other_labels(job, known, loaded)
    if job.on is not None and measures(job) and (name := validation_seen(job, job.on, known, loaded)) is not None:
        told = f"'{name}' was trained on examples that it would be judged by: another trial or fold"
        raise RecipeError(f"step '{job.name}': on: {told}", hint="average them all: leave select out")


def refuse_other_labels(job: Job, known: Mapping[str, Expected], loaded: Loaded) -> None:
    """Refuses statistics by the labels of data that a version does not know. Raises RecipeError."""
    assert job.on is not None  # statistics are of data
    for name in job.heads:
        if known[name].classes not in (loaded[job.on][0].classes, None):
            hint = 'labels = "model" needs no labels of the data'
            raise RecipeError(f"step '{job.name}': on: '{name}' knows other classes than {job.on.path}", hint=hint)


# ------------------------------------------------------------------------------------------------------ leaks


def refuse_leaks(pipeline: Pipeline, known: Mapping[str, Expected], loaded: Loaded) -> None:
    """Refuses versions that are tested on a held-out domain, and descend from a training that saw its examples.

    Raises:
        DataError: naming the step, and how many examples.
    """
    found: dict[tuple[DataConfig, DataConfig], str | None] = {}
    for job in pipeline.jobs:
        target = job.evaluate
        if target is None or not len(loaded[target][1].test):
            continue
        for name, data in sorted(known[job.name].trained.items()):
            if (data, target) not in found:
                found[data, target] = leak((data, *loaded[data]), (target, *loaded[target]))
            if (told := found[data, target]) is not None:
                hint = 'train on other data; or if it is to be so: leakage = "allow" in [pipeline]'
                raise DataError(f"step '{job.name}' would be tested on what '{name}' has seen: {told}", hint=hint)


Part = tuple[DataConfig, Dataset, Split]


def leak(trained: Part, target: Part) -> str | None:
    """Returns what a training has seen of a target that is tested on, None for nothing.

    On the target's own data that is examples of the test; other data may have none of the target's at all, nor may its
    name begin with the target's.
    """
    (ours, dataset, parts), (theirs, tested, test) = trained, target
    if dataset.digest == tested.digest:
        count = len(seen(parts).intersection(test.test.tolist()))
        return f"{count} examples of '{theirs.held_out}'" if count else None
    if Path(ours.path) == Path(theirs.path):  # other examples of it are left out
        before, after = pick(dataset, seen(parts)), pick(tested, test.test.tolist())
    elif Path(ours.path).stem.startswith(Path(theirs.path).stem):
        return f"{Path(ours.path).name} is called after {Path(theirs.path).name}"
    else:
        before, after = set(contents_of(dataset)), set(contents_of(tested))
    shared = len(before & after)
    return f"{shared} examples of {Path(theirs.path).name} are in {Path(ours.path).name}" if shared else None


def pick(dataset: Dataset, indices: Iterable[int]) -> set[bytes]:
    """Returns the digests of some examples."""
    contents = contents_of(dataset)
    return {contents[i] for i in indices}


# ------------------------------------------------------------------------------------------------------- room


def refuse_full_disk(pipeline: Pipeline, place: Path) -> None:
    """Refuses to begin what the disk would not hold: each version takes about a quarter of the weights' size.

    Raises:
        StorageFull: saying how much is free, and how much is wanted.
    """
    imports = [job for job in pipeline.jobs if job.kind == "import"]
    largest = max(map(size_bytes, imports), default=0)
    trainings = sum(job.config is not None for job in pipeline.jobs)
    wanted = int(largest * (2 + STORED * trainings))
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        told = f"{free / 1e6:,.0f} MB are free at {existing}, {trainings} trainings take about {wanted / 1e6:,.0f} MB"
        raise StorageFull(told, hint="free some space, or name another place: --repo DIR")


def size_bytes(job: Job) -> int:
    """Returns about how large the weights are that an import brings."""
    return weights_file(job).stat().st_size if job.seed is None else weights_bytes(job.architecture)


def some(words: Iterator[str]) -> str:
    """Returns the first of many in a row."""
    found = list(words)
    return ", ".join(found[:NAMED]) + (" …" if len(found) > NAMED else "")
