"""What a version is worth on data: accuracies with intervals, who is served worst, how sure it is, what it forgot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from modelgit.errors import UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.reporting.estimates import over_domains
from modelgit.porcelain.reporting.history import best_before
from modelgit.porcelain.reporting.tallying import Asked, Bools, Floats, answered, asked, by_domain
from modelgit.porcelain.reporting.values import Estimate, GroupGap
from modelgit.porcelain.scorebook import all_scores
from modelgit.porcelain.scores import DataName, data_for, known_model, split_key, workbench
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.training.leaking import known_before
from modelgit.repo.repository import Repository
from modelgit.train.answers import asker
from modelgit.train.config import DataConfig
from modelgit.train.measuring.forgetting import forgetting
from modelgit.train.task import Workbench

Domains = Mapping[str, tuple[int, int]]  # (correct, n)
SINGLE = ("ood_accuracy", "worst_group_accuracy")  # accuracies on one set of examples, no mean over several


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a version scored: metrics by name, on how many examples each accuracy rests, and 95 % intervals.

    `worst_group` is the class and the domain with the lowest accuracy among those with ten examples or more; `gaps`
    name the domains that gaps are between. `seen` says how many of the examples of a split were trained on before, by
    whom; it is empty where none were.
    """

    commit: str
    data: str
    values: Mapping[str, float]
    images: Mapping[str, int]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    worst_group: tuple[str, str] | None = None
    gaps: tuple[GroupGap, ...] = ()
    seen: str = ""


def evaluate(repo: Repository, rev: str, data: str, *, listener: Listener = ignore) -> Mapping[str, float]:
    """Returns the metrics of a version on `data`, by name; nothing is recorded.

    A folder or file gives `accuracy` (mean over its domains), `worst_domain_accuracy` and `accuracy/DOMAIN`;
    `RECIPE.toml` and `PIPELINE.toml#NAME` give `val_accuracy` and, with a held-out domain, `ood_accuracy`. All: see
    `evaluation`.
    """
    return evaluation(workbench(repo, listener=listener), repo, rev, data).values


def evaluation(bench: Workbench, repo: Repository, rev: str, data: str, by: str | None = None) -> Evaluation:
    """Returns the metrics of a version on `data`; with `by`, the values of that column of a table are its domains.

    On the held-out domain, where there is one, or on everything: `worst_group_accuracy` (class and domain together, ten
    examples or more), `ece` (expected calibration error, 15 bins); with several domains `accuracy_gap` between the best
    and the worst served, `parity_gap` and `odds_gap` (`GroupGap`). `forgetting` is the best accuracy that a note of
    an ancestor tells on the same split, less this one's.

    Raises:
        DataError: the data is missing, or has other classes than the model. UsageError: `by` with a split.
    """
    name, model, commit = told_apart(data_for(repo, [rev], data), by), known_model(repo, rev), repo.resolve(rev)
    examples, ask = asker(bench, model, name.config, name.frozen_stages, splits=name.has_splits)
    on, logits = asked(examples), ask(state_at(repo, commit)).logits
    known = dict(accuracies(on, logits, split=name.has_splits))
    more = answered(rev, commit, on, logits)
    known |= {"worst_group_accuracy": more.worst} if more.worst is not None else {}
    values = {metric: found.value for metric, found in known.items()} | {"ece": more.ece}
    values |= {f"{gap.kind}_gap": gap.value for gap in more.gaps}
    if name.has_splits:
        values |= forgotten(repo, commit, split_key(name.config, examples.digest), values["val_accuracy"])
    images = {m: e.n for m, e in known.items() if e.n is not None and ("/" in m or m in SINGLE)}
    ends = dict(intervals(known)) | {"ece": more.ece_ends}
    ends |= {f"{gap.kind}_gap": (gap.low, gap.high) for gap in more.gaps}
    before = seen_before(bench, repo, commit, name.config) if name.has_splits else ""
    return Evaluation(commit, name.label, values, images, ends, more.worst_group, more.gaps, before)


def seen_before(bench: Workbench, repo: Repository, commit: str, data: DataConfig) -> str:
    """Returns how many of the examples that a split scores on a version was trained on; nothing if on none."""
    dataset, parts = bench.dataset(data)
    found = known_before(repo, commit, dataset, parts)
    return f"{found.count} of the examples scored were trained on before: {found.said}" if found else ""


def told_apart(name: DataName, by: str | None) -> DataName:
    """Returns the data with its groups for domains."""
    if by is None:
        return name
    if name.has_splits:
        hint = "name the file itself: --on FILE --by COLUMN"
        raise UsageError(f"--by {by}: splits are by the data's own domains", hint=hint)
    return replace(name, config=replace(name.config, columns=replace(name.config.columns, domain=by)))


def accuracies(on: Asked, logits: Floats, *, split: bool) -> Iterator[tuple[str, Estimate]]:
    """Yields accuracies by the names of metrics; those of single domains last."""
    right = np.asarray(logits.argmax(1) == on.examples.labels)
    domains = in_order(on, right, np.ones(len(right), bool))
    worst = min((over_domains({d: c}) for d, c in domains.items()), key=lambda e: e.value)
    if not split:
        yield "accuracy", over_domains(domains)
        yield "worst_domain_accuracy", worst
        yield from ((f"accuracy/{domain}", over_domains({domain: count})) for domain, count in domains.items())
        return
    inside = in_order(on, right, ~on.examples.held_out)
    yield "val_accuracy", over_domains(inside)
    if on.examples.held_out.any():
        yield "ood_accuracy", over_domains(in_order(on, right, on.examples.held_out))
    yield "worst_domain_accuracy", worst
    yield from ((f"val_accuracy/{domain}", over_domains({domain: count})) for domain, count in inside.items())


def in_order(on: Asked, right: Bools, rows: Bools) -> Domains:
    """Returns (correct, n) of every domain among some of the examples, by name."""
    return by_domain(right[rows], [domain for domain, wanted in zip(on.examples.domains, rows, strict=True) if wanted])


def forgotten(repo: Repository, commit: str, split: str, accuracy: float) -> dict[str, float]:
    """Returns what was lost since the best ancestor that a note knows on the same split; nothing if there is none."""
    scores = all_scores(repo)
    if not any(score.split == split for score in chain.from_iterable(scores.values())):
        return {}
    best = best_before(list(repo.log([commit])), scores)[commit]
    lost = forgetting([best, {split: accuracy}])
    return {"forgetting": lost[split]} if split in lost else {}


def intervals(known: Mapping[str, Estimate]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yields the 95 % intervals of accuracies (Wilson's)."""
    for metric, found in known.items():
        if found.low is not None and found.high is not None:
            yield metric, (found.low, found.high)
