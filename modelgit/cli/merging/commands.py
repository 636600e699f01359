"""Commands that make versions of versions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.merging.options import Apart, How, Known, Matching, Trials, Whether, entered, from_mergekit, landing
from modelgit.cli.session import Session
from modelgit.cli.words import Message
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.merge.methods.describing import MethodList
    from modelgit.porcelain.merging.values import Merged
    from modelgit.porcelain.work import Committed

MERGING = "Merging"
Revs = Annotated[list[str] | None, typer.Argument(metavar="[REV…]", help="Commits: branches, tags, ids …")]


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""

    @command(app, "merge", panel=MERGING, networks=True)
    def merge(
        session: Session,
        how: How,
        whether: Whether,
        matching: Matching,
        trials: Trials,
        apart: Apart,
        known: Known,
        revs: Revs = None,
    ) -> "Merged | Committed | MethodList":
        """Average versions into the branch you are on.

        What takes part are the independent heads among HEAD and those named; the base is their common ancestor. The
        merge commit has all of them as parents, and can be recomputed (verify --rerun). A gate that fails ends with
        exit code 1, nothing changed.
        """
        if whether.listing:
            return methods(how.method, revs or ())
        if whether.go_on or whether.abort:
            return ended(session, whether, revs or ())
        from modelgit.porcelain.merging.merge import merge as merge_versions
        from modelgit.porcelain.merging.values import Choices, Request

        choices = Choices(**how.choices(), **matching.choices(), **apart.choices(trials.seed, how.data))
        choices = replace(choices, **known.choices(choices.method, how.data))
        taken = tuple(revs or ())
        if how.models and not how.configuration:
            raise UsageError("--model is for --from-mergekit: what a name there is", hint="--from-mergekit FILE")
        told = from_mergekit(session, how, taken, choices.vocabulary) if how.configuration else None
        if told is not None:
            taken, choices = told.revs, replace(choices, **told.choices())
        request = Request(
            revs=taken,
            choices=choices,
            message=how.message,
            fast_forward=not whether.no_ff,
            dry_run=whether.dry_run,
            gates=tuple(how.gates or ()),
            data=how.data,
            trial=trials.trial(),
            landing=landing(whether),
            exact=told is not None,
            notes=told.notes if told is not None else (),
        )
        return merge_versions(session.repo(), request, session.listener)

    @command(app, "fold", panel=MERGING)
    def fold(
        session: Session,
        base: Annotated[
            str | None, typer.Option("--base", metavar="REV", help="What it was trained from, if it does not say.")
        ] = None,
        message: Message = None,
    ) -> "Committed":
        """Fold the adapter that is checked out into its base.

        The next commit of its branch holds whole weights in the base's files, as PEFT's merge_and_unload makes them:
        W + scaling * B A in single precision, rounded once to the type of W; and no adapter.
        """
        from modelgit.porcelain.training.folding import fold as fold_adapter  # brings PyTorch

        return fold_adapter(session.repo(), base, message, session.listener)


def ended(session: Session, whether: Whether, revs: Sequence[str]) -> "Merged | Committed":
    """Ends the merge that is under way. Raises UsageError for words that are for beginning one."""
    from modelgit.porcelain.merging import pending

    if revs or (whether.go_on and whether.abort):
        raise UsageError("--continue and --abort stand alone: they end the merge that is under way")
    repo = session.repo()
    return pending.go_on(repo, session.listener) if whether.go_on else pending.give_up(repo, session.listener)


def methods(method: str, names: Sequence[str]) -> "MethodList":
    """Returns all methods, or those that are named, one's own among them."""
    from modelgit.merge.methods.describing import MethodList, listed

    wanted = [entered(name) for name in (*names, *([method] if method != "linear" else []))]
    return MethodList(tuple(listed(name).methods[0] for name in wanted)) if wanted else listed()
