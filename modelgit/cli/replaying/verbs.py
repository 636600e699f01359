"""cherry-pick, revert, rebase: a change added, taken away, carried over."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session
from modelgit.cli.words import Message, choice

if TYPE_CHECKING:
    from modelgit.porcelain.replaying.values import Options, Replayed

CHANGES = "Task vectors"
POLICY = "Where a change does not fit"

Revs = Annotated[list[str], typer.Argument(metavar="REV…", help="Commits, or a range A..B: what B has and A has not.")]
Scale = Annotated[
    float | None, typer.Option("--scale", metavar="S", help="Factor on the change [default: 1, applied as git does].")
]
Mainline = Annotated[
    int | None, typer.Option("--mainline", metavar="N", help="For a merge: the parent to count the change from.")
]
NoCommit = Annotated[bool, typer.Option("--no-commit", "-n", help="Change the files alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
Again = Annotated[bool, typer.Option("--again", help="Also what HEAD has already: once more.")]
Tensors = Annotated[
    str, typer.Option(metavar="error|ours", help="Tensors it cannot be added to.", rich_help_panel=POLICY)
]
Files = Annotated[
    str, typer.Option(metavar="error|ours", help="Other files changed on both sides.", rich_help_panel=POLICY)
]


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""
    register_cherry_pick(app)
    register_revert(app)
    register_rebase(app)


def register_cherry_pick(app: typer.Typer) -> None:
    """Enters `cherry-pick`."""

    @command(app, "cherry-pick", panel=CHANGES)
    def cherry_pick(
        session: Session,
        revs: Revs,
        scale: Scale = None,
        message: Message = None,
        mainline: Mainline = None,
        no_commit: NoCommit = False,
        dry_run: DryRun = False,
        again: Again = False,
        tensors: Tensors = "error",
        files: Files = "error",
    ) -> "Replayed":
        """Add what a commit changed: HEAD + S (REV - its parent).

        That difference is the fine-tune's task vector: a skill, taken over without its history. The new commit keeps
        author, date and message, and can be recomputed (verify --rerun). Without --scale a tensor that HEAD has
        already as REV has it is left alone; with it, the sum is made for every tensor. All changes asked for are made,
        or none; one that a commit of HEAD's says it made is not made again. Git's own options (--continue, --abort, -x,
        -e …) are handed on to git.
        """
        from modelgit.porcelain.replaying.picking import cherry_pick as pick

        chosen = chosen_options(
            scale=scale,
            message=message,
            mainline=mainline,
            commit=not no_commit,
            dry_run=dry_run,
            again=again,
            tensors=tensors,
            files=files,
        )
        return pick(session.repo(), revs, chosen, session.listener)


def register_revert(app: typer.Typer) -> None:
    """Enters `revert`."""

    @command(app, "revert", panel=CHANGES)
    def revert(
        session: Session,
        revs: Revs,
        scale: Scale = None,
        message: Message = None,
        mainline: Mainline = None,
        no_commit: NoCommit = False,
        dry_run: DryRun = False,
        again: Again = False,
        tensors: Tensors = "error",
        files: Files = "error",
    ) -> "Replayed":
        """Subtract what a commit changed: HEAD - S (REV - its parent).

        If REV is in HEAD's history its change is undone. If it is not, its task vector is negated: fine-tune a branch
        on what a model shall forget, and revert that commit on main (unlearning, as in Ilharco et al. 2023); choose S
        by scoring the result. Git's own options (--continue, --abort, -e …) are handed on to git.
        """
        from modelgit.porcelain.replaying.picking import revert as subtract

        chosen = chosen_options(
            scale=scale,
            message=message,
            mainline=mainline,
            commit=not no_commit,
            dry_run=dry_run,
            again=again,
            tensors=tensors,
            files=files,
        )
        return subtract(session.repo(), revs, chosen, session.listener)


def register_rebase(app: typer.Typer) -> None:
    """Enters `rebase`."""

    @command(app, "rebase", panel=CHANGES)
    def rebase(
        session: Session,
        onto: Annotated[str, typer.Argument(metavar="ONTO", help="The version to replay on: a newer base.")],
        branch: Annotated[
            str | None, typer.Argument(metavar="BRANCH", help="What to replay, gone to first [default: where you are].")
        ] = None,
        scale: Scale = None,
        dry_run: DryRun = False,
        tensors: Tensors = "error",
        files: Files = "error",
    ) -> "Replayed":
        """Replay fine-tunes on another version.

        Each commit since the common ancestor becomes ONTO + S (commit - its parent), one after another, with its
        author, date and message. All are made before the branch moves: a conflict, or an interruption, leaves it where
        it was. ORIG_HEAD is where it was before. Commits that are there already are skipped; a merge on the way is
        refused. Git's own options (-i, --onto, --rebase-merges, --continue, --abort …) are handed on to git.
        """
        from modelgit.porcelain.replaying.rebasing import rebase as replay

        chosen = chosen_options(scale=scale, dry_run=dry_run, tensors=tensors, files=files)
        return replay(session.repo(), onto, branch, chosen, session.listener)


def chosen_options(**given: object) -> "Options":
    """Returns the options, their words checked."""
    from modelgit.porcelain.replaying.values import Options

    for name in ("tensors", "files"):
        choice(str(given[name]), ("error", "ours"), f"--{name}")
    return Options(**cast("dict[str, Any]", given))
