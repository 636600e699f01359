"""The options of `modelgit merge`, in groups, and what they make of their words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelgit.cli.session import Session
from modelgit.cli.words import ALIGNING, AlignBy, Lower, Message, Metric, aligning, choice, numbers, pairs
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.porcelain.merging.mergekit import Imported
    from modelgit.porcelain.merging.values import Landing
    from modelgit.porcelain.trials.values import Trial

POLICY = "Where models do not match"
KNOWING = "Statistics of models, for fisher and regmean"
INFORMED = ("fisher", "regmean")
IMAGES = 1024
TRIALS = "Measured first, on the data of --on"


@dataclass(frozen=True, slots=True)
class How:
    """What is made of the models, and of the result."""

    message: Message = None
    method: Annotated[
        str, typer.Option(metavar="NAME", help="linear, ties, slerp … (--list), or your own FILE.py:NAME.")
    ] = "linear"
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeat.")
    ] = None
    weights: Annotated[str | None, typer.Option(metavar="0.5,0.3,…", help="One for each head, HEAD's first.")] = None
    base: Annotated[str | None, typer.Option(metavar="REV", help="Instead of the common ancestor.")] = None
    configuration: Annotated[
        Path | None,
        typer.Option("--from-mergekit", metavar="FILE", help="What to merge and how, from a mergekit YAML file."),
    ] = None
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=REV", help="Which revision a name of that file is; repeat."),
    ] = None
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What decomposes matrices.")] = "cpu"
    gates: Annotated[
        list[str] | None, typer.Option("--gate", metavar="'accuracy>=0.75'", help="A bar to clear; repeat.")
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="DATA", help="What models are measured on: a folder, .zip, table… (see evaluate)."
        ),
    ] = None

    def choices(self) -> dict[str, Any]:
        """Returns the method, its settings, the weights and the base; runs the file of a method of the user's own."""
        return {
            "method": entered(self.method),
            "settings": pairs(self.settings or (), "--set"),
            "weights": numbers(self.weights, "--weights"),
            "base": self.base,
            "device": self.device,
        }


@dataclass(frozen=True, slots=True)
class Whether:
    """What becomes of the result, and what else the command can do."""

    no_ff: Annotated[bool, typer.Option("--no-ff", help="Make a merge commit where moving on would do.")] = False
    ff_only: Annotated[bool, typer.Option("--ff-only", help="Move forward, or refuse.")] = False
    no_commit: Annotated[bool, typer.Option("--no-commit", help="Leave the result in the work tree.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would happen; change nothing.")] = False
    go_on: Annotated[bool, typer.Option("--continue", help="Commit the merge that is under way.")] = False
    abort: Annotated[bool, typer.Option("--abort", help="Give the merge up that is under way.")] = False
    listing: Annotated[bool, typer.Option("--list", help="Show the methods, or some of them: --list ties.")] = False


@dataclass(frozen=True, slots=True)
class Matching:
    """How to go on where models do not match."""

    on_missing: Annotated[
        str, typer.Option(metavar="error|keep|drop", help="Tensors that some models lack.", rich_help_panel=POLICY)
    ] = "error"
    heads: Annotated[
        str,
        typer.Option(metavar="error|drop|ours|theirs|mean", help="Classifiers that differ.", rich_help_panel=POLICY),
    ] = "error"
    head_names: Annotated[
        list[str] | None,
        typer.Option("--head-name", metavar="NAME", help="A classifier's tensor or module.", rich_help_panel=POLICY),
    ] = None
    integers: Annotated[
        str, typer.Option(metavar="ours|error", help="Counters that differ.", rich_help_panel=POLICY)
    ] = "ours"
    files: Annotated[
        str, typer.Option(metavar="error|ours", help="Other files that differ.", rich_help_panel=POLICY)
    ] = "error"
    vocabulary: Annotated[
        str, typer.Option(metavar="error|ours|union", help="Tokens numbered otherwise.", rich_help_panel=POLICY)
    ] = "error"

    tied: Annotated[
        str, typer.Option(metavar="error|untie", help="Embeddings tied in some.", rich_help_panel=POLICY)
    ] = "error"

    def choices(self) -> dict[str, Any]:
        """Returns the policy. Raises UsageError for words that are none of those allowed, or that change nothing."""
        if self.head_names and self.heads == "error":
            raise UsageError("--head-name is for --heads: which tensors are the classifier", hint="--heads drop")
        return {
            "on_missing": choice(self.on_missing, ("error", "keep", "drop"), "--on-missing"),
            "heads": choice(self.heads, ("error", "drop", "ours", "theirs", "mean"), "--heads"),
            "head_names": tuple(self.head_names or ()),
            "integers": choice(self.integers, ("ours", "error"), "--integers"),
            "files": choice(self.files, ("error", "ours"), "--files"),
            "tied": choice(self.tied, ("error", "untie"), "--tied"),
            "vocabulary": choice(self.vocabulary, ("error", "ours", "union"), "--vocabulary"),
        }


@dataclass(frozen=True, slots=True)
class Trials:
    """What is found out before the merge."""

    select: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|greedy|greedier", help="Merge those whose mean scores best.", rich_help_panel=TRIALS
        ),
    ] = None
    search: Annotated[
        str | None,
        typer.Option(metavar="weights|layers|KEY[=LOW:HIGH]", help="Find coefficients.", rich_help_panel=TRIALS),
    ] = None
    metric: Metric = None
    lower_is_better: Lower = False
    evaluations: Annotated[
        int, typer.Option(metavar="N", help="At most so many for --search.", rich_help_panel=TRIALS)
    ] = 30
    seed: Annotated[int, typer.Option(metavar="N", help="Of --search weights and --align.", rich_help_panel=TRIALS)] = 0
    depth: Annotated[
        int, typer.Option("--layers", metavar="N", help="Parts of a name that make a layer.", rich_help_panel=TRIALS)
    ] = 2
    barrier_max: Annotated[
        float | None,
        typer.Option(metavar="EPS", help="Refuse if a path between models falls lower.", rich_help_panel=TRIALS),
    ] = None
    points: Annotated[
        int, typer.Option("--barrier-points", metavar="N", help="Points on a path.", rich_help_panel=TRIALS)
    ] = 11
    holdout: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Measure the result here, where nothing was chosen.", rich_help_panel=TRIALS),
    ] = None

    def trial(self) -> "Trial":
        """Returns what is to be found out, with the defaults of what was not said."""
        from modelgit.porcelain.trials.values import Trial

        words = {"select": self.select, "search": self.search, "metric": self.metric, "holdout": self.holdout}
        said: dict[str, Any] = {name: word for name, word in words.items() if word is not None}
        if self.barrier_max is not None:
            said["barrier_max"] = self.barrier_max
        counts: dict[str, Any] = {
            "evaluations": self.evaluations,
            "seed": self.seed,
            "depth": self.depth,
            "points": self.points,
        }
        return Trial(**said, **counts, lower_is_better=self.lower_is_better)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of models besides their weights."""

    stats: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Statistics of each head, HEAD's first; repeat.", rich_help_panel=KNOWING),
    ] = None
    stats_on: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="Compute them: on one for all, or one for each.", rich_help_panel=KNOWING),
    ] = None
    stats_images: Annotated[
        int, typer.Option(metavar="N", help="Images to compute them on, at most.", rich_help_panel=KNOWING)
    ] = IMAGES
    stats_labels: Annotated[
        str, typer.Option(metavar="model|data", help="Expected, or those of the data.", rich_help_panel=KNOWING)
    ] = "model"

    def choices(self, method: str, data: str | None) -> dict[str, Any]:
        """Returns where statistics come from; for a method that asks for them, from the data of --on if need be."""
        labels: Any = choice(self.stats_labels, ("model", "data"), "--stats-labels")
        if method not in INFORMED and (self.stats_images != IMAGES or labels != "model"):
            raise UsageError("--stats-images and --stats-labels are for fisher and regmean", hint="--method fisher")
        if not self.stats and not self.stats_on and not (data and method in INFORMED):
            return {}
        from modelgit.porcelain.merging.values import Informing

        shared = not self.stats and not self.stats_on
        places = (data,) if shared and data else tuple(self.stats_on or ())
        return {"statistics": Informing(tuple(self.stats or ()), places, labels, self.stats_images, shared)}


@dataclass(frozen=True, slots=True)
class Apart:
    """What is done for models that were trained apart."""

    align: AlignBy = None
    align_spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Which units may change places.", rich_help_panel=ALIGNING)
    ] = None
    repair: Annotated[
        bool, typer.Option("--repair", help="Set activations right on DATA.", rich_help_panel=ALIGNING)
    ] = False

    def choices(self, seed: int, data: str | None) -> dict[str, Any]:
        """Returns how units are lined up, and the data to set activations right on."""
        if self.repair and not data:
            raise UsageError("--repair needs data to look at activations on", hint="--on DATA: a folder or a .zip")
        lined = aligning(self.align, seed, self.align_spec, data)
        return {"align": lined, "repair": (data or "") if self.repair else ""}


def landing(how: Whether) -> "Landing":
    """Returns what is to become of the result. Raises UsageError for options that contradict each other."""
    if how.ff_only and how.no_commit:
        raise UsageError("--ff-only makes no commit anyway: leave --no-commit out")
    return "forward" if how.ff_only else "leave" if how.no_commit else "commit"


def entered(method: str) -> str:
    """Returns the name of a method in the registry, where one of the user's own was entered first."""
    if ".py:" not in method and not method.endswith(".py"):
        return method
    from modelgit.porcelain.merging.own_code import enter_method

    return enter_method(method)


def from_mergekit(session: Session, how: How, revs: Sequence[str], vocabulary: str) -> "Imported":
    """Returns what a mergekit file says. Raises UsageError for options that it says already."""
    from modelgit.porcelain.merging.mergekit import imported

    if revs or how.method != "linear" or how.settings or how.weights or how.base:
        raise UsageError("--from-mergekit says what is merged and how: name no versions, method, weights or base")
    found = imported(session.repo(), Path(str(how.configuration)), pairs(how.models or (), "--model"))
    return found if vocabulary == "error" else replace(found, vocabulary=vocabulary)
