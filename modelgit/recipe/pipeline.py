"""A pipeline file: shared tables and templates of steps, checked and brought into an order in which they can be run."""

import dataclasses
import difflib
import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelgit.errors import RecipeError
from modelgit.recipe.binding import Table, bind, check_keys, check_values, expect_table
from modelgit.recipe.expanding import PRETRAINED, RANDOM, Context, Found, Job, ModelInfo, StepTemplate, expand
from modelgit.recipe.places import beside
from modelgit.train.choices import check
from modelgit.train.config import DataConfig, FineTune, PowerRange

Pick = Literal["all", "best"]
Leakage = Literal["refuse", "allow"]
NEAR = 6  # steps named where one is not found
SECTIONS = ("pipeline", "model", "variables", "data", "train", "draws", "step", "report")


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """What the pipeline is called, where its repository and its report go.

    `leakage = "allow"` carries on where examples that are tested on were trained on. `compare` names the strategies of
    the report that all others are compared with, on the same test examples. `together` fine-tunings share one worker's
    passes; 0: as many as suit the device.
    """

    name: str
    repository: str = "."
    report: str | None = None
    title: str = ""
    leakage: Leakage = "refuse"
    compare: tuple[str, ...] = ()
    together: int = 0

    def __post_init__(self) -> None:
        check("together", self.together, self.together >= 0, "0 or more")


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A line of the final table: the mean over the commits whose step names match `of`.

    With `pick = "best"` only that run of each seed counts that is best on validation: its own, or the mean of that of
    the steps of the same seed and run that match `by` (leave-one-out).
    """

    strategy: str
    title: str
    of: tuple[str, ...]
    pick: Pick = "all"
    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A checked pipeline: jobs in an order in which each comes after all it needs."""

    info: PipelineInfo
    model: ModelInfo
    jobs: tuple[Job, ...]
    report: tuple[ReportRow, ...]
    data: Mapping[str, DataConfig]
    frozen_stages: int

    def job(self, name: str) -> Job:
        """Returns the job of that name."""
        return next(job for job in self.jobs if job.name == name)

    def matching(self, patterns: Sequence[str]) -> tuple[str, ...]:
        """Returns the names that match any pattern, in the pipeline's order."""
        return tuple(job.name for job in self.jobs if any(matches(job.name, p) for p in patterns))


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Returns the pipeline in `path`, with `key.sub=value` overrides applied, checked whole.

    Raises:
        RecipeError: the file is missing, no TOML, or says something that cannot be carried out.
    """
    table = read_toml(path, "pipeline")
    if is_recipe(table):
        told = f"{path}: this is a recipe, of one fine-tuning"
        raise RecipeError(told, hint=f"carry it out: modelgit commit --recipe {path}")
    for override in overrides:
        apply_override(table, override)
    return build_pipeline(table, path.absolute().parent)


def read_toml(path: Path, kind: str) -> dict[str, object]:
    """Returns the tables of a file. Raises RecipeError if it is missing, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {kind} {path}: {error}", hint="name a .toml file") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error


def is_recipe(table: Table) -> bool:
    """Tells whether a file is of one fine-tuning: its [data] is one data set, no table of them."""
    data = table.get("data")
    return isinstance(data, Mapping) and isinstance(data.get("path"), str) and not {"pipeline", "step"} & table.keys()


def apply_override(table: dict[str, object], override: str) -> None:
    """Sets `a.b=value` in `table`; the value is TOML, or a bare word taken as a string."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, e.g. train.steps=20")
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    for part in path:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: '{part}' is not a table")
        table = inner
    table[last] = value


def build_pipeline(table: Table, folder: Path) -> Pipeline:
    """Returns the pipeline that `table` describes; paths of data are relative to `folder`."""
    check_keys(table, SECTIONS, "pipeline file")
    info = bind(PipelineInfo, table.get("pipeline", {}), "[pipeline]")
    model = bind_model(table.get("model", {}), folder)
    templates = [bind(StepTemplate, t, f"[[step]] {numbered(i, t)}") for i, t in enumerate(expect_list(table, "step"))]
    report = tuple(bind(ReportRow, t, f"[[report]] {i + 1}") for i, t in enumerate(expect_list(table, "report")))
    data = {name: bind_data(t, name, folder) for name, t in expect_table(table.get("data", {}), "[data]").items()}
    context = Context(
        model,
        data,
        bind_shared(table.get("train", {})),
        bind_draws(table.get("draws", {})),
        expect_lists(table.get("variables", {}), "[variables]"),
        folder,
    )
    drafts = [draft for template in templates for draft in expand(template, context)]
    jobs = in_order(resolve_heads(drafts))
    frozen = context.train.get("frozen_stages", 0)
    pipeline = Pipeline(info, model, tuple(jobs), report, data, frozen if isinstance(frozen, int) else 0)
    check_report(pipeline)
    return pipeline


def numbered(place: int, table: object) -> str:
    """Returns which of several tables one is: by its number and, where it has one, its name."""
    name = table.get("name") if isinstance(table, Mapping) else None
    return f"{place + 1} '{name}'" if isinstance(name, str) else str(place + 1)


def bind_shared(value: object) -> Table:
    """Returns the settings that trainings share, so that a mistake there is told as one of [train], not of a step."""
    table = expect_table(value, "[train]")
    check_values(FineTune, table, "[train]")
    return table


def expect_list(table: Table, key: str) -> list[object]:
    """Returns the array of tables called `key`, empty when absent."""
    value = table.get(key, [])
    if not isinstance(value, list):
        raise RecipeError(f"[[{key}]]: expected an array of tables")
    return value


def expect_lists(value: object, where: str) -> dict[str, Sequence[object]]:
    """Returns a table whose values are all non-empty lists."""
    table = expect_table(value, where)
    for key, item in table.items():
        if not isinstance(item, list) or not item:
            raise RecipeError(f"{where}.{key}: expected a list with at least one item, got {item!r}")
    return {key: item for key, item in table.items() if isinstance(item, list)}


def bind_draws(value: object) -> dict[str, Sequence[object] | PowerRange]:
    """Returns what each setting is drawn from: a list, or a range of powers."""
    table = expect_table(value, "[draws]")
    check_keys(table, [field.name for field in dataclasses.fields(FineTune)], "[draws]")
    ranges = {key: bind(PowerRange, v, f"[draws].{key}") for key, v in table.items() if isinstance(v, Mapping)}
    return {**expect_lists({key: v for key, v in table.items() if key not in ranges}, "[draws]"), **ranges}


def bind_model(table: object, folder: Path) -> ModelInfo:
    """Returns the model's settings; a weight file is relative to the pipeline's folder."""
    info = bind(ModelInfo, table, "[model]")
    words = (PRETRAINED, RANDOM)
    return info if info.weights in words else dataclasses.replace(info, weights=beside(folder, info.weights))


def bind_data(table: object, name: str, folder: Path) -> DataConfig:
    """Returns the data set's settings, its path resolved against the pipeline's folder."""
    config = bind(DataConfig, table, f"[data.{name}]")
    return dataclasses.replace(config, path=beside(folder, config.path))


def resolve_heads(drafts: Sequence[Job]) -> list[Job]:
    """Returns the jobs with patterns among their needs replaced by the names that match.

    Raises:
        RecipeError: two steps of one name, or a need that no step answers to.
    """
    names = [job.name for job in drafts]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"two steps are called '{name}'", hint="put the variables that tell them apart in the name"
            )
    refuse_nested(names)
    found = [resolved(job, names) for job in drafts]
    by_name = {job.name: job for job in found}
    return [with_outer_step(job, by_name) if job.outer is not None else job for job in found]


def refuse_nested(names: Sequence[str]) -> None:
    """Refuses a name below another: git keeps branches as files. Raises RecipeError."""
    known = set(names)
    for name in names:
        parts = name.split("/")
        above = next((a for n in range(1, len(parts)) if (a := "/".join(parts[:n])) in known), None)
        if above is not None:
            hint = f"call the first one '{above}/mean', say"
            raise RecipeError(f"'{above}' and '{name}' cannot both be branches of git", hint=hint)


def resolved(job: Job, names: Sequence[str]) -> Job:
    """Returns the job with patterns replaced by the steps that match; each of several has the pattern's weight."""
    heads: dict[str, float] = {}
    for number, pattern in enumerate(job.heads):
        weight = job.weights[number] if job.weights and not isinstance(job.weights, str) else 1.0
        for name in named_by(pattern, job, names):
            heads.setdefault(name, float(weight))
    others = [name for pattern in job.needs if pattern not in job.heads for name in named_by(pattern, job, names)]
    weights: Found = job.weights if isinstance(job.weights, str) or not job.weights else tuple(heads.values())
    if job.drawn is not None:
        weights = job.drawn.weights(tuple(heads))
    return dataclasses.replace(job, needs=tuple(dict.fromkeys([*others, *heads])), heads=tuple(heads), weights=weights)


def named_by(pattern: str, job: Job, names: Sequence[str]) -> list[str]:
    """Returns the steps that a pattern of a job stands for. Raises RecipeError if there is none."""
    found = [name for name in names if matches(name, pattern) and name != job.name]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=NEAR, cutoff=0) if len(names) > NEAR else names
        told = f"steps: {', '.join(near)}" if near is names else f"of {len(names)} steps the nearest: {', '.join(near)}"
        raise RecipeError(f"step '{job.name}' needs '{pattern}', which no step is called", hint=told)
    return found


def with_outer_step(job: Job, jobs: Mapping[str, Job]) -> Job:
    """Returns an outer step as the weighted sum that it is.

    With x the start, m the mean of the heads, x' and m' those of the step before (if it was an outer step too), SGD
    with Nesterov momentum u and learning rate a on the gradient x - m comes to
    x + u (x - x') + a (1 + u) (m - x) - a u (m' - x'): the momentum is read off the history, nothing more is kept.
    """
    assert job.outer is not None and job.base is not None  # only such jobs come here, and they have a start
    rate, momentum = job.outer.lr, job.outer.momentum
    sums = {job.base: 1.0 - rate * (1 + momentum)}
    for name in job.heads:
        sums[name] = sums.get(name, 0.0) + rate * (1 + momentum) / len(job.heads)
    before = jobs[job.base]
    if before.outer is not None and before.base is not None and momentum:
        sums[job.base] += momentum
        sums[before.base] = sums.get(before.base, 0.0) - momentum + rate * momentum
        for name in before.heads:
            sums[name] = sums.get(name, 0.0) - rate * momentum / len(before.heads)
    kept = {name: weight for name, weight in sums.items() if weight}
    needs = tuple(dict.fromkeys([job.base, *job.heads, *kept]))
    found = dataclasses.replace(job, needs=needs, heads=tuple(kept), weights=tuple(kept.values()), base=None)
    return dataclasses.replace(found, settings={"normalize": False})


def matches(name: str, pattern: str) -> bool:
    """Tells whether `name` matches `pattern`, where `*` stays within one part between slashes."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(fnmatch.fnmatchcase(p, w) for p, w in zip(parts, wanted, strict=True))


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs so that each comes after those it needs, otherwise as written.

    Raises:
        RecipeError: steps that need each other.
    """
    ensembles = {job.name for job in jobs if job.kind == "ensemble"}
    for job in jobs:
        if found := ensembles.intersection(job.needs):
            raise RecipeError(f"step '{job.name}' needs '{min(found)}': an ensemble is scored, it has no weights")
    done: dict[str, Job] = {}
    left = list(jobs)
    while left:
        ready = [job for job in left if all(need in done for need in job.needs)]
        if not ready:
            raise RecipeError(f"steps need each other in a circle: {', '.join(job.name for job in left)}")
        done.update({job.name: job for job in ready})
        left = [job for job in left if job.name not in done]
    return list(done.values())


def families(names: Sequence[str]) -> list[str]:
    """Returns names, those that begin alike as one pattern each: `plain/*/*` for all of `plain/noto/0`."""
    parts = (name.split("/") for name in names)
    return list(dict.fromkeys("/".join([first, *("*" for _ in rest)]) for first, *rest in parts))


def part_of(pipeline: Pipeline, patterns: Sequence[str]) -> Pipeline:
    """Returns the steps that match any pattern, with all that they need, and the rows of the table about them.

    Raises:
        RecipeError: a pattern that no step matches.
    """
    for pattern in patterns:
        if not pipeline.matching([pattern]):
            names = families([job.name for job in pipeline.jobs])
            raise RecipeError(
                f"--only {pattern}: no step is called so",
                hint=f"a * stands for what is between two slashes; steps: {', '.join(names)}",
            )
    wanted = set(pipeline.matching(patterns))
    for job in reversed(pipeline.jobs):
        if job.name in wanted:
            wanted.update(job.needs)
    jobs = tuple(job for job in pipeline.jobs if job.name in wanted)
    part = dataclasses.replace(pipeline, jobs=jobs)
    report = tuple(row for row in pipeline.report if part.matching(row.of))
    left = {row.strategy for row in report}
    info = dataclasses.replace(pipeline.info, compare=tuple(name for name in pipeline.info.compare if name in left))
    return dataclasses.replace(part, info=info, report=report)


def check_report(pipeline: Pipeline) -> None:
    """Refuses report rows that speak of no step, and comparisons with what is no row."""
    known = [row.strategy for row in pipeline.report]
    if unknown := [name for name in pipeline.info.compare if name not in known]:
        hint = f"strategies: {', '.join(known) or 'none'}"
        raise RecipeError(f"[pipeline] compare: no [[report]] has the strategy '{unknown[0]}'", hint=hint)
    for row in pipeline.report:
        if not pipeline.matching(row.of):
            steps = ", ".join(job.name for job in pipeline.jobs)
            raise RecipeError(
                f"[[report]] '{row.strategy}': no step matches {', '.join(row.of)}", hint=f"steps: {steps}"
            )
