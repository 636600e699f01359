"""Scoring versions on data sets. Scores are kept as git notes: they leave the commit's id alone."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import DataError, UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.evidence.answers import pack_answers
from modelgit.porcelain.records import read_record
from modelgit.porcelain.scorebook import SCORES_REF, parse_row
from modelgit.porcelain.tensors import Tensor
from modelgit.porcelain.training.designs import design_of
from modelgit.porcelain.training.leaking import recorded_data
from modelgit.recipe.pipeline import is_recipe, load_pipeline, read_toml
from modelgit.recipe.single import load_recipe
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig
from modelgit.train.data.loading import has_pixels
from modelgit.train.evaluate import HELD_OUT, Accuracy, Scores
from modelgit.train.scoring import domain_scorer
from modelgit.train.task import Model, Workbench, score

CACHE_FOLDER = "cache/features"
Row = dict[str, object]
Gauge = Callable[[Mapping[str, Tensor]], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class DataName:
    """Data as a user names it: a folder or file; or, with splits, that of a recipe, a pipeline's data set or a step."""

    label: str
    config: DataConfig
    frozen_stages: int
    has_splits: bool


def data_for(repo: Repository, revs: Sequence[str], text: str) -> DataName:
    """Returns the data set that `text` names, for versions to be run on.

    Raises:
        As `parse_data_name` and `data_at` do.
    """
    return data_at(text, {rev: trained_size(repo, rev) for rev in revs})


def data_at(text: str, sizes: Mapping[str, int | None]) -> DataName:
    """Returns the data set that `text` names, its pictures at the size that the versions were trained at.

    Raises:
        UsageError: that is not the same size for all, and the data's own settings do not say which.
    """
    known: list[int | None] = [*sorted({size for size in sizes.values() if size is not None})]
    found = list(dict.fromkeys(parse_data_name(text, size) for size in known or [None]))
    if len(found) > 1 and has_pixels(found[0].config):
        told = ", ".join(f"{rev} at {size}" for rev, size in sizes.items() if size is not None)
        hint = "say at which to read the pictures: image_size of the data in a recipe, --on RECIPE.toml"
        raise UsageError(f"the versions were trained on pictures of different sizes: {told} pixels", hint=hint)
    return found[0]


def trained_size(repo: Repository, rev: str) -> int | None:
    """Returns the pixels to a side that a version, else its nearest ancestor that says so, was trained at."""
    for entry in repo.log([rev]):
        record = read_record(repo, entry.commit)
        data = recorded_data(record) if record is not None else None
        if data is not None:
            return data.image_size
    return None


def parse_data_name(text: str, image_size: int | None = None) -> DataName:
    """Returns the data set that `text` names; pictures that no settings go with are of `image_size`.

    Raises:
        RecipeError: the pipeline file is malformed. DataError: it names no such data set.
    """
    path, mark, name = text.partition("#")
    if Path(path).suffix == ".toml" and (not mark or is_recipe(read_toml(Path(path), "recipe"))):
        return recipe_data(Path(path), name, image_size)
    if not mark:
        config = DataConfig(text) if image_size is None else DataConfig(text, image_size=image_size)
        return DataName(Path(text).stem, config, 0, has_splits=False)
    pipeline = load_pipeline(Path(path))
    tested = {job.name: job.evaluate for job in pipeline.jobs if job.evaluate is not None}
    named = {**tested, **pipeline.data}
    if name not in named:
        hint = f"data sets: {', '.join(pipeline.data) or 'none'}; or name a step: what it is scored on"
        raise DataError(f"{path} has no data set and no step '{name}' that is scored", hint=hint)
    label = name if name in pipeline.data else f"{Path(named[name].path).stem} ({name})"
    return DataName(label, named[name], pipeline.frozen_stages, has_splits=True)


def recipe_data(path: Path, name: str, image_size: int | None) -> DataName:
    """Returns the data of a recipe.

    Raises:
        RecipeError: it is malformed. DataError: it is no recipe, or a name is given, which its data has not.
    """
    if name:
        raise DataError(f"{path} is a recipe, and its data has no name, got '{name}'", hint=f"--on {path}")
    if not is_recipe(read_toml(path, "recipe")):
        raise DataError(f"{path} is no recipe, whose data could be read", hint=f"of a pipeline: --on {path}#NAME")
    recipe = load_recipe(path, image_size=image_size)
    return DataName(Path(recipe.data.path).stem, recipe.data, recipe.train.frozen_stages, has_splits=True)


def workbench(repo: Repository, device: str = "auto", threads: int = 1, listener: Listener = ignore) -> Workbench:
    """Returns a workbench that keeps the features of frozen stages in the repository's store folder."""
    return Workbench(device, repo.git_dir / "modelgit" / CACHE_FOLDER, threads, listener)


def drop_features(repo: Repository) -> None:
    """Removes the features kept for further runs; they are computed again when they are wanted."""
    shutil.rmtree(repo.git_dir / "modelgit" / CACHE_FOLDER, ignore_errors=True)


def known_model(repo: Repository, rev: str) -> Model:
    """Returns what a version is, by its record.

    Raises:
        DataError: it has no record, or one that names no architecture: it cannot be run.
    """
    record = read_record(repo, rev)
    if record is None or record.architecture is None:
        hint = "only versions made by a pipeline, or by merging such, say which network they are weights of"
        raise DataError(f"{rev}: no record says which architecture this version is of", hint=hint)
    return Model(design_of(repo, rev, record.architecture), record.classes)


def gauge_of(bench: Workbench, model: Model, name: DataName) -> Gauge:
    """Returns what gives a state's metrics on a data set, as `evaluate` reports them; images are decoded once.

    Raises:
        DataError: the data is missing, or has other classes than the model.
    """
    if name.has_splits:
        return lambda state: split_values(score(bench, state, model, name.config, name.frozen_stages))
    scorer = domain_scorer(bench, model, name.config)
    return lambda state: domain_values(scorer(state))


def domain_values(domains: Mapping[str, Accuracy]) -> dict[str, float]:
    """Returns the metrics of whole domains, by name."""
    values = {f"accuracy/{domain}": accuracy.value for domain, accuracy in domains.items()}
    mean, worst = sum(values.values()) / len(values), min(values.values())
    return {"accuracy": mean, "worst_domain_accuracy": worst, **values}


def split_values(scores: Scores) -> dict[str, float]:
    """Returns the metrics of splits, by name."""
    values = {"val_accuracy": scores.val_accuracy}
    if scores.ood_accuracy is not None:
        values["ood_accuracy"] = scores.ood_accuracy
    values |= {f"val_accuracy/{domain}": a.value for domain, a in scores.validation.items()}
    if scores.worst_group is not None:
        values["worst_group_accuracy"] = scores.worst_group.value
    return values | ({"ece": scores.ece} if scores.ece is not None else {})


def split_answers(scores: Scores) -> dict[str, str]:
    """Returns the classes answered, example by example, by the names of the accuracies they make."""
    return {
        "ood_accuracy" if domain == HELD_OUT else f"val_accuracy/{domain}": pack_answers(answers)
        for domain, answers in scores.answers.items()
    }


def split_images(scores: Scores) -> dict[str, int]:
    """Returns on how many images each accuracy of a split rests."""
    tested: dict[str, Accuracy] = {f"val_accuracy/{domain}": a for domain, a in scores.validation.items()}
    if scores.held_out is not None:
        tested["ood_accuracy"] = scores.held_out
    if scores.worst_group is not None:
        tested["worst_group_accuracy"] = scores.worst_group
    return {name: accuracy.n for name, accuracy in tested.items()}


# ------------------------------------------------------------------------------------------------- notes


def split_key(config: DataConfig, digest: str) -> str:
    """Returns what tells one split of one data set from all others."""
    parts = {"digest": digest, "held_out": config.held_out, "group": config.group, "fold": config.fold}
    more = {"trial": config.trial, "test": config.test_fraction, "validation": config.validation_fraction}
    looked_at = {"validate_on": config.validate_on, "domains": list(config.domains)}
    told = {key: value for key, value in looked_at.items() if value}  # usually nothing is
    return json.dumps({**parts, **more, **told, "size": config.image_size}, sort_keys=True)


def noted(repo: Repository, commit: str, split: str) -> Row | None:
    """Returns the scores that a commit's note holds for a split, None if it holds none."""
    rows = (parse_row(line) for line in (repo.read_note(SCORES_REF, commit) or "").splitlines())
    return next((dict(row) for row in rows if row is not None and row.get("split") == split), None)


def note(repo: Repository, commit: str, row: Row) -> None:
    """Adds scores to a commit's note; those of the same data and split are replaced."""
    old = (repo.read_note(SCORES_REF, commit) or "").splitlines()
    kept = [line for line in old if (parse_row(line) or {}).get("split") != row["split"]]
    lines = [*kept, json.dumps(row, sort_keys=True)]
    repo.write_note(SCORES_REF, commit, "\n".join(line for line in lines if line) + "\n")


def note_scores(repo: Repository, commit: str, label: str, on: tuple[DataConfig, str], scores: Scores) -> None:
    """Notes what a commit scored on a data set and its split, known by its digest."""
    row: Row = {**split_values(scores), "images": split_images(scores), "data": label, "split": split_key(*on)}
    note(repo, commit, row)
