"""Carries out a planned merge, one tensor at a time, into a pack.

A tensor that no model changed keeps its object. A weighted sum is written as a recipe: ids and coefficients, no tensor
bytes. Anything else is computed in float64 and rounded once. Inputs and results that are not finite are refused.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from modelgit.errors import Conflict
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.safetensors import build_header
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.plan import Plan, Step, conflict_error
from modelgit.merge.engine.reading import LARGEST, frame_peak, peak, products, whole
from modelgit.merge.methods import Fitted, Inputs, Linear, make
from modelgit.merge.methods.linear_form import LinearForm
from modelgit.store.codec.arithmetic import finish, linear
from modelgit.store.objects import ObjectStore
from modelgit.store.writing import PackWriter, Pending

Action = Literal["copied", "recipe", "computed"]
RECIPE_BYTES, TERM_BYTES = 128, 40  # what a recipe takes in a pack: a tensor that is no longer is stored itself


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done for one tensor; `why` tells in a few words where a copy comes from."""

    name: str
    action: Action
    why: str = ""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The merged model, and how each tensor came about; `order` are the models' names in the order of the sums."""

    manifest: Manifest
    outcomes: tuple[Outcome, ...]
    order: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def counts(self) -> dict[Action, int]:
        """Return how many tensors were copied, written as recipes, and computed."""
        found = Counter(outcome.action for outcome in self.outcomes)
        return {"copied": found["copied"], "recipe": found["recipe"], "computed": found["computed"]}


@dataclass(frozen=True, slots=True)
class Input:
    """One of the tensors that a step works on; `name` is the model's."""

    name: str
    source: TensorSource
    entry: TensorEntry


Term = tuple[Input, float]


@dataclass(slots=True)
class Work:
    """A merge under way: the plan, where objects go, which are there, and what has been seen of inputs."""

    plan: Plan
    pack: PackWriter
    store: ObjectStore
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)  # by id and dtype: largest magnitude
    done: dict[str, tuple[str | Pending, Action]] = field(default_factory=dict)  # by tensor: id and how


def execute(
    plan: Plan,
    pack: PackWriter,
    store: ObjectStore,
    metadata: Mapping[str, str] | None = None,
    listener: Listener = ignore,
) -> MergeResult:
    """Return the merged model, its tensors in `pack` or already in `store`; the caller commits the pack.

    `metadata` goes into the new file's header. One tensor of each model is in memory at a time, and for weighted
    sums only a frame of each.

    Raises: MergeConflict of kind "non-finite" or "overflow", naming tensor and model.
    """
    work, task = Work(plan, pack, store), "merge"
    listener(Started(task, len(plan.steps), "tensors"))
    outcomes = []
    for step in plan.steps:
        done, action = work.done[step.same_as] if step.same_as else _carry_out(work, step)
        work.done[step.name] = done, action
        outcomes.append(Outcome(step.name, action, f"as {step.same_as}" if step.same_as else step.why))
        listener(Advanced(task, 1))
    manifest = _manifest(work, metadata or {})
    order = tuple(head.name for head in plan.heads)
    result = MergeResult(manifest, tuple(outcomes), order, plan.dropped, plan.notes)
    listener(Finished(task, ", ".join(f"{n} {action}" for action, n in result.counts().items() if n)))
    return result


def _manifest(work: Work, metadata: Mapping[str, str]) -> Manifest:
    ids = {name: done if isinstance(done, str) else done.oid() for name, (done, _) in work.done.items()}
    entries = [TensorEntry(step.name, step.dtype, step.shape, ids[step.name]) for step in work.plan.steps]
    header = build_header([(entry.name, entry.dtype, entry.shape) for entry in entries], metadata)
    by_name = tuple(sorted(entries, key=lambda entry: entry.name.encode()))
    return Manifest(work.pack.add_blob(header.raw), len(header.raw), header.size_bytes, by_name)


def _carry_out(work: Work, step: Step) -> tuple[str | Pending, Action]:
    """Return the id of a step's result and how it was had."""
    if step.copied:
        return _stored(work, _inputs(work, step)[0]), "copied"
    _refuse_non_finite(work, step)
    form = _form(work, step)
    return _compute(work, step) if form is None else _recipe(work, step, form)


def _inputs(work: Work, step: Step) -> list[Input]:
    """Return the inputs of a step: its members in order, then the base where it takes part."""
    sources = [(work.plan.heads[i].name, work.plan.heads[i].source) for i in step.members]
    if step.use_base and work.plan.base is not None:
        sources.append(("the merge base", work.plan.base))
    return [Input(name, source, entry) for (name, source), entry in zip(sources, step.inputs, strict=True)]


def _weights(work: Work, step: Step) -> list[float]:
    return [work.plan.heads[i].weight for i in step.members]


def _stored(work: Work, given: Input) -> str:
    """Return the id of an input, stored now if it is not yet."""
    entry = given.entry
    if entry.oid in work.store:
        return entry.oid
    return work.pack.add_frames(given.source.frames(entry.name), size_bytes(entry.dtype, entry.shape), entry.dtype)


def _peak(work: Work, given: Input) -> float:
    """Return an input's largest magnitude, infinity if any value is not finite; each object is looked at once."""
    key = given.entry.oid, given.entry.dtype
    if key not in work.peaks:
        work.peaks[key] = peak(given.source, given.entry)
    return work.peaks[key]


def _refuse_non_finite(work: Work, step: Step) -> None:
    """Raise MergeConflict naming every input of the step that holds an infinity or what is not a number."""
    bad = [given.name for given in _inputs(work, step) if _peak(work, given) == np.inf]
    if bad:
        got = "infinity or not-a-number in"
        raise conflict_error([Conflict("non-finite", step.name, "finite values", f"{got} {name}") for name in bad])


def _form(work: Work, step: Step) -> LinearForm | None:
    """Return the coefficients for a step, None for a method that is no weighted sum."""
    plan, weights = work.plan, _weights(work, step)
    method = plan.method
    if method.needs_base and not step.use_base:
        method = make("linear", {})  # a tensor that the base lacks
    if isinstance(method, Linear):
        return method.linear_terms(weights)
    if not isinstance(method, Fitted):
        return None
    heads = [plan.heads[i].source for i in step.members]
    return method.fitted_terms(products(heads, plan.base if step.use_base else None, step.name), weights)


def _recipe(work: Work, step: Step, form: LinearForm) -> tuple[str | Pending, Action]:
    """Return the id of a weighted sum: of its only input, of its bytes where they are few, or of a new recipe."""
    coefficients = [*form.heads, form.base] if step.use_base else list(form.heads)
    inputs = _inputs(work, step)
    used = [(given, c) for given, c in zip(inputs, coefficients, strict=True) if c != 0] or [(inputs[0], 0.0)]
    if len(used) == 1 and used[0][1] == form.divisor:
        return _stored(work, used[0][0]), "copied"
    size = size_bytes(step.dtype, step.shape)
    if size <= RECIPE_BYTES + TERM_BYTES * len(used):
        return work.pack.enter_tensor(_sum(step, used, form.divisor), step.dtype, _parent(work, step)), "computed"
    if not _surely_in_range(work, step, used, form.divisor):
        _sum(step, used, form.divisor)
    terms = [(_stored(work, given), c) for given, c in used]
    return work.pack.enter_linear(terms, form.divisor, step.dtype, size), "recipe"


def _surely_in_range(work: Work, step: Step, used: list[Term], divisor: float) -> bool:
    """Return whether a bound on the sum shows that the dtype can hold it."""
    bound = sum(abs(c) * _peak(work, given) for given, c in used)
    return bound <= min(1.0, abs(divisor)) * LARGEST[step.dtype]


def _sum(step: Step, used: list[Term], divisor: float) -> bytearray:
    """Return the raw bytes of a weighted sum. Raises MergeConflict if the dtype cannot hold it."""
    raw = bytearray()
    for frames in zip(*(given.source.frames(step.name) for given, _ in used), strict=True):
        raw += linear(frames, [c for _, c in used], divisor, step.dtype)
    _refuse_infinite(step, raw)
    return raw


def _refuse_infinite(step: Step, raw: bytearray) -> None:
    if frame_peak(memoryview(raw), step.dtype) == np.inf:
        got = "a value beyond its range"
        raise conflict_error([Conflict("overflow", step.name, f"a result that {step.dtype} can hold", got)])


def _compute(work: Work, step: Step) -> tuple[str | Pending, Action]:
    """Return the id of a tensor computed from the values of all its inputs."""
    arrays = [whole(given.source, given.entry) for given in _inputs(work, step)]
    base = arrays.pop() if step.use_base else None
    keys = tuple(entry.oid for entry in step.inputs[: len(arrays)])
    merged = work.plan.method(Inputs(arrays, _weights(work, step), base, step.name, keys))
    raw = bytearray(size_bytes(step.dtype, step.shape))
    finish(np.ascontiguousarray(merged).reshape(-1), 1.0, step.dtype, np.frombuffer(raw, np.uint8))
    _refuse_infinite(step, raw)
    return work.pack.enter_tensor(raw, step.dtype, _parent(work, step)), "computed"


def _parent(work: Work, step: Step) -> str | None:
    """Return a stored input that the result resembles: the base where it takes part, else one of the models."""
    return next((entry.oid for entry in reversed(step.inputs) if entry.oid in work.store), None)
