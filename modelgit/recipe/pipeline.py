"""A pipeline file: templates of steps, expanded to the jobs that are run.

A step's name is the branch its commit goes to. A name with variables stands for many steps:
`vanilla/{seed}/{run}` is one fine-tuning for each seed and run.
"""

import dataclasses
import fnmatch
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modelgit.errors import RecipeError
from modelgit.recipe.binding import Table, bind, check_keys, expect_table
from modelgit.train.config import DataConfig, FineTune, draw, seed_hash

Kind = Literal["import", "probe", "train", "merge", "ensemble"]
Pick = Literal["all", "best"]
Value = int | str
Bindings = Mapping[str, Value]
SECTIONS = ("pipeline", "model", "variables", "data", "train", "draws", "step", "report")


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """What the pipeline is called, where its repository and its report go."""

    name: str
    repository: str = "."
    report: str | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The architecture, and where its pre-trained weights come from: `pretrained` or a file."""

    architecture: str
    weights: str = "pretrained"


@dataclass(frozen=True, slots=True)
class StepTemplate:
    """A `[[step]]` table as written; which keys it may have depends on its kind."""

    name: str
    kind: Kind
    start: str | None = None
    head: str | None = None
    data: str | None = None
    run: int | str = 0
    heads: tuple[str, ...] = ()
    method: str = "linear"
    settings: dict[str, object] = field(default_factory=dict)
    drop_heads: bool = False
    each: tuple[object, ...] = ()
    train: dict[str, object] = field(default_factory=dict)
    evaluate: str | None = None


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A line of the final table: the mean over the commits whose step names match `of`.

    With `pick = "best"` only that run of each seed counts that is best on validation.
    """

    strategy: str
    title: str
    of: tuple[str, ...]
    pick: Pick = "all"


@dataclass(frozen=True, slots=True)
class Job:
    """One step, fully decided; `needs` are the names of the steps whose commits it starts from."""

    name: str
    kind: Kind
    bindings: Bindings
    needs: tuple[str, ...]
    architecture: str
    weights: str = ""
    head: str | None = None
    data: DataConfig | None = None
    config: FineTune | None = None
    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    drop_heads: bool = False
    evaluate: DataConfig | None = None


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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read pipeline {path}: {error}", hint="name a .toml file") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        apply_override(table, override)
    return build_pipeline(table, path.absolute().parent)


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
    templates = [bind(StepTemplate, t, f"[[step]] {i + 1}") for i, t in enumerate(expect_list(table, "step"))]
    report = tuple(bind(ReportRow, t, f"[[report]] {i + 1}") for i, t in enumerate(expect_list(table, "report")))
    data = {name: bind_data(t, name, folder) for name, t in expect_table(table.get("data", {}), "[data]").items()}
    context = Context(
        model,
        data,
        expect_table(table.get("train", {}), "[train]"),
        expect_lists(table.get("draws", {}), "[draws]"),
        expect_lists(table.get("variables", {}), "[variables]"),
    )
    drafts = [draft for template in templates for draft in expand(template, context)]
    jobs = in_order(resolve_heads(drafts))
    frozen = context.train.get("frozen_stages", 0)
    pipeline = Pipeline(info, model, tuple(jobs), report, data, frozen if isinstance(frozen, int) else 0)
    check_report(pipeline)
    return pipeline


@dataclass(frozen=True, slots=True)
class Context:
    """The shared tables that a step's template is expanded against."""

    model: ModelInfo
    data: Mapping[str, DataConfig]
    train: Table
    draws: Mapping[str, Sequence[object]]
    variables: Mapping[str, Sequence[object]]

    def data_named(self, name: str, where: str) -> DataConfig:
        """Returns the data set called `name`."""
        if name not in self.data:
            raise RecipeError(f"{where}: unknown data set '{name}'", hint=f"known data sets: {', '.join(self.data)}")
        return self.data[name]


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


def bind_model(table: object, folder: Path) -> ModelInfo:
    """Returns the model's settings; a weight file is relative to the pipeline's folder."""
    info = bind(ModelInfo, table, "[model]")
    return info if info.weights == "pretrained" else dataclasses.replace(info, weights=str(folder / info.weights))


def bind_data(table: object, name: str, folder: Path) -> DataConfig:
    """Returns the data set's settings, its path resolved against the pipeline's folder."""
    config = bind(DataConfig, table, f"[data.{name}]")
    return dataclasses.replace(config, path=str(folder / config.path))


def variables_in(template: StepTemplate) -> list[str]:
    """Returns the variables that a step's name holds, in order."""
    return re.findall(r"\{(\w+)\}", template.name)


def expand(template: StepTemplate, context: Context) -> Iterator[Job]:
    """Yields a job for each combination of the variables in the step's name."""
    where = f"step '{template.name}'"
    rows = [expect_table(row, f"{where}.each") for row in template.each] or [{}]
    for row in rows:
        free = [v for v in dict.fromkeys(variables_in(template)) if v not in row]
        for name in free:
            if name not in context.variables:
                known = ", ".join([*context.variables, *row])
                raise RecipeError(f"{where}: unknown variable '{{{name}}}'", hint=f"known variables: {known}")
        for values in itertools.product(*(context.variables[v] for v in free)):
            yield job_of(template, {**row, **dict(zip(free, values, strict=True))}, context)


def fill(text: str, bindings: Table, where: str) -> str:
    """Returns `text` with `{variable}` replaced."""
    try:
        return text.format_map(dict(bindings))
    except (KeyError, ValueError, IndexError) as error:
        raise RecipeError(
            f"{where}: cannot fill '{text}': {error}", hint=f"known variables: {', '.join(bindings)}"
        ) from error


def job_of(template: StepTemplate, row: Table, context: Context) -> Job:
    """Returns the job that a template stands for under one binding of its variables."""
    where = f"step '{template.name}'"
    bindings: dict[str, Value] = {k: v for k, v in row.items() if isinstance(v, int | str)}
    name = fill(template.name, bindings, where)
    optional = {
        key: fill(value, bindings, where) for key in ("start", "head", "data") if (value := getattr(template, key))
    }
    check_kind(template, where)
    data = context.data_named(optional["data"], where) if "data" in optional else None
    evaluated = context.data_named(template.evaluate, where) if template.evaluate else data
    needs = [optional[key] for key in ("start", "head") if key in optional]
    return Job(
        name=name,
        kind=template.kind,
        bindings=bindings,
        needs=(*needs, *(fill(h, bindings, where) for h in template.heads)),
        architecture=context.model.architecture,
        weights=context.model.weights if template.kind == "import" else "",
        head=optional.get("head"),
        data=data,
        config=fine_tune_of(template, bindings, context) if template.kind in ("train", "probe") else None,
        method=template.method if template.kind == "merge" else "",
        settings=template.settings,
        drop_heads=template.drop_heads,
        evaluate=evaluated,
    )


REQUIRED: dict[str, tuple[str, ...]] = {
    "import": (),
    "probe": ("start", "data"),
    "train": ("start", "data"),
    "merge": ("heads",),
    "ensemble": ("heads", "evaluate"),
}
ALLOWED: dict[str, tuple[str, ...]] = {
    "import": (),
    "probe": ("start", "data", "train", "run"),
    "train": ("start", "head", "data", "run", "train"),
    "merge": ("heads", "method", "settings", "drop_heads"),
    "ensemble": ("heads",),
}


def check_kind(template: StepTemplate, where: str) -> None:
    """Refuses a step that lacks what its kind needs, or has what its kind cannot use."""
    for key in REQUIRED[template.kind]:
        if not getattr(template, key):
            raise RecipeError(f"{where}: {article(template.kind)} step needs '{key}'")
    for f in dataclasses.fields(StepTemplate):
        if f.name in ("name", "kind", "each", "evaluate", *ALLOWED[template.kind]):
            continue
        default = f.default if f.default is not dataclasses.MISSING else {}
        if getattr(template, f.name) != default:
            raise RecipeError(f"{where}: {article(template.kind)} step does not use '{f.name}'")


def article(kind: Kind) -> str:
    """Returns the kind with its article."""
    return f"an {kind}" if kind in ("import", "ensemble") else f"a {kind}"


def fine_tune_of(template: StepTemplate, bindings: Bindings, context: Context) -> FineTune:
    """Returns the settings of one fine-tuning: defaults, then this run's draws, then the step's own.

    Run 0 keeps the defaults, as in DomainBed; the same run and seed give the same draws whatever the start.
    """
    where = f"step '{template.name}'"
    run = int(fill(str(template.run), bindings, where))
    seed = int(bindings.get("seed", 0))
    drawn = {key: draw(key, choices, run, seed) for key, choices in context.draws.items()} if run else {}
    table = {**context.train, **drawn, **template.train, "seed": seed_hash(seed, run)}
    return bind(FineTune, table, f"{where}.train")


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
    return [dataclasses.replace(job, needs=tuple(needs_of(job, names))) for job in drafts]


def needs_of(job: Job, names: Sequence[str]) -> Iterator[str]:
    """Yields the steps that a job needs, patterns expanded, each once."""
    seen: set[str] = set()
    for pattern in job.needs:
        found = [name for name in names if matches(name, pattern) and name != job.name]
        if not found:
            raise RecipeError(
                f"step '{job.name}' needs '{pattern}', which no step is called", hint=f"steps: {', '.join(names)}"
            )
        for name in found:
            if name not in seen:
                seen.add(name)
                yield name


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


def part_of(pipeline: Pipeline, patterns: Sequence[str]) -> Pipeline:
    """Returns the steps that match any pattern, with all that they need, and the rows of the table about them.

    Raises:
        RecipeError: a pattern that no step matches.
    """
    for pattern in patterns:
        if not pipeline.matching([pattern]):
            steps = ", ".join(job.name for job in pipeline.jobs)
            raise RecipeError(f"--only {pattern}: no step is called so", hint=f"steps: {steps}")
    wanted = set(pipeline.matching(patterns))
    for job in reversed(pipeline.jobs):
        if job.name in wanted:
            wanted.update(job.needs)
    jobs = tuple(job for job in pipeline.jobs if job.name in wanted)
    part = dataclasses.replace(pipeline, jobs=jobs)
    return dataclasses.replace(part, report=tuple(row for row in pipeline.report if part.matching(row.of)))


def check_report(pipeline: Pipeline) -> None:
    """Refuses report rows that speak of no step."""
    for row in pipeline.report:
        if not pipeline.matching(row.of):
            steps = ", ".join(job.name for job in pipeline.jobs)
            raise RecipeError(
                f"[[report]] '{row.strategy}': no step matches {', '.join(row.of)}", hint=f"steps: {steps}"
            )
