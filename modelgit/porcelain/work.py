"""The work tree, as its user sees it: what has changed, taking it in, going to another version."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import DirtyWorktree, RepositoryError, RevisionError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.repo import worktree
from modelgit.repo.filling import fill, left_over
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import Status

MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Added:
    """The paths that the next commit will take as they are now."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """A new version: its commit, the branch it went to, and how its weights differ from its parent's.

    Counts are of tensors; `stored_bytes` is what it added to the object store, of `size_bytes` in weight files.
    """

    commit: str
    branch: str | None
    subject: str
    parents: tuple[str, ...]
    added: int
    changed: int
    removed: int
    same: int
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """Where the work tree is now; `branch` is None at a commit that is no branch's, `created` tells of a new branch."""

    commit: str
    branch: str | None
    created: bool = False


def status(repo: Repository) -> Status:
    """Returns what differs from HEAD, tensor by tensor."""
    return worktree.status(repo)


def add(repo: Repository, paths: Sequence[str], folder: Path, listener: Listener = ignore) -> Added:
    """Takes files, and all below folders, into the store and the index; paths are relative to `folder`.

    Raises:
        UsageError: a path that does not exist, or lies outside the work tree. FormatError: a malformed weight file.
    """
    if repo.worktree is None:
        raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
    inside = [os.path.relpath(folder.resolve() / path, repo.worktree.resolve()) for path in paths]
    outside = [path for path, place in zip(paths, inside, strict=True) if Path(place).parts[:1] == (os.pardir,)]
    if outside:
        raise UsageError(f"{outside[0]} lies outside the work tree", hint=f"the work tree is {repo.worktree}")
    worktree.add(repo, inside, listener=listener)
    return Added(tuple(inside))


def commit(repo: Repository, message: str, listener: Listener = ignore) -> Committed:
    """Commits what is staged, every change to a tracked file, and new weight files.

    Raises:
        RepositoryError: nothing has changed. FormatError: a weight file is malformed.
    """
    if not message.strip():
        raise UsageError("empty commit message", hint='say what changed: -m "…"')
    before = repo.packed_bytes()
    head = repo.head()

    def record() -> Mapping[str, bytes]:
        return {} if edited(repo, head, RECORD_PATH) else new_record(repo, head)

    made = worktree.commit_worktree(repo, message, files=record, listener=listener)
    if made is None:
        raise RepositoryError(
            "nothing to commit: the work tree is as HEAD has it", hint="modelgit status shows what git sees"
        )
    return committed(repo, made, repo.branch(), repo.packed_bytes() - before)


def edited(repo: Repository, head: str | None, path: str) -> bool:
    """Tells whether a file of the work tree is there and other than in HEAD."""
    place = repo.worktree / path if repo.worktree is not None else None
    if place is None or not place.is_file():
        return False
    return head is None or place.read_bytes() != repo.read_file(head, path)


def new_record(repo: Repository, parent: str | None) -> Mapping[str, bytes]:
    """Returns the record of a commit made by hand: what its parent's says of the model still holds."""
    old = read_record(repo, parent) if parent else None
    if old is None:
        return {}
    return {RECORD_PATH: write_record(Record("commit", old.architecture, old.classes, old.head))}


def committed(repo: Repository, made: str, branch: str | None, stored_bytes: int) -> Committed:
    """Returns the report on a new commit."""
    version = repo.version(made)
    parents = version.entry.parents
    before: Mapping[str, Manifest] = repo.version(parents[0]).manifests if parents else {}
    counts = tensor_changes(before, version.manifests)
    size = sum(manifest.size_bytes for manifest in version.manifests.values())
    return Committed(made, branch, version.entry.subject, parents, *counts, size, stored_bytes)


def tensor_changes(before: Mapping[str, Manifest], after: Mapping[str, Manifest]) -> tuple[int, int, int, int]:
    """Returns how many tensors were added, changed, removed, left alone; a tensor is known by its path and name."""
    old = {(path, entry.name): entry for path, manifest in before.items() for entry in manifest.tensors}
    new = {(path, entry.name): entry for path, manifest in after.items() for entry in manifest.tensors}
    changed = sum(old[key] != entry for key, entry in new.items() if key in old)
    added = len(new.keys() - old.keys())
    return added, changed, len(old.keys() - new.keys()), len(new) - added - changed


# ---------------------------------------------------------------------------------------------- going elsewhere


def checkout(repo: Repository, rev: str, *, force: bool = False, listener: Listener = ignore) -> CheckedOut:
    """Makes the work tree the version `rev`; a branch's name also goes to the branch.

    Raises:
        DirtyWorktree: local changes lie in the way. RevisionError, MissingObject. Nothing has changed then.
    """
    created = follow_remote_branch(repo, rev)
    if rev == "HEAD":
        fill_in(repo, listener)
    made = worktree.checkout(repo, rev, force=force, listener=listener)
    fill_in(repo, listener)
    return CheckedOut(made, repo.branch(), created=created)


def follow_remote_branch(repo: Repository, rev: str) -> bool:
    """Makes a local branch if `rev` names none, but a branch of the only remote that has it. Raises RevisionError."""
    try:
        repo.resolve(rev)
        return False
    except RevisionError:
        found = [ref for ref in repo.refs("refs/remotes/") if ref.split("/", 3)[3:] == [rev]]
        if not found and os.path.lexists(rev):
            hint = f"bring a file back: modelgit restore {rev}; write weights where manifests are: modelgit checkout"
            raise RevisionError(f"'{rev}' is a file or folder, expected a version", hint=hint) from None
        if len(found) != 1:
            raise
    repo.git.run("branch", "--quiet", "--track", "--end-of-options", rev, found[0])
    return True


def switch(repo: Repository, branch: str, *, force: bool = False, listener: Listener = ignore) -> CheckedOut:
    """Goes to a branch, as git's switch does: a commit that is no branch's is refused."""
    created = follow_remote_branch(repo, branch)
    if branch not in repo.branches():
        raise RevisionError(f"'{branch}' is no branch", hint=f"go to the commit itself: modelgit checkout {branch}")
    made = worktree.checkout(repo, branch, force=force, listener=listener)
    fill_in(repo, listener)
    return CheckedOut(made, branch, created)


def create_branch(repo: Repository, branch: str, start: str | None, listener: Listener = ignore) -> CheckedOut:
    """Makes a branch at `start` (HEAD) and goes to it; local changes stay.

    Raises:
        RepositoryError: there is such a branch already. UsageError: its name may not be one.
    """
    if branch.startswith("-") or repo.git.attempt("check-ref-format", f"refs/heads/{branch}")[0]:
        raise UsageError(f"'{branch}' may not be a branch's name", hint="letters, digits, -, _ and / may")
    if branch in repo.branches():
        raise RepositoryError(f"there is a branch '{branch}' already", hint=f"go to it: modelgit switch {branch}")
    head = repo.head()
    if start is None and head is None:
        repo.git.run("symbolic-ref", "HEAD", f"refs/heads/{branch}")
        return CheckedOut("", branch, created=True)
    commit = repo.resolve(start or "HEAD")
    repo.set_ref(f"refs/heads/{branch}", commit, expected=None)
    worktree.checkout(repo, branch, listener=listener)
    return CheckedOut(commit, branch, created=True)


def fill_in(repo: Repository, listener: Listener = ignore) -> tuple[str, ...]:
    """Writes the weight files where plain git has left their manifests, and returns their paths.

    Objects that are not here come from the remotes that have them.

    Raises:
        MissingObject, CorruptObject, StorageFull. RepositoryError: git's index is locked.
    """
    texts = left_over(repo, worktree.Look(repo).tracked) if repo.worktree is not None else {}
    if not texts:
        return ()
    from modelgit.porcelain.plumbing.seeking import seek

    seek(repo, texts, listener)
    return tuple(path for path, text in texts.items() if fill(repo, path, text, listener))


def require_clean(repo: Repository) -> None:
    """Refuses a work tree with changes, before a step that would overwrite them.

    Raises:
        DirtyWorktree: naming the paths.
    """
    if repo.worktree is None:
        return
    changed = [change.path for change in worktree.status(repo).changes if change.kind != "new"]
    if changed:
        named = ", ".join(changed[:MAX_NAMED]) + (" …" if len(changed) > MAX_NAMED else "")
        raise DirtyWorktree(f"the work tree has changes: {named}", hint="commit them first: modelgit commit -m MSG")


def land(repo: Repository, made: str, listener: Listener = ignore) -> str | None:
    """Moves the branch checked out to `made`, and the work tree with it; returns the branch.

    The files come first, then the branch, so that an interruption never leaves a branch whose files look reverted.

    Raises:
        DirtyWorktree, MissingObject, StorageFull: before the branch has moved.
    """
    branch = repo.branch()
    if repo.worktree is not None:
        worktree.advance(repo, made, listener=listener)
    else:
        repo.set_ref(f"refs/heads/{branch}" if branch else "HEAD", made, expected=repo.head())
    return branch
