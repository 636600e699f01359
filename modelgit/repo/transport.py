"""Moving history and objects between repositories: objects first, then refs; no ref points at what is not there.

Nothing that comes from a remote is executed: no hooks, no configuration, no URL of its choosing.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import DirtyWorktree, ModelgitError, RemoteError, RepositoryError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, is_manifest, parse
from modelgit.remotes.open import directory_of, open_remote
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob
from modelgit.repo.worktree import checkout, status
from modelgit.store.objects import ObjectStore

NOTES = "refs/notes/modelgit-scores"
FETCHED_NOTES = f"+{NOTES}:{NOTES}"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a transfer did: the refs that changed (new commit by name), and the objects and bytes that travelled."""

    refs: dict[str, str]
    objects: int
    bytes: int


def clone(url: str, directory: Path, *, branch: str | None = None, listener: Listener = ignore) -> Repository:
    """Returns a copy of the repository at `url`, its branch checked out. A clone that fails leaves nothing behind.

    Raises:
        RemoteError: nothing to clone there. RepositoryError: `directory` is in use.
    """
    source = directory_of(url)
    open_remote(url)
    if directory.exists() and any(directory.iterdir()):
        raise RepositoryError(
            f"{directory} exists and is not empty", hint="name another folder: modelgit clone URL DIR"
        )
    existed = directory.exists()
    try:
        return fill_clone(str(source), directory, branch, listener)
    except BaseException:
        if existed:
            for item in directory.iterdir():
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        else:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def fill_clone(source: str, directory: Path, branch: str | None, listener: Listener) -> Repository:
    """Makes the clone in an empty folder."""
    chosen = branch or remote_branch(source)
    repo = Repository.init(directory, branch=chosen or "main")
    repo.git.run("remote", "add", "--", "origin", source)
    fetch(repo, "origin", listener=listener)
    remote = repo.refs("refs/remotes/origin/")
    if chosen is None or f"refs/remotes/origin/{chosen}" not in remote:
        if branch is not None:
            names = ", ".join(name.removeprefix("refs/remotes/origin/") for name in remote)
            raise RemoteError(
                f"the repository at {source} has no branch '{branch}'", hint=f"branches: {names or 'none'}"
            )
        return repo
    start_branch(repo, chosen, remote[f"refs/remotes/origin/{chosen}"])
    checkout(repo, chosen, force=True, listener=listener)
    return repo


def start_branch(repo: Repository, name: str, commit: str) -> None:
    """Makes a local branch that follows the branch of that name at origin."""
    repo.set_ref(f"refs/heads/{name}", commit, expected=None)
    repo.git.run("config", f"branch.{name}.remote", "origin")
    repo.git.run("config", f"branch.{name}.merge", f"refs/heads/{name}")


def remote_branch(source: str) -> str | None:
    """Returns the branch that HEAD is at in another repository."""
    return Repository.open(Path(source)).branch()


def url_of(repo: Repository, remote: str) -> str:
    """Returns the URL of a remote. Raises RemoteError for an unknown one, listing the known."""
    code, output, _ = repo.git.attempt("remote", "get-url", "--", remote)
    if code:
        known = ", ".join(repo.git.run("remote").split()) or "none"
        raise RemoteError(
            f"no remote is called '{remote}'", hint=f"known remotes: {known}; add one: modelgit remote add NAME URL"
        )
    return output.decode("utf-8", "surrogateescape").removesuffix("\n")


def fetch(repo: Repository, remote: str, *, listener: Listener = ignore) -> Moved:
    """Brings a remote's branches (to refs/remotes/REMOTE/), tags and scores here, with the objects they need.

    Raises:
        RemoteError: the remote is absent, or lacks objects that its history needs.
    """
    source = str(directory_of(url_of(repo, remote)))
    before = repo.refs(f"refs/remotes/{remote}/", "refs/tags/")
    there = Repository.open(Path(source))
    known = [c for c in repo.refs().values() if there.git.attempt("cat-file", "-e", f"{c}^{{commit}}")[0] == 0]
    wanted = needed_objects(there, [*there.refs("refs/heads/", "refs/tags/").values()], known)
    report = copy_objects(open_remote(source), repo, wanted, listener)
    branches = f"+refs/heads/*:refs/remotes/{remote}/*"
    notes = [FETCHED_NOTES] if NOTES in there.refs(NOTES) and NOTES not in repo.refs(NOTES) else []
    command = [
        "fetch",
        "--quiet",
        "--prune",
        "--no-recurse-submodules",
        "--no-write-fetch-head",
        "--end-of-options",
        source,
    ]
    repo.git.run(*command, branches, "+refs/tags/*:refs/tags/*", *notes)
    after = repo.refs(f"refs/remotes/{remote}/", "refs/tags/")
    return Moved({name: c for name, c in after.items() if before.get(name) != c}, *report)


def copy_objects(source: ObjectStore, repo: Repository, wanted: Iterable[str], listener: Listener) -> tuple[int, int]:
    """Copies missing objects into the repository's store; returns how many, and their bytes."""
    wanted = set(wanted)
    absent = source.missing(repo.store.missing(wanted))
    if absent:
        raise RemoteError(
            f"the remote lacks {len(absent)} of {len(wanted)} objects, the first is {min(absent)}",
            hint="check it there: modelgit fsck",
        )
    report = source.copy_to(repo.store, wanted, listener)
    return report.objects, report.bytes


def push(repo: Repository, remote: str, branches: Sequence[str], *, listener: Listener = ignore) -> Moved:
    """Sends branches to a remote: the objects it lacks, then the refs. Only forwards.

    Raises:
        RemoteError: the remote is absent, or has commits that the branch lacks.
    """
    url = str(directory_of(url_of(repo, remote)))
    there = Repository.open(Path(url))
    tips = {name: repo.resolve(f"refs/heads/{name}") for name in branches}
    theirs = there.branches()
    refuse_rewinds(repo, tips, theirs, remote)
    refuse_checked_out(there, tips, theirs)
    known = [
        commit for commit in there.refs().values() if repo.git.attempt("cat-file", "-e", f"{commit}^{{commit}}")[0] == 0
    ]
    wanted = needed_objects(repo, list(tips.values()), known)
    report = repo.store.copy_to(there.store, wanted, listener)
    refspecs = [f"refs/heads/{name}:refs/heads/{name}" for name in tips]
    notes = [FETCHED_NOTES[1:]] if NOTES in repo.refs(NOTES) and NOTES not in there.refs(NOTES) else []
    repo.git.run("push", "--quiet", "--no-verify", "--end-of-options", url, *refspecs, *notes)
    for name, commit in tips.items():
        repo.git.run("update-ref", "--end-of-options", f"refs/remotes/{remote}/{name}", commit)
    return Moved({name: c for name, c in tips.items() if theirs.get(name) != c}, report.objects, report.bytes)


def refuse_rewinds(repo: Repository, tips: dict[str, str], theirs: dict[str, str], remote: str) -> None:
    """Raises RemoteError if a branch of the remote holds commits that ours lacks."""
    for name, commit in tips.items():
        old = theirs.get(name)
        if old is not None and not repo.is_ancestor(old, commit):
            raise RemoteError(
                f"cannot push {name}: {remote} has commits that are not here ({old[:12]})",
                hint=f"get and merge them first: modelgit fetch {remote}, modelgit merge {remote}/{name}",
            )


def refuse_checked_out(there: Repository, tips: dict[str, str], theirs: dict[str, str]) -> None:
    """Raises RemoteError if a push would move the branch that somebody has checked out there."""
    current = there.branch() if there.worktree is not None else None
    if current in tips and theirs.get(current) != tips[current]:
        hint = "push to a bare repository (git init --bare PATH), or to another branch"
        raise RemoteError(f"cannot push {current}: it is checked out in {there.worktree}", hint=hint)


def pull(repo: Repository, remote: str, *, listener: Listener = ignore) -> Moved:
    """Fetches, then moves the branch checked out forward to the remote's.

    Raises:
        DirtyWorktree: uncommitted changes. RepositoryError: the branches have diverged, or HEAD is on none.
    """
    branch = repo.branch()
    if branch is None:
        raise RepositoryError("HEAD is on no branch", hint="go to one: modelgit switch BRANCH")
    moved = fetch(repo, remote, listener=listener)
    theirs = repo.refs(f"refs/remotes/{remote}/{branch}").get(f"refs/remotes/{remote}/{branch}")
    if theirs is None:
        raise RemoteError(f"{remote} has no branch '{branch}'", hint=f"share it: modelgit push {remote} {branch}")
    head = repo.head()
    if head is not None and repo.is_ancestor(theirs, head):
        return moved
    if head is not None and not repo.is_ancestor(head, theirs):
        raise RepositoryError(
            f"{branch} and {remote}/{branch} have diverged", hint=f"average them: modelgit merge {remote}/{branch}"
        )
    advance(repo, branch, head, theirs, listener)
    return moved


def advance(repo: Repository, branch: str, head: str | None, commit: str, listener: Listener = ignore) -> None:
    """Moves the branch checked out to `commit`, work tree and all.

    Raises:
        DirtyWorktree: uncommitted changes.
    """
    changes = status(repo).changes
    if changes:
        raise DirtyWorktree(
            f"uncommitted changes: {', '.join(c.path for c in changes)}", hint="commit them: modelgit commit"
        )
    checkout(repo, commit, listener=listener)
    repo.set_ref(f"refs/heads/{branch}", commit, expected=head)
    repo.git.run("symbolic-ref", "-m", f"advance to {commit}", "HEAD", f"refs/heads/{branch}")


def needed_objects(repo: Repository, include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Returns the ids of all objects that the history of `include` needs and that of `exclude` does not bring.

    Raises:
        RemoteError: a manifest in it is malformed.
    """
    if not include:
        return set()
    revisions = "\n".join([*include, *(f"^{commit}" for commit in exclude)]) + "\n"
    rows = repo.git.run("rev-list", "--objects", "--stdin", stdin=revisions.encode()).splitlines()
    blobs = {row.split(" ", 1)[0] for row in rows if row.endswith(WEIGHTS_SUFFIX)}
    return {oid for blob in sorted(blobs) for oid in oids_in(repo, blob)}


def oids_in(repo: Repository, sha: str) -> Iterator[str]:
    """Yields the objects that a manifest names; a file that is no manifest names none."""
    if int(repo.git.run("cat-file", "-s", sha)) > MAX_MANIFEST_BYTES:
        return
    data = repo.read_blob(Blob(sha))
    if not is_manifest(data):
        return
    try:
        yield from parse(data.decode("utf-8", "replace"), f"blob {sha[:12]}").oids()
    except ModelgitError as error:
        raise RemoteError(f"the history holds a malformed manifest: {error.message}") from error
