"""Commands that keep a repository in order: letting go of what nobody needs, what uses the bytes, damage."""

from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session

if TYPE_CHECKING:
    from modelgit.porcelain.upkeep.collecting import Swept
    from modelgit.porcelain.upkeep.damage import Checked
    from modelgit.porcelain.upkeep.usage import Usage

UPKEEP = "Upkeep"


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""
    register_gc(app)
    register_du(app)
    register_fsck(app)


def register_gc(app: typer.Typer) -> None:
    """Enters `gc`."""

    @command(app, "gc", panel=UPKEEP)
    def gc(
        session: Session,
        deep: Annotated[bool, typer.Option("--deep", help="Also store everything as small as it gets.")] = False,
        grace: Annotated[
            str | None,
            typer.Option("--grace", metavar="AGE", help="Touch nothing younger: 14d, 12h, 0 [default: 14d]."),
        ] = None,
        prune: Annotated[
            str | None, typer.Option("--prune", metavar="DATE", help="Handed to git gc: now, 1.week.ago, never.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would go.")] = False,
    ) -> "Swept":
        """Let go of what no version needs.

        Runs git gc first: whatever git still has keeps its objects. Packs that are written anew are deleted only by a
        later gc, after the grace period (setting modelgit.gcGrace). With --grace 0 nobody may be writing.
        """
        from modelgit.porcelain.upkeep import collecting

        return collecting.gc(
            session.repo(), deep=deep, grace=grace, prune=prune, dry_run=dry_run, listener=session.listener
        )


def register_du(app: typer.Typer) -> None:
    """Enters `du`."""

    @command(app, "du", panel=UPKEEP)
    def du(
        session: Session,
        revs: Annotated[
            list[str] | None, typer.Argument(metavar="[REV…]", help="Versions [default: all, and the branches].")
        ] = None,
    ) -> "Usage":
        """Show what uses the bytes.

        For each version: its files' size, what is stored for it, and how much of that only it needs; what sharing,
        differences and recipes saved; the largest tensors; what gc would let go of.
        """
        from modelgit.porcelain.upkeep import usage

        return usage.du(session.repo(), revs or (), session.listener)


def register_fsck(app: typer.Typer) -> None:
    """Enters `fsck`."""

    @command(app, "fsck", panel=UPKEEP)
    def fsck(
        session: Session,
        remotes: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="REMOTE", help="With --repair: remotes or paths to take from [default: all remotes]."
            ),
        ] = None,
        full: Annotated[bool, typer.Option("--full", help="Recompute the id of every object.")] = False,
        repair: Annotated[bool, typer.Option("--repair", help="Replace what is damaged or missing.")] = False,
    ) -> "Checked":
        """Check that all objects are sound, and mend them.

        Every object that any version needs must be there. Exit code 1 if not, or if it cannot be repaired. Damaged
        packs are put aside, never deleted.
        """
        from modelgit.errors import UsageError
        from modelgit.porcelain.upkeep import damage

        if remotes and not repair:
            raise UsageError("a remote is named, but nothing is to be repaired", hint="modelgit fsck --repair REMOTE")
        return damage.fsck(session.repo(), full=full, repair=repair, remotes=remotes or (), listener=session.listener)
