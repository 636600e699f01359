"""Which of the versions to merge, by what their means score: uniform, greedy and greedier soups.

Every version is read once to be measured alone, unless its score is known, and once for the mean: sums run on, so the
number of versions costs no memory. Only `greedier` reads those that are left again in every round.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from modelgit.errors import UsageError
from modelgit.events import Advanced, Finished, Listener, Noted, Started, ignore
from modelgit.porcelain.merging.values import Prepared
from modelgit.porcelain.trials.contenders import Contender, contenders
from modelgit.porcelain.trials.measuring import Judge, require_score
from modelgit.porcelain.trials.values import Selection, Tried

if TYPE_CHECKING:
    from modelgit.merge.selection.greedy import Mode, Try
    from modelgit.merge.selection.states import Soup, State

TASK = "selection"
MODES = ("uniform", "greedy", "greedier")


def require_selectable(mode: str, prepared: Prepared) -> None:
    """Raise UsageError unless there is something to choose from, and its mean is what is asked for."""
    if mode not in MODES:
        raise UsageError(f"--select {mode}: expected one of {', '.join(MODES)}")
    if len(prepared.heads) < 2:
        only = ", ".join(member.name for member in prepared.heads)
        hint = "name branches of which none descends from another"
        raise UsageError(f"--select: one model takes part ({only}), nothing to choose from", hint=hint)
    if not prepared.choices.plain:
        hint = "--search weights finds weights; other methods merge all that is named"
        raise UsageError(f"--select {mode}: chooses what a plain mean is made of", hint=hint)


@dataclass(slots=True)
class Table:
    """A selection under way: the models, how they are measured, who listens."""

    models: list[Contender]
    judge: Judge
    listener: Listener

    def measure(self, state: "State") -> float:
        """Return the score of a mean, higher being better."""
        score = self.judge(state)
        self.listener(Advanced(TASK, 1, f"{self.judge.on.metric} {score:.4g}"))
        return self.judge.aim.sign * score

    def alone(self, soup: "Soup", head: int) -> float:
        """Return the score of one model, measured now."""
        model = self.models[head]
        score = self.judge.own(model.version, soup.load(head))
        self.listener(Advanced(TASK, 1, f"{model.name} {score:.4g}"))
        return require_score(model.name, score, self.judge.on)


def select_versions(prepared: Prepared, mode: str, judge: Judge, listener: Listener = ignore) -> Selection:
    """Returns which of the versions are to be merged. Nothing is stored but the scores of single versions.

    Raises:
        UsageError: nothing to choose from. MergeConflict: values or scores that are no finite numbers.
    """
    from modelgit.merge.selection.greedy import evaluations, select
    from modelgit.merge.selection.states import Soup

    require_selectable(mode, prepared)
    models, how = contenders(prepared), cast("Mode", mode)
    known = [judge.known(model.version) for model in models]
    missing, means = sum(score is None for score in known), evaluations(how, len(models))
    listener(Noted(budget_text(mode, len(models), missing, means)))
    listener(Started(TASK, missing + means, "evaluations"))
    table = Table(models, judge, listener)
    soup = Soup([model.source for model in models], [model.name for model in models], table.measure)
    alone = [
        require_score(model.name, score, judge.on) if score is not None else table.alone(soup, head)
        for head, (model, score) in enumerate(zip(models, known, strict=True))
    ]
    sign = judge.aim.sign
    tries = select(how, [sign * score for score in alone], soup)
    listener(Finished(TASK, f"{sum(row.kept for row in tries)} of {len(models)} kept"))
    rows = tuple(tried(models[row.head], row, sign, known=known[row.head] is not None) for row in tries)
    last = [row.together for row in rows if row.kept][-1]
    return Selection(mode, judge.on, rows, last, missing, judge.evaluations - missing, max(soup.reads))


def budget_text(mode: str, heads: int, missing: int, means: int) -> str:
    """Returns what a selection will cost."""
    most = "at most " if mode == "greedier" else ""
    found = f" ({heads - missing} of {heads} scores are known)" if missing < heads else ""
    return (
        f"{mode} selection among {heads} models: {missing} evaluations of single models{found}, {most}{means} of means"
    )


def tried(model: Contender, row: "Try", sign: float, *, known: bool) -> Tried:
    """Returns a try as the report has it."""
    scores = sign * row.alone, sign * row.together
    return Tried(model.name, model.version.commit, *scores, kept=row.kept, round=row.round, known=known)
