"""Git as a subprocess, hardened: no hooks, no external transports, no prompts, user strings never options.

Everything of GitPython that the other rooms see is behind this file and `repository`.
"""

import os
import re
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from git import Git

from modelgit.errors import FormatError, RepositoryError, StorageFull

HARDENED = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never")
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
FALLBACK_IDENTITY = {"user.name": "modelgit", "user.email": "modelgit@localhost"}
FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "unable to write",
)
MAX_PATH_BYTES = 4096
Environment = Mapping[str, str]


class GitDirectory:
    """Runs git in one directory; every failure becomes a RepositoryError that says what git said."""

    def __init__(self, directory: Path) -> None:
        self._git = Git(str(directory))
        self._git.update_environment(**ENVIRONMENT)
        self._identity: list[str] | None = None

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
        """Returns exit code, output and complaint of `git ARGUMENTS`."""
        process = self._git.execute(
            ["git", *HARDENED, *arguments],
            as_process=True,
            istream=subprocess.PIPE,
            env=dict(environment or {}),
        )
        output, complaint = process.proc.communicate(stdin)  # type: ignore[union-attr]
        return process.proc.returncode, output, complaint.decode("utf-8", "replace").strip()  # type: ignore[union-attr]

    def identity(self) -> list[str]:
        """Returns the `-c` settings that name an author where the user has named none."""
        if self._identity is None:
            missing = [key for key in FALLBACK_IDENTITY if self.attempt("config", "--get", key)[0]]
            self._identity = [word for key in missing for word in ("-c", f"{key}={FALLBACK_IDENTITY[key]}")]
        return self._identity


def failure(arguments: Sequence[str], code: int, complaint: str) -> RepositoryError | StorageFull:
    """Returns the error for a failed git command."""
    verb = next((a for a in arguments if not a.startswith("-") and "=" not in a), "")
    message = f"git {verb} failed ({code}): {last_line(complaint)}"
    if any(word in complaint for word in FULL):
        return StorageFull(message, hint="free some space, or check the permissions, and run the command again")
    if "index.lock" in complaint or "cannot lock" in complaint:
        return RepositoryError(message, hint="another git command is running here; wait for it and try again")
    return RepositoryError(message)


def last_line(complaint: str) -> str:
    """Returns the line that says what is wrong: the first `fatal:` or `error:`, else the last."""
    rows = [row for row in complaint.splitlines() if row.strip()] or ["no message"]
    telling = [row for row in rows if row.startswith(("fatal:", "error:"))]
    return (telling or rows)[0 if telling else -1]


def check_path(path: str, where: str) -> str:
    """Returns `path` if it may be the path of a file in a version.

    Raises:
        FormatError: it is absolute, leaves its folder, reaches into a git directory, or hides characters.
    """
    parts = path.split("/")
    reserved = [p for p in parts if re.fullmatch(r"\.git( *|\.*|~.*)|git~[0-9]+", plain(p), re.IGNORECASE)]
    if reserved or any(p in ("", ".", "..") for p in parts) or "\\" in path or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise FormatError(f"{where}: path {path[:200]!r} may not be in a version")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in path):
        raise FormatError(f"{where}: path {path[:200]!r} holds control characters")
    return path


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
