"""mergekit's configuration files (YAML), for the methods that both have: what they mean here, or why they cannot.

Meanings follow mergekit 0.1.5. Its defaults are written out where ours are others. What would change numbers and
cannot be said here (slices, gradients over layers, filters by name, settings that differ between models) is refused
by name; what changes none (shards, caches) is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelgit.errors import FormatError, RevisionError, UsageError
from modelgit.repo.repository import Repository

MAX_BYTES = 1 << 20
KNOWN = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer"}
WITHOUT_EFFECT = {"int8_mask", "chat_template", "name"}
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of mergekit's methods: ours, its settings by their names there (with its defaults), settings always set."""

    method: str
    settings: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True
    base: str = "needed"  # or "none", "deltas": with a base, task vectors; "first": the first of two models
    only: Mapping[str, Any] = field(default_factory=dict)  # settings of which one value alone can be had here
    flags: tuple[str, ...] = ()  # that choose among methods here, or change nothing


LAMBDA = {"lambda": ("scale", 1.0)}
SCALED = {**LAMBDA, "density": ("density", 1.0)}
DROPPED = {**SCALED, "normalize": ("normalize", False)}
DIALECT: Mapping[str, Dialect] = {
    "linear": Dialect("linear", {"normalize": ("normalize", True)}, base="none"),
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
        "karcher", {"max_iter": ("iterations", 10), "tol": ("tolerance", 1e-5)}, weighted=False, base="none"
    ),
    "multislerp": Dialect("multislerp", base="deltas", only={"normalize_weights": True}, flags=("eps",)),
    "nuslerp": Dialect("nuslerp", base="deltas", flags=("nuslerp_flatten", "nuslerp_row_wise")),
    "slerp": Dialect("slerp", base="first"),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What a configuration says here: revisions in order with a weight each, the base, and what else to know."""

    method: str
    settings: Mapping[str, Any]
    revs: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    vocabulary: str
    notes: tuple[str, ...]

    def choices(self) -> Table:
        """Returns what it says of how to merge."""
        said = {"method": self.method, "settings": self.settings, "weights": self.weights, "base": self.base}
        return {**said, "vocabulary": self.vocabulary}


def read_configuration(place: Path) -> Table:
    """Returns a configuration file. Raises FormatError, UsageError."""
    import yaml

    try:
        if place.stat().st_size > MAX_BYTES:
            raise FormatError(f"{place}: {place.stat().st_size} bytes, expected at most {MAX_BYTES}")
        table = yaml.safe_load(place.read_bytes())
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror}", hint="--from-mergekit path/to/config.yml") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{place}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(table, dict):
        raise FormatError(f"{place}: expected a table of settings, got {type(table).__name__}")
    return table


def imported(repo: Repository, place: Path, names: Mapping[str, str]) -> Imported:
    """Returns what a configuration means here; `names` are revisions for its models' names.

    Raises:
        FormatError: no such configuration. UsageError: what cannot be had here, by name; a model that is no revision.
    """
    table, where = read_configuration(place), str(place)
    refuse_unknown(table, where)
    word = str(table.get("merge_method"))
    if word not in DIALECT:
        shared = ", ".join(sorted(DIALECT))
        raise UsageError(f"{where}: merge_method '{word}' is not to be had here; shared methods: {shared}")
    dialect = DIALECT[word]
    base = None if table.get("base_model") is None else str(table["base_model"])
    models = models_of(table, where)
    if base is not None and dialect.base in ("needed", "deltas"):
        models = {name: own for name, own in models.items() if name != base}
    rev = reviser(repo, names, where)
    parameters = dict(table.get("parameters") or {})
    if word == "slerp":
        return replace(slerp(models, base, parameters, rev, where), notes=tuple(notes_of(table, word)))
    settings = settings_of(dialect, parameters, models, where)
    method = dialect.method
    if parameters.get("filter_wise"):
        method = "model_stock_rows"
    if word == "nuslerp":
        method, settings = nuslerp(parameters, where, deltas=base is not None)
    elif dialect.base == "deltas":
        settings["deltas"] = base is not None
    if dialect.base == "needed" and base is None:
        raise UsageError(f"{where}: {word} needs a base_model")
    weights = [weight_of(own, parameters, f"{where}: {name}") for name, own in models.items()]
    return Imported(
        method=method,
        settings=settings,
        revs=tuple(rev(name) for name in models),
        weights=tuple(weights) if dialect.weighted else (),
        base=rev(base) if base is not None and dialect.base != "none" else None,
        vocabulary="union" if table.get("tokenizer_source") == "union" else "error",
        notes=tuple(notes_of(table, word)),
    )


def refuse_unknown(table: Table, where: str) -> None:
    """Raises UsageError for what would change numbers and cannot be said here."""
    if "slices" in table or "modules" in table:
        what = "slices and modules put layers of several models together, which is no merge of versions"
        raise UsageError(f"{where}: {what}", hint="list whole models: 'models:'")
    if "tokenizer" in table:
        raise UsageError(f"{where}: 'tokenizer' is not to be had here", hint="merge with --vocabulary ours or union")
    unknown = sorted(str(key) for key in table.keys() - KNOWN - WITHOUT_EFFECT)
    if unknown:
        raise UsageError(f"{where}: unknown setting '{unknown[0]}'; known: {', '.join(sorted(KNOWN - {'tokenizer'}))}")


def models_of(table: Table, where: str) -> dict[str, Table]:
    """Returns the settings of each model by its name. Raises FormatError."""
    rows, found = table.get("models"), dict[str, Table]()
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and "model" in r for r in rows):
        raise FormatError(f"{where}: models: expected a list of '- model: NAME'")
    for row in rows:
        name, own = str(row["model"]), row.get("parameters") or {}
        if name in found:
            raise UsageError(f"{where}: model '{name}' is listed twice", hint="give it the sum of both weights")
        if not isinstance(own, dict):
            raise FormatError(f"{where}: {name}: parameters: expected a table, got {type(own).__name__}")
        found[name] = own
    return found


def reviser(repo: Repository, names: Mapping[str, str], where: str) -> Callable[[str], str]:
    """Returns the function from a model's name to a revision: what the user says, the name itself, its last part."""

    def rev(name: str) -> str:
        if "+" in name and name not in names:
            raise UsageError(f"{where}: '{name}' applies an adapter first", hint="commit the result, and name that")
        for candidate in (names.get(name), name, name.rstrip("/").rsplit("/", 1)[-1]):
            try:
                if candidate is not None and repo.resolve(candidate):
                    return candidate
            except RevisionError:
                if candidate == names.get(name):
                    raise
        raise UsageError(f"{where}: model '{name}' is no revision here", hint=f"say which it is: --model {name}=REV")

    return rev


def settings_of(dialect: Dialect, parameters: Table, models: Mapping[str, Table], where: str) -> Table:
    """Returns our settings. Raises UsageError for one that differs between models, or that cannot be had."""
    known = {*dialect.settings, *dialect.only, *dialect.flags, "weight", *WITHOUT_EFFECT}
    for name in {*parameters, *(key for own in models.values() for key in own)} - known:
        raise UsageError(f"{where}: parameter '{name}' is not to be had here; known: {', '.join(sorted(known))}")
    for name, value in dialect.only.items():
        if (got := shared(name, value, parameters, models, where)) != value:
            raise UsageError(f"{where}: {name}: {got} is not to be had here, {value} alone")
    settings = {
        ours: shared(name, default, parameters, models, where) for name, (ours, default) in dialect.settings.items()
    }
    return {**settings, **dialect.fixed}


def shared(name: str, default: Any, parameters: Table, models: Mapping[str, Table], where: str) -> Any:
    """Returns a setting that is the same for all models. Raises UsageError if it is not."""
    values = [own.get(name, parameters.get(name, default)) for own in models.values()] or [default]
    for value in values:
        if isinstance(value, list | dict):
            what = f"{where}: {name}: a gradient over layers or a filter by name is not to be had here"
            raise UsageError(what, hint="--search layers finds weights by layer")
    if any(value != values[0] for value in values):
        raise UsageError(f"{where}: {name}: differs between models ({values}), and can only be one for all here")
    return values[0]


def weight_of(own: Table, parameters: Table, where: str) -> float:
    """Returns a model's weight, 1 unless given. Raises UsageError for what is no number."""
    value = own.get("weight", parameters.get("weight", 1.0))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: weight: expected a number, got {value!r}", hint="--search layers: weights by layer")
    return float(value)


def slerp(
    models: Mapping[str, Table], base: str | None, parameters: Table, rev: Callable[[str], str], where: str
) -> Imported:
    """Returns slerp, whose t = 0 is the base_model. Raises UsageError."""
    t = parameters.get("t")
    names = [name for name in models if name != base]
    if base is None or len(names) != 1:
        raise UsageError(f"{where}: slerp: expected two models, one of them the base_model, got {len(models)}")
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t <= 1:
        raise UsageError(f"{where}: slerp: t: expected one number from 0 to 1, got {t!r}")
    return Imported("slerp", {}, (rev(base), rev(names[0])), (1 - t, float(t)), None, "error", ())


def nuslerp(parameters: Table, where: str, *, deltas: bool) -> tuple[str, Table]:
    """Returns our method for nuslerp's two flags. Raises UsageError."""
    if parameters.get("nuslerp_flatten", True):
        return "nuslerp", {"deltas": deltas}
    if deltas:
        raise UsageError(f"{where}: nuslerp by row with a base_model is not to be had here")
    return "nuslerp_vectors", {"along": "first" if parameters.get("nuslerp_row_wise") else "last"}


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
