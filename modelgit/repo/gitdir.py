"""Git as a subprocess, hardened: no hooks, no external transports, no prompts, user strings never options."""

import os
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

from modelgit.errors import DependencyMissing, FormatError, RepositoryError, StorageFull
from modelgit.repo.upkeep.locks import Alive

SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "color.ui=false",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
)
HARDENED = tuple(word for setting in SETTINGS for word in ("-c", setting))
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
# Set by git for its hooks and filters; they would send a command about one repository to another.
FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_NAMESPACE")
FALLBACK_IDENTITY = {"user.name": "modelgit", "user.email": "modelgit@localhost"}
FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "unable to write",
)
PARTIAL = "promisor"  # in what git says where it has left objects at a remote, to be brought when they are asked for
PARTIAL_HINT = "a partial clone holds too little for this; clone it whole, without --filter"
KILLED = b"died of signal"  # what git says of a process that it started itself
LOCKING = frozenset(["update-ref", "symbolic-ref", "notes", "branch", "fetch", "gc"])
MAX_PATH_BYTES = 4096
PATH_HINT = "rename the file; paths are relative, without '..', '.git' and characters that do not show"
Environment = Mapping[str, str]


class GitDirectory:
    """Runs git in one directory; every failure becomes a RepositoryError that says what git said."""

    def __init__(self, directory: Path, environment: Environment | None = None) -> None:
        self.directory = directory
        self.environment = environment or {}  # what tells git which repository, where the directory does not
        self.alive: Alive | None = None  # told by commands that take git's locks

    def run(self, *arguments: str, stdin: bytes = b"", environment: Environment | None = None) -> str:
        """Returns what `git ARGUMENTS` prints, without its last line feed.

        Raises:
            RepositoryError: git failed. StorageFull: because the file system refused a write.
        """
        return (
            self.run_bytes(*arguments, stdin=stdin, environment=environment)
            .decode("utf-8", "surrogateescape")
            .removesuffix("\n")
        )

    def run_bytes(self, *arguments: str, stdin: bytes = b"", environment: Environment | None = None) -> bytes:
        """Returns what `git ARGUMENTS` prints, as bytes."""
        code, output, complaint = self.attempt(*arguments, stdin=stdin, environment=environment)
        if code:
            raise failure(arguments, code, complaint)
        return output

    def attempt(
        self, *arguments: str, stdin: bytes = b"", environment: Environment | None = None
    ) -> tuple[int, bytes, str]:
        """Returns exit code, output and complaint of `git ARGUMENTS`.

        Raises:
            DependencyMissing: there is no git. RepositoryError: the directory has gone.
        """
        inherited = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        try:
            with self.taking_locks() if LOCKING.intersection(arguments) else nullcontext(()) as inherit:
                done = subprocess.run(
                    ["git", *HARDENED, *arguments],
                    cwd=self.directory,
                    input=stdin,
                    capture_output=True,
                    env={**inherited, **ENVIRONMENT, **self.environment, **(environment or {})},
                    check=False,
                    pass_fds=inherit,
                )
                if self.alive is not None and (done.returncode < 0 or KILLED in done.stderr):
                    self.alive.struck = True
        except FileNotFoundError as error:
            if not self.directory.is_dir():
                raise RepositoryError(f"{self.directory}: no such folder") from error
            raise DependencyMissing("git is not installed", hint="install git 2.38 or later") from error
        return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()

    @contextmanager
    def taking_locks(self) -> Iterator[tuple[int, ...]]:
        """Surrounds a step that takes git's locks; those of a killed command go first. Gives what git is to inherit."""
        if self.alive is None:
            yield ()
            return
        with self.alive.held() as handle:
            yield (handle,) if handle >= 0 else ()

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """The settings of git that matter to us, read once."""
        pattern = r"^(user\.(name|email)|core\.filemode|modelgit\..*)$"
        code, output, _ = self.attempt("config", "-z", "--get-regexp", pattern)
        rows = output.decode("utf-8", "replace").split("\0") if code == 0 else []
        return {key: value for key, _, value in (row.partition("\n") for row in rows if row)}

    def identity(self) -> list[str]:
        """Returns the `-c` settings that name an author where the user has named none."""
        missing = [key for key in FALLBACK_IDENTITY if key not in self.settings]
        return [word for key in missing for word in ("-c", f"{key}={FALLBACK_IDENTITY[key]}")]


def failure(arguments: Sequence[str], code: int, complaint: str) -> RepositoryError | StorageFull:
    """Returns the error for a failed git command."""
    verb = next((a for a in arguments if not a.startswith("-") and "=" not in a), "")
    message = f"git {verb} failed ({code}): {last_line(complaint)}"
    if any(word in complaint for word in FULL):
        return StorageFull(message, hint="free some space, or check the permissions, and run the command again")
    if PARTIAL in complaint:
        return RepositoryError(message, hint=PARTIAL_HINT)
    if "index.lock" in complaint or "cannot lock" in complaint:
        return RepositoryError(message, hint="another git command is running here; wait for it and try again")
    return RepositoryError(message)


def last_line(complaint: str) -> str:
    """Returns the line that says what is wrong: the first `fatal:` or `error:`, else the last."""
    rows = [row for row in complaint.splitlines() if row.strip()] or ["no message"]
    telling = [row for row in rows if row.startswith(("fatal:", "error:"))]
    return (telling or rows)[0 if telling else -1]


def check_path(path: str, where: str, hint: str | None = None) -> str:
    """Returns `path` if it may be the path of a file in a version; `hint` says what to do where git has it already.

    Raises:
        FormatError: it is absolute, leaves its folder, reaches into a git directory, or hides characters.
    """
    parts = path.split("/")
    reserved = [p for p in parts if re.fullmatch(r"(\.git( *|\.*|~.*)|git~[0-9]+)(:.*)?", plain(p), re.IGNORECASE)]
    if reserved or any(p in ("", ".", "..") for p in parts) or "\\" in path or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise FormatError(f"{where}: path {path[:200]!r} may not be in a version", hint=hint or PATH_HINT)
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in path):
        raise FormatError(f"{where}: path {path[:200]!r} holds control characters", hint=hint or PATH_HINT)
    return path


def check_tracked(path: str, where: str) -> str:
    """Returns a path that plain git tracks if it may be in a version. Raises FormatError, with the way out of it."""
    takes_out = f"take it out of git's hands: git rm --cached -- {quoted(path)}; if a commit has it, git commit then"
    return check_path(path, where, takes_out)


def quoted(path: str) -> str:
    """Returns a path as one word for bash, in which every character shows."""
    if all(c.isprintable() for c in path):
        return shlex.quote(path)
    return "$'" + "".join(shown(c) for c in path) + "'"


def shown(character: str) -> str:
    """Returns a character as it stands between $' and '."""
    if character.isprintable() and character not in "\\'":
        return character
    return f"\\{character}" if character in "\\'" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def plain(part: str) -> str:
    """Returns a path's part as the most careless file system would see it."""
    return unicodedata.normalize("NFKC", part).casefold().rstrip(" .") or part


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
