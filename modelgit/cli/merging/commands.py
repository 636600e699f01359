"""Commands that make versions of versions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.merging.options import Apart, How, Matching, Trials, entered
from modelgit.cli.session import Session

if TYPE_CHECKING:
    from modelgit.merge.methods.describing import MethodList
    from modelgit.porcelain.merging.values import Merged

MERGING = "Merging"
Revs = Annotated[list[str] | None, typer.Argument(metavar="REV", help="Commits: branches, tags, ids …")]
Listing = Annotated[bool, typer.Option("--list", help="Show the methods, or the settings of one: --list ties.")]


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""

    @command(app, "merge", panel=MERGING)
    def merge(
        session: Session,
        how: How,
        matching: Matching,
        trials: Trials,
        apart: Apart,
        revs: Revs = None,
        listing: Listing = False,
    ) -> "Merged | MethodList":
        """Average versions into the branch you are on.

        What takes part are the independent heads among HEAD and those named; the base is their common ancestor. The
        merge commit has all of them as parents, and can be recomputed (verify --rerun). A gate that fails ends with
        exit code 1, nothing changed.
        """
        if listing:
            return methods(how.method, revs or [])
        from modelgit.porcelain.merging.merge import merge as merge_versions
        from modelgit.porcelain.merging.values import Choices, Request

        choices = Choices(**how.choices(), **matching.choices(), **apart.choices(trials.seed, how.data))
        gates = tuple(how.gates or ())
        request = Request(
            tuple(revs or ()), choices, how.message, not how.no_ff, how.dry_run, gates, how.data, trials.trial()
        )
        return merge_versions(session.repo(), request, session.listener)


def methods(method: str, names: Sequence[str]) -> "MethodList":
    """Returns all methods, or those that are named, one's own among them."""
    from modelgit.merge.methods.describing import MethodList, listed

    wanted = [entered(name) for name in (*names, *([method] if method != "linear" else []))]
    return MethodList(tuple(listed(name).methods[0] for name in wanted)) if wanted else listed()
