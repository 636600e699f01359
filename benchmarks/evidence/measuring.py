"""What no note holds: paths between runs, how alike their features are, means of some, and styles of no pipeline."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.evidence.growing import Growth, Kind, growing
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.merge.selection.paths import barrier, between, places, promised
from modelgit.merge.selection.states import Raw, read_state
from modelgit.porcelain.scores import known_model, workbench
from modelgit.porcelain.trials.measuring import as_torch
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.train.answers import Answers, Asker, Examples, asker
from modelgit.train.config import DataConfig
from modelgit.train.measuring.diversity import Agreement, agreement, linear_cka
from modelgit.train.measuring.paired import Cell

POINTS = 5  # of a path, ends included
SENTENCES = 240, 120  # of the held-out domain, and of validation: all of them would take minutes a cell
Marks = npt.NDArray[np.bool_]
State = dict[str, Raw]
W = TypeVar("W")
R = TypeVar("R")
Commits = dict[str, list[str]]  # of a strategy's models, by its name


@dataclass(frozen=True, slots=True)
class Run:
    """A fine-tuning of a cell: its step, its commit, the step it began with."""

    step: str
    commit: str
    start: str


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of a protocol, with its runs: those of one start (`plain`), and those of different ones (`recycled`)."""

    domain: str
    seed: str
    data: DataConfig
    frozen_stages: int
    plain: tuple[Run, ...]
    recycled: tuple[Run, ...]

    @property
    def name(self) -> str:
        """What the cell is called."""
        return f"{self.domain}/{self.seed}"


@dataclass(frozen=True, slots=True)
class Line:
    """The straight path between two runs of a cell.

    `held_out` and `validation` are accuracies at `at`; `unlike` and `unlike_inside` how they err on the held-out and on
    the training domains, `cka` and `cka_inside` how alike their features are there.
    """

    cell: str
    steps: tuple[str, str]
    starts: tuple[str, str]
    at: tuple[float, ...]
    held_out: tuple[float, ...]
    validation: tuple[float, ...]
    unlike: Agreement
    unlike_inside: Agreement
    cka: float
    cka_inside: float

    def barrier(self, accuracies: Sequence[float]) -> float:
        """How far accuracy falls below what the ends promise, at the worst point; 0 where it falls nowhere."""
        return barrier(promised(accuracies, self.at))[0]

    def gain(self, accuracies: Sequence[float]) -> float:
        """The accuracy of the middle less the mean of the ends."""
        return self.middle(accuracies) - (accuracies[0] + accuracies[-1]) / 2

    def middle(self, accuracies: Sequence[float]) -> float:
        """The accuracy of the middle."""
        return accuracies[len(accuracies) // 2]


def measured(
    repository: Path, cells: Sequence[Place], workers: int, listener: Listener, *, paths: bool
) -> tuple[list[Line], list[Growth]]:
    """Returns the paths of all cells, if wanted, and how means of runs grow, measured by so many processes."""
    told = "paths between runs" if paths else "means of more and more runs", listener
    parts = shared_out(partial(looked_at, repository, paths=paths), cells, workers, told)
    chain = itertools.chain.from_iterable
    return list(chain(lines for lines, _ in parts)), list(chain(growths for _, growths in parts))


def shared_out(work: Callable[[W], R], items: Sequence[W], workers: int, told: tuple[str, Listener]) -> list[R]:
    """Returns what becomes of each item, in order, worked on by so many processes; `told` names the work."""
    name, listener = told
    listener(Started(name, len(items), "steps"))
    found = list[R]()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for one in pool.map(work, items):
            found.append(one)
            listener(Advanced(name, 1))
    listener(Finished(name))
    return found


def looked_at(repository: Path, cell: Place, *, paths: bool) -> tuple[list[Line], list[Growth]]:
    """Returns the paths between neighbouring runs of each kind, if wanted, and how means of ever more of them do."""
    repo = Repository.open(repository)
    bench, model = workbench(repo, "cpu", 1), known_model(repo, cell.plain[0].commit)
    most = SENTENCES if bench.dataset(cell.data)[0].kind == "text" else None
    examples, ask = asker(bench, model, cell.data, cell.frozen_stages, splits=True, most=most)

    def right(answers: Answers) -> Marks:
        return np.asarray(answers.logits.argmax(1) == examples.labels)

    def asked(state: State) -> Marks:
        return right(ask(as_torch(state)))

    lines, growths = list[Line](), list[Growth]()
    kinds: tuple[tuple[Kind, tuple[Run, ...]], ...] = ("plain", cell.plain), ("recycled", cell.recycled)
    for kind, runs in kinds:
        states = [read_state(weights_of(repo, run.commit), run.step) for run in runs]
        answers = [ask(as_torch(state)) for state in states]
        known = {(i,): right(one) for i, one in enumerate(answers)}  # means of runs, by their numbers
        for i, j in itertools.pairwise(range(len(runs))) if paths else ():
            ends = (runs[i], states[i], answers[i]), (runs[j], states[j], answers[j])
            line, known[i, j] = path(cell.name, ends, examples, ask)
            lines.append(line)
        growths.append(growing(kind, states, known, asked, partial(parted, cell, examples)))
    return lines, growths


def parted(cell: Place, examples: Examples, right: Marks) -> tuple[Cell, Cell]:
    """Returns what is right of the held-out domain, and of the training domains' validation examples."""
    things = np.array(examples.things, dtype=object)
    outside, inside = (
        Cell(cell.domain, cell.seed, tuple(things[rows]), right[rows].astype(float))
        for rows in (examples.held_out, ~examples.held_out)
    )
    return outside, inside


def path(cell: str, ends: Sequence[tuple[Run, State, Answers]], examples: Examples, ask: Asker) -> tuple[Line, Marks]:
    """Returns what lies between two runs, and what their mean gets right."""
    (first, a, at_first), (last, b, at_last) = ends
    at = places(POINTS)
    along = [at_first, *(ask(as_torch(between(a, b, share))) for share in at[1:-1]), at_last]
    right = [answer.logits.argmax(1) == examples.labels for answer in along]
    inside, outside = ~examples.held_out, examples.held_out
    line = Line(
        cell,
        (first.step, last.step),
        (first.start, last.start),
        tuple(at),
        tuple(float(marks[outside].mean()) for marks in right),
        tuple(float(marks[inside].mean()) for marks in right),
        alike(at_first, at_last, examples.labels, outside),
        alike(at_first, at_last, examples.labels, inside),
        linear_cka(at_first.features[outside], at_last.features[outside]),
        linear_cka(at_first.features[inside], at_last.features[inside]),
    )
    return line, np.asarray(right[POINTS // 2])


def alike(first: Answers, last: Answers, labels: npt.NDArray[np.int64], rows: Marks) -> Agreement:
    """Returns how two models' answers compare on some of the examples."""
    return agreement(first.logits.argmax(1)[rows], last.logits.argmax(1)[rows], labels[rows])


def unseen(
    repository: Path, archive: Path, work: Sequence[tuple[Place, Commits, str]], workers: int, listener: Listener
) -> dict[str, list[Cell]]:
    """Returns what strategies get right on styles that no run has seen, cell by cell.

    `work` are places, the commits of their strategies, and a style.
    """
    parts = shared_out(partial(tested_on, repository, archive), work, workers, ("further styles", listener))
    return {name: [part[name] for part in parts] for name in parts[0]} if parts else {}


def tested_on(repository: Path, archive: Path, work: tuple[Place, Commits, str]) -> dict[str, Cell]:
    """Returns which test examples of one style each strategy of a place gets right."""
    place, commits, style = work
    repo = Repository.open(repository)
    vendors = tuple(domain for domain in ("fluent", "noto", "openmoji", "twemoji") if domain != place.domain)
    data = replace(place.data, path=str(archive), held_out=style, domains=vendors)
    some = next(iter(commits.values()))[0]
    examples, ask = asker(workbench(repo, "cpu", 1), known_model(repo, some), data, place.frozen_stages, splits=True)
    things = tuple(thing for thing, apart in zip(examples.things, examples.held_out, strict=True) if apart)
    found = dict[str, Cell]()
    for name, versions in commits.items():
        right = [right_answers(repo, commit, examples, ask) for commit in versions]
        found[name] = Cell(style, place.name, things, np.mean(right, axis=0))
    return found


def right_answers(repo: Repository, commit: str, examples: Examples, ask: Asker) -> Marks:
    """Returns which held-out examples a version gets right."""
    logits = ask(as_torch(read_state(weights_of(repo, commit), commit))).logits
    return np.asarray(logits.argmax(1) == examples.labels)[examples.held_out]
