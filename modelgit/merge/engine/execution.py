"""Carries out a planned merge, tensor by tensor, into a pack or a file.

A tensor that no model changed keeps its object. A weighted sum is written as a recipe: ids and coefficients, no tensor
bytes. Anything else is computed in float64 and rounded once. Inputs and results that are not finite are refused: the
values are looked at as they are used, and only when something is found are they read again, to tell where it is.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.safetensors import build_header
from modelgit.formats.source import TensorSource
from modelgit.merge.blocks.tensors import Tensor
from modelgit.merge.engine.plan import Plan, Step
from modelgit.merge.engine.reading import frame_peak, peak
from modelgit.merge.engine.sinks import Done, FileSink, PackSink, Sink, Sum
from modelgit.merge.engine.streams import (
    NotFinite,
    Passing,
    Stream,
    Subject,
    TaskVectors,
    Unchanged,
    combined_inputs,
    products,
    raw_of,
)
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.engine.windows import Workshop
from modelgit.merge.methods import Elementwise, Fitted, Linear, Method, make, of_heads
from modelgit.merge.methods.linear_form import LinearForm
from modelgit.store.codec.arrays import Bytes
from modelgit.store.draft import Pending
from modelgit.store.files.tensors import FileTensors
from modelgit.store.objects import ObjectStore, available_threads
from modelgit.store.writing import PackWriter, piece

Action = Literal["copied", "recipe", "computed"]
ACTIONS: tuple[Action, ...] = ("copied", "recipe", "computed")
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
        return {action: found[action] for action in ACTIONS}


@dataclass(frozen=True, slots=True)
class Input:
    """One of the tensors that a step works on; `name` is the model's."""

    name: str
    source: TensorSource
    entry: TensorEntry

    @property
    def place(self) -> tuple[TensorSource, TensorEntry]:
        """Where its bytes are."""
        return self.source, self.entry


@dataclass(slots=True)
class Work:
    """A merge under way: the plan, where results go, with which threads, and what the method found over all tensors."""

    plan: Plan
    sink: Sink
    shop: Workshop
    survey: object = None
    done: dict[str, tuple[Done, Action]] = field(default_factory=dict)  # by tensor: its object and how it came


def execute(
    plan: Plan,
    pack: PackWriter,
    store: ObjectStore,
    metadata: Mapping[str, str] | None = None,
    listener: Listener = ignore,
) -> MergeResult:
    """Return the merged model, its tensors in `pack` or already in `store`; the caller commits the pack.

    `metadata` goes into the new file's header. Work is done in the store's threads, a few frames of each model at a
    time; only methods that must see all values at once have whole tensors in memory.

    Raises: MergeConflict of kind "non-finite" or "overflow", naming tensor and model.
    """
    work = Work(plan, PackSink(pack, store), Workshop(store.pool, store.threads))
    outcomes = carry_out(work, listener, lambda: _settled(work))
    manifest = _manifest(work, pack, metadata or {})
    order = tuple(head.name for head in plan.heads)
    return MergeResult(manifest, outcomes, order, plan.dropped, plan.notes)


def write_merged(
    plan: Plan, path: Path, metadata: Mapping[str, str] | None = None, *, threads: int | None = None
) -> tuple[Outcome, ...]:
    """Write the merged model to a safetensors file, without any store; return what was done for each tensor.

    Raises: as `execute`, and StorageFull; `path` is then as it was.
    """
    count = threads or available_threads()
    with ThreadPoolExecutor(count, thread_name_prefix="modelgit-merge") as pool:
        shop = Workshop(pool, count)
        with FileSink(path, plan.steps, metadata or {}, shop) as sink:
            return carry_out(Work(plan, sink, shop), ignore, sink.finish)


def carry_out(work: Work, listener: Listener, finish: Callable[[], None]) -> tuple[Outcome, ...]:
    """Return what was done for each tensor, after `finish` has waited for all of it. Raises MergeConflict."""
    task, outcomes = "merge", list[Outcome]()
    framed = sum(not isinstance(head.source, FileTensors) for head in work.plan.heads)
    work.shop.limit(framed + (work.plan.base is not None))
    listener(Started(task, len(work.plan.steps), "tensors"))
    try:
        work.survey = _survey(work)
        for step in work.plan.steps:
            done, action = _again(work, step, step.same_as) if step.same_as else _one(work, step)
            work.done[step.name] = done, action
            outcomes.append(Outcome(step.name, action, f"as {step.same_as}" if step.same_as else step.why))
            listener(Advanced(task, 1))
        finish()
    except NotFinite as error:
        raise _blamed(work, error.tensor) from error
    counts = Counter(outcome.action for outcome in outcomes)
    listener(Finished(task, ", ".join(f"{counts[action]} {action}" for action in ACTIONS if counts[action])))
    return tuple(outcomes)


def _settled(work: Work) -> None:
    """Wait for all ids."""
    for done, _ in work.done.values():
        _oid(done)


def _oid(done: Done) -> str:
    return done.oid() if isinstance(done, Pending) else done or ""


def _manifest(work: Work, pack: PackWriter, metadata: Mapping[str, str]) -> Manifest:
    ids = {name: _oid(done) for name, (done, _) in work.done.items()}
    entries = [TensorEntry(step.name, step.dtype, step.shape, ids[step.name]) for step in work.plan.steps]
    header = build_header([(entry.name, entry.dtype, entry.shape) for entry in entries], metadata)
    by_name = tuple(sorted(entries, key=lambda entry: entry.name.encode()))
    return Manifest(pack.add_blob(header.raw), len(header.raw), header.size_bytes, by_name)


# ------------------------------------------------------------------------------------------------- one tensor


def _one(work: Work, step: Step) -> tuple[Done, Action]:
    """Return a step's result and how it was had. Raises NotFinite."""
    if step.copied:
        given = _inputs(work, step)[0]
        return work.sink.copy(step, given.place), "computed" if _fleeting(given) else "copied"
    method, subject = _method(work, step), _subject(work, step)
    if isinstance(method, Linear):
        return _sum(work, step, method.linear_terms(subject.weights), Stream(work.shop, subject))
    if isinstance(method, Fitted):
        stream = Stream(work.shop, subject, TaskVectors())
        return _sum(work, step, method.fitted_terms(products(stream), subject.weights), stream)
    if isinstance(method, Elementwise):
        stream = Stream(work.shop, subject, method, work.survey)
        facts = method.facts(stream)
        return work.sink.values(step, stream.merged(lambda block: method.block(block, facts))), "computed"
    merged = raw_of(method(combined_inputs(subject)), step.dtype, size_bytes(step.dtype, step.shape))
    return _at_hand(work, step, merged), "computed"


def _again(work: Work, step: Step, earlier: str) -> tuple[Done, Action]:
    done, action = work.done[earlier]
    return work.sink.again(step, earlier, done), action


def _method(work: Work, step: Step) -> Method:
    """Return the method for a step: the mean for a tensor that the base, or what is known of models, has nothing of."""
    method = step.method or work.plan.method
    uninformed = bool(getattr(method, "statistics", "")) and not step.statistics
    if uninformed or (method.needs_base and not step.use_base):
        return make("linear", {})
    return of_heads(method, step.members)


def _inputs(work: Work, step: Step) -> list[Input]:
    """Return the inputs of a step: its members in order, then the base where it takes part."""
    sources = [(work.plan.heads[i].name, work.plan.heads[i].source) for i in step.members]
    if step.use_base and work.plan.base is not None:
        sources.append(("the merge base", work.plan.base))
    return [Input(name, source, entry) for (name, source), entry in zip(sources, step.inputs, strict=True)]


def _subject(work: Work, step: Step) -> Subject:
    places = tuple(given.place for given in _inputs(work, step))
    weights = step.weights or tuple(work.plan.heads[i].weight for i in step.members)
    known = [work.plan.heads[i].statistics for i in step.members] if step.statistics else []
    sources = [statistics for statistics in known if statistics is not None]
    beside = tuple((each.source, entry) for each, entry in zip(sources, step.statistics, strict=True))
    sizes = tuple(each.size for each in sources)
    return Subject(step.name, step.dtype, step.shape, places, weights, step.use_base, beside, sizes)


def _survey(work: Work) -> object:
    """Return what the method finds out over all tensors before the first is merged, if it does so."""
    method = work.plan.method
    survey = getattr(method, "survey", None)
    if survey is None:
        return None
    found, base = list[Tensor](), work.plan.base
    same = {base.entry(name).oid for name in base.names()} if base is not None else set()
    for step in work.plan.steps:
        if step.copied and step.inputs[0].oid in same and DTYPES[step.dtype].floating:
            found.append(Unchanged(step.name, step.shape))
        elif not step.copied and step.same_as is None and type(_method(work, step)) is type(method):
            found.append(Passing(work.shop, _subject(work, step), _method(work, step)))
    return survey(found)


# ---------------------------------------------------------------------------------------------- weighted sums


def _sum(work: Work, step: Step, form: LinearForm, stream: Stream) -> tuple[Done, Action]:
    """Return a weighted sum: its only input, its bytes where they are few, or a recipe."""
    coefficients = [*form.heads, form.base] if step.use_base else list(form.heads)
    inputs = _inputs(work, step)
    used = [i for i, c in enumerate(coefficients) if c != 0] or [0]
    factors = [coefficients[i] for i in used]
    copied = len(used) == 1 and factors[0] == form.divisor
    if not stream.checked:
        _refuse_non_finite(step, [given for i, given in enumerate(inputs) if copied or i not in used])
    if copied:
        return work.sink.copy(step, inputs[used[0]].place), "copied"
    fill, size = stream.summed(used, factors, form.divisor), size_bytes(step.dtype, step.shape)
    if size <= RECIPE_BYTES + TERM_BYTES * len(used):
        return _at_hand(work, step, fill(0, np.empty(size, np.uint8))), "computed"
    if any(_fleeting(inputs[i]) for i in used):
        return work.sink.values(step, lambda number, into: stream.finite(fill(number, into))), "computed"
    total = Sum([inputs[i].place for i in used], factors, form.divisor, fill, stream.held)
    return work.sink.sum(step, total, stream.finite), "recipe"


def _fleeting(given: Input) -> bool:
    """Return whether a tensor is made for this merge only, as a permuted one: no recipe may refer to it."""
    asked = getattr(given.source, "fleeting", None)
    return callable(asked) and bool(asked(given.entry.name))


def _at_hand(work: Work, step: Step, raw: bytearray | Bytes) -> Done:
    """Return a tensor whose bytes are computed. Raises NotFinite."""
    data = np.frombuffer(raw, np.uint8)
    if frame_peak(data.data, step.dtype) == math.inf:
        raise NotFinite(step.name)
    return work.sink.values(step, lambda number, _: piece(data, number))


# ---------------------------------------------------------------------------------------- what is not finite


def _refuse_non_finite(step: Step, inputs: Sequence[Input]) -> None:
    """Raise MergeConflict naming every one of the inputs that holds an infinity or what is not a number."""
    bad = [given.name for given in inputs if peak(given.source, given.entry) == math.inf]
    if bad:
        got = "infinity or not-a-number in"
        raise conflict_error([Conflict("non-finite", step.name, "finite values", f"{got} {name}") for name in bad])


def _blamed(work: Work, tensor: str) -> MergeConflict:
    """Return the conflict for a tensor that came out not finite: the first with such inputs, or its own overflow."""
    for step in work.plan.steps:
        if not step.copied and step.same_as is None:
            try:
                _refuse_non_finite(step, _inputs(work, step))
            except MergeConflict as conflict:
                return conflict
        if step.name == tensor:
            wanted = f"a result that {step.dtype} can hold"
            return conflict_error(
                [Conflict("overflow", step.name, wanted, "a value beyond its range, or not-a-number")]
            )
    raise UsageError(f"no tensor {tensor!r} in this merge")
