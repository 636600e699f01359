"""Commands about repositories and objects: making, sharing, checking, taking out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session
from modelgit.cli.words import Remote, Rev
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.porcelain.checking import Verified
    from modelgit.porcelain.sharing import Cloned, Exported, Initialised, Transferred
    from modelgit.porcelain.training.rerunning import Retrained

SHARING = "Repositories and sharing"
TRUST = "Trust"


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""
    register_repositories(app)
    register_transfers(app)
    register_checks(app)


def register_repositories(app: typer.Typer) -> None:
    """Enters `init`, `clone`, `export`."""

    @command(app, "init", panel=SHARING)
    def init(
        session: Session,
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="Its folder.")] = Path(),
        bare: Annotated[bool, typer.Option("--bare", help="Without a work tree: to push to.")] = False,
        branch: Annotated[str, typer.Option("--initial-branch", "-b", help="The first branch.")] = "main",
    ) -> "Initialised":
        """Make a repository.

        An existing git repository is set up for weights.
        """
        from modelgit.porcelain import sharing

        return sharing.init(directory, bare=bare, branch=branch, listener=session.listener)

    @command(app, "clone", panel=SHARING)
    def clone(
        session: Session,
        url: Annotated[str, typer.Argument(metavar="URL", help="A path, or file://PATH.")],
        directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="Where to.")] = None,
        branch: Annotated[str | None, typer.Option("--branch", "-b", help="The branch to go to.")] = None,
    ) -> "Cloned":
        """Copy a repository.

        History, objects, and the files of one branch, byte for byte.
        """
        from modelgit.porcelain import sharing

        return sharing.clone(url, directory, branch=branch, listener=session.listener)

    @command(app, "export", panel=SHARING)
    def export(
        session: Session,
        rev: Rev,
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    ) -> "Exported":
        """Write a version into a plain folder.

        Its files, byte for byte, and nothing else.
        """
        from modelgit.porcelain import sharing

        return sharing.export(session.repo(), rev, directory, session.listener)


def register_transfers(app: typer.Typer) -> None:
    """Enters `push`, `pull`, `fetch`."""

    @command(app, "push", panel=SHARING)
    def push(
        session: Session,
        remote: Remote = None,
        branches: Annotated[
            list[str] | None, typer.Argument(metavar="[BRANCH…]", help="What to send [default: the branch you are on].")
        ] = None,
        upstream: Annotated[
            bool, typer.Option("--set-upstream", "-u", help="The branch follows the remote's from now on.")
        ] = False,
    ) -> "Transferred":
        """Send branches to a remote.

        Objects that it lacks go first, then the history.
        """
        from modelgit.porcelain import sharing

        return sharing.push(session.repo(), remote, branches or [], session.listener, set_upstream=upstream)

    @command(app, "pull", panel=SHARING)
    def pull(
        session: Session,
        remote: Remote = None,
        branch: Annotated[
            str | None, typer.Argument(metavar="BRANCH", help="The remote's [default: the one that yours follows].")
        ] = None,
    ) -> "Transferred":
        """Fetch, and move your branch forward.

        Forward only: branches that have diverged are merged by modelgit merge REMOTE/BRANCH.
        """
        from modelgit.porcelain import sharing

        return sharing.pull(session.repo(), remote, branch, session.listener)

    @command(app, "fetch", panel=SHARING)
    def fetch(
        session: Session,
        remote: Remote = None,
        repair: Annotated[bool, typer.Option("--repair", help="Replace objects that are damaged here too.")] = False,
    ) -> "Transferred":
        """Bring a remote's branches here.

        Tags too, and the objects they need; your branches and files stay as they are.
        """
        from modelgit.porcelain import sharing
        from modelgit.porcelain.upkeep import damage

        fetch = damage.fetch if repair else sharing.fetch
        return fetch(session.repo(), remote, session.listener)


def register_checks(app: typer.Typer) -> None:
    """Enters `verify`."""

    @command(app, "verify", panel=TRUST, networks=True)
    def verify(
        session: Session,
        rev: Rev = "HEAD",
        rerun: Annotated[bool, typer.Option("--rerun", help="Make it again and compare every tensor.")] = False,
        data: Annotated[
            str | None, typer.Option("--on", metavar="DATA", help="Where the data lies that it was made with.")
        ] = None,
        places: Annotated[
            list[str] | None,
            typer.Option("--data", metavar="PATH", help="Data sets, or folders of some, to find it among; repeat."),
        ] = None,
        method: Annotated[
            str | None, typer.Option(metavar="FILE.py:NAME", help="The method of somebody's own that it was made with.")
        ] = None,
        stats: Annotated[
            list[str] | None, typer.Option(metavar="FILE", help="The statistics of each input that it was made with.")
        ] = None,
        stats_on: Annotated[
            list[str] | None, typer.Option(metavar="DATA", help="Where the data of each input's statistics lies.")
        ] = None,
    ) -> "Verified | Retrained":
        """Check that a merge, a folding or a fine-tuning is what it says.

        A merge, or a folding, is recomputed from the inputs recorded in the commit. A fine-tuning is trained again, on
        the data that its record names (known by its digest), and compared: bit for bit on a CPU. Exit code 1 if
        anything differs.
        """
        from modelgit.porcelain import checking
        from modelgit.porcelain.records import read_record

        if not rerun:
            hint = f"recompute a merge: modelgit verify --rerun {rev}"
            raise UsageError("verify needs to be told what to verify", hint=hint)
        if method is not None:
            checking.enter_recorded(session.repo(), rev, method)
        record = read_record(session.repo(), rev)
        merged = record is not None and record.kind == "merge"
        if (data is not None and not merged) or (record is not None and record.kind in ("train", "probe")):
            from modelgit.porcelain.training.rerunning import rerun as train_again  # brings PyTorch

            where = [*([data] if data else []), *(places or [])]
            return train_again(session.repo(), rev, where, listener=session.listener)
        if record is not None and record.kind == "fold":
            from modelgit.porcelain.training.folding import verify_fold  # brings PyTorch

            return verify_fold(session.repo(), rev, session.listener)
        if places:
            raise UsageError("--data is for a fine-tuning", hint="a merge that looked at data: --on DATA")
        from modelgit.porcelain.merging.values import Informing

        informing = Informing(tuple(stats or ()), tuple(stats_on or ())) if stats or stats_on else None
        return checking.verify(session.repo(), rev, session.listener, data, informing)
