"""Every object git has: manifests wherever they are, and the weight files of any number of commits, read fast.

An object of ours is needed as long as git has a manifest that names it. So what counts as reachable (refs, reflogs,
stashes, indexes, other work trees, merges under way) and for how long is git's affair, and its settings decide.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO

from modelgit.errors import RepositoryError
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, is_manifest
from modelgit.repo.gitdir import ENVIRONMENT, FOREIGN, HARDENED, PARTIAL, PARTIAL_HINT, GitDirectory, last_line
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository

PREFIX_BYTES, PIECE_BYTES = 64, 1 << 20
AT_ONCE = 256  # requests that fit a pipe, however long the answers
OID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
TREE_ROW = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
TREE_LINE = re.compile(rb"tree ([0-9a-f]{40})\n")
FOLDER, FILES = b"40000", (b"100644", b"100755")
DAMAGED = "git's own objects are damaged, so nobody can tell what is needed"
HINT = "git fsck tells more; nothing was changed"
MAX_FOLDERS = 256  # one inside another; weights deeper down are not seen


class ObjectReader:
    """One `git cat-file --batch`, asked again and again. Use as a context."""

    def __init__(self, git: GitDirectory) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        self._complaint = os.memfd_create("complaint") if hasattr(os, "memfd_create") else -1
        self._process = subprocess.Popen(
            ["git", *HARDENED, "cat-file", "--batch"],
            cwd=git.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaint if self._complaint >= 0 else subprocess.DEVNULL,
            env={**inherited, **ENVIRONMENT},
        )

    def __enter__(self) -> "ObjectReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()
        if self._complaint >= 0:
            os.close(self._complaint)

    def read(self, sha: str) -> bytes:
        """Returns an object's content. Raises RepositoryError when git lacks it or cannot read it."""
        return next(self.each([sha]))

    def each(self, shas: Sequence[str], wanted: Callable[[bytes], bool] = bool) -> Iterator[bytes]:
        """Yields objects' contents in the order asked; take them all. Raises as `read` does.

        Of one whose first bytes are not `wanted` only those are given.
        """
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            return
        for start in range(0, len(shas), AT_ONCE):
            some = shas[start : start + AT_ONCE]
            try:
                requests.write("".join(f"{sha}\n" for sha in some).encode())
                requests.flush()
            except BrokenPipeError as error:
                raise self._ended() from error
            missing = list[str]()
            for sha in some:
                words = answers.readline().split()
                if not words:
                    raise self._ended()
                if len(words) != 3:
                    missing.append(sha)
                else:
                    yield content(answers, int(words[2]), wanted)
            if missing:  # said only now: what was asked for must be taken
                raise RepositoryError(f"{DAMAGED}: {missing[0]} cannot be read", hint=HINT)

    def _ended(self) -> RepositoryError:
        """Returns the error for a git that has given up, with its last words."""
        self._process.wait()
        said = os.pread(self._complaint, PIECE_BYTES, 0) if self._complaint >= 0 else b""
        return unreadable(said.decode("utf-8", "replace"))


def unreadable(complaint: str) -> RepositoryError:
    """Returns the error for objects that git cannot read, by what it says."""
    if PARTIAL in complaint:
        told = f"git has left objects at a remote, so nobody can tell what is needed: {last_line(complaint)}"
        return RepositoryError(told, hint=PARTIAL_HINT)
    return RepositoryError(f"{DAMAGED}: {last_line(complaint)}", hint=HINT)


def content(answers: IO[bytes], size: int, wanted: Callable[[bytes], bool]) -> bytes:
    """Returns an object's bytes, the first of them if those are not wanted; takes all off the stream, and the end."""
    start = answers.read(min(size, PREFIX_BYTES))
    if size <= PREFIX_BYTES or wanted(start):
        return start + answers.read(size - len(start) + 1)[:-1]
    left = size - len(start) + 1
    while left:
        left -= len(answers.read(min(left, PIECE_BYTES))) or left
    return start


def needed_ids(repo: Repository) -> set[bytes]:
    """Returns the ids of all objects that any manifest names which git still has, of whatever version.

    Every word in a manifest that could be an id counts as one, so that a later version's manifests count too.

    Raises:
        RepositoryError: git's objects cannot all be read, or some are missing.
    """
    code, _, complaint = repo.git.attempt("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
    if code:
        raise unreadable(complaint)
    with ObjectReader(repo.git) as reader:
        texts = (text for text in reader.each(every_blob(repo), is_manifest) if is_manifest(text))
        return {bytes.fromhex(word.decode()) for text in texts for word in OID.findall(text)}


def every_blob(repo: Repository) -> list[str]:
    """Returns the blobs that may be manifests by their size, reachable or not."""
    command = ("cat-file", "--batch-all-objects", "--unordered", "--batch-check")
    code, output, complaint = repo.git.attempt(*command)
    rows = [row.split() for row in output.decode().splitlines()]
    if code or complaint or any(len(row) != 3 for row in rows):
        raise unreadable(complaint)
    return [sha for sha, kind, size in rows if kind == "blob" and 0 < int(size) <= MAX_MANIFEST_BYTES]


def every_commit(repo: Repository) -> list[str]:
    """Returns every commit that a ref (notes aside) or HEAD leads to, children before their parents."""
    tips = {commit for ref, commit in repo.refs().items() if not ref.startswith("refs/notes/")}
    head = repo.head()
    return commits_from(repo, sorted(tips | ({head} if head else set())))


def commits_from(repo: Repository, tips: Sequence[str]) -> list[str]:
    """Returns the commits that tips lead to, children before their parents; tags of other things are passed over."""
    lines = "".join(f"{tip}\n" for tip in tips).encode()
    return repo.git.run("rev-list", "--topo-order", "--stdin", stdin=lines).split() if tips else []


class Trees:
    """The weight files of commits: path and blob. Folders that versions share are read once."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._folders: dict[str, dict[str, str]] = {}

    def weights(self, commit: str) -> dict[str, str]:
        """Returns the blobs of a commit's files that bear a weight file's name, by path. Raises RepositoryError."""
        found = TREE_LINE.match(self._reader.read(commit))
        if found is None:
            raise RepositoryError(f"{commit} is no commit", hint=HINT)
        return self._folder(found[1].decode(), MAX_FOLDERS)

    def _folder(self, sha: str, levels: int) -> dict[str, str]:
        if sha not in self._folders:
            files: dict[str, str] = {}
            for mode, name, key in TREE_ROW.findall(self._reader.read(sha)):
                path = os.fsdecode(name)
                if mode in FILES and path.endswith(WEIGHTS_SUFFIX):
                    files[path] = key.hex()
                elif mode == FOLDER and levels:
                    inside = self._folder(key.hex(), levels - 1)
                    files.update({f"{path}/{below}": blob for below, blob in inside.items()})
            self._folders[sha] = files
        return self._folders[sha]


def manifests(reader: ObjectReader, blobs: Sequence[str]) -> dict[str, bytes]:
    """Returns the texts of those blobs that are manifests. All are held at once: ask for a version's, not for all."""
    wanted = list(dict.fromkeys(blobs))
    return {sha: text for sha, text in zip(wanted, reader.each(wanted, is_manifest), strict=True) if is_manifest(text)}
