"""Commands that make versions of versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session
from modelgit.cli.words import ALIGNING, AlignBy, Lower, Message, Metric, Revs, aligning, choice, numbers, pairs
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.porcelain.merging.values import Choices, Merged
    from modelgit.porcelain.trials.values import Trial

MERGING = "Merging"
POLICY = "Where models do not match"
TRIALS = "Measured first, on the data of --on"

Method = Annotated[str, typer.Option("--method", help="linear, task_arithmetic, ties, slerp …")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeat.")
]
Weights = Annotated[str | None, typer.Option("--weights", metavar="0.5,0.3,…", help="One for each head, HEAD's first.")]
Base = Annotated[str | None, typer.Option("--base", metavar="REV", help="Instead of the common ancestor.")]
NoForward = Annotated[bool, typer.Option("--no-ff", help="Make a merge commit where moving on would do.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would happen; change nothing.")]
Gates = Annotated[list[str] | None, typer.Option("--gate", metavar="'accuracy>=0.75'", help="A bar to clear; repeat.")]
Data = Annotated[
    str | None,
    typer.Option("--on", metavar="DATA", help="What models are measured on: a folder, a .zip, FILE.toml#NAME."),
]
OnMissing = Annotated[
    str, typer.Option(metavar="error|keep|drop", help="Tensors that some models lack.", rich_help_panel=POLICY)
]
Heads = Annotated[str, typer.Option(metavar="error|drop|ours", help="Classifiers that differ.", rich_help_panel=POLICY)]
HeadNames = Annotated[
    list[str] | None,
    typer.Option("--head-name", metavar="NAME", help="A classifier's tensor or module.", rich_help_panel=POLICY),
]
Integers = Annotated[str, typer.Option(metavar="ours|error", help="Counters that differ.", rich_help_panel=POLICY)]
Files = Annotated[str, typer.Option(metavar="error|ours", help="Other files that differ.", rich_help_panel=POLICY)]

Select = Annotated[
    str | None,
    typer.Option(metavar="uniform|greedy|greedier", help="Merge those whose mean scores best.", rich_help_panel=TRIALS),
]
Search = Annotated[
    str | None,
    typer.Option(metavar="weights|layers|KEY[=LOW:HIGH]", help="Find coefficients.", rich_help_panel=TRIALS),
]
Evaluations = Annotated[int, typer.Option(metavar="N", help="At most so many for --search.", rich_help_panel=TRIALS)]
Seed = Annotated[int, typer.Option(metavar="N", help="Of --search weights and --align.", rich_help_panel=TRIALS)]
Depth = Annotated[
    int, typer.Option("--layers", metavar="N", help="Parts of a name that make a layer.", rich_help_panel=TRIALS)
]
BarrierMax = Annotated[
    float | None,
    typer.Option(metavar="EPS", help="Refuse if a path between models falls lower.", rich_help_panel=TRIALS),
]
BarrierPoints = Annotated[int, typer.Option(metavar="N", help="Points on a path.", rich_help_panel=TRIALS)]
Holdout = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Measure the result here, where nothing was chosen.", rich_help_panel=TRIALS),
]

AlignSpec = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Which units may change places.", rich_help_panel=ALIGNING)
]
Repair = Annotated[bool, typer.Option("--repair", help="Set activations right on DATA.", rich_help_panel=ALIGNING)]


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""

    @command(app, "merge", panel=MERGING)
    def merge(
        session: Session,
        revs: Revs,
        message: Message = None,
        method: Method = "linear",
        settings: Settings = None,
        weights: Weights = None,
        base: Base = None,
        no_ff: NoForward = False,
        dry_run: DryRun = False,
        gates: Gates = None,
        data: Data = None,
        on_missing: OnMissing = "error",
        heads: Heads = "error",
        head_names: HeadNames = None,
        integers: Integers = "ours",
        files: Files = "error",
        select: Select = None,
        search: Search = None,
        metric: Metric = None,
        lower_is_better: Lower = False,
        evaluations: Evaluations = 30,
        seed: Seed = 0,
        layers: Depth = 2,
        barrier_max: BarrierMax = None,
        barrier_points: BarrierPoints = 11,
        holdout: Holdout = None,
        align: AlignBy = None,
        align_spec: AlignSpec = None,
        repair: Repair = False,
    ) -> "Merged":
        """Average versions into the branch you are on.

        What takes part are the independent heads among HEAD and those named; the base is their common ancestor. The
        merge commit has all of them as parents, and can be recomputed (verify --rerun). A gate that fails ends with
        exit code 1, nothing changed.
        """
        from modelgit.porcelain.merging.merge import merge as merge_versions
        from modelgit.porcelain.merging.values import Request

        choices = merge_choices(
            method=method,
            settings=pairs(settings or (), "--set"),
            weights=numbers(weights, "--weights"),
            base=base,
            on_missing=choice(on_missing, ("error", "keep", "drop"), "--on-missing"),
            heads=choice(heads, ("error", "drop", "ours"), "--heads"),
            head_names=tuple(head_names or ()),
            integers=choice(integers, ("ours", "error"), "--integers"),
            files=choice(files, ("error", "ours"), "--files"),
            align=aligning(align, seed, align_spec, data),
            repair=repairing(repair, data),
        )
        named = {"select": select, "search": search, "metric": metric, "holdout": holdout, "barrier_max": barrier_max}
        counts = {"evaluations": evaluations, "seed": seed, "depth": layers, "points": barrier_points}
        trial = merge_trial(**named, **counts, lower_is_better=lower_is_better)
        request = Request(tuple(revs), choices, message, not no_ff, dry_run, tuple(gates or ()), data, trial)
        return merge_versions(session.repo(), request, session.listener)


def repairing(wanted: bool, data: str | None) -> str:
    """Returns the data to set activations right on, if that was asked for."""
    if wanted and not data:
        raise UsageError("--repair needs data to look at activations on", hint="--on DATA: a folder or a .zip")
    return (data or "") if wanted else ""


def merge_choices(**choices: object) -> "Choices":
    """Returns the choices, whose words were checked one by one."""
    from modelgit.porcelain.merging.values import Choices

    return Choices(**cast("dict[str, Any]", choices))


def merge_trial(**options: object) -> "Trial":
    """Returns what is to be found out first, of the options that were given."""
    from modelgit.porcelain.trials.values import Trial

    return Trial(**cast("dict[str, Any]", {name: value for name, value in options.items() if value is not None}))
