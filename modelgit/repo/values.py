"""What history is made of, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelgit.formats.manifest import Manifest

FILE_MODES = ("100644", "100755")
LINK, SUBMODULE = "120000", "160000"
MODES = (*FILE_MODES, LINK, SUBMODULE)


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that git has already: its id and mode. A link's content is where it leads, a submodule's id is a commit's.

    Both are carried along and compared by their ids, and never read as files.
    """

    sha: str
    mode: str = "100644"

    @property
    def ordinary(self) -> bool:
        """Whether it is a file, neither link nor submodule."""
        return self.mode in FILE_MODES


@dataclass(frozen=True, slots=True)
class Upstream:
    """The branch of a remote that a branch follows, and how many commits either has that the other lacks."""

    name: str
    ahead: int
    behind: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A commit without its files; `date` in seconds since 1970, `refs` the branches and tags that point to it."""

    commit: str
    parents: tuple[str, ...]
    author: str
    date: int
    subject: str
    message: str
    refs: tuple[str, ...] = ()

    @property
    def trailers(self) -> dict[str, list[str]]:
        """The `Key: value` lines of the last paragraph of the message."""
        return trailers_of(self.message)


@dataclass(frozen=True, slots=True)
class Version:
    """A commit seen as a model: its weight files as manifests, its other files as blobs, links and submodules too."""

    entry: LogEntry
    manifests: Mapping[str, Manifest]
    manifest_blobs: Mapping[str, Blob]
    files: Mapping[str, Blob]

    @property
    def commit(self) -> str:
        """The commit's id."""
        return self.entry.commit

    def file(self, path: str) -> Blob | None:
        """Returns an ordinary file, None if there is none, or something else, at that path."""
        blob = self.files.get(path)
        return blob if blob is not None and blob.ordinary else None

    def tree(self) -> dict[str, Blob]:
        """Returns every file by its path, weight files by their manifests' blobs."""
        return {**self.manifest_blobs, **self.files}


@dataclass(frozen=True, slots=True)
class CommitDraft:
    """A commit to be made. `files` is the whole tree.

    With `ref` the ref moves to the new commit, if it still is at `expected` (None: if it does not exist yet).
    `author` is `Name <address>`, the user unless named; `date` in seconds since 1970, now unless given. `authored` is
    when the author made it, where that was earlier: seconds since 1970, a space, the time zone.
    """

    parents: tuple[str, ...]
    files: Mapping[str, Manifest | Blob | bytes]
    message: str
    trailers: tuple[tuple[str, str], ...] = field(default=())
    ref: str | None = None
    expected: str | None = None
    author: str | None = None
    date: int | None = None
    authored: str | None = None


def trailers_of(message: str) -> dict[str, list[str]]:
    """Returns the trailers of a commit message: its last paragraph, if every line is `Key: value`."""
    paragraphs = message.strip().split("\n\n")
    pairs = [line.partition(": ") for line in paragraphs[-1].splitlines()]
    if len(paragraphs) < 2 or not all(colon and key.replace("-", "").isalnum() for key, colon, _ in pairs):
        return {}
    found: dict[str, list[str]] = {}
    for key, _, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def with_trailers(message: str, trailers: tuple[tuple[str, str], ...]) -> str:
    """Returns the message with trailers as its last paragraph; line breaks in values become spaces."""
    if not trailers:
        return message.rstrip() + "\n"
    rows = "\n".join(f"{key}: {' '.join(value.split())}" for key, value in trailers)
    return f"{message.rstrip()}\n\n{rows}\n"
