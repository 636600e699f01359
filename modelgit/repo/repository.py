"""A repository: git for the history, the object store for the tensors.

Writes go objects first, then manifests, then the ref; so a crash leaves the old state or the new one.
"""

import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from modelgit.errors import FormatError, RepositoryError, RevisionError, UsageError
from modelgit.events import Listener, Noted, ignore
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, Manifest, is_manifest, parse_bytes, write
from modelgit.repo.drivers import ATTRIBUTES, ATTRIBUTES_PATH, check_version, configure
from modelgit.repo.gitdir import (
    MAX_PATH_BYTES,
    Environment,
    GitDirectory,
    check_path,
    check_tracked,
    last_line,
    sync_folder,
)
from modelgit.repo.upkeep.locks import Alive, taking_turns
from modelgit.repo.values import (
    MODES,
    Blob,
    CommitDraft,
    LogEntry,
    Upstream,
    Version,
    with_trailers,
)

if TYPE_CHECKING:
    from modelgit.store.objects import ObjectStore

STORE_FOLDER = "modelgit"
WEIGHTS_SUFFIX = ".safetensors"
ZERO = "0" * 40
LOG_FORMAT = "%H%x00%P%x00%an <%ae>%x00%ct%x00%D%x00%B%x00%x01"
LOG_END = "\0\x01"  # no message holds a NUL


class Repository:
    """One repository on disk; several processes may use it at once."""

    def __init__(
        self,
        git_dir: Path,
        worktree: Path | None,
        private_dir: Path | None = None,
        environment: Environment | None = None,
    ) -> None:
        self.git_dir = git_dir
        self.worktree = worktree
        self.private_dir = private_dir or git_dir  # another one in a linked work tree: its index and HEAD
        self.git = GitDirectory(worktree or git_dir, environment)
        self.git.alive = Alive(git_dir)
        self.index_file = Path(self.git.environment.get("GIT_INDEX_FILE", self.private_dir / "index"))
        self.hooked = True  # False where `init` found another pre-push hook than ours
        self.moving: tuple[str, str] | None = None  # the branch, or HEAD, that was moved last, and where to
        self._versions: dict[str, Version] = {}
        self._manifests: dict[str, Manifest] = {}  # by blob
        self._names = itertools.count()

    @cached_property
    def store(self) -> "ObjectStore":
        """The objects. Opened when they are asked for: numpy takes longer to load than a status takes."""
        from modelgit.store.objects import ObjectStore

        return ObjectStore(self.git_dir / STORE_FOLDER)

    def set_up(self, listener: Listener = ignore) -> None:
        """Sets up a repository that gets weights, as `init` does, if it is not; the listener hears of it.

        In one that is not, as in a clone by plain git, git takes weights whole, and pushes history without objects.
        """
        if "modelgit.version" in self.git.settings:
            return
        with self.git.taking_locks():
            self.hooked = configure(self.git, self.git_dir)
        del self.git.settings
        listener(Noted("set up this repository for weights, as modelgit init does: plain git stores manifests now"))

    def packed_bytes(self) -> int:
        """Returns the bytes of all packs, without opening the store."""
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.git_dir / STORE_FOLDER / "packs"))
        except OSError:
            return 0

    @classmethod
    def init(cls, path: Path, *, bare: bool = False, branch: str = "main") -> "Repository":
        """Returns the repository in `path`, made if it is not there yet; an existing one is set up for weights.

        In the folder of a bare repository that is the one meant, and stays bare.

        Raises:
            RepositoryError: git cannot make one there, or `path` lies inside of what git keeps for itself.
        """
        bare = bare or is_bare(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RepositoryError(f"cannot make a repository in {path}: {error.strerror}") from error
        GitDirectory(path).run("init", "--quiet", f"--initial-branch={branch}", *(["--bare"] if bare else []))
        repo = cls.open(path)
        with repo.git.taking_locks():
            repo.hooked = configure(repo.git, repo.git_dir)
        sync_folder(repo.git_dir)
        sync_folder(path)
        return repo

    @classmethod
    def open(cls, path: Path, environment: Environment | None = None) -> "Repository":
        """Returns the repository that `path` lies in, or that the variables name which git sets for its helpers.

        Raises:
            RepositoryError: it lies in none.
        """
        if not path.is_dir():
            raise RepositoryError(f"{path}: no such folder")
        wanted = ("--git-common-dir", "--git-dir", "--show-object-format", "--is-bare-repository", "--show-toplevel")
        _, output, complaint = GitDirectory(path, environment).attempt("rev-parse", "--path-format=absolute", *wanted)
        rows = output.decode("utf-8", "surrogateescape").splitlines()
        if len(rows) < 4:
            reason = "" if "not a git repository" in complaint else f" ({last_line(complaint)})"
            hint = "start one with: modelgit init"
            raise RepositoryError(f"{path} is not in a repository{reason}", hint=hint)
        if rows[2] != "sha1":
            raise RepositoryError(f"{path}: git objects with {rows[2]} ids, expected sha1")
        bare = rows[3] == "true" or len(rows) < 5
        places = Path(rows[0]), None if bare else Path(rows[4]), Path(rows[1])
        repo = cls(*places, named_again(path, environment or {}, places))
        check_version(repo.git, path)
        return repo

    # ------------------------------------------------------------------ names

    def resolve(self, rev: str) -> str:
        """Returns the commit that `rev` names, 40 hex digits.

        Raises:
            RevisionError: none, with near branch and tag names.
        """
        code, output, _ = self.git.attempt("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
        if code == 0:
            return output.decode().strip()
        if rev == "HEAD":
            there = [*sorted(self.branches()), *self.remote_branches()]
            begin = f"go to a branch: modelgit switch {there[0]}" if there else None
            hint = begin or "make one: modelgit import FILE, or modelgit commit"
            raise RevisionError(f"there are no commits {'on this branch ' if there else ''}yet", hint=hint)
        names = [name.split("/", 2)[2] for name in self.refs("refs/heads/", "refs/tags/", "refs/remotes/")]
        near = difflib.get_close_matches(rev, names, n=3, cutoff=0.5)
        known = ", ".join(sorted(self.branches()))
        others = f"branches: {known}" if known else "there are no commits yet; make one: modelgit import FILE"
        hint = f"did you mean {', '.join(near)}?" if near else others
        raise RevisionError(f"unknown revision '{rev}'", hint=hint)

    def head(self) -> str | None:
        """Returns the commit checked out, None before the first."""
        code, output, _ = self.git.attempt("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        return output.decode().strip() if code == 0 else None

    def branch(self) -> str | None:
        """Returns the branch checked out, None when HEAD is detached."""
        code, output, _ = self.git.attempt("symbolic-ref", "--quiet", "HEAD")
        return output.decode().strip().removeprefix("refs/heads/") if code == 0 else None

    def branches(self) -> dict[str, str]:
        """Returns the commit of each local branch by its name."""
        return {name.removeprefix("refs/heads/"): commit for name, commit in self.refs("refs/heads/").items()}

    def remote_branches(self) -> tuple[str, ...]:
        """Returns the names of the branches that remotes have, each once; `main` first."""
        names = {ref.split("/", 3)[3] for ref in self.refs("refs/remotes/") if not ref.endswith("/HEAD")}
        return tuple(sorted(names, key=lambda name: (name != "main", name)))

    def upstream(self, branch: str | None) -> Upstream | None:
        """Returns what a branch follows, as of the last fetch; None if it follows nothing that is here."""
        if branch is None:
            return None
        looks = "--format=%(upstream:short)%00%(upstream:track,nobracket)"
        name, _, track = self.git.run("for-each-ref", looks, f"refs/heads/{branch}").partition("\0")
        if not name or track == "gone":
            return None
        counts = {word: int(count) for word, _, count in (part.partition(" ") for part in track.split(", ") if part)}
        return Upstream(name, counts.get("ahead", 0), counts.get("behind", 0))

    def tag_of(self, commit: str) -> str | None:
        """Returns a tag of a commit, None if it has none."""
        looks = ("--count=1", f"--points-at={commit}", "--format=%(refname:short)")
        return self.git.run("for-each-ref", *looks, "refs/tags/").strip() or None

    def refs(self, *prefixes: str) -> dict[str, str]:
        """Returns the commit of each ref below the prefixes, by its full name, sorted."""
        rows = self.git.run("for-each-ref", "--format=%(refname) %(objectname)", *prefixes).splitlines()
        return {name: commit for name, _, commit in (row.partition(" ") for row in sorted(rows))}

    def set_ref(self, ref: str, commit: str, *, expected: str | None, reason: str = "modelgit") -> None:
        """Moves `ref` to `commit`, if it still is at `expected` (None: does not exist); `reason` goes to its reflog.

        Raises:
            RepositoryError: it is elsewhere: somebody moved it in the meantime.
        """
        if ref == "HEAD" or ref.startswith("refs/heads/"):
            self.moving = ref, commit
        command = [*self.git.identity(), "update-ref", "--create-reflog", "-m", reason, "--end-of-options"]
        code, _, complaint = self.git.attempt(*command, ref, commit, expected or ZERO)
        if code:
            self._refuse_move(ref, commit, expected, complaint)
        folder = (self.git_dir / ref).parent
        if folder.is_dir():
            sync_folder(folder)

    def moved(self) -> tuple[str, str] | None:
        """Returns the branch, or HEAD, that was moved last, and where it is; None if none was, or it is elsewhere.

        Asked after an interruption, which may have come before or after git was done.
        """
        if self.moving is None or self.git.attempt("rev-parse", "--verify", "--quiet", self.moving[0])[0]:
            return None
        ref, commit = self.moving
        return (ref.removeprefix("refs/heads/"), commit) if self.git.run("rev-parse", ref) == commit else None

    def delete_ref(self, ref: str, *, expected: str) -> None:
        """Removes `ref`, if it still is at `expected`.

        Raises:
            RepositoryError: it is elsewhere.
        """
        code, _, complaint = self.git.attempt("update-ref", "-d", "--end-of-options", ref, expected)
        if code:
            self._refuse_move(ref, None, expected, complaint)

    def _refuse_move(self, ref: str, wanted: str | None, expected: str | None, complaint: str) -> None:
        """Raises the error for a ref that could not be moved, unless it is where it should be."""
        now = self.head() if ref == "HEAD" else self.refs(ref).get(ref)
        if now == wanted:
            return
        if now is None and expected is None:
            self._refuse_crossing(ref)
        reason = f": {last_line(complaint)}" if now == expected else ""
        raise RepositoryError(
            f"cannot move {ref}: expected {expected or 'none'}, got {now or 'none'}{reason}",
            hint="look again, then repeat the command",
        )

    def _refuse_crossing(self, ref: str) -> None:
        """Raises the error for a new branch if a branch is the folder of its name, or lies in a folder of its name."""
        folders = [parent.as_posix() for parent in PurePosixPath(ref).parents]
        found = [name for name in self.refs("refs/heads/") if name in folders or name.startswith(f"{ref}/")]
        if found:
            new, other = (name.removeprefix("refs/heads/") for name in (ref, found[0]))
            told = f"cannot make branch {new}: a branch {other} is in the way: git keeps branches as files"
            raise RepositoryError(told, hint="choose another name")

    # ------------------------------------------------------------------ reading

    def version(self, rev: str) -> Version:
        """Returns the version that `rev` names, its manifests parsed.

        Raises:
            RevisionError: no such commit. FormatError: a manifest or a path in it is malformed.
        """
        commit = rev if rev in self._versions else self.resolve(rev)
        if commit not in self._versions:
            self._versions[commit] = self._read_version(commit)
        return self._versions[commit]

    def _read_version(self, commit: str) -> Version:
        entry = next(self.log([commit], limit=1))
        rows = list(self._tree(commit))
        named = ((p, b, size) for p, b, size in rows if p.endswith(WEIGHTS_SUFFIX) and b.ordinary)
        weights = {path: blob for path, blob, size in named if 0 < size <= MAX_MANIFEST_BYTES}
        contents = self.read_blobs(blob.sha for blob in weights.values() if blob.sha not in self._manifests)
        for path, blob in weights.items():
            if is_manifest(contents.get(blob.sha, b"")):
                self._manifests[blob.sha] = parse_bytes(contents[blob.sha], f"{path} in {commit[:12]}")
        manifests = {path: self._manifests[blob.sha] for path, blob in weights.items() if blob.sha in self._manifests}
        blobs = {path: weights[path] for path in manifests}
        return Version(entry, manifests, blobs, {path: blob for path, blob, _ in rows if path not in manifests})

    def tree(self, commit: str) -> dict[str, Blob]:
        """Returns the blob of every file of a commit, weight files' manifests unread.

        Raises:
            FormatError: a path that may not be.
        """
        if commit in self._versions:
            return self._versions[commit].tree()
        return {path: blob for path, blob, _ in self._tree(commit)}

    def _tree(self, commit: str) -> Iterator[tuple[str, Blob, int]]:
        """Yields path, blob and size of every file, link and submodule, whose size is 0."""
        for row in self.git.run_bytes("ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0"):
            if not row:
                continue
            facts, _, name = row.partition(b"\t")
            mode, _, sha, size = facts.decode().split()
            path = check_tracked(name.decode("utf-8", "surrogateescape"), commit[:12])
            if mode not in MODES:
                raise FormatError(f"{path} in {commit[:12]}: mode {mode}, expected one of {', '.join(MODES)}")
            yield path, Blob(sha, mode), 0 if size == "-" else int(size)

    def read_blob(self, blob: Blob, limit: int | None = None) -> bytes:
        """Returns the content of an ordinary file. Raises FormatError if it is none, or larger than `limit` bytes."""
        if not blob.ordinary:
            raise FormatError(f"{blob.sha[:10]}: expected an ordinary file, got a link or a submodule")
        if limit is not None and (size := int(self.git.run("cat-file", "-s", blob.sha))) > limit:
            raise FormatError(f"file {blob.sha[:10]}: {size} bytes, expected at most {limit}")
        return self.git.run_bytes("cat-file", "blob", blob.sha)

    def read_link(self, blob: Blob) -> bytes:
        """Returns where a link leads. Raises FormatError if that is no path's length."""
        if (size := int(self.git.run("cat-file", "-s", blob.sha))) > MAX_PATH_BYTES:
            raise FormatError(f"link {blob.sha[:10]}: {size} bytes, expected at most {MAX_PATH_BYTES}")
        return self.git.run_bytes("cat-file", "blob", blob.sha)

    def read_blobs(self, shas: Iterable[str]) -> dict[str, bytes]:
        """Returns the contents of blobs by their ids, with one run of git."""
        wanted = list(dict.fromkeys(shas))
        if not wanted:
            return {}
        text = self.git.run_bytes("cat-file", "--batch", stdin="".join(f"{sha}\n" for sha in wanted).encode())
        found, start = dict[str, bytes](), 0
        for sha in wanted:
            end = text.index(b"\n", start)
            words = text[start:end].split()
            if words[-1:] == [b"missing"]:
                raise RepositoryError(f"git lacks its object {sha}", hint="git fsck tells more")
            start = end + 1 + int(words[2])
            found[sha] = text[end + 1 : start]
            start += 1
        return found

    def read_file(self, rev: str, path: str) -> bytes | None:
        """Returns the content of an ordinary file of a version, None if it has none of that name."""
        blob = self.version(rev).file(path)
        return None if blob is None else self.read_blob(blob)

    def log(
        self, revs: Sequence[str] = ("HEAD",), *, limit: int | None = None, everything: bool = False
    ) -> Iterator[LogEntry]:
        """Yields the commits reached from `revs` (or from all branches and tags), children before parents."""
        some = [f"--max-count={limit}"] if limit is not None else []
        head = ["HEAD"] if everything and self.head() else []
        starts = ["--branches", "--tags", "--remotes", *head] if everything else ["--end-of-options", *revs]
        looks = ["--topo-order", "--no-show-signature", "--decorate=short", f"--format={LOG_FORMAT}"]
        text = self.git.run_bytes("log", *looks, *some, *starts, "--").decode("utf-8", "replace")
        for row in text.split(LOG_END)[:-1]:
            yield log_entry(row.removeprefix("\n").split("\0"))

    def merge_base(self, revs: Sequence[str]) -> list[str]:
        """Returns the best common ancestors of all the commits, usually one, none if they share no history."""
        code, output, _ = self.git.attempt("merge-base", "--all", "--octopus", *(self.resolve(r) for r in revs))
        return output.decode().split() if code == 0 else []

    def independent(self, revs: Sequence[str]) -> list[str]:
        """Returns those commits that no other one of them descends from, in the order given."""
        commits = list(dict.fromkeys(self.resolve(rev) for rev in revs))
        kept = set(self.git.run("merge-base", "--independent", *commits).split())
        return [commit for commit in commits if commit in kept]

    def is_ancestor(self, old: str, new: str) -> bool:
        """Tells whether `new` descends from `old`, or is it."""
        return self.git.attempt("merge-base", "--is-ancestor", old, new)[0] == 0

    # ------------------------------------------------------------------ writing

    def commit(self, draft: CommitDraft) -> str:
        """Returns the commit made from `draft`. Its manifests' objects must be stored; the work tree is left alone.

        Raises:
            RepositoryError: the ref has moved. UsageError: an empty message. FormatError: a path that may not be.
        """
        if not draft.message.strip():
            raise UsageError("empty commit message", hint='say what changed: -m "…"')
        if any(path.endswith(WEIGHTS_SUFFIX) for path in draft.files):
            self.set_up()
        tree = self.write_tree(draft.files)
        parents = [word for parent in draft.parents for word in ("-p", parent)]
        message = with_trailers(draft.message, draft.trailers).encode("utf-8", "replace")
        environment = signature(draft.author, draft.date)
        environment |= {"GIT_AUTHOR_DATE": f"@{draft.authored}"} if draft.authored is not None else {}
        command = [*self.git.identity(), "commit-tree", tree, *parents]
        commit = self.git.run(*command, stdin=message, environment=environment)
        if draft.ref is not None:
            subject = draft.message.strip().split("\n", 1)[0]
            self.set_ref(draft.ref, commit, expected=draft.expected, reason=f"commit: {subject}")
        return commit

    def write_tree(self, files: Mapping[str, Manifest | Blob | bytes]) -> str:
        """Returns the id of the tree of `files`; weights are always marked as such by `.gitattributes`."""
        everything = files if ATTRIBUTES_PATH in files else {**files, ATTRIBUTES_PATH: ATTRIBUTES.encode()}
        for path in everything:
            check_path(path, "commit")
        rows = [tree_row(path, self.write_blob(content)) for path, content in sorted(everything.items())]
        scratch = self.git_dir / f"modelgit-index-{os.getpid()}-{next(self._names)}"
        environment = {"GIT_INDEX_FILE": str(scratch), "GIT_DIR": str(self.git_dir)}
        try:
            self.git.run(
                "update-index", "-z", "--add", "--index-info", stdin=b"\0".join([*rows, b""]), environment=environment
            )
            return self.git.run("write-tree", environment=environment)
        finally:
            scratch.unlink(missing_ok=True)

    def write_blob(self, content: Manifest | Blob | bytes) -> Blob:
        """Returns the blob that holds a file, written if it is new to git."""
        if isinstance(content, Blob):
            return content
        data = write(content).encode() if isinstance(content, Manifest) else content
        blob = Blob(self.git.run("hash-object", "-w", "--stdin", stdin=data))
        if isinstance(content, Manifest):
            self._manifests[blob.sha] = content
        return blob

    def read_note(self, ref: str, commit: str) -> str | None:
        """Returns the note on a commit, None if there is none."""
        code, output, _ = self.git.attempt("notes", f"--ref={ref}", "show", commit)
        return output.decode("utf-8", "replace") if code == 0 else None

    def write_note(self, ref: str, commit: str, text: str) -> None:
        """Sets the note on a commit. Writers take turns: git's own notes lose one of two at once."""
        with taking_turns(self.git_dir / "modelgit-notes.lock"):
            command = [*self.git.identity(), "notes", f"--ref={ref}", "add", "--force", "-F", "-", commit]
            self.git.run(*command, stdin=text.encode())


def is_bare(path: Path) -> bool:
    """Tells whether `path` is the folder of a bare repository: git itself would make another one inside of it.

    Raises:
        RepositoryError: `path` lies deeper inside of a git directory.
    """
    if not path.is_dir():
        return False
    wanted = ("--is-inside-git-dir", "--is-bare-repository", "--git-dir")
    code, output, _ = GitDirectory(path).attempt("rev-parse", "--path-format=absolute", *wanted)
    rows = output.decode("utf-8", "surrogateescape").splitlines()
    if code or rows[:1] != ["true"]:
        return False
    git_dir = Path(rows[2])
    if rows[1] == "true" and git_dir.resolve() == path.resolve():
        return True
    place = git_dir if rows[1] == "true" else git_dir.parent
    raise RepositoryError(f"{path} lies inside of a git directory, {git_dir}", hint=f"modelgit init {place}")


def named_again(start: Path, given: Environment, places: tuple[Path, Path | None, Path]) -> Environment:
    """Returns variables that name the same repository and index from any directory."""
    _, worktree, private_dir = places
    found: dict[str, str] = {}
    if "GIT_DIR" in given:
        found["GIT_DIR"] = str(private_dir)
        found |= {"GIT_WORK_TREE": str(worktree)} if worktree is not None else {}
    if given.get("GIT_INDEX_FILE"):
        found["GIT_INDEX_FILE"] = str(start.absolute() / given["GIT_INDEX_FILE"])
    return found


def blob_id(data: bytes) -> str:
    """Returns git's id of a blob, writing nothing."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def signature(author: str | None, date: int | None) -> dict[str, str]:
    """Returns the environment that gives a commit its author (`Name <address>`) and date (seconds since 1970).

    Raises:
        UsageError: an author that is not of that form.
    """
    words: dict[str, str] = {}
    if author is not None:
        name, opened, address = author.strip().removesuffix(">").partition(" <")
        if not opened or not author.strip().endswith(">"):
            raise UsageError(f"author '{author}': expected 'Name <address>'")
        words |= {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": address}
    if date is not None:
        words |= {"GIT_AUTHOR_DATE": f"@{date} +0000", "GIT_COMMITTER_DATE": f"@{date} +0000"}
    return words


def tree_row(path: str, blob: Blob) -> bytes:
    """Returns the line that enters a blob into an index."""
    return f"{blob.mode} {blob.sha} 0\t".encode() + os.fsencode(path)


def log_entry(fields: Sequence[str]) -> LogEntry:
    """Returns the commit that a row of LOG_FORMAT tells of."""
    commit, parents, author, date, decoration, message = fields[:6]
    refs = tuple(word.removeprefix("HEAD -> ") for word in decoration.split(", ") if word and word != "HEAD")
    return LogEntry(commit, tuple(parents.split()), author, int(date), message.split("\n", 1)[0], message.strip(), refs)
