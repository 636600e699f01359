"""Statistics of each version for methods that ask for them: read from files, or computed on data and kept in the cache.

Only computing brings PyTorch. What they were is recorded, so that a merge can be recomputed.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from os import urandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from modelgit.errors import (
    Conflict,
    DataError,
    DifferencesFound,
    FormatError,
    MergeConflict,
    RecipeError,
    StorageFull,
    UsageError,
)
from modelgit.events import Finished, Listener, Started
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.layers import layered
from modelgit.merge.engine.plan import Plan
from modelgit.merge.informed.checking import checked
from modelgit.merge.informed.statistics import Kind, Statistics
from modelgit.merge.methods import make
from modelgit.porcelain.merging.preparing import Setting, among_heads, weight_plans
from modelgit.porcelain.merging.values import Choices, Informed, InformedHead, Informing, MergedHead, Prepared
from modelgit.porcelain.records import read_record
from modelgit.porcelain.versions import contents_id, weights_of
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version
from modelgit.store.files.tensors import FileTensors

if TYPE_CHECKING:
    from torch import Tensor

    from modelgit.porcelain.scores import DataName

CACHE_FOLDER, GENERATION = "cache/statistics", "1"  # the generation counts changes of how statistics are computed
TRAILER = "Merge-Statistics"
IMAGES, VALUES = "images", "values"  # what the header of a file in the cache says
MAX_IMAGES = 1_000_000
Known = dict[str, Statistics]  # by commit


def informed_plans(
    repo: Repository,
    members: Sequence[MergedHead],
    versions: Sequence[Version],
    setting: Setting,
    choices: Choices,
    listener: Listener,
) -> tuple[dict[str, Plan], list[Conflict], Informed | None]:
    """Returns a plan for each weight file, and the conflicts; models that do not match cost no look at data.

    Raises: as `inform`; UsageError for a method that asks for no statistics.
    """
    bases, records, method, policy, layers, views = setting
    kind: Kind | None = getattr(method, "statistics", None)
    if kind is None:
        raise UsageError(f"method {method.name} uses no statistics", hint="--stats and --stats-on: for fisher, regmean")
    plain, conflicts = weight_plans(
        repo, members, versions, (bases, records, make("linear", {}), policy, (layers[0], {}), views)
    )
    if conflicts:
        return plain, conflicts, None
    informed, known = inform(repo, members, choices, kind, listener)
    plans = dict[str, Plan]()
    for path, old in plain.items():
        there = {head.name: head for head in old.heads}
        have = [i for i, member in enumerate(members) if member.name in there]
        heads = [replace(there[members[i].name], statistics=known[members[i].commit]) for i in have]
        try:
            plans[path] = layered(heads, None, method, policy, *among_heads(layers, have))
        except MergeConflict as error:
            conflicts.extend(error.conflicts)
    return plans, list(dict.fromkeys(conflicts)), informed


def inform(
    repo: Repository, members: Sequence[MergedHead], choices: Choices, kind: Kind, listener: Listener
) -> tuple[Informed, Known]:
    """Returns where the statistics of the versions come from, and the statistics by commit.

    Raises:
        UsageError: none are given, or not one for each. MergeConflict: those of another model, or impossible values.
        FormatError: a malformed file. DataError: no such data, or a version that cannot be run.
    """
    asked = choices.statistics or Informing()
    given = places(asked, [member.name for member in members], choices)
    heads, known = list[InformedHead](), Known()
    for member, place in zip(members, given, strict=True):
        model = weights_of(repo, member.commit)
        head = InformedHead(member.name, member.commit, "")
        if asked.files:
            found = checked(kind, FileTensors(Path(str(place))), model, str(place))
        else:
            head, found = computed(repo, head, (asked, kind, place), model, listener)
        known[member.commit] = found
        heads.append(replace(head, digest=found.digest))
    if asked.files:
        return Informed(kind, tuple(heads)), known
    return Informed(kind, tuple(heads), asked.labels, asked.images), known


def places(asked: Informing, names: Sequence[str], choices: Choices) -> "list[str | DataName]":
    """Returns the file or the data of each version. Raises UsageError."""
    order = f"in this order: {', '.join(names)}"
    if asked.files and asked.data:
        raise UsageError("--stats gives statistics, --stats-on computes them: choose one")
    changed = {
        "--align": choices.align,
        "--vocabulary": choices.vocabulary != "error",
        "--heads mean": choices.heads == "mean",
    }
    if option := next((name for name, value in changed.items() if value), None):
        hint = "make models match first, commit the result, and merge that"
        raise UsageError(f"{option} does not go with {choices.method}: statistics are of models as they are", hint=hint)
    if not 1 <= asked.images <= MAX_IMAGES:
        raise UsageError(f"--stats-images {asked.images}: expected a number from 1 to {MAX_IMAGES}")
    if not asked.files and not asked.data:
        hint = "compute them: --stats-on DATA; or give a file for each model: --stats FILE"
        raise UsageError(f"method {choices.method} needs statistics of every model, and there are none", hint=hint)
    if len(asked.files) not in (0, len(names)):
        raise UsageError(f"{len(asked.files)} files of statistics for {len(names)} models", hint=order)
    if len(asked.data) not in (0, 1, len(names)):
        raise UsageError(f"{len(asked.data)} data sets for {len(names)} models", hint=f"one for all, or {order}")
    return list(asked.files or (asked.data * len(names) if len(asked.data) == 1 else asked.data))


def computed(
    repo: Repository,
    head: InformedHead,
    how: "tuple[Informing, Kind, str | DataName]",
    model: TensorSource,
    listener: Listener,
) -> tuple[InformedHead, Statistics]:
    """Returns what data a version was looked at on, and its statistics, from the cache where they are there."""
    from modelgit.porcelain.scores import data_for, split_key
    from modelgit.porcelain.tensors import torch_version
    from modelgit.train.data.loading import load_dataset

    asked, kind, data = how
    name = data_for(repo, [head.commit], data) if isinstance(data, str) else data
    digest = load_dataset(name.config).digest
    parts = [GENERATION, torch_version(), contents_id(repo.version(head.commit)), split_key(name.config, digest)]
    key = "\0".join([*parts, str(name.has_splits), kind, asked.labels, str(asked.images)])
    place = repo.git_dir / "modelgit" / CACHE_FOLDER / f"{blake3(key.encode()).hexdigest()}.safetensors"
    if asked.fresh or not intact(place):
        listener(Started("statistics", None, "examples"))
        tensors, images = made(repo, head, (asked, kind, name), listener)
        listener(Finished("statistics", f"{head.name}: {images:,} images of {name.label}"))
        write(place, tensors, images)
    source = FileTensors(place)
    images = int(source.header.metadata[IMAGES])
    found = checked(kind, source, model, f"statistics of {head.name} on {name.label}")
    split = {key: value for key, value in asdict(name.config).items() if key != "path"} if name.has_splits else {}
    return InformedHead(head.name, head.commit, "", name.label, digest, images, split), found


def made(
    repo: Repository, head: InformedHead, how: "tuple[Informing, Kind, DataName]", listener: Listener
) -> tuple[dict[str, "Tensor"], int]:
    """Returns the statistics of a version by its tensors' names, and of how many images they are. Raises DataError."""
    import torch

    from modelgit.porcelain.merging.matching.running import running, sample
    from modelgit.porcelain.tensors import load_state
    from modelgit.train.statistics import diagonal_fisher, input_products

    asked, kind, name = how
    torch.set_num_threads(1)
    record, state = read_record(repo, head.commit), load_state(weights_of(repo, head.commit))
    network = running([record], state)
    if network is None or record is None:
        hint = "only versions made by a pipeline say which network they are weights of; of others: --stats FILE"
        raise DataError(f"{head.name}: no record says which architecture it is of", hint=hint)
    whole = network.whole
    try:
        whole.network.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{head.name}: its tensors are not those of a {record.architecture}") from error
    images = sample(network, name, asked.images)
    if asked.labels == "data" and kind == "fisher" and images.classes != record.classes:
        hint = "--stats-labels model needs no labels of the data"
        raise DataError(
            f"{name.config.path}: other classes than {head.name} has: {', '.join(images.classes[:5])}", hint=hint
        )
    if kind == "gram":
        found = input_products(whole, images.batches, listener)
    else:
        labels = images.labels if asked.labels == "data" else None
        found = diagonal_fisher(whole, images.batches, labels, listener)
    return {name.removeprefix("network."): tensor for name, tensor in found.items()}, images.images


# ------------------------------------------------------------------------------------------------- the cache


def intact(place: Path) -> bool:
    """Returns whether the cache has statistics there, with the values they were written with."""
    with suppress(FormatError, KeyError, ValueError):
        source = FileTensors(place)
        return int(source.header.metadata[IMAGES]) > 0 and source.header.metadata[VALUES] == values_digest(source)
    return False


def values_digest(source: FileTensors) -> str:
    """Returns what identifies all values of a file."""
    total = blake3()
    for name in source.names():
        for frame in source.frames(name):
            total.update(frame)
    return total.hexdigest()


def write(place: Path, tensors: dict[str, "Tensor"], images: int) -> None:
    """Writes statistics into the cache, whole or not at all. Raises StorageFull."""
    from safetensors.torch import save_file

    from modelgit.porcelain.tensors import tensor_bytes

    total = blake3()
    for name in sorted(tensors, key=str.encode):
        total.update(tensor_bytes(tensors[name]))
    scratch = place.with_name(f"{place.name}.{urandom(8).hex()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, scratch, {IMAGES: str(images), VALUES: total.hexdigest()})
        scratch.replace(place)
    except OSError as error:
        raise StorageFull(f"cannot keep statistics: {error.strerror}", hint="free some space") from error
    finally:
        with suppress(OSError):
            scratch.unlink()


# ------------------------------------------------------------------------------------------------ recomputing


def recorded(version: Version) -> dict[str, Any] | None:
    """Returns what a merge commit says of statistics, None if nothing. Raises FormatError; it may be anybody's."""
    if TRAILER not in version.entry.trailers:
        return None
    try:
        table = dict(json.loads(version.entry.trailers[TRAILER][0]))
        words = ("commit", "digest", "data", "data_digest")
        rows = [{**{w: str(row[w]) for w in words}, "split": dict(row.get("split", {}))} for row in table["heads"]]
        images, labels = int(table["images"]), str(table["labels"])
        if not rows or labels not in ("", "model", "data") or len({bool(row["data_digest"]) for row in rows}) > 1:
            raise ValueError(f"statistics of {len(rows)} models, labels {labels!r}")
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise FormatError(f"commit {version.commit[:10]}: malformed merge trailers: {error}") from error
    return {"images": images, "labels": labels, "heads": rows}


def informing_of(version: Version, given: Informing | None, data: str | None) -> Informing | None:
    """Returns how the statistics of a merge commit are had again, from what the user gave. Raises UsageError."""
    table, short = recorded(version), version.commit[:10]
    if table is None:
        if given is not None:
            raise UsageError(f"{short} was merged without statistics: leave --stats and --stats-on out")
        return None
    if not table["heads"][0]["data_digest"]:
        if given is None or not given.files:
            hint = "--stats FILE for each model, in the order of the commit's Merge-Input"
            raise UsageError(f"{short} was made with statistics from files: say where they are", hint=hint)
        return Informing(files=given.files)
    places: tuple[str | DataName, ...] = given.data if given is not None and given.data else (data,) if data else ()
    if not places:
        names = ", ".join(sorted({row["data"] for row in table["heads"]}))
        hint = "--on DATA; where each model had its own: --stats-on DATA for each, in order"
        raise UsageError(f"{short} was made with statistics of data '{names}': say where it is", hint=hint)
    if any(row["split"] for row in table["heads"]) and len(places) in (1, len(table["heads"])):
        each = places * len(table["heads"]) if len(places) == 1 else places
        places = tuple(split_at(version, *pair) for pair in zip(table["heads"], each, strict=True))
    return Informing(data=places, labels=table["labels"], images=table["images"], fresh=True)


def split_at(version: Version, row: Mapping[str, Any], place: "str | DataName") -> "str | DataName":
    """Returns the data at a place, split as a merge commit says that it was; as it is called where it says nothing.

    Raises:
        FormatError: what it says is malformed.
    """
    if not row["split"] or not isinstance(place, str):
        return place
    from modelgit.porcelain.scores import DataName, parse_data_name
    from modelgit.recipe.binding import bind
    from modelgit.train.config import DataConfig

    path = parse_data_name(place).config.path
    try:
        config = bind(DataConfig, {**row["split"], "path": path}, "split")
    except RecipeError as error:
        raise FormatError(f"commit {version.commit[:10]}: malformed merge trailers: {error.message}") from error
    return DataName(row["data"], config, 0, has_splits=True)


def refuse_others(version: Version, prepared: Prepared) -> None:
    """Raises DataError for other data or files than a merge was made with, DifferencesFound for other statistics."""
    table, found = recorded(version), prepared.informed
    if table is None or found is None:
        return
    if len(table["heads"]) != len(found.heads):
        told = f"statistics of {len(table['heads'])} models, {len(found.heads)} inputs"
        raise FormatError(f"commit {version.commit[:10]}: malformed merge trailers: {told}")
    for row, head in zip(table["heads"], found.heads, strict=True):
        if row["commit"] != head.commit:
            raise DifferencesFound(f"{version.commit[:10]}: statistics of {row['commit'][:10]}, which is no input")
        if row["data_digest"] != head.data_digest:
            raise DataError(f"{head.data}: other data than '{row['data']}', which {version.commit[:10]} was made with")
        if row["digest"] != head.digest and not head.data_digest:
            raise DataError(f"{head.name}: other statistics than {version.commit[:10]} was made with")
        if row["digest"] != head.digest:
            hint = "they may differ in the last bits between kinds of processors and versions of PyTorch"
            raise DifferencesFound(f"{head.name}: its statistics on {head.data} are not those recorded", hint=hint)
