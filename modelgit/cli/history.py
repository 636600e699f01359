"""Commands of every day: versions in, history out, other versions, merges."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session
from modelgit.cli.words import Curves, Force, Message, Rev, Tracker, drawing
from modelgit.errors import RevisionError, UsageError
from modelgit.events import Listener

if TYPE_CHECKING:
    from typing import TypeVar

    from modelgit.porcelain.comparing import Difference
    from modelgit.porcelain.training.committing import Trained
    from modelgit.porcelain.versions import History, VersionReport
    from modelgit.porcelain.work import Added, CheckedOut, Committed
    from modelgit.repo.repository import Repository
    from modelgit.repo.worktree import Status

    T = TypeVar("T", Committed, Trained)

EVERY_DAY = "Versions"
LOOKING = "Looking"
NOBODY = ("modelgit <", " <modelgit@localhost>")  # in the place of a name, or address, that git does not know


def register(app: typer.Typer) -> None:
    """Enters the commands into the application."""
    register_versions(app)
    register_commit(app)
    register_moves(app)
    register_looks(app)


def register_versions(app: typer.Typer) -> None:
    """Enters `import`, `add`."""

    @command(app, "import", panel=EVERY_DAY)
    def import_(
        session: Session,
        source: Annotated[Path, typer.Argument(help="A .safetensors file, a .pt/.bin checkpoint, a folder.")],
        message: Message = None,
        path: Annotated[str, typer.Option("--path", help="What a single file is to be called.")] = "model.safetensors",
        part: Annotated[
            str | None, typer.Option("--part", metavar="NAME", help="Of a checkpoint with several state dicts: which.")
        ] = None,
    ) -> "Committed":
        """Commit a model from elsewhere.

        A safetensors file, a PyTorch checkpoint (never unpickled), or a Hugging Face folder with all its files joins
        the files of the version before. Shards and indexes of a model that a folder replaces go, its other files stay.
        """
        from modelgit.porcelain.importing import import_model

        repo = session.repo()
        made = import_model(repo, source, message, path=path, part=part, listener=session.listener)
        return signed(session, repo, made)

    @command(app, "add", panel=EVERY_DAY)
    def add(
        session: Session, paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files of the work tree.")]
    ) -> "Added":
        """Take files into the next commit.

        Weight files need no add; other new files do.
        """
        from modelgit.porcelain import work

        return work.add(session.repo(), paths, Path.cwd(), session.listener)


def register_commit(app: typer.Typer) -> None:
    """Enters `commit`, `status`."""

    @command(app, "commit", panel=EVERY_DAY, networks=True)
    def commit(
        session: Session,
        message: Message = None,
        _all: Annotated[bool, typer.Option("-a", "--all", help="As always: git's habit is welcome.")] = False,
        recipe: Annotated[
            Path | None, typer.Option("--recipe", metavar="FILE.toml", help="Fine-tune as it says, commit the result.")
        ] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe; repeat.")
        ] = None,
        device: Annotated[str | None, typer.Option("--device", help="For the recipe: auto, cpu or cuda.")] = None,
        tensorboard: Curves = None,
        mlflow: Tracker = None,
    ) -> "Committed | Trained":
        """Commit the changes of the work tree, or a fine-tuning.

        That is what was added, changed files, and new weight files. Tensors that changed are stored as lossless
        differences to the parent's. With a recipe the version checked out is fine-tuned first, and the result is
        committed with the changed files; changed weights are refused then.
        """
        from modelgit.porcelain import work

        repo = session.repo()
        if recipe is not None:
            with drawing(session.listener, tensorboard, mlflow) as listener:
                given = {"message": message, "device": device}
                return trained(session, repo, recipe, given, set_ or [], listener)
        if set_ or any(given is not None for given in (device, tensorboard, mlflow)):
            what = "--set, --device, --tensorboard and --mlflow are for a recipe"
            raise UsageError(what, hint="modelgit commit --recipe FILE.toml")
        if message is None:
            raise UsageError("a commit needs a message", hint='say what changed: -m "…"')
        return signed(session, repo, work.commit(repo, message, session.listener))

    @command(app, "status", panel=EVERY_DAY)
    def status(session: Session) -> "Status":
        """Show what differs from HEAD.

        Files, and the tensors in them.
        """
        from modelgit.porcelain import work

        return work.status(session.repo(), session.listener)


def trained(
    session: Session,
    repo: "Repository",
    path: Path,
    given: dict[str, str | None],
    overrides: Sequence[str],
    listener: Listener,
) -> "Trained":
    """Returns what came of a recipe; what the command line gives counts before what the file says.

    Under torchrun each process takes its part in the training; the first commits, and tells of it.
    """
    from modelgit.porcelain.training.committing import assist, commit_recipe, starting_size  # brings PyTorch
    from modelgit.recipe.single import load_recipe
    from modelgit.train.fitting.crews import crew_of

    said = {key: value for key, value in given.items() if value is not None}
    recipe = load_recipe(path, overrides, said, starting_size(repo))
    crew = crew_of(os.environ)
    if crew.rank:
        assist(repo, recipe, crew)
        raise typer.Exit
    return signed(session, repo, commit_recipe(repo, recipe, listener, crew))


def signed(session: Session, repo: "Repository", made: "T") -> "T":
    """Returns a new version; says how to sign the next one where no author is known."""
    author = repo.version(made.commit).entry.author
    if author.startswith(NOBODY[0]) or author.endswith(NOBODY[1]):
        session.out.hint(f"the author is {author}; to sign: git config --global user.name NAME, and user.email ADDRESS")
    return made


def register_moves(app: typer.Typer) -> None:
    """Enters `checkout`, `switch`."""

    @command(app, "checkout", panel=EVERY_DAY)
    def checkout(
        session: Session,
        rev: Rev = "HEAD",
        create: Annotated[str | None, typer.Option("-b", metavar="BRANCH", help="Make a branch at REV.")] = None,
        force: Force = False,
    ) -> "CheckedOut":
        """Make the work tree a version.

        Without REV, write weight files where plain git has left manifests.
        """
        from modelgit.porcelain import work

        if create is not None:
            start = None if rev == "HEAD" else rev
            return work.create_branch(session.repo(), create, start, session.listener, force=force)
        return work.checkout(session.repo(), rev, force=force, listener=session.listener)

    @command(app, "switch", panel=EVERY_DAY)
    def switch(
        session: Session,
        branch: Annotated[str, typer.Argument(metavar="BRANCH", help="The branch to go to; - is the one before.")],
        start: Annotated[str | None, typer.Argument(metavar="START", help="Where a new branch begins.")] = None,
        create: Annotated[bool, typer.Option("-c", "--create", help="Make the branch first.")] = False,
        force: Force = False,
    ) -> "CheckedOut":
        """Go to a branch, its files with it.

        Local changes come along where both versions have the same file; they are named.
        """
        from modelgit.porcelain import work

        if create:
            return work.create_branch(session.repo(), branch, start, session.listener, force=force)
        if start is not None:
            raise UsageError("a start is for a new branch", hint=f"modelgit switch -c {branch} {start}")
        return work.switch(session.repo(), branch, force=force, listener=session.listener)


@contextmanager
def versions_alone(verb: str, words: Sequence[str]) -> Iterator[None]:
    """Says of a file, a range, a file of a version, which were taken for the name of a version, that git knows them."""
    try:
        yield
    except RevisionError as error:
        word = next((word for word in words if os.path.lexists(word) or ".." in word or ":" in word), None)
        if word is None or f"'{word}'" not in error.message:
            raise
        separator = "-- " if os.path.lexists(word) else ""
        hint = f"modelgit {verb} takes versions alone; git takes more: git {verb} {separator}{word}"
        raise RevisionError(f"'{word}' is not the name of a version", hint=hint) from error


def register_looks(app: typer.Typer) -> None:
    """Enters `log`, `show`, `diff`."""

    @command(app, "log", panel=LOOKING)
    def log(
        session: Session,
        revs: Annotated[
            list[str] | None, typer.Argument(metavar="[REV…]", help="Where to begin [default: HEAD].")
        ] = None,
        limit: Annotated[int | None, typer.Option("-n", "--max-count", min=1, help="At most so many; also -5.")] = None,
        everything: Annotated[bool, typer.Option("--all", help="Begin at every branch and tag.")] = False,
        graph: Annotated[bool, typer.Option("--graph", help="Draw lines from versions to their parents.")] = False,
    ) -> "History":
        """List versions, newest first.

        Says what they are, how they were merged, what they scored.
        """
        from modelgit.porcelain import versions

        with versions_alone("log", revs or []):
            return versions.log(session.repo(), revs or ["HEAD"], limit=limit, everything=everything, graph=graph)

    @command(app, "show", panel=LOOKING)
    def show(session: Session, rev: Rev = "HEAD") -> "VersionReport":
        """Show what one version holds.

        Files, tensors, its record, its scores, how it was trained; types and metadata that its first parent has not.
        """
        from modelgit.porcelain import versions

        with versions_alone("show", [rev]):
            return versions.show(session.repo(), rev)

    @command(app, "diff", panel=LOOKING)
    def diff(
        session: Session,
        old: Annotated[
            str | None, typer.Argument(metavar="A", help="The version before, or A..B, A...B [default: HEAD].")
        ] = None,
        new: Annotated[
            str | None, typer.Argument(metavar="B", help="The version after [default: the work tree].")
        ] = None,
        stat: Annotated[bool, typer.Option("--stat", help="Sum up by layer, not by tensor.")] = False,
        depth: Annotated[int, typer.Option("--depth", min=1, help="How many parts of a name make a layer.")] = 2,
    ) -> "Difference":
        """Compare two versions, or the work tree with one, tensor by tensor.

        The share of elements that changed, the relative norm of the change, the cosine; then NaN that came in, types
        and metadata that differ. As git's: one version is compared with the work tree, A..B or A B are two, A...B is B
        against what both come from. Without arguments: the work tree against HEAD, as a commit would take it.
        """
        from modelgit.porcelain import comparing

        repo, depth = session.repo(), depth if stat else 0
        old = "HEAD" if old is None else old
        both = comparing.is_range(old)
        if both and new is not None:
            raise UsageError(f"{old} names two versions already", hint=f"modelgit diff {old}, or modelgit diff A {new}")
        with versions_alone("diff", [old, *([new] if new else [])]):
            if new is None and not both:
                return comparing.diff_worktree(repo, old, depth=depth, listener=session.listener)
            return comparing.diff(repo, old, new or "HEAD", depth=depth, listener=session.listener)
