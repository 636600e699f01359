"""Coefficients that score best on a data set: a setting of the method, weights of the heads, or weights by layer.

A setting is searched on a grid and by golden sections, weights by an evolution strategy on the simplex, layers by
coordinate ascent; all with a budget that is told first, and the same for the same seed. Candidates are merged in
memory by the engine itself; heads stay there too, as far as there is room.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelgit.errors import MergeConflict, UsageError
from modelgit.events import Advanced, Finished, Listener, Noted, Started, ignore
from modelgit.merge.engine.plan import Plan
from modelgit.merge.methods import Linear, Method, make, setting_types
from modelgit.merge.methods.registry import METHODS
from modelgit.porcelain.merging.values import Choices, Prepared
from modelgit.porcelain.trials.contenders import held, merged, replanned, require_whole
from modelgit.porcelain.trials.measuring import Judge
from modelgit.porcelain.trials.values import Attempt, Search, Trial
from modelgit.repo.repository import Repository
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS

if TYPE_CHECKING:
    from modelgit.merge.selection.search import Log, Point

TASK = "search"
RANGE = (0.0, 1.0)  # of a setting, unless the user names one
LAYER_RANGE = (0.0, 2.0)  # of a head's weight in a layer


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: how many coefficients, their names, and the choices that each point of them makes."""

    names: tuple[str, ...]
    choices: Callable[["Point"], Choices]
    run: Callable[[Callable[["Point"], float]], "Log"]


def search_coefficients(
    repo: Repository, prepared: Prepared, trial: Trial, judge: Judge, listener: Listener = ignore
) -> tuple[Search, Choices]:
    """Returns what was found, and the choices that merge with it. Nothing is stored for what is only tried.

    Raises:
        UsageError: a method without such a setting or without weights, a budget too small. MergeConflict: as `merge`.
    """
    require_whole(prepared)
    space = space_of(prepared, trial)
    listener(Noted(f"search of {trial.search}: at most {trial.evaluations} evaluations"))
    listener(Started(TASK, trial.evaluations, "evaluations"))
    ready, sign = held(prepared), judge.aim.sign

    def score(point: "Point") -> float:
        found = merged(repo, replanned(ready, space.choices(point)))
        value = float("nan") if found is None else judge(found)
        listener(Advanced(TASK, 1, f"{judge.on.metric} {value:.4g}"))
        return sign * value

    log = space.run(score)
    rows = tuple(Attempt(dict(zip(space.names, row.point, strict=True)), sign * row.score) for row in log.rows())
    best = log.best()
    if not best.score - best.score == 0:
        raise MergeConflict(f"no coefficients of {trial.search} gave a finite {judge.on.metric} on {judge.on.data}")
    listener(Finished(TASK, f"best {judge.on.metric} {sign * best.score:.4g}"))
    chosen = Attempt(dict(zip(space.names, best.point, strict=True)), sign * best.score)
    found = Search(trial.search, judge.on, trial.seed, trial.evaluations, rows, chosen)
    return found, space.choices(best.point)


def space_of(prepared: Prepared, trial: Trial) -> Space:
    """Return what is to be searched. Raises UsageError."""
    if trial.search == "weights":
        return weights_space(prepared, trial)
    if trial.search == "layers":
        return layers_space(prepared, trial)
    return setting_space(prepared, trial)


def setting_space(prepared: Prepared, trial: Trial) -> Space:
    """Return the search of one setting of the method: NAME or NAME=LOW:HIGH."""
    from modelgit.merge.selection.search import line

    name, _, span = trial.search.partition("=")
    chosen = prepared.choices
    numbers = [key for key, kind in setting_types(METHODS[chosen.method]).items() if kind is float]
    if name not in numbers:
        known = ", ".join(["weights", "layers", *numbers])
        raise UsageError(f"--search {name}: method {chosen.method} has no such number", hint=f"to search: {known}")
    low, high = span_of(trial.search, span)

    def choices(point: "Point") -> Choices:
        return replace(chosen, settings={**chosen.settings, name: point[0]})

    for end in (low, high):
        make(chosen.method, choices((end,)).settings)
    return Space((name,), choices, lambda score: line(score, low, high, trial.evaluations))


def span_of(text: str, span: str) -> tuple[float, float]:
    """Return the range LOW:HIGH. Raises UsageError for anything else."""
    if not span:
        return RANGE
    try:
        low, high = (float(word) for word in span.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not -1e6 <= low < high <= 1e6:
        raise UsageError(f"--search {text}: expected NAME=LOW:HIGH, LOW below HIGH", hint="--search alpha=0:1")
    return low, high


def require_weights(prepared: Prepared, what: str, fewest: int) -> None:
    """Raise UsageError unless the method takes weights and there are enough heads for them to matter."""
    method = METHODS[prepared.choices.method]
    if not method.weighted:
        raise UsageError(f"--search {what}: method {method.name} treats all models alike", hint="use --method linear")
    if len(prepared.heads) < fewest:
        only = prepared.heads[0].name
        raise UsageError(f"--search {what}: one model takes part ({only}), there is nothing to weigh")


def scales_alone(method: Method) -> bool:
    """Return whether the weight of a single head means anything: not where weights are divided by their sum."""
    if not isinstance(method, Linear):
        return False
    once, twice = (method.linear_terms((weight,)) for weight in (1.0, 2.0))
    return once.heads[0] / once.divisor != twice.heads[0] / twice.divisor


def weights_space(prepared: Prepared, trial: Trial) -> Space:
    """Return the search of a weight for each head."""
    from modelgit.merge.selection.search import simplex

    require_weights(prepared, "weights", 2)
    names = tuple(member.name for member in prepared.heads)
    return Space(
        names,
        lambda point: replace(prepared.choices, weights=point),
        lambda score: simplex(score, len(names), trial.evaluations, trial.seed),
    )


def layers_space(prepared: Prepared, trial: Trial) -> Space:
    """Return the search of a weight for each head in each layer."""
    from modelgit.merge.selection.search import ascent

    require_weights(prepared, "layers", 1 if scales_alone(prepared.method) else 2)
    heads = [member.name for member in prepared.heads]
    layers = layers_of(prepared, trial.depth)
    names = tuple(f"{layer} {head}" for layer in layers for head in heads)

    def choices(point: "Point") -> Choices:
        rows = [point[i * len(heads) : (i + 1) * len(heads)] for i in range(len(layers))]
        return replace(prepared.choices, layers=dict(zip(layers, rows, strict=True)))

    def run(score: Callable[["Point"], float]) -> "Log":
        return ascent(
            lambda point: weighed(score, point, len(heads)), (1.0,) * len(names), LAYER_RANGE, trial.evaluations
        )

    return Space(names, choices, run)


def weighed(score: Callable[["Point"], float], point: "Point", heads: int) -> float:
    """Return the score of weights, not a number where a layer has none at all."""
    rows = [point[i : i + heads] for i in range(0, len(point), heads)]
    return score(point) if all(any(row) for row in rows) else float("nan")


def layers_of(prepared: Prepared, depth: int) -> list[str]:
    """Return the layers that are merged: tensors whose names begin with the same `depth` parts."""
    if depth < 1:
        raise UsageError(f"--layers {depth}: expected 1 or more parts of a name")
    return sorted({layer_of(name, depth) for plan in prepared.plans.values() for name in differing(plan)})


def differing(plan: Plan) -> Iterator[str]:
    """Yield the names of the tensors that are not the same everywhere; weights may reach them."""
    sources = [head.source for head in plan.heads] + ([plan.base] if plan.base is not None else [])
    named = [set(source.names()) for source in sources]
    for step in plan.steps:
        here = [source for source, names in zip(sources, named, strict=True) if step.name in names]
        if len({source.entry(step.name).oid for source in here}) > 1 and step.dtype in ARITHMETIC_WIDTHS:
            yield step.name


def layer_of(name: str, depth: int) -> str:
    """Return the first parts of a tensor's name."""
    return ".".join(name.split(".")[:depth])
