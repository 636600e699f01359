"""The command line: its commands, its global options, and how errors become messages and exit codes."""

import atexit
import errno
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Protocol, runtime_checkable

import typer

from modelgit.cli import handed_on, history, learn, objects, upkeep
from modelgit.cli.merging import commands as merging
from modelgit.cli.replaying import asking, verbs
from modelgit.cli.reporting import commands as reporting
from modelgit.cli.screen.output import Output
from modelgit.cli.session import Session, UnreadError
from modelgit.errors import (
    CorruptObject,
    DifferencesFound,
    FormatError,
    MissingObject,
    ModelgitError,
    OutOfMemory,
    RemoteError,
    RepositoryError,
    StorageFull,
    StoreError,
    UsageError,
)
from modelgit.version import VERSION

INTERRUPTED, INTERNAL, BROKEN_PIPE = 130, 70, 141
# What to do next where the floor that met the error had nothing more exact to say.
HINTS: Mapping[type[ModelgitError], str] = {
    FormatError: "is the file complete, and a safetensors file? compare it with the original",
    CorruptObject: "modelgit fsck --repair takes sound objects from the remotes",
    MissingObject: "modelgit fetch brings objects from a remote; modelgit fsck --repair also from a path",
    DifferencesFound: "the weights of this commit are not what its message says; ask who made it",
    StoreError: "modelgit fsck looks at every object",
    RemoteError: "modelgit remote -v lists the remotes",
    RepositoryError: "modelgit status shows where things stand",
    StorageFull: "free some space, or check the permissions, and run the command again",
    UsageError: "modelgit --help lists the commands, modelgit COMMAND --help their options",
}
UNKNOWN = ("No such option", "Got unexpected extra argument")  # the parser's words
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@runtime_checkable
class ParserError(Protocol):
    """The parser's own errors, whose common class has no public name."""

    exit_code: int

    def format_message(self) -> str:
        """Returns what is wrong with the arguments."""


def new_app() -> typer.Typer:
    """Returns the application with every command."""
    app = typer.Typer(
        name="modelgit",
        help="git for weights: clone, commit and merge models as we do software.",
        epilog="Branches, tags and the like are git's: modelgit hands them on (modelgit branch, modelgit tag, …).",
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    history.register(app)
    asking.register(app)
    merging.register(app)
    verbs.register(app)
    objects.register(app)
    upkeep.register(app)
    learn.register(app)
    reporting.register(app)
    return app


def show_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        show_version_line()
        raise typer.Exit


def show_version_line() -> None:
    """Prints the version."""
    sys.stdout.write(f"modelgit {VERSION}\n")


def change_directory(path: str) -> None:
    """Works in another directory, as `git -C` does."""
    if not path:
        return
    try:
        os.chdir(path)
    except OSError as error:
        raise UsageError(f"-C {path}: {error.strerror}") from error


def options(
    directory: Annotated[str, typer.Option("-C", metavar="DIR", help="Run as if started in DIR.")] = "",
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """git for weights: clone, commit and merge models as we do software."""
    change_directory(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    session = Session(Output(sys.stdout, sys.stderr, json="--json" in words))
    atexit.register(gc.freeze)  # nothing is left to collect that the end of the process does not free
    try:
        return carry_out(words, session)
    except Exception as error:  # noqa: BLE001  the last resort: everything becomes one line and an exit code
        at = handed_on.verb_at(words)
        verb = words[at] if at is not None else None
        return explain(named_for_git(error, words), session.out, verb=verb, debug="--debug" in words)
    except KeyboardInterrupt:
        sys.stderr.write(f"{session.interrupted()}\n")
        return INTERRUPTED


def carry_out(words: list[str], session: Session) -> int:
    """Returns the exit code of a command line, handing git's own verbs to git."""
    if words == ["--version"]:  # asked by scripts; costs no command
        show_version_line()
        return 0
    verb = handed_on.verb_at(words)
    if verb is None and not words:
        words = ["--help"]
    if verb is not None and words[verb] == "help":
        words = [*words[:verb], *words[verb + 1 :], "--help"]
        verb = handed_on.verb_at(words)
    if verb is not None and words[verb] == "plumbing":
        from modelgit.cli import plumbing  # an earlier modelgit has told git so

        return plumbing.main(words[verb + 1 :])
    if verb is not None and handed_on.is_gits(words[verb:]):
        change_directory(handed_on.directory_of(words[:verb]))
        code = handed_on.run_git(words[verb:])
        return code or fill_in(session)
    app = new_app()
    if verb is not None and words[verb] not in every_name(app):
        handed_on.refuse_verb(words[verb], command_names(app))
    if verb is not None:
        words = [*words[:verb], *handed_on.spelled_out(words[verb:])]
    if verb is not None:  # preparing the others takes as long as many a command
        app.registered_commands = [info for info in app.registered_commands if info.name == words[verb]]
    code = app(args=words, obj=session, prog_name="modelgit", standalone_mode=False)
    if code == INTERRUPTED:
        sys.stderr.write(f"{session.interrupted()}\n")
    return code if isinstance(code, int) else 0


def fill_in(session: Session) -> int:
    """Writes the weight files where git has left manifests."""
    from modelgit.porcelain.work import fill_in

    session.speak(as_json=False, quiet=False)
    fill_in(session.repo(), session.listener)
    return 0


def command_names(app: typer.Typer) -> list[str]:
    """Returns the names of all commands that people may use."""
    return [info.name for info in app.registered_commands if info.name and not info.hidden]


def every_name(app: typer.Typer) -> set[str | None]:
    """Returns the names of all commands and groups, hidden ones too."""
    return {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}


def explain(error: Exception, out: Output, *, verb: str | None = None, debug: bool) -> int:
    """Says what went wrong with a command, and returns the exit code for it."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError | UnreadError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads any more; say nothing at exit either
        return BROKEN_PIPE
    known = translated(error)
    if verb and isinstance(known, UsageError):
        known.hint = known.hint or f"modelgit {verb} --help shows what it takes"
    known.hint = known.hint or next((hint for kind, hint in HINTS.items() if isinstance(known, kind)), None)
    with suppress(OSError):  # the message cannot be written either; the exit code still tells
        out.error(known)
    return known.exit_code


def named_for_git(error: Exception, words: Sequence[str]) -> Exception:
    """Returns the error; for words that our parser does not know, one that says which command of git's takes them."""
    verb = handed_on.verb_at(words)
    unknown = isinstance(error, ParserError) and error.format_message().startswith(UNKNOWN)
    way = handed_on.gits_way(words[verb:]) if unknown and verb is not None else None
    if way is None or verb is None:
        return error
    hint = f"see modelgit {words[verb]} --help; git takes more: {way}"
    named = UsageError(translated(error).message, hint=hint)
    named.__cause__ = error
    return named


def translated(error: Exception) -> ModelgitError:
    """Returns the error as one of ours."""
    if isinstance(error, ModelgitError):
        return error
    if isinstance(error, ParserError):
        context = getattr(error, "ctx", None)
        return UsageError(error.format_message(), hint=f"see {getattr(context, 'command_path', 'modelgit')} --help")
    if isinstance(error, typer.Abort):
        return UsageError("stopped")
    from modelgit.train.memory import ANYTHING, ran_out, shortage

    if ran_out(error):
        return OutOfMemory(shortage(error), hint=ANYTHING)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename}: " if error.filename else ""
        broken = "the disk reports an error, the system's log may say more; nothing that was done before is lost"
        hint = broken if error.errno == errno.EIO else "free some space, or check the permissions, and try again"
        return StorageFull(f"{where}{error.strerror}", hint=hint)
    return ModelgitError(
        f"internal error: {type(error).__name__}: {error}",
        hint="run the command with --debug and report what it shows: modelgit --debug COMMAND",
    )
