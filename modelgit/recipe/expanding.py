"""Templates of steps, and the jobs that they stand for.

A step's name is the branch its commit goes to. A name with variables stands for many steps: `vanilla/{seed}/{run}` is
one fine-tuning for each seed and run. Every other value of the step may hold the variables of its name; `{round-1}` is
the value before in the list of `round`, and where there is none `first` is what the step starts from.
"""

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelgit.errors import RecipeError
from modelgit.recipe.binding import Table, bind, expect_table
from modelgit.recipe.places import beside
from modelgit.train.choices import check
from modelgit.train.config import DataConfig, FineTune, PowerRange, draw, seed_hash

Kind = Literal["import", "probe", "train", "merge", "ensemble"]
Value = int | float | str
Bindings = Mapping[str, Value]
Found = tuple[float, ...] | str  # weights, or the word for how they are found
Select = Literal["", "uniform", "greedy", "greedier"]
BY_EXAMPLES, BY_POSTERIOR = "examples", "posterior"
PRETRAINED, RANDOM = "pretrained", "random"  # words for weights that are in no file of the recipe's
OWN = ("name", "kind", "each", "evaluate")  # keys that every kind of step may have
MOST_EXAMPLES = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The architecture, and where its weights come from: `pretrained`, a file, or `random`, untrained by the `seed`."""

    architecture: str
    weights: str = PRETRAINED
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outer:
    """An outer optimiser's step: SGD with Nesterov momentum, the mean of the heads' changes as its gradient.

    Douillard et al. 2023, arXiv:2311.08105. `lr` 1 without momentum is the mean of the heads.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check("outer.lr", self.lr, 0 < self.lr <= 10, "above 0, at most 10")
        check("outer.momentum", self.momentum, 0 <= self.momentum < 1, "from 0 up to, but not, 1")


@dataclass(frozen=True, slots=True)
class Fusing:
    """Weights that each run draws for the heads: exp(r u) each, u uniform from 0 to 1, r being the `fusing_range`.

    So Ramé et al. 2022 (arXiv:2212.10445) mix auxiliary models to compare with fusing (Choshen et al. 2022,
    arXiv:2204.03044).
    """

    fusing_range: float = 4.0

    def __post_init__(self) -> None:
        check("fusing_range", self.fusing_range, 0 < self.fusing_range <= 20, "above 0, at most 20")


@dataclass(frozen=True, slots=True)
class Drawing:
    """What decides the weights that a merge draws, but for the names of its heads."""

    fusing: Fusing
    run: int
    seed: int

    def weights(self, names: Sequence[str]) -> tuple[float, ...]:
        """Returns the heads' weights, which add up to 1; each head has a stream of its own, by its name.

        Six digits, for every machine must have the same: `exp` is not the same to the last bit on all.
        """
        powers = PowerRange(0.0, self.fusing.fusing_range, math.e)
        drawn = [float(draw(f"weight of {name}", powers, self.run, self.seed)) for name in names]
        return tuple(float(f"{value / sum(drawn):.6g}") for value in drawn)


@dataclass(frozen=True, slots=True)
class StatisticsInfo:
    """What a merge's statistics are of: how many training examples, at most, and whose labels of them.

    `model`: those that each version expects itself, each as likely as it says; `data`: those that are true.
    """

    examples: int = 1024
    labels: Literal["model", "data"] = "model"

    def __post_init__(self) -> None:
        check("statistics.examples", self.examples, 2 <= self.examples <= MOST_EXAMPLES, f"from 2 to {MOST_EXAMPLES}")


@dataclass(frozen=True, slots=True)
class StepTemplate:
    """A `[[step]]` table as written; which keys it may have depends on its kind.

    `data`, `on` and `evaluate` name a data set, or are a table: its `name`, and settings that are other in this step.
    """

    name: str
    kind: Kind
    architecture: str | None = None
    file: str | None = None
    seed: int | str | None = None
    start: str | None = None
    first: str | None = None
    head: str | None = None
    data: str | dict[str, object] | None = None
    run: int | str = 0
    heads: tuple[str, ...] = ()
    method: str = "linear"
    settings: dict[str, object] = field(default_factory=dict)
    weights: Found | Fusing = ()
    base: str | None = None
    outer: Outer | None = None
    select: Select = ""
    search: str = ""
    evaluations: int = 30
    statistics: StatisticsInfo | None = None
    on: str | dict[str, object] | None = None
    drop_heads: bool = False
    each: tuple[object, ...] = ()
    train: dict[str, object] = field(default_factory=dict)
    evaluate: str | dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One step, fully decided.

    `needs` are the names of the steps whose commits it starts from; of these, `heads` are averaged, with `weights`
    (none: all alike), or those that are `drawn` once the heads are known. `base` is the step that the method takes for
    the base, else the graph's. `validation_seen` says that the examples it would be validated on were trained on, in
    another split: then it has no validation score.
    `seed` is that of an import that reads no file: untrained weights. `statistics` are those that the method asks
    for, of the training examples of `on`.
    """

    name: str
    kind: Kind
    bindings: Bindings
    needs: tuple[str, ...]
    architecture: str
    weights_file: str = ""
    seed: int | None = None
    head: str | None = None
    data: DataConfig | None = None
    config: FineTune | None = None
    heads: tuple[str, ...] = ()
    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    weights: Found = ()
    drawn: Drawing | None = None
    base: str | None = None
    outer: Outer | None = None
    select: Select = ""
    search: str = ""
    evaluations: int = 30
    statistics: StatisticsInfo | None = None
    on: DataConfig | None = None
    drop_heads: bool = False
    evaluate: DataConfig | None = None
    validation_seen: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """The shared tables that a step's template is expanded against."""

    model: ModelInfo
    data: Mapping[str, DataConfig]
    train: Table
    draws: Mapping[str, Sequence[object] | PowerRange]
    variables: Mapping[str, Sequence[object]]
    folder: Path

    def data_of(self, value: object, where: str) -> DataConfig | None:
        """Returns the data set that a step names, with the settings of its own; None where it names none."""
        if value is None:
            return None
        table = {"name": value} if isinstance(value, str) else dict(expect_table(value, where))
        name = table.pop("name", None)
        if not isinstance(name, str) or name not in self.data:
            known = ", ".join(self.data)
            raise RecipeError(f"{where}: unknown data set {name!r}", hint=f"known data sets: {known}")
        if "path" in table:
            raise RecipeError(f"{where}: path: a step takes the path of its data set", hint="write a [data.NAME] more")
        return bind(DataConfig, {**dataclasses.asdict(self.data[name]), **table}, where) if table else self.data[name]


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


def filled(value: Any, bindings: Table, where: str) -> Any:
    """Returns a value of a step with its variables replaced; `"{variable}"` alone becomes the variable's value."""
    if isinstance(value, Mapping):
        return {key: filled(item, bindings, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [filled(item, bindings, where) for item in value]
    if not isinstance(value, str):
        return value
    alone = re.fullmatch(r"\{([\w-]+)\}", value)
    return bindings[alone[1]] if alone and alone[1] in bindings else fill(value, bindings, where)


def with_previous(bindings: Bindings, context: Context) -> dict[str, Value]:
    """Returns the bindings, and as `name-1` what stands before each value in the list of its variable."""
    found = dict(bindings)
    for name, value in bindings.items():
        listed = list(context.variables.get(name, ()))
        if value in listed and (place := listed.index(value)) > 0 and isinstance(listed[place - 1], int | float | str):
            found[f"{name}-1"] = typing.cast("Value", listed[place - 1])
    return found


def start_of(template: StepTemplate, bindings: Bindings, where: str) -> str | None:
    """Returns the step to start from; in the first round, which has none before it, that is `first`."""
    if template.start is None:
        return None
    before = [word for word in re.findall(r"\{(\w+-1)\}", template.start) if word not in bindings]
    if not before:
        return fill(template.start, bindings, where)
    if template.first is None:
        hint = f'first = "STEP" says where the first {{{before[0].removesuffix("-1")}}} starts from'
        raise RecipeError(f"{where}: start = '{template.start}': there is no {{{before[0]}}} yet", hint=hint)
    return fill(template.first, bindings, where)


def job_of(template: StepTemplate, row: Table, context: Context) -> Job:
    """Returns the job that a template stands for under one binding of its variables."""
    where = f"step '{template.name}'"
    check_kind(template, where)
    own: dict[str, Value] = {k: v for k, v in row.items() if isinstance(v, int | float | str)}
    bindings = with_previous(own, context)
    start = start_of(template, bindings, where)
    head, base = (fill(text, bindings, where) if text else None for text in (template.head, template.base))
    data = context.data_of(filled(template.data, bindings, where), f"{where}.data")
    evaluated = context.data_of(filled(template.evaluate, bindings, where), f"{where}.evaluate")
    heads = tuple(fill(pattern, bindings, where) for pattern in template.heads)
    others = [name for name in (start, head, base) if name is not None]
    source = source_of(template, bindings, context) if template.kind == "import" else ("", None)
    return Job(
        name=fill(template.name, own, where),
        kind=template.kind,
        bindings=own,
        needs=(*others, *heads),
        architecture=template.architecture or context.model.architecture,
        weights_file=source[0],
        seed=source[1],
        head=head,
        data=data,
        config=fine_tune_of(template, bindings, context) if template.kind in ("train", "probe") else None,
        heads=heads,
        method=fill(template.method, bindings, where) if template.kind == "merge" else "",
        settings=filled(template.settings, bindings, where),
        weights=template.weights if not isinstance(template.weights, Fusing) else (),
        drawn=drawing_of(template, bindings, where),
        base=base or (start if template.outer is not None else None),
        outer=template.outer,
        select=template.select,
        search=template.search,
        evaluations=template.evaluations,
        statistics=template.statistics,
        on=context.data_of(filled(template.on, bindings, where), f"{where}.on"),
        drop_heads=template.drop_heads,
        evaluate=evaluated or data,
    )


def drawing_of(template: StepTemplate, bindings: Bindings, where: str) -> Drawing | None:
    """Returns what decides the weights of a merge that draws them, None for any other step."""
    if not isinstance(template.weights, Fusing):
        return None
    return Drawing(template.weights, *run_and_seed(template, bindings, where))


def run_and_seed(template: StepTemplate, bindings: Bindings, where: str) -> tuple[int, int]:
    """Returns the numbers that a step's draws are seeded by."""
    run, seed = fill(str(template.run), bindings, where), bindings.get("seed", 0)
    if not isinstance(seed, int):
        raise RecipeError(f"{where}: seed = {seed!r}: expected an integer")
    try:
        return int(run), seed
    except ValueError as error:
        raise RecipeError(f"{where}: run = {run!r}: expected an integer") from error


def source_of(template: StepTemplate, bindings: Bindings, context: Context) -> tuple[str, int | None]:
    """Returns where an import has its weights from, its own or the model's: a file, or "" and the seed to draw by."""
    word = str(template.weights or context.model.weights)
    if template.file:
        return beside(context.folder, template.file), None
    if word != RANDOM:
        return word, None
    seed = context.model.seed if template.seed is None else template.seed
    where = f"step '{template.name}'.seed"
    value = filled(seed, bindings, where)
    check(where, repr(value), isinstance(value, int), "an integer")
    return "", value


REQUIRED: dict[str, tuple[str, ...]] = {
    "import": (),
    "probe": ("start", "data"),
    "train": ("start", "data"),
    "merge": ("heads",),
    "ensemble": ("heads", "evaluate"),
}
MERGED = ("method", "settings", "weights", "base", "outer", "start", "first", "select", "search", "evaluations", "on",
          "statistics")  # fmt: skip
ALLOWED: dict[str, tuple[str, ...]] = {
    "import": ("architecture", "file", "weights", "seed"),
    "probe": ("start", "first", "data", "train", "run"),
    "train": ("start", "first", "head", "data", "run", "train"),
    "merge": ("heads", "drop_heads", "run", *MERGED),
    "ensemble": ("heads", "weights", "on"),
}


def check_kind(template: StepTemplate, where: str) -> None:
    """Refuses a step that lacks what its kind needs, or has what its kind cannot use."""
    for key in REQUIRED[template.kind]:
        if not getattr(template, key):
            raise RecipeError(f"{where}: {article(template.kind)} step needs '{key}'")
    for f in dataclasses.fields(StepTemplate):
        if f.name in (*OWN, *ALLOWED[template.kind]):
            continue
        default = f.default if f.default is not dataclasses.MISSING else {}
        if getattr(template, f.name) != default:
            raise RecipeError(f"{where}: {article(template.kind)} step does not use '{f.name}'")
    check_weights(template, where)


def check_weights(template: StepTemplate, where: str) -> None:
    """Refuses weights that are no numbers for the heads, nor a way to find them."""
    if template.kind == "import":
        return check_source(template, where)
    if template.kind == "merge" and template.run != 0 and not isinstance(template.weights, Fusing):
        hint = "run goes with weights = { fusing_range = 4.0 }"
        raise RecipeError(f"{where}: run: nothing is drawn by it", hint=hint)
    words = (BY_POSTERIOR,) if template.kind == "ensemble" else (BY_EXAMPLES, BY_POSTERIOR)
    if isinstance(template.weights, str) and template.weights not in words:
        known = ", ".join(map(repr, words))
        raise RecipeError(
            f"{where}: weights = {template.weights!r}: expected numbers, one for each of heads, or {known}"
        )
    if not isinstance(template.weights, str) and template.weights:
        if template.kind == "ensemble":
            raise RecipeError(f"{where}: weights: an ensemble takes the word {BY_POSTERIOR!r} alone")
        if not isinstance(template.weights, Fusing) and len(template.weights) != len(template.heads):
            told = f"{len(template.weights)} weights for {len(template.heads)} heads"
            raise RecipeError(f"{where}: {told}", hint="one for each pattern; all that match it have it")
    check_measuring(template, where)


def check_source(template: StepTemplate, where: str) -> None:
    """Refuses an import from a file and by a word at once, and another word than there is."""
    if template.weights and template.weights not in (PRETRAINED, RANDOM):
        hint = 'file = "…" names a file'
        told = f"{where}: weights = {template.weights!r}: expected '{PRETRAINED}' or '{RANDOM}'"
        raise RecipeError(told, hint=hint)
    if template.file and (template.weights or template.seed is not None):
        raise RecipeError(f"{where}: file does not go with weights or seed", hint="say one of file and weights")


def check_measuring(template: StepTemplate, where: str) -> None:
    """Refuses what measures without data, and outer steps of more than heads.

    Whether a merge measures anything on its data depends on its method, which may be a variable's.
    """
    wants = {"select": template.select, "search": template.search, "weights": template.weights == BY_POSTERIOR}
    wanting = [key for key, value in wants.items() if value]
    if wanting and template.on is None:
        raise RecipeError(f"{where}: {wanting[0]} needs 'on', the data to measure models on")
    if template.kind != "merge":
        if template.on is not None and not wanting:
            raise RecipeError(f"{where}: on: nothing is measured", hint=f"it goes with weights = '{BY_POSTERIOR}'")
        return
    if (template.outer is None) != (template.start is None):
        raise RecipeError(f"{where}: outer and start belong together", hint="heads are what is merged")
    more = [*wanting, *(key for key in ("weights", "base") if getattr(template, key))]
    if template.outer is not None and (more or template.method != "linear"):
        what = ", ".join(more) or f"method {template.method}"
        raise RecipeError(f"{where}: outer does not go with {what}", hint="it finds its weights by itself")


def article(kind: Kind) -> str:
    """Returns the kind with its article."""
    return f"an {kind}" if kind in ("import", "ensemble") else f"a {kind}"


def fine_tune_of(template: StepTemplate, bindings: Bindings, context: Context) -> FineTune:
    """Returns the settings of one fine-tuning: defaults, then this run's draws, then the step's own.

    Run 0 keeps the defaults, as in DomainBed; the same run and seed give the same draws whatever the start.
    """
    where = f"step '{template.name}'"
    if "seed" in context.train or "seed" in template.train:
        raise RecipeError(f"{where}: seed: the variable of that name decides", hint="[variables] seed = [0, 1, 2]")
    run, seed = run_and_seed(template, bindings, where)
    drawn = {key: drawn_value(key, choices, run, seed) for key, choices in context.draws.items()} if run else {}
    own = filled(template.train, bindings, where)
    table = {**context.train, **drawn, **own, "seed": seed_hash(seed, run)}
    return bind(FineTune, table, f"{where}.train")


def drawn_value(key: str, choices: Sequence[object] | PowerRange, run: int, seed: int) -> object:
    """Returns what a run draws for a setting; whole numbers are cut, as DomainBed cuts batches."""
    value = draw(key, choices, run, seed)
    whole = typing.get_type_hints(FineTune).get(key) in (int, int | None)
    return int(value) if whole and isinstance(value, float) else value
