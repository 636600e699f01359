"""All that a merge is to find out first: which versions, which coefficients, whether a straight path joins them.

Nothing is written here but scores of single versions, into the cache.
"""

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from modelgit.errors import UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.merging.values import Prepared
from modelgit.porcelain.trials.barriers import most_evaluations, paths, require_connected
from modelgit.porcelain.trials.contenders import among, commits_of, merged, require_whole
from modelgit.porcelain.trials.measuring import Judge, judge_of
from modelgit.porcelain.trials.searching import search_coefficients, space_of
from modelgit.porcelain.trials.selecting import require_selectable, select_versions
from modelgit.porcelain.trials.values import DEPTH, EVALUATIONS, POINTS, Aim, Findings, Holdout, Trial
from modelgit.repo.merging.texts import merge_blobs
from modelgit.repo.repository import Repository

if TYPE_CHECKING:
    from modelgit.merge.selection.greedy import Mode
    from modelgit.porcelain.trials.measuring import Given

FEWEST = 2  # points of a search
OPTIMISTIC = "chosen by this very data, so its score flatters the result; --holdout DATA measures it elsewhere"


def check_trial(trial: Trial, data: str | None) -> None:
    """Raise UsageError for options that make no sense together."""
    asked = {"--select": trial.select, "--search": trial.search, "--barrier-max": trial.barrier_max is not None}
    option = next((name for name, value in asked.items() if value), None)
    if option and not data:
        raise UsageError(f"{option} needs data to measure models on", hint="--on DATA: a folder, .zip, table, …")
    if trial.barrier_max is not None and not 0 <= trial.barrier_max < float("inf"):
        raise UsageError(f"--barrier-max {trial.barrier_max}: expected a number of 0 or more")
    extra = {"--metric": trial.metric, "--lower-is-better": trial.lower_is_better, "--holdout": trial.holdout}
    for name, value in extra.items():
        if value and option is None:
            raise UsageError(f"{name} is for --select, --search or --barrier-max")
    if trial.evaluations != EVALUATIONS and not trial.search:
        raise UsageError("--evaluations is for --search", hint="--search weights --evaluations 60")
    if trial.depth != DEPTH and trial.search != "layers":
        raise UsageError("--layers is for --search layers", hint="--search layers --layers 2")
    if trial.points != POINTS and trial.barrier_max is None:
        raise UsageError("--barrier-points is for --barrier-max", hint="--barrier-max 0.02 --barrier-points 5")


def try_out(
    repo: Repository,
    prepared: Prepared,
    trial: Trial,
    data: str,
    listener: Listener = ignore,
    given: "Given | None" = None,
) -> Prepared:
    """Returns the merge of the versions and with the coefficients that were found, and all that was found.

    `given` is data that no text names, with a workbench; `data` is then what it is called.

    Raises:
        UsageError: options that do not fit the merge. MergeConflict: a barrier on a path, a score that is no number,
        models that the data does not fit. DataError: no such data.
    """
    judge, elsewhere = judges(repo, prepared, trial, data, listener, given)
    findings, merge_text = Findings(), partial(merge_blobs, repo)
    if trial.select:
        chosen = select_versions(prepared, trial.select, judge, listener)
        kept = {row.name for row in chosen.kept}
        prepared, findings = among(prepared, kept, prepared.choices, merge_text), replace(findings, selection=chosen)
    if trial.search:
        found, choices = search_coefficients(repo, prepared, trial, judge, listener)
        prepared, findings = among(prepared, commits_of(prepared), choices, merge_text), replace(findings, search=found)
    if trial.barrier_max is not None and len(prepared.heads) > 1:
        barriers = paths(repo, prepared, judge, trial.points, listener)
        require_connected(barriers, trial.barrier_max)
        findings = replace(findings, barriers=barriers)
    return replace(prepared, findings=with_holdout(repo, prepared, elsewhere, findings))


def judges(
    repo: Repository,
    prepared: Prepared,
    trial: Trial,
    data: str,
    listener: Listener = ignore,
    given: "Given | None" = None,
) -> tuple[Judge, Judge | None]:
    """Returns what measures the models, and what does so where nothing is chosen, once trial and merge fit together.

    Raises: as `try_out`.
    """
    require_whole(prepared)
    refuse_adapters(prepared)
    if trial.select:
        require_selectable(trial.select, prepared)
    elif trial.search:
        space_of(prepared, trial)
    if trial.search and trial.evaluations < FEWEST:
        raise UsageError(f"--evaluations {trial.evaluations}: expected at least {FEWEST}")
    if trial.barrier_max is not None:
        from modelgit.merge.selection.paths import places

        places(trial.points)
    commits = commits_of(prepared)
    elsewhere = judge_of(repo, aim_of(trial, trial.holdout), commits, listener) if trial.holdout else None
    return judge_of(repo, aim_of(trial, data), commits, listener, given), elsewhere


def refuse_adapters(prepared: Prepared) -> None:
    """Raises UsageError for a merge of adapters: what is measured on the way are whole models in memory."""
    if hasattr(prepared.method, "adapters"):
        hint = "the result can be measured: --on DATA --gate 'accuracy>=0.75'"
        what = f"{prepared.method.name}: nothing is chosen, searched or measured on the way between adapters"
        raise UsageError(what, hint=hint)


def aim_of(trial: Trial, data: str) -> Aim:
    """Returns what a trial measures."""
    return Aim(data, trial.metric, trial.lower_is_better)


def with_holdout(repo: Repository, prepared: Prepared, judge: Judge | None, findings: Findings) -> Findings:
    """Returns the findings with the score on data that nothing was chosen by, or a word on what is missing."""
    if judge is None:
        chosen = findings.selection is not None or findings.search is not None
        return replace(findings, notes=(OPTIMISTIC,) if chosen else ())
    state = merged(repo, prepared.plans)
    score = judge(state) if state is not None else math.nan
    return replace(findings, holdout=Holdout(judge.on.data, score))


def budget(prepared: Prepared, trial: Trial) -> tuple[str, ...]:
    """Returns what the trials of a merge would cost at most, for a dry run."""
    from modelgit.merge.selection.greedy import evaluations

    count, told = len(prepared.heads), []
    if trial.select:
        means = evaluations(cast("Mode", trial.select), count)
        told.append(f"{trial.select} selection would take up to {count} evaluations of single models, {means} of means")
    if trial.search:
        told.append(f"the search of {trial.search} would take up to {trial.evaluations} evaluations")
    if trial.barrier_max is not None:
        told.append(f"paths would take up to {most_evaluations(count, trial.points)} evaluations")
    return tuple(told)
