"""A change decided but not begun: what becomes of each tensor, from names, shapes, dtypes and ids alone.

A side that changed alone is taken as it is, as in any three-way merge; what both changed becomes
ours + scale * (theirs - base). Tensors that are planned have no id yet, so a whole row of changes can be planned, and
every structural conflict in it found, before anything is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modelgit.errors import Conflict, MergeConflict
from modelgit.formats.dtypes import DTYPES
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.porcelain.plumbing.combining import with_header
from modelgit.porcelain.records import RECORD_PATH, Record, read_record
from modelgit.porcelain.replaying.changes import described
from modelgit.porcelain.replaying.files import merged_files
from modelgit.porcelain.replaying.values import (
    Change,
    Choices,
    Decision,
    Found,
    Image,
    Planned,
    WeightPlan,
)
from modelgit.repo.repository import Repository
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS

PLANNED = "?"  # in the place of an id
HINTS: Mapping[str, str] = {
    "missing": "leave tensors as HEAD has them where the change cannot be added: --tensors ours",
    "shape": "leave tensors as HEAD has them where the change cannot be added: --tensors ours",
    "dtype": "convert the models to one dtype first, or leave such tensors as they are: --tensors ours",
    "file": "keep the files of the version you are on: --files ours",
}
Triple = tuple[TensorEntry | None, TensorEntry | None, TensorEntry | None]  # base, ours, theirs


@dataclass(frozen=True, slots=True)
class Names:
    """What messages call the three versions."""

    base: str
    ours: str
    theirs: str


def image_of(repo: Repository, commit: str) -> Image:
    """Returns what a version holds."""
    version = repo.version(commit)
    files = {path: blob for path, blob in version.files.items() if path != RECORD_PATH}
    return Image(version.commit[:10], version.manifests, files, read_record(repo, commit))


def plan_change(repo: Repository, ours: Image, change: Change) -> Planned:
    """Returns what a change does to a version.

    Raises:
        MergeConflict: naming every reason against it.
    """
    base, theirs = repo.version(change.base), repo.version(change.theirs)
    names = Names(change.base[:10], ours.name, change.theirs[:10])
    found = weight_files((base.manifests, ours.manifests, theirs.manifests), change.choices, names)
    files, more = merged_files(repo, (base.files, ours.files, theirs.files), change.choices)
    conflicts = [*found.conflicts, *more]
    if conflicts:
        raise conflict_error(repo, change, conflicts)
    record = merged_record(read_record(repo, change.base), ours.record, read_record(repo, change.theirs))
    return Planned(change, ours, base, theirs, found.weights, files, record, found.notes)


def merged_record(base: Record | None, ours: Record | None, theirs: Record | None) -> Record | None:
    """Returns what is known of the result: as ours, unless the change alone says something else of the model."""
    if ours is None or (theirs is not None and said_by(ours) == said_by(base)):
        return theirs
    return ours


def said_by(record: Record | None) -> tuple[object, ...] | None:
    """Returns what a record says of the model, not how it came about."""
    return None if record is None else (record.architecture, record.classes, record.head)


def conflict_error(repo: Repository, change: Change, conflicts: list[Conflict]) -> MergeConflict:
    """Returns the error for a change that cannot be applied, with a hint for each kind of reason."""
    first = conflicts[0]
    more = f" ({len(conflicts)} conflicts)" if len(conflicts) > 1 else ""
    hints = dict.fromkeys(HINTS[conflict.kind] for conflict in conflicts)
    what = f"cannot {change.verb} {described(repo, change.source)}"
    why = f"{first.where}: expected {first.expected}, got {first.got}{more}"
    return MergeConflict(f"{what}: {why}", conflicts, hint="; ".join(hints))


def image_after(planned: Planned) -> Image:
    """Returns what the version will hold."""
    manifests = {path: plan if isinstance(plan, Manifest) else sketch(plan) for path, plan in planned.weights.items()}
    return Image(f"{planned.change.source[:10]} replayed", manifests, planned.files, planned.record)


def sketch(plan: WeightPlan) -> Manifest:
    """Returns the weight file to be, without the ids that are not known yet."""
    entries = (
        TensorEntry(d.name, d.inputs[0].dtype, d.inputs[0].shape, PLANNED if d.side == "sum" else d.inputs[0].oid)
        for d in plan.decisions
    )
    return Manifest(PLANNED, 0, 0, tuple(entries))


def is_empty(planned: Planned) -> bool:
    """Tells whether the change leaves everything as it is."""
    same = planned.weights == planned.ours.manifests and planned.files == planned.ours.files
    return same and said_by(planned.record) == said_by(planned.ours.record)


# -------------------------------------------------------------------------------------------------- weight files


def weight_files(three: tuple[Mapping[str, Manifest], ...], choices: Choices, names: Names) -> Found:
    """Returns each weight file of the result, and what speaks against it."""
    weights: dict[str, Manifest | WeightPlan] = {}
    conflicts: list[Conflict] = []
    notes: list[str] = []
    for path in sorted({path for side in three for path in side}):
        base, ours, theirs = (side.get(path) for side in three)
        if base == theirs or (choices.alike == "keep" and ours == theirs):
            made: Manifest | WeightPlan | None = ours
        elif choices.scale == 1 and ours == base:
            made = theirs
        else:
            made = one_file((base, ours, theirs), choices, names, (conflicts, notes))
        if made is not None:
            weights[path] = made
    return Found(weights, tuple(conflicts), tuple(notes))


def one_file(
    three: tuple[Manifest | None, Manifest | None, Manifest | None],
    choices: Choices,
    names: Names,
    told: tuple[list[Conflict], list[str]],
) -> Manifest | WeightPlan | None:
    """Returns a weight file that more than one side changed; reasons and remarks go to `told`."""
    tables = [{} if side is None else {entry.name: entry for entry in side.tensors} for side in three]
    decisions: list[Decision] = []
    for name in sorted({name for table in tables for name in table}, key=str.encode):
        base, ours, theirs = (table.get(name) for table in tables)
        decided = decide((base, ours, theirs), choices, names)
        if isinstance(decided, Conflict):
            told[0].append(decided)
        elif decided is not None:
            decisions.append(decided)
            told[1].extend(remark(decided, theirs, base))
    unchanged = all(decision.side == "ours" for decision in decisions)
    if three[1] is None and unchanged:
        return None
    if three[1] is not None and unchanged and len(decisions) == len(three[1].tensors):
        return reheaded(three[1], three[0], three[2])
    return WeightPlan(*three, tuple(decisions)) if decisions else None


def reheaded(ours: Manifest, base: Manifest | None, theirs: Manifest | None) -> Manifest:
    """Returns our weight file; with the header of theirs if that alone changed it, and if it fits."""
    alone = base is not None and theirs is not None and ours.header == base.header
    return with_header(ours, theirs) if alone and theirs is not None else ours


def decide(triple: Triple, choices: Choices, names: Names) -> Decision | Conflict | None:
    """Returns what becomes of one tensor, None if the result has none of that name; or why that cannot be told."""
    base, ours, theirs = triple
    kept = None if ours is None else Decision(ours.name, "ours", (ours,))
    if base == theirs:
        return kept
    if choices.scale == 1 and ours == base:
        return None if theirs is None else Decision(theirs.name, "theirs", (theirs,))
    if ours == theirs and (choices.alike == "keep" or base is None or ours is None):
        return kept
    against = mismatch(triple, names)
    if against is not None:
        return kept if choices.tensors == "ours" else against
    assert base is not None  # as are the others: else they would not match
    assert ours is not None
    assert theirs is not None
    if not DTYPES[ours.dtype].floating:
        return kept
    return Decision(ours.name, "sum", (ours, theirs, base))


def mismatch(triple: Triple, names: Names) -> Conflict | None:
    """Returns why a change cannot be added to a tensor, None if it can."""
    found = [(name, entry) for name, entry in zip((names.base, names.ours, names.theirs), triple, strict=True)]
    where = next(entry.name for _, entry in found if entry is not None)
    absent = [name for name, entry in found if entry is None]
    if absent:
        return Conflict("missing", where, "in all three versions", f"absent from {', '.join(absent)}")
    entries = [(name, entry) for name, entry in found if entry is not None]
    if len({entry.dtype for _, entry in entries}) > 1:
        told = ", ".join(f"{entry.dtype} in {name}" for name, entry in entries)
        return Conflict("dtype", where, "one dtype in all three versions", told)
    if len({entry.shape for _, entry in entries}) > 1:
        told = ", ".join(f"{list(entry.shape)} in {name}" for name, entry in entries)
        return Conflict("shape", where, "one shape in all three versions", told)
    dtype = entries[0][1].dtype
    if DTYPES[dtype].floating and dtype not in ARITHMETIC_WIDTHS:
        return Conflict("dtype", where, f"one of {', '.join(ARITHMETIC_WIDTHS)} where values differ", dtype)
    return None


def remark(decision: Decision, theirs: TensorEntry | None, base: TensorEntry | None) -> Iterator[str]:
    """Yields what to say of a tensor that stays although the change changes it."""
    if decision.side != "ours" or theirs == base or theirs == decision.inputs[0]:
        return
    whole = not DTYPES[decision.inputs[0].dtype].floating
    yield f"{decision.name}: {'integers are not added' if whole else 'the change cannot be added'}, left as it is"
