"""Commands that make versions of versions."""

from typing import TYPE_CHECKING

import typer

from modelgit.cli.command import command
from modelgit.cli.merging.options import Apart, How, Matching, Trials
from modelgit.cli.session import Session
from modelgit.cli.words import Revs

if TYPE_CHECKING:
    from modelgit.porcelain.merging.values import Merged

MERGING = "Merging"


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""

    @command(app, "merge", panel=MERGING)
    def merge(session: Session, revs: Revs, how: How, matching: Matching, trials: Trials, apart: Apart) -> "Merged":
        """Average versions into the branch you are on.

        What takes part are the independent heads among HEAD and those named; the base is their common ancestor. The
        merge commit has all of them as parents, and can be recomputed (verify --rerun). A gate that fails ends with
        exit code 1, nothing changed.
        """
        from modelgit.porcelain.merging.merge import merge as merge_versions
        from modelgit.porcelain.merging.values import Choices, Request

        choices = Choices(**how.choices(), **matching.choices(), **apart.choices(trials.seed, how.data))
        gates = tuple(how.gates or ())
        request = Request(
            tuple(revs), choices, how.message, not how.no_ff, how.dry_run, gates, how.data, trials.trial()
        )
        return merge_versions(session.repo(), request, session.listener)
