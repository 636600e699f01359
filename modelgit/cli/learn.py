"""Commands that train and score."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import Trust, command, trust
from modelgit.cli.session import Session
from modelgit.cli.words import AlignBy, Curves, Lower, Message, Metric, Tracker, aligning, drawing

if TYPE_CHECKING:
    from modelgit.pipeline.start import Ran, RanEach
    from modelgit.porcelain.executing import Executed
    from modelgit.porcelain.reporting.evaluating import Evaluation
    from modelgit.porcelain.trials.values import Barriers

LEARNING = "Training and scoring"
WHERE = "A folder, .zip, table (.csv, …), arrays (.npz), RECIPE.toml or PIPELINE.toml#NAME (data or step)."
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""
    register_run(app)
    register_scores(app)
    register_barrier(app)
    register_exec(app)


def register_run(app: typer.Typer) -> None:
    """Enters `run`, and what its workers are started with."""

    @command(app, "run", panel=LEARNING, networks=True)
    def run(
        session: Session,
        pipelines: Annotated[
            list[Path], typer.Argument(metavar="PIPELINE.toml…", help="What to carry out, one after another.")
        ],
        repo: Annotated[Path | None, typer.Option("--repo", help="The repository, made if absent.")] = None,
        report: Annotated[Path | None, typer.Option("--report", help="Write PATH.json, PATH.svg, PATH.html.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the file.")] = None,
        only: Annotated[
            list[str] | None, typer.Option("--only", metavar="PATTERN", help="These steps and what they need; repeat.")
        ] = None,
        workers: Annotated[
            int, typer.Option("--workers", min=0, help="Processes, or jobs in a queue; 0: as many as suit.")
        ] = 0,
        together: Annotated[
            int,
            typer.Option("--together", metavar="M", min=0, help="Fine-tunings in one stack; 0: as many as suit."),
        ] = 0,
        device: Device = "auto",
        on: Annotated[str, typer.Option("--on", help="Where workers run: local, slurm or ray.")] = "local",
        cluster: Annotated[
            list[str] | None,
            typer.Option("--cluster", metavar="KEY[=VALUE]", help="What each job asks the cluster for; repeat."),
        ] = None,
        tensorboard: Curves = None,
        mlflow: Tracker = None,
    ) -> "Ran | RanEach":
        """Carry out a pipeline of fine-tunings and merges, or several.

        Each step ends in a commit on a branch of its name. Goes on where an earlier run was stopped; steps that are
        done are not done again.
        """
        from modelgit.pipeline.start import Options, run_pipelines

        session.goes_on = True
        only_, settings = tuple(only or ()), tuple(cluster or ())
        options = Options(tuple(set_ or ()), repo, report, workers, device, only_, on, settings, together)
        with drawing(session.listener, tensorboard, mlflow) as listener:
            return run_pipelines(pipelines, options, listener)

    @app.command("plumbing-worker", hidden=True)
    def worker(
        device: Device = "auto",
        trusted: Trust = None,
        job: Annotated[Path | None, typer.Option("--job", help="Carry out the request in this folder instead.")] = None,
    ) -> None:
        """Carry out the requests that arrive on stdin."""
        trust(trusted)
        from modelgit.pipeline.execution import work, work_job

        if job is not None:
            work_job(Path.cwd(), device, job)
            return
        replies, sys.stdout = sys.stdout, sys.stderr  # nothing but replies may reach the coordinator
        work(Path.cwd(), device, sys.stdin, replies)


def register_scores(app: typer.Typer) -> None:
    """Enters `evaluate`."""

    @command(app, "evaluate", panel=LEARNING, networks=True)
    def evaluate(
        session: Session,
        rev: Annotated[str, typer.Argument(help="A version.")] = "HEAD",
        on: Annotated[str, typer.Option("--on", metavar="DATA", help=WHERE)] = "",
        device: Device = "auto",
        gates: Annotated[
            list[str] | None, typer.Option("--gate", metavar="'accuracy>=0.75'", help="A bar to clear; repeat.")
        ] = None,
        by: Annotated[
            str | None, typer.Option("--by", metavar="COLUMN", help="A table's column whose groups are told apart.")
        ] = None,
    ) -> "Evaluation":
        """Score a version on a data set.

        A folder or zip (domain/class/name.png), a table or arrays give the accuracy on each domain; the data of a
        recipe or a pipeline gives those on its validation splits and its held-out domain. Beside them stand who is
        served worst, gaps between domains or groups, and how sure the model is of itself, all with 95 % intervals; and
        what was forgotten since an ancestor's best noted score. The version's record says which network it is, and at
        which size pictures are read. With a gate the exit code is 0 if every bar is cleared, 1 if not, and 125
        for a version that cannot be scored: what `modelgit bisect run` goes by.
        """
        from modelgit.errors import UsageError
        from modelgit.porcelain.reporting.evaluating import evaluation
        from modelgit.porcelain.scores import workbench
        from modelgit.store.objects import available_threads

        if not on:
            raise UsageError("evaluate needs data", hint="modelgit evaluate REV --on data.zip")
        repository = session.repo()
        bench = workbench(repository, device, available_threads(), session.listener)
        if gates:
            from modelgit.porcelain.replaying.judging import judge

            return judge(bench, repository, rev, on, gates, by)
        return evaluation(bench, repository, rev, on, by)


def register_barrier(app: typer.Typer) -> None:
    """Enters `barrier`."""

    @command(app, "barrier", panel=LEARNING, networks=True)
    def barrier(
        session: Session,
        revs: Annotated[list[str], typer.Argument(metavar="A B…", help="The versions between which paths lie.")],
        on: Annotated[str, typer.Option("--on", metavar="DATA", help=WHERE)] = "",
        metric: Metric = None,
        lower_is_better: Lower = False,
        points: Annotated[int, typer.Option("--points", metavar="N", help="On each path, its ends included.")] = 11,
        plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the paths.")] = None,
        align: AlignBy = None,
    ) -> "Barriers":
        """Score the straight paths between versions.

        Two models can be averaged where no point between them scores less than the straight line between their scores.
        From three versions on, paths go from the first to each; from four on, from their mean to each. Changes nothing.
        """
        from dataclasses import replace

        from modelgit.errors import UsageError
        from modelgit.porcelain.trials.barriers import barrier as find_barrier
        from modelgit.porcelain.trials.values import Aim

        if not on:
            raise UsageError("a path needs data to be measured on", hint="modelgit barrier A B --on DATA")
        if plot is not None and not plot.parent.is_dir():
            raise UsageError(f"--plot {plot}: no folder {plot.parent}")
        aim = Aim(on, metric or "", lower_is_better)
        lined = aligning(align, 0, None, on)
        found = find_barrier(session.repo(), revs, aim, points=points, align=lined, listener=session.listener)
        if plot is None:
            return found
        draw(found, plot)
        return replace(found, plot=str(plot))


def register_exec(app: typer.Typer) -> None:
    """Enters `exec`."""

    @command(app, "exec", panel=LEARNING)
    def exec_(
        session: Session,
        words: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run, after two dashes.")],
        message: Message = None,
        data: Annotated[
            list[str] | None, typer.Option("--data", metavar="PATH", help="Data it reads, for the record; repeat.")
        ] = None,
    ) -> "Executed":
        """Run a program of your own and commit what it wrote.

        The commit records the command, the environment and the digests of the data. It must begin in a clean work tree.
        If the program fails, nothing is committed, and its exit code is handed on.
        """
        from modelgit.porcelain.executing import Order, execute

        order = Order(tuple(words), Path.cwd(), message, tuple(data or ()))
        stdout = sys.stderr.fileno() if session.out.json or session.out.quiet else None
        done = execute(session.repo(), order, stdout=stdout, listener=session.listener)
        if done.code:
            raise typer.Exit(done.code)
        return done


def draw(found: "Barriers", plot: Path) -> None:
    """Writes a picture of paths: each as a line, dashed what its ends promise."""
    from modelgit.report.drawing import COLOURS, document
    from modelgit.report.plane import Axis, Series, plane

    series = []
    for i, path in enumerate(found.paths):
        colour, label = COLOURS[i % len(COLOURS)], f"{path.start} – {path.end}"
        at, scores = [point.at for point in path.points], [point.score for point in path.points]
        ends = [at[0], at[-1]], [scores[0], scores[-1]]
        series += [Series("", *ends, dashed=True, dots=False, colour=colour), Series(label, at, scores, colour=colour)]
    title = f"Straight paths between models, on {found.on.data}"
    axes = Axis("share of the second model"), Axis(found.on.metric)
    plot.write_text(document(plane(series, title, axes), title))
