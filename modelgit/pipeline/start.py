"""Running a pipeline file: checked whole, then carried out by a pool of workers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import ModelgitError, UsageError
from modelgit.events import Listener, ignore
from modelgit.pipeline.checking import checked, refuse_full_disk
from modelgit.pipeline.outcome import Row
from modelgit.pipeline.publish import publish
from modelgit.pipeline.run import Coordinator, Outcome
from modelgit.pipeline.steps import Steps
from modelgit.pipeline.workers.places import workplace
from modelgit.pipeline.workers.pool import Pool
from modelgit.porcelain.scores import drop_features
from modelgit.recipe.pipeline import Pipeline, load_pipeline, part_of
from modelgit.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: overrides of the file, where to, with how many workers (0: as many as suit the place).

    `only` are patterns of steps' names: these steps are carried out, with all that they need. `on` is where workers
    run (local, slurm, ray), `cluster` what each job asks for there (`KEY=VALUE`, or `KEY`). `together` fine-tunings
    share the passes of one worker; 0: what the file says, else as many as suit the device.
    """

    overrides: tuple[str, ...] = ()
    repository: Path | None = None
    report: Path | None = None
    workers: int = 0
    device: str = "auto"
    only: tuple[str, ...] = ()
    on: str = "local"
    cluster: tuple[str, ...] = ()
    together: int = 0


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run did: steps made and steps found done, the table, and where everything is."""

    pipeline: str
    repository: str
    made: tuple[str, ...]
    found: tuple[str, ...]
    main: str | None
    rows: tuple[Row, ...]
    reports: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class RanEach:
    """What the runs of several pipelines did, one after another."""

    runs: tuple[Ran, ...]


def run_pipelines(paths: Sequence[Path], options: Options, listener: Listener = ignore) -> Ran | RanEach:
    """Carries out pipelines one after another, each as `run_pipeline` does; all of them are read before the first.

    Raises:
        UsageError: one repository or one report is named for several.
        As `run_pipeline`.
    """
    if len(paths) == 1:
        return run_pipeline(paths[0], options, listener)
    if options.repository or options.report:
        named = "--repo" if options.repository else "--report"
        raise UsageError(
            f"{named} names one place, for {len(paths)} pipelines", hint=f"leave {named} out: files say it"
        )
    for path in paths:
        with about(path):
            checked(load_pipeline(path, options.overrides))
    runs = list[Ran]()
    for path in paths:
        with about(path):
            runs.append(run_pipeline(path, options, listener))
    return RanEach(tuple(runs))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Has errors say which file they are about."""
    try:
        yield
    except ModelgitError as error:
        error.message = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise


def run_pipeline(path: Path, options: Options, listener: Listener = ignore) -> Ran:
    """Carries out the pipeline in `path` as far as it is not done yet, and returns its outcome.

    Raises:
        RecipeError, DataError, DependencyMissing, ClusterError, TrainingError: before the first step runs, where that
            can be known.
    """
    done = carry_out(path, options, listener)
    info, outcome = done.pipeline.info, done.outcome
    drop_features(done.repo)
    stem = options.report or (Path(info.report) if info.report else None)
    reports = publish(done.pipeline, done.repo, outcome, stem) if stem else ()
    place, main = str(place_of(done.pipeline, options)), outcome.commits.get("main")
    return Ran(info.name, place, outcome.made, outcome.found, main, outcome.rows, reports, outcome.seconds)


@dataclass(frozen=True, slots=True)
class Carried:
    """A pipeline that was carried out, the repository with its commits, and what came out."""

    pipeline: Pipeline
    repo: Repository
    outcome: Outcome


def carry_out(path: Path, options: Options, listener: Listener = ignore) -> Carried:
    """Carries out the pipeline in `path`, and leaves reports to the caller; raises as `run_pipeline` does."""
    pipeline = load_pipeline(path, options.overrides)
    if options.only:
        pipeline = part_of(pipeline, options.only)
    pipeline = checked(pipeline)
    place = place_of(pipeline, options)
    refuse_full_disk(pipeline, place)
    together = options.together or pipeline.info.together
    found = workplace(options.on, options.cluster, options.device, options.workers, together)
    repo = open_or_make(place)
    with Pool(found.launcher(repo), found.size) as pool:
        outcome = Coordinator(pipeline, Steps(repo, listener), pool, found.stacking, listener).run()
    return Carried(pipeline, repo, outcome)


def place_of(pipeline: Pipeline, options: Options) -> Path:
    """Returns where the repository is to be."""
    return options.repository or Path(pipeline.info.repository)


def open_or_make(place: Path) -> Repository:
    """Returns the repository at `place` itself (not one around it), made if there is none."""
    return Repository.init(place)  # an existing one is set up for weights
