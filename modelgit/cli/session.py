"""What a command is given besides its arguments: where to speak, and the repository it runs in."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.cli.screen.output import Output
from modelgit.errors import ModelgitError
from modelgit.events import Listener, ignore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository


class UnreadError(Exception):
    """Whoever read our output has stopped. No OSError: the parser of command lines would end with 1 for that."""


@dataclass(slots=True)
class Session:
    """One run of the command line; --json and --quiet are known once the command is.

    `goes_on` says that the command, given again, goes on where it was stopped.
    """

    out: Output
    listener: Listener = field(default=ignore)
    opened: "Repository | None" = None
    goes_on: bool = False

    def speak(self, *, as_json: bool, quiet: bool) -> None:
        """Takes the manner in which the command is to speak."""
        from modelgit.cli.screen.progress import listener_for

        self.out = replace(self.out, json=as_json, quiet=quiet)
        self.listener = listener_for(self.out.stderr, as_json=as_json, quiet=quiet)

    def repo(self) -> "Repository":
        """Returns the repository around the working directory. Raises RepositoryError."""
        from modelgit.porcelain.sharing import open_repository

        self.opened = open_repository(Path.cwd())
        return self.opened

    def interrupted(self) -> str:
        """Returns what to say of an interruption: that nothing came of it, or what was done by then."""
        try:
            moved = self.opened.moved() if self.opened is not None else None
        except (ModelgitError, KeyboardInterrupt):
            moved = None
        if moved is None:
            return "interrupted; the same command goes on from here" if self.goes_on else "interrupted"
        return f"interrupted, but {moved[0]} is at {moved[1][:10]} now: modelgit status tells what is left"
