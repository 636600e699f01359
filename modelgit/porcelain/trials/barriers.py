"""Whether models are linearly mode connected: scores along the straight paths between them.

With two or three heads the paths go from the first to each other; with more, from what the merge makes of them, their
mean, to each. A method about a base, such as wise_ft, moves the ends: they are then what it makes of each head alone,
and the merge lies between those. Nothing is stored: two ends and one point between them are in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.porcelain.merging.preparing import common_bases, prepare
from modelgit.porcelain.merging.values import Align, Choices, Prepared
from modelgit.porcelain.trials.contenders import Contender, among, commits_of, contenders, merged, require_whole
from modelgit.porcelain.trials.measuring import Judge, judge_of, require_score
from modelgit.porcelain.trials.values import POINTS, Aim, Barriers, Path, PathPoint
from modelgit.repo.repository import Repository

if TYPE_CHECKING:
    from modelgit.merge.selection.states import Raw

TASK, MERGE = "paths", "the merge"
PAIRWISE = 3  # heads up to which paths go from the first to each other
HINT = (
    "Shrink towards the base (--method wise_ft --set alpha=0.5), line the units up first (--align weights), or keep "
    "the models as an ensemble."
)


def barrier(
    repo: Repository,
    revs: Sequence[str],
    aim: Aim,
    *,
    points: int = POINTS,
    align: Align | None = None,
    listener: Listener = ignore,
) -> Barriers:
    """Returns the scores on the straight path between two versions, or more. Reads only.

    With `align` the units of all others are put into the order of the first one's.

    Raises:
        UsageError: fewer than two versions, too few points, a metric that is not measured.
        MergeConflict: models of different shapes, or that the data does not fit. DataError: no such data.
    """
    named = {rev: repo.resolve(rev) for rev in revs}
    if len(set(named.values())) < 2:
        raise UsageError("a path has two ends: name two versions", hint="modelgit barrier A B --on DATA")
    choices = Choices(files="ours", align=align)
    prepared = prepare(repo, named, choices, common_bases(repo, list(named.values()), choices), listener)
    judge = judge_of(repo, aim, named, listener)
    return paths(repo, prepared, judge, points, listener)


@dataclass(slots=True)
class Ends:
    """The models between which paths lie, read when they are wanted; `versions` are those whose ends they are."""

    repo: Repository
    prepared: Prepared
    judge: Judge
    listener: Listener
    versions: Mapping[str, Contender]

    def read(self, name: str) -> "dict[str, Raw]":
        """Return an end. Raises MergeConflict for values that are not finite."""
        from modelgit.merge.selection.states import read_state

        if name in self.versions:
            return read_state(self.versions[name].source, name)
        plain = replace(self.prepared.choices, weights=(), layers={})
        merge = self.prepared if name == MERGE else among(self.prepared, {name}, plain)
        found = merged(self.repo, merge.plans)
        if found is None:
            raise MergeConflict(f"{name}: values beyond the range of their type", hint="merge with a smaller scale")
        return found

    def score(self, name: str, state: "dict[str, Raw]") -> float:
        """Return the score of an end, measured now unless it is known."""
        model = self.versions.get(name)
        known = self.judge.known(model.version) if model is not None else None
        if known is None:
            known = self.judge.own(model.version, state) if model is not None else self.judge(state)
        self.listener(Advanced(TASK, 1))
        return require_score(name, known, self.judge.on)


def paths(repo: Repository, prepared: Prepared, judge: Judge, points: int, listener: Listener = ignore) -> Barriers:
    """Returns the paths between the heads of a merge, as the module says. Raises as `barrier` does."""
    from modelgit.merge.selection.paths import places

    require_whole(prepared)
    at, names = places(points), list(commits_of(prepared))
    if len(names) < 2:
        raise UsageError(f"one model takes part ({names[0]}): there is no path", hint="name two versions")
    moved = prepared.method.needs_base and prepared.method.heads[0] == 1
    versions = {} if moved else {model.name: model for model in contenders(prepared)}
    ends, before = Ends(repo, prepared, judge, listener, versions), judge.evaluations
    start, others = (MERGE, names) if len(names) > PAIRWISE else (names[0], names[1:])
    listener(Started(TASK, most_evaluations(len(names), points), "evaluations"))
    first = ends.read(start)
    score = ends.score(start, first)
    found = tuple(path(ends, (start, score, first), name, at) for name in others)
    listener(Finished(TASK, f"{len(found)} paths"))
    return Barriers(judge.on, found, judge.evaluations - before)


def most_evaluations(heads: int, points: int) -> int:
    """Returns how many points the paths of a merge have; fewer are measured where scores are known."""
    return 1 + (heads if heads > PAIRWISE else heads - 1) * (points - 1)


def path(ends: Ends, start: "tuple[str, float, dict[str, Raw]]", end: str, at: Sequence[float]) -> Path:
    """Return one path: its ends' scores, and those of the points between them."""
    from modelgit.merge.selection.paths import barrier as height_of
    from modelgit.merge.selection.paths import between, promised

    name, first, a = start
    b = ends.read(end)
    scores = [first]
    for place in at[1:-1]:
        scores.append(ends.judge(between(a, b, place)))
        ends.listener(Advanced(TASK, 1))
    scores.append(ends.score(end, b))
    points = promised(scores, at)
    height, where = height_of(points, lower_is_better=ends.judge.aim.lower_is_better)
    return Path(name, end, tuple(PathPoint(p.at, p.score, p.promised) for p in points), height, where)


def require_connected(found: Barriers, limit: float) -> None:
    """Raise MergeConflict of kind "barrier" naming every path whose barrier is above the limit."""
    what = f"{found.on.metric} on {found.on.data}"
    conflicts = [
        Conflict(
            "barrier", f"{one.start} – {one.end}", f"a barrier of at most {limit:g}", f"{one.barrier:.4g} at {one.at:g}"
        )
        for one in found.paths
        if not one.barrier <= limit
    ]
    if conflicts:
        first = conflicts[0]
        message = f"no straight path: {first.where}: expected {first.expected} in {what}, got {first.got}"
        raise MergeConflict(message, conflicts, hint=HINT)
