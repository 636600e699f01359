"""mergekit's configuration files (YAML), for the methods that both have: what they mean here, or why they cannot.

Meanings follow mergekit 0.1.5. Its defaults are written out where ours are others. What would change numbers and
cannot be said here (slices of several models, flags that differ between layers) is refused by name; what changes none
(shards, caches) is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modelgit.errors import FormatError, RevisionError, UsageError
from modelgit.merge.methods.registry import together
from modelgit.porcelain.merging.gradients import Place, Row, by_layer, layers_among, places, value_at, varies
from modelgit.repo.repository import Repository

MAX_BYTES = 1 << 20
COMMIT_IT = "commit the result, and name that"
KNOWN = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer"}
WITHOUT_EFFECT = {"int8_mask", "chat_template", "name"}
OF_A_MODEL = {"weight", "density", "gamma", "epsilon"}  # all others hold for the whole, and are read only there
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of mergekit's methods: ours, its settings by their names there (with its defaults), settings always set."""

    method: str
    settings: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True
    base: str = "needed"  # or "one more": another model; "deltas": with a base, task vectors; "first": the first of two
    only: Mapping[str, Any] = field(default_factory=dict)  # settings of which one value alone can be had here
    flags: tuple[str, ...] = ()  # that choose among methods here, or change nothing


LAMBDA = {"lambda": ("scale", 1.0)}
SCALED = {**LAMBDA, "density": ("density", 1.0)}
DROPPED = {**SCALED, "normalize": ("normalize", False)}
DIALECT: Mapping[str, Dialect] = {
    "linear": Dialect("linear", {"normalize": ("normalize", True)}, base="one more"),
    "task_arithmetic": Dialect("task_arithmetic", {**LAMBDA, "normalize": ("normalize", False)}),
    "ties": Dialect("ties", {**SCALED, "normalize": ("normalize", True), "rescale": ("rescale", False)}),
    "dare_linear": Dialect("dare_linear", DROPPED, only={"rescale": True}),
    "dare_ties": Dialect("dare_ties", DROPPED, only={"rescale": True}),
    "breadcrumbs": Dialect(
        "breadcrumbs", {**SCALED, "gamma": ("gamma", 0.01)}, only={"normalize": False, "rescale": False}
    ),
    "breadcrumbs_ties": Dialect(
        "breadcrumbs",
        {**SCALED, "gamma": ("gamma", 0.01)},
        {"signs": True},
        only={"normalize": False, "rescale": False},
    ),
    "della": Dialect(
        "della",
        {**SCALED, "epsilon": ("epsilon", 0.15), "normalize": ("normalize", True)},
        only={"rescale": True},
    ),
    "della_linear": Dialect("della_linear", {**DROPPED, "epsilon": ("epsilon", 0.15)}, only={"rescale": True}),
    "sce": Dialect("sce", {"select_topk": ("top", 1.0)}, weighted=False),
    "model_stock": Dialect("model_stock", weighted=False, flags=("filter_wise",)),
    "karcher": Dialect(
        "karcher", {"max_iter": ("iterations", 10), "tol": ("tolerance", 1e-5)}, weighted=False, base="one more"
    ),
    "multislerp": Dialect("multislerp", base="deltas", only={"normalize_weights": True}, flags=("eps",)),
    "nuslerp": Dialect("nuslerp", base="deltas", flags=("nuslerp_flatten", "nuslerp_row_wise")),
    "slerp": Dialect("slerp", base="first", flags=("t",)),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What a configuration says here: revisions in order with a weight each, the base, and what else to know."""

    method: str
    settings: Mapping[str, Any]
    layer_settings: Mapping[str, Table]
    revs: tuple[str, ...]
    weights: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]
    base: str | None
    vocabulary: str
    notes: tuple[str, ...]

    def choices(self) -> Table:
        """Returns what it says of how to merge."""
        said = {"method": self.method, "settings": self.settings, "weights": self.weights, "base": self.base}
        by_layer = {"layers": self.layers, "layer_settings": self.layer_settings}
        return {**said, **by_layer, "vocabulary": self.vocabulary}


def read_configuration(place: Path) -> Table:
    """Returns a configuration file. Raises FormatError, UsageError."""
    import yaml

    try:
        with place.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise FormatError(f"{place}: expected at most {MAX_BYTES} bytes, got more")
        table = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror}", hint="--from-mergekit path/to/config.yml") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date or a number out of bounds
        raise FormatError(f"{place}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(table, dict):
        raise FormatError(f"{place}: expected a table of settings, got {type(table).__name__}")
    return table


def imported(repo: Repository, place: Path, names: Mapping[str, str]) -> Imported:
    """Returns what a configuration means here; `names` are revisions for its models' names.

    Raises:
        FormatError: no such configuration. UsageError: what cannot be had here, by name; a model that is no revision.
    """
    where = str(place)
    table, count = unsliced(read_configuration(place), where)
    refuse_unknown(table, where)
    word = name_of(table.get("merge_method"), f"{where}: merge_method")
    if word not in DIALECT:
        shared = ", ".join(sorted(DIALECT))
        raise UsageError(f"{where}: merge_method '{word}' is not to be had here; shared methods: {shared}")
    dialect, base = DIALECT[word], None
    if table.get("base_model") is not None:
        base = name_of(table["base_model"], f"{where}: base_model")
    elif dialect.base == "needed":
        raise UsageError(f"{where}: {word} needs a base_model")
    parameters = table_of(table.get("parameters"), f"{where}: parameters")
    models = taking_part(dialect, models_of(table, where), base, parameters, where)
    method, fixed = method_of(dialect, parameters, where, seen_from=base)
    check_parameters(dialect, parameters, models, where)
    rev = reviser(repo, names, where)
    revs = tuple(rev(name) for name in models)
    there = partial(tensors_of, repo, revs)
    settings, own = settings_of(dialect, parameters, models, where, there)
    weights, layers = weights_of(dialect, parameters, models, where, there)
    if count is not None:
        check_layers(count, tensors_of(repo, revs), where)
    return Imported(
        method=method,
        settings={**settings, **fixed},
        layer_settings=own,
        revs=revs,
        weights=weights,
        layers=layers,
        base=rev(base) if base is not None and dialect.base in ("needed", "deltas") else None,
        vocabulary="union" if table.get("tokenizer_source") == "union" else "error",
        notes=tuple(notes_of(table, word)),
    )


def told(value: Any) -> str:
    """Returns a value for a message: a list or table, which may be huge, by its type alone."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:80]


def name_of(value: Any, where: str) -> str:
    """Returns a name. Raises FormatError for anything else."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).isprintable():
        raise FormatError(f"{where}: expected a name, got {told(value)}")
    return str(value)


def table_of(value: Any, where: str) -> Table:
    """Returns a table of settings, an empty one for nothing. Raises FormatError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a table, got {told(value)}")
    return value


def taking_part(
    dialect: Dialect, models: dict[str, Table], base: str | None, parameters: Table, where: str
) -> dict[str, Table]:
    """Returns the models that are merged, with their settings, in order. Raises UsageError."""
    if dialect.base == "first":
        others = {name: own for name, own in models.items() if name != base}
        if base is None or len(others) != 1:
            what = f"expected two models, one of them the base_model, got {len(models)}"
            raise UsageError(f"{where}: {dialect.method}: {what}")
        return {base: models.get(base, {}), **others}
    if dialect.base != "one more":
        return {name: own for name, own in models.items() if name != base}
    if base is None or base in models:
        return models
    if dialect.weighted and "weight" not in parameters:
        what = f"{where}: base_model {base} takes part in {dialect.method}, and has no weight"
        raise UsageError(what, hint="list it among the models with its weight, or leave base_model out")
    return {**models, base: {}}


def refuse_unknown(table: Table, where: str) -> None:
    """Raises UsageError for what would change numbers and cannot be said here."""
    if "slices" in table or "modules" in table:
        what = "slices and modules put layers of several models together, which is no merge of versions"
        raise UsageError(f"{where}: {what}", hint="list whole models: 'models:', or one slice with all layers of each")
    if "tokenizer" in table:
        raise UsageError(f"{where}: 'tokenizer' is not to be had here", hint="merge with --vocabulary ours or union")
    unknown = sorted(str(key) for key in table.keys() - KNOWN - WITHOUT_EFFECT)
    if unknown:
        raise UsageError(f"{where}: unknown setting '{unknown[0]}'; known: {', '.join(sorted(KNOWN - {'tokenizer'}))}")


def unsliced(table: Table, where: str) -> tuple[Table, int | None]:
    """Returns a configuration of one slice of whole models as one of models, and how many layers it says they have.

    Any other is returned as it is. Raises FormatError.
    """
    slices = table.get("slices")
    one = slices[0] if isinstance(slices, list) and len(slices) == 1 and "models" not in table else None
    if not isinstance(one, dict) or one.keys() - {"sources", "parameters"}:
        return table, None
    sources = one.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(source, dict) for source in sources):
        raise FormatError(f"{where}: slices: expected sources, a list of '- model: NAME' with a layer_range")
    first = sources[0].get("layer_range")
    if not whole_range(first) or any(source.get("layer_range") != first for source in sources):
        return table, None
    models = [{key: value for key, value in source.items() if key != "layer_range"} for source in sources]
    own = table_of(one.get("parameters"), f"{where}: slices: parameters")
    parameters = {**table_of(table.get("parameters"), f"{where}: parameters"), **own}
    rest = {key: value for key, value in table.items() if key != "slices"}
    return {**rest, "models": models, "parameters": parameters}, first[1]


def whole_range(found: Any) -> bool:
    """Returns whether this is a range of layers from the first on."""
    if not isinstance(found, list) or len(found) != 2 or not all(type(number) is int for number in found):
        return False
    return bool(found[0] == 0 < found[1])


def check_layers(count: int, names: Sequence[str], where: str) -> None:
    """Raises UsageError unless models of these tensors have so many layers."""
    layers = layers_among(names)
    if layers != count:
        what = f"{where}: slices: expected a layer_range of all layers, [0, {layers}], got [0, {count}]"
        raise UsageError(what, hint="layers of several models put together are no merge of versions")


def models_of(table: Table, where: str) -> dict[str, Table]:
    """Returns the settings of each model by its name. Raises FormatError."""
    rows, found = table.get("models"), dict[str, Table]()
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and "model" in r for r in rows):
        raise FormatError(f"{where}: models: expected a list of '- model: NAME'")
    for row in rows:
        if isinstance(row["model"], dict):
            raise UsageError(f"{where}: a model put together (lora, override) is not to be had here", hint=COMMIT_IT)
        name = name_of(row["model"], f"{where}: models: model")
        if other := sorted(str(key) for key in row.keys() - {"model", "parameters"}):
            raise UsageError(f"{where}: {name}: '{other[0]}' is not to be had here; known: model, parameters")
        if name in found:
            raise UsageError(f"{where}: model '{name}' is listed twice", hint="give it the sum of both weights")
        found[name] = table_of(row.get("parameters"), f"{where}: {name}: parameters")
    return found


def reviser(repo: Repository, names: Mapping[str, str], where: str) -> Callable[[str], str]:
    """Returns the function from a model's name to a revision: what the user says, the name itself, its last part."""

    def rev(name: str) -> str:
        if "+" in name and name not in names:
            raise UsageError(f"{where}: '{name}' applies an adapter first", hint=COMMIT_IT)
        for candidate in (names.get(name), name, name.rstrip("/").rsplit("/", 1)[-1]):
            try:
                if candidate is not None and repo.resolve(candidate):
                    return candidate
            except RevisionError:
                if candidate == names.get(name):
                    raise
        raise UsageError(f"{where}: model '{name}' is no revision here", hint=f"say which it is: --model {name}=REV")

    return rev


def method_of(dialect: Dialect, parameters: Table, where: str, *, seen_from: str | None) -> tuple[str, Table]:
    """Returns our method, and the settings that are always so. Raises UsageError."""
    if dialect.method == "model_stock" and flag("filter_wise", False, parameters, where):
        return "model_stock_rows", {}
    if dialect.method == "nuslerp" and not flag("nuslerp_flatten", True, parameters, where):
        if seen_from is not None:
            raise UsageError(f"{where}: nuslerp by row with a base_model is not to be had here")
        along = "first" if flag("nuslerp_row_wise", False, parameters, where) else "last"
        return "nuslerp_vectors", {"along": along}
    return dialect.method, {**dialect.fixed, **({"deltas": seen_from is not None} if dialect.base == "deltas" else {})}


def check_parameters(dialect: Dialect, parameters: Table, models: Mapping[str, Table], where: str) -> None:
    """Raises UsageError for parameters that cannot be had, or that are not read where they stand."""
    known = {*dialect.settings, *dialect.only, *dialect.flags, "weight", *WITHOUT_EFFECT}
    own = {str(key) for table in models.values() for key in table}
    if unknown := sorted(({str(key) for key in parameters} | own) - known):
        what = f"parameter '{unknown[0]}' is not to be had here; known: {', '.join(sorted(known))}"
        raise UsageError(f"{where}: {what}")
    if misplaced := sorted(own - OF_A_MODEL - WITHOUT_EFFECT):
        what = (
            f"{where}: '{misplaced[0]}' holds for all models, and mergekit does not read it from one model's parameters"
        )
        raise UsageError(what, hint="move it to the parameters of the whole file, or leave it out")
    for name, value in dialect.only.items():
        if (got := parameters.get(name, value)) != value:
            raise UsageError(f"{where}: {name}: {told(got)} is not to be had here, {value} alone")


def settings_of(
    dialect: Dialect, parameters: Table, models: Mapping[str, Table], where: str, tensors: Callable[[], Sequence[str]]
) -> tuple[Table, Mapping[str, Table]]:
    """Returns our settings, and those of layers that have others. Raises UsageError.

    Where models differ in one, it is a number for each. `tensors` are asked for only where layers differ.
    """
    defaults = {name: default for name, (_, default) in dialect.settings.items()}
    given = {name: given_for(name, default, parameters, models) for name, default in defaults.items()}
    ours = [our for our, _ in dialect.settings.values()]

    def row(place: Place) -> tuple[Any, ...]:
        found = {name: at_place(place, values, defaults[name], where, name) for name, values in given.items()}
        return tuple(with_outliers(found).values())

    if not any(varies(value) for values in given.values() for value in values):
        return dict(zip(ours, row(Place("", 0.0)), strict=True)), {}
    most, own = by_layer({place.tensor: row(place) for place in places(tensors())})
    named = {layer: dict(zip(ours, values, strict=True)) for layer, values in own.items()}
    return dict(zip(ours, most, strict=True)), named


def given_for(name: str, default: Any, parameters: Table, models: Mapping[str, Table]) -> list[Any]:
    """Returns a parameter as it is given: for each model, or one for the whole where no model can have its own."""
    whole = parameters.get(name, default)
    return [own.get(name, whole) for own in models.values()] if name in OF_A_MODEL else [whole]


def at_place(place: Place, values: Sequence[Any], default: Any, where: str, name: str) -> Any:
    """Returns a setting for a tensor: one value, or one for each model where they differ. Raises UsageError."""
    if not isinstance(default, float):
        if varies(values[0]):
            raise UsageError(f"{where}: {name}: a gradient over layers or a filter by name is not to be had here")
        return values[0]
    found = tuple(value_at(place, value, number, f"{where}: {name}") for value in values)
    return found[0] if len(set(found)) == 1 else found


def with_outliers(found: Table) -> Table:
    """Returns settings as they act there: where breadcrumbs keep all of a task vector, no outlier is dropped."""
    if "gamma" not in found:
        return found
    both = together("breadcrumbs", found["density"], found["gamma"])
    gammas = tuple(0.0 if density == 1 else gamma for density, gamma in both)
    return {**found, "gamma": gammas[0] if len(set(gammas)) == 1 else gammas}


def flag(name: str, default: bool, parameters: Table, where: str) -> bool:
    """Returns whether something is asked for. Raises UsageError for what is neither true nor false."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{where}: {name}: expected true or false, got {told(value)}")
    return value


def number(value: Any, where: str) -> float:
    """Returns a number; YAML takes 5e-1 for text, and mergekit makes a number of it. Raises UsageError."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{where}: expected a number, got {told(value)}")
    return found


def weights_of(
    dialect: Dialect, parameters: Table, models: Mapping[str, Table], where: str, tensors: Callable[[], Sequence[str]]
) -> tuple[Row, Mapping[str, Row]]:
    """Returns the weight of each model, 1 unless given, for slerp what its t means, and those of layers with others.

    Raises UsageError. `tensors` are asked for only where weights are not the same for all.
    """
    if dialect.base != "first" and not dialect.weighted:
        return (), {}
    if dialect.base == "first":
        given = {"t": parameters.get("t")}
    else:
        given = {f"{name}: weight": own.get("weight", parameters.get("weight", 1.0)) for name, own in models.items()}

    def row(place: Place) -> Row:
        values = tuple(value_at(place, value, number, f"{where}: {name}") for name, value in given.items())
        return turned(values[0], where) if dialect.base == "first" else values

    if not any(varies(value) for value in given.values()):
        return row(Place("", 0.0)), {}
    return by_layer({place.tensor: row(place) for place in places(tensors())})


def turned(t: float, where: str) -> Row:
    """Returns the weights of two models between which t says where to be. Raises UsageError."""
    if not 0 <= t <= 1:
        raise UsageError(f"{where}: t: expected one number from 0 to 1, got {t}")
    return (1 - t, t)


def tensors_of(repo: Repository, revs: Sequence[str]) -> Sequence[str]:
    """Returns the names of the models' tensors."""
    manifests = [manifest for rev in revs for manifest in repo.version(rev).manifests.values()]
    return sorted({entry.name for manifest in manifests for entry in manifest.tensors})


def notes_of(table: Table, word: str) -> Sequence[str]:
    """Returns what a user should know that is not as in mergekit."""
    notes = []
    if table.get("dtype") or table.get("out_dtype"):
        notes.append("dtype: the result has the models' own; sums are taken in float64 whatever it is")
    if word.startswith(("dare", "della")):
        notes.append(f"{word}: masks are drawn from tensor names and ids, and rescaled by the density as in the papers")
    if word in ("model_stock", "sce"):
        notes.append(f"{word}: no threshold of 1e-6 is applied, as in the paper: small tensors and updates differ")
    return notes
