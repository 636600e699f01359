"""blame: the history of each tensor."""

from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session

if TYPE_CHECKING:
    from modelgit.porcelain.replaying.blaming import Blamed

LOOKING = "Looking"


def register(app: typer.Typer) -> None:
    """Enters the command into the application."""

    @command(app, "blame", panel=LOOKING)
    def blame(
        session: Session,
        rev: Annotated[str | None, typer.Argument(metavar="REV", help="A version [default: HEAD].")] = None,
        pattern: Annotated[
            str | None, typer.Argument(metavar="PATTERN", help="A tensor, a module, or a name with *.")
        ] = None,
        depth: Annotated[
            int, typer.Option("--depth", min=0, help="Sum up by so many parts of the names; 0: each tensor.")
        ] = 0,
        stat: Annotated[bool, typer.Option("--stat", help="How large each change was; reads those tensors.")] = False,
    ) -> "Blamed":
        """Say which commit last changed each tensor.

        A merge that took a tensor over from a parent is passed through to that parent; one that computed it is the
        answer. With -- FILE, or another option of git's, git blames an ordinary file.
        """
        from modelgit.porcelain.replaying import blaming

        return blaming.blame(session.repo(), rev, pattern, depth=depth, stat=stat, listener=session.listener)
