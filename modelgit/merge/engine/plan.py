"""What a merge will do to each tensor, decided from names, shapes, dtypes and ids alone.

Every structural reason against the merge is found here, all of them at once, before a single tensor is read.
The models are put in an order that follows from their content, so the order in which they were named reaches no byte.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modelgit.errors import Conflict, UsageError
from modelgit.formats.dtypes import DTYPES
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.adapters.naming import pair_of
from modelgit.merge.engine.ways import conflict_error
from modelgit.merge.informed.statistics import Statistics
from modelgit.merge.methods import Fitted, Linear, Method, check_arguments, of_heads
from modelgit.merge.vocabulary.naming import is_embedding
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS


@dataclass(frozen=True, slots=True)
class Head:
    """One of the models to merge; `classes` are the labels of its outputs, in order, where they are known.

    `statistics` are what a method that asks for them is to know of it.
    """

    name: str
    source: TensorSource
    weight: float = 1.0
    classes: tuple[str, ...] | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How to go on where models do not match.

    `head_names` are the classifier's tensors, or modules that hold them. "ours" for heads is the model named first,
    the one place where that order counts, and "theirs" the other of two; "ours" for integers is the first in the order
    that follows from content. `tied` is about an embedding and an output layer that are one matrix in some models only.
    """

    on_missing: Literal["error", "keep", "drop"] = "error"
    heads: Literal["error", "drop", "ours", "theirs"] = "error"
    head_names: tuple[str, ...] = ()
    integers: Literal["error", "ours"] = "ours"
    tied: Literal["error", "untie"] = "error"

    def is_head(self, name: str) -> bool:
        """Return whether the tensor belongs to the classifier."""
        return any(name == head or name.startswith(f"{head}.") for head in self.head_names)


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the result: copied from `members[0]`, or merged from all `members` (numbers of heads).

    `inputs` are the members' entries, then the base's where it takes part. `weights` are the members', where this
    tensor has others than the heads, and `method` is its own, with settings for all heads; `statistics` are the
    members' for it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    members: tuple[int, ...]
    inputs: tuple[TensorEntry, ...]
    copied: bool
    why: str = ""
    use_base: bool = False
    same_as: str | None = None  # an earlier tensor with the very same inputs
    weights: tuple[float, ...] = ()
    statistics: tuple[TensorEntry, ...] = ()
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge that nothing structural speaks against; `heads` are in the order that follows from their content."""

    heads: tuple[Head, ...]
    base: TensorSource | None
    method: Method
    steps: tuple[Step, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor name across the models: what each has under it, in the order of `heads`."""

    name: str
    heads: tuple[Head, ...]
    entries: tuple[TensorEntry | None, ...]
    base: TensorEntry | None
    ours: int

    @property
    def present(self) -> tuple[int, ...]:
        """The heads that have the tensor."""
        return tuple(i for i, entry in enumerate(self.entries) if entry is not None)

    def entry(self, head: int) -> TensorEntry:
        """Return what a head that has the tensor has."""
        entry = self.entries[head]
        if entry is None:
            raise UsageError(f"tensor {self.name!r} is absent from {self.heads[head].name}")
        return entry

    def copy(self, head: int, why: str) -> Step:
        """Return the step that takes the tensor as one head has it."""
        entry = self.entry(head)
        return Step(self.name, entry.dtype, entry.shape, (head,), (entry,), True, why)


Decision = Step | list[Conflict] | None


def plan(heads: Sequence[Head], base: TensorSource | None, method: Method, policy: Policy) -> Plan:
    """Return what the merge does to every tensor.

    Raises: MergeConflict with every structural conflict; UsageError for arguments that make no sense together.
    """
    if len(heads) > 1 or policy.on_missing != "keep" or method.heads[0] == 1:
        check_arguments(method, [head.weight for head in heads], has_base=base is not None)
    if getattr(method, "statistics", "") and any(head.statistics is None for head in heads):
        hint = "compute them: --stats-on DATA; or give a file for each model, in order: --stats FILE"
        raise UsageError(f"method {method.name} needs statistics of every model, and there are none.", hint=hint)
    if policy.heads == "theirs" and len(heads) != 2:
        raise UsageError(
            f"--heads theirs: expected two models, got {len(heads)}", hint="name yours first: --heads ours"
        )
    order = sorted(range(len(heads)), key=lambda i: content_key(heads[i]))
    ordered, method = tuple(heads[i] for i in order), of_heads(method, order)
    rows = _rows(ordered, base if method.needs_base else None, ours=ordered.index(heads[0]))
    conflicts, steps, dropped = _class_conflicts(heads, policy), list[Step](), list[str]()
    notes, untied = _tied_notes(rows)
    factors = _factor_conflicts(rows)
    conflicts.extend([*factors, *(untied if policy.tied == "error" else [])])
    for row in rows:
        decision = _decide(row, method, policy)
        if isinstance(decision, list):
            conflicts.extend(c for c in decision if not (factors and c.kind == "shape" and pair_of(c.where)))
        elif decision is None:
            dropped.append(row.name)
        else:
            steps.append(decision)
    if not steps and not conflicts:
        conflicts.append(Conflict("empty", "the result", "at least one tensor", "none is left"))
    if conflicts:
        raise conflict_error(conflicts, policy.head_names)
    used = base if method.needs_base else None
    return Plan(ordered, used, method, share_results(steps), tuple(dropped), notes)


def content_key(head: Head) -> tuple[tuple[tuple[str, str, tuple[int, ...], str], ...], float, str, str]:
    """Return what heads are ordered by: their tensors' names, dtypes, shapes and ids; weight; statistics; name."""
    entries = (head.source.entry(name) for name in head.source.names())
    known = head.statistics.digest if head.statistics is not None else ""
    return tuple((e.name, e.dtype, e.shape, e.oid) for e in entries), head.weight, known, head.name


# ------------------------------------------------------------------------------------------------ decisions


def _rows(heads: tuple[Head, ...], base: TensorSource | None, *, ours: int) -> list[Row]:
    have = [set(head.source.names()) for head in heads]
    in_base = set(base.names()) if base is not None else set[str]()
    rows = []
    for name in sorted(set().union(*have)):
        entries = tuple(head.source.entry(name) if name in own else None for head, own in zip(heads, have, strict=True))
        rows.append(Row(name, heads, entries, base.entry(name) if base is not None and name in in_base else None, ours))
    return rows


def _decide(row: Row, method: Method, policy: Policy) -> Decision:
    """Return the step for one tensor, None to leave it out, or the conflicts that forbid it."""
    if policy.is_head(row.name) and policy.heads != "error":
        taken = row.ours if policy.heads == "ours" else 1 - row.ours
        if policy.heads == "drop" or taken not in row.present:
            return None
        return row.copy(taken, f"head of {row.heads[taken].name}")
    if len(row.present) < len(row.heads) and policy.on_missing != "keep":
        absent = ", ".join(head.name for i, head in enumerate(row.heads) if i not in row.present)
        missing = Conflict("missing", row.name, "in every model", f"absent from {absent}")
        return [missing] if policy.on_missing == "error" else None
    if len(row.present) == 1 and max(method.heads[0], len(row.heads)) > 1:
        return row.copy(row.present[0], f"only in {row.heads[row.present[0]].name}")
    return _mismatches(row) or _against_base(row, method, policy)


def _mismatches(row: Row) -> list[Conflict]:
    """Return the conflicts between the heads' dtypes and shapes; what is expected is the one named first."""
    expected, *others = sorted(row.present, key=lambda head: head != row.ours)
    first, name = row.entry(expected), row.heads[expected].name
    found = []
    for i in others:
        entry, other = row.entry(i), row.heads[i].name
        if entry.dtype != first.dtype:
            found.append(Conflict("dtype", row.name, f"{first.dtype} as in {name}", f"{entry.dtype} in {other}"))
        if entry.shape != first.shape:
            found.append(
                Conflict("shape", row.name, f"{list(first.shape)} as in {name}", f"{list(entry.shape)} in {other}")
            )
    return found


def _against_base(row: Row, method: Method, policy: Policy) -> Decision:
    """Return the step for a tensor that the heads agree on, once the base agrees too."""
    entry, base = row.entry(row.present[0]), row.base
    if _unchanged(row, method):
        return row.copy(row.present[0], "the same in all models")
    if not DTYPES[entry.dtype].floating:
        return _integer(row, policy)
    if entry.dtype not in ARITHMETIC_WIDTHS:
        return [Conflict("dtype", row.name, f"one of {', '.join(ARITHMETIC_WIDTHS)} where values differ", entry.dtype)]
    inputs = tuple(row.entry(i) for i in row.present)
    step = Step(row.name, entry.dtype, entry.shape, row.present, inputs, False)
    if getattr(method, "statistics", ""):
        return _informed(row, step)
    if not method.needs_base:
        return step
    if base is None:
        if policy.on_missing == "keep":
            return replace(step, why="mean: not in the base")
        missing = Conflict("missing", row.name, "in the merge base", "absent from it")
        return [missing] if policy.on_missing == "error" else None
    if (base.dtype, base.shape) != (entry.dtype, entry.shape):
        kind = "shape" if base.dtype == entry.dtype else "dtype"
        wanted, got = (f"{e.dtype} {list(e.shape)}" for e in (entry, base))
        return [Conflict(kind, row.name, f"{wanted} as in the models", f"{got} in the merge base")]
    return replace(step, inputs=(*inputs, base), use_base=True)


def _informed(row: Row, step: Step) -> Decision:
    """Return the step with the statistics of its members, or as a mean where nothing is known of the tensor."""
    entries = [_statistics_of(row, i) for i in row.present]
    known = tuple(entry for entry in entries if entry is not None)
    if not known:
        return replace(step, why="mean: no statistics")
    if len(known) < len(entries):
        absent = ", ".join(row.heads[i].name for i, e in zip(row.present, entries, strict=True) if e is None)
        return [Conflict("statistics", row.name, "statistics of every model or of none", f"none of {absent}")]
    if dtypes := sorted({entry.dtype for entry in known} - {known[0].dtype}):
        wanted = f"statistics in {known[0].dtype} as of {row.heads[row.present[0]].name}"
        return [Conflict("statistics", row.name, wanted, f"some in {', '.join(dtypes)}")]
    return replace(step, statistics=known)


def _statistics_of(row: Row, number: int) -> TensorEntry | None:
    """Return what is known of one head's tensor: under its name, or that of a tensor which is the same one, tied."""
    head, oid = row.heads[number], row.entry(number).oid
    if head.statistics is None:
        return None
    found = head.statistics.entry(row.name)
    tied = (name for name in sorted(head.statistics.names) if head.source.entry(name).oid == oid)
    return found or next((head.statistics.entry(name) for name in tied), None)


def _unchanged(row: Row, method: Method) -> bool:
    """Return whether all heads have the same tensor and the method, given equal inputs, returns them."""
    if len({row.entry(i).oid for i in row.present}) > 1:
        return False
    if method.needs_base and row.base is not None and row.base.oid == row.entry(row.present[0]).oid:
        return True  # base + f(0), and f(0) = 0
    if isinstance(method, Linear):
        form = method.linear_terms([row.heads[i].weight for i in row.present])
        return form.base == 0 and math.fsum(form.heads) == form.divisor
    return isinstance(method, Fitted) or bool(getattr(method, "idempotent", False))


def _integer(row: Row, policy: Policy) -> Decision:
    first = row.heads[row.present[0]].name
    if policy.integers == "error":
        names = ", ".join(row.heads[i].name for i in row.present)
        return [Conflict("integers", row.name, "equal integers in every model", f"different ones in {names}")]
    return row.copy(row.present[0], f"integers of {first}")


def _class_conflicts(heads: Sequence[Head], policy: Policy) -> list[Conflict]:
    known = [head for head in heads if head.classes is not None]
    if policy.heads != "error" or not known:
        return []
    first = known[0]
    return [
        Conflict("classes", "classes", f"{_outline(first)} as in {first.name}", f"{_outline(head)} in {head.name}")
        for head in known[1:]
        if head.classes != first.classes
    ]


def _factor_conflicts(rows: Sequence[Row]) -> list[Conflict]:
    """Return a conflict if factors of LoRA differ: the mean of factors is no mean of their products."""
    for row in rows:
        if (
            pair_of(row.name) is not None
            and len({entry and entry.oid for entry in (*row.entries, row.base)} - {None}) > 1
        ):
            names = ", ".join(head.name for head in row.heads)
            return [
                Conflict("adapter", row.name, "a method for products of factors", f"factors that differ in {names}")
            ]
    return []


def _outline(head: Head) -> str:
    classes = head.classes or ()
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


# --------------------------------------------------------------------------------------------- tied weights


def share_results(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps, those with the inputs of an earlier one pointing to it: tied weights stay tied."""
    first: dict[tuple[object, ...], str] = {}
    shared = []
    for step in steps:
        settings = (step.members, step.use_base, step.dtype, step.shape, step.weights, step.method)
        inputs = (*settings, *(entry.oid for entry in (*step.inputs, *step.statistics)))
        known = step.name if step.copied else first.setdefault(inputs, step.name)
        shared.append(step if known == step.name else replace(step, same_as=known))
    return tuple(shared)


def _tied_notes(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[Conflict]]:
    """Return a note for each pair of matrices that is one in some models and two in others, and which are conflicts.

    A conflict are an embedding and an output layer: loading the result by its configuration would drop one of them.
    """
    tied_in: dict[tuple[str, str], set[int]] = {}
    models = [*(head.name for head in rows[0].heads), "the merge base"] if rows else []
    for i in range(len(models)):
        seen: dict[str, str] = {}
        for row in rows:
            entry = (*row.entries, row.base)[i]
            if entry is not None and len(entry.shape) > 1 and 0 not in entry.shape:
                first = seen.setdefault(entry.oid, row.name)
                if first != row.name:
                    tied_in.setdefault((first, row.name), set()).add(i)
    notes, conflicts = [], []
    among = set(range(len(models) - all(row.base is None for row in rows)))
    for (a, b), where in sorted(tied_in.items()):
        if where != among and where != {len(models) - 1}:
            names = ", ".join(models[i] for i in sorted(where))
            notes.append(f"{a} and {b} are one tensor in {names} only: the result has two")
            if is_embedding(a) and is_embedding(b):
                others = ", ".join(models[i] for i in sorted(among - where))
                conflicts.append(Conflict("tied", f"{a}, {b}", f"one matrix, as in {names}", f"two in {others}"))
    return tuple(notes), conflicts
