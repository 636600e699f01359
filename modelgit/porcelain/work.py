"""The work tree, as its user sees it: what has changed, taking it in, going to another version."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from modelgit.errors import (
    CorruptObject,
    DirtyWorktree,
    MissingObject,
    ModelgitError,
    RepositoryError,
    RevisionError,
    UsageError,
)
from modelgit.events import Listener, Noted, ignore
from modelgit.formats.manifest import Manifest, followed, write
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.repo import worktree
from modelgit.repo.drivers import ATTRIBUTES_PATH
from modelgit.repo.filling import fill, left_over
from modelgit.repo.merging.underway import paths_in_conflict, refuse_merge
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version
from modelgit.repo.worktree import Change, Status

MAX_NAMED = 5
OWN_PATHS = (RECORD_PATH, ATTRIBUTES_PATH)


@dataclass(frozen=True, slots=True)
class Added:
    """The paths that the next commit will take as they are now."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """A new version: its commit, the branch it went to, and how its weights differ from its parent's.

    Counts are of tensors; `stored_bytes` is what it added to the object store, of `size_bytes` in weight files. If that
    is nothing, for `modelgit add` had stored them say, it is what the tensors take there that its parents lack.
    `files` are those that are new or changed, `deleted` those that are gone, without modelgit's own. `left_out` is what
    an import has not taken in: a file by its path, a part of a checkpoint as FILE: PART.
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
    files: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """Where the work tree is now; `branch` is None at a commit that is no branch's, `created` tells of a new branch.

    `kept` are local changes that came along, `left` is a commit that was checked out and is on no branch or tag.
    """

    commit: str
    branch: str | None
    created: bool = False
    kept: tuple[Change, ...] = ()
    left: str | None = None


def status(repo: Repository, listener: Listener = ignore) -> Status:
    """Returns what differs from HEAD, tensor by tensor, and what git is in the middle of.

    Raises:
        RepositoryError: the repository is bare.
    """
    return worktree.status(repo, listener)


def some(paths: Sequence[str]) -> str:
    """Returns the first of many paths in a row."""
    return ", ".join(paths[:MAX_NAMED]) + (" …" if len(paths) > MAX_NAMED else "")


def add(repo: Repository, paths: Sequence[str], folder: Path, listener: Listener = ignore) -> Added:
    """Takes files, and all below folders, into the store and the index; paths are relative to `folder`.

    Amid conflicts git does it, to whom that says that they are resolved.

    Raises:
        UsageError: a path that does not exist, or lies outside the work tree. FormatError: a malformed weight file.
    """
    if repo.worktree is None:
        raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
    inside = [os.path.relpath(folder.resolve() / path, repo.worktree.resolve()) for path in paths]
    outside = [path for path, place in zip(paths, inside, strict=True) if Path(place).parts[:1] == (os.pardir,)]
    if outside:
        raise UsageError(f"{outside[0]} lies outside the work tree", hint=f"the work tree is {repo.worktree}")
    if paths_in_conflict(repo):
        repo.git.run("add", "--", *inside)
        return Added(tuple(inside))
    try:
        worktree.add(repo, inside, listener=listener)
    except UsageError as error:
        raise UsageError(error.message, hint=f"paths are relative to the folder you are in: {folder}") from error
    tell_of_checkpoints(inside, listener)
    return Added(tuple(inside))


def tell_of_checkpoints(paths: Sequence[str], listener: Listener) -> None:
    """Says of checkpoints that were added as they are that there is a better way."""
    from modelgit.formats.torch_zip import SUFFIXES

    found = [path for path in paths if path.endswith(SUFFIXES)]
    if found:
        listener(Noted(f"{some(found)}: git will keep every version whole; modelgit import takes in the tensors"))


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
        raise nothing_to_commit(repo, head)
    return committed(repo, made, repo.branch(), repo.packed_bytes() - before)


def nothing_to_commit(repo: Repository, head: str | None) -> RepositoryError:
    """Returns the error for a commit of nothing; it names a weight file that git ignores, where there are no others."""
    found = worktree.status(repo).ignored
    if found:
        told, hint = f"{found[0]} is ignored (.gitignore)", f"add it by name: modelgit add {quote(found[0])}"
    else:
        told = "the work tree is as HEAD has it" if head else "no weight file is here, and no other file was added"
        hint = "modelgit status shows what git sees"
    return RepositoryError(f"nothing to commit: {told}", hint=hint)


def edited(repo: Repository, head: str | None, path: str) -> bool:
    """Tells whether a file of the work tree is there and other than in HEAD."""
    place = repo.worktree / path if repo.worktree is not None else None
    if place is None or place.is_symlink() or not place.is_file():
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
    stored_bytes = stored_bytes or taken_bytes(repo, version, parents)
    old, new = repo.version(parents[0]).tree() if parents else {}, version.tree()
    files = tuple(path for path in sorted(new) if new[path] != old.get(path) and path not in OWN_PATHS)
    deleted = tuple(path for path in sorted(old.keys() - new.keys()) if path not in OWN_PATHS)
    return Committed(made, branch, version.entry.subject, parents, *counts, size, stored_bytes, files, deleted)


def taken_bytes(repo: Repository, version: Version, parents: Sequence[str]) -> int:
    """Returns what the objects of a version that its parents lack take in the store, as far as they are there."""
    known = {
        oid for parent in parents for manifest in repo.version(parent).manifests.values() for oid in manifest.oids()
    }
    new = {oid for manifest in version.manifests.values() for oid in manifest.oids()} - known
    if not new:
        return 0
    try:
        return sum(repo.store.info(oid).stored_bytes for oid in sorted(new - repo.store.missing(new)))
    except (CorruptObject, MissingObject):
        return 0  # the version is made: telling of damage is for fsck


def tensor_changes(before: Mapping[str, Manifest], after: Mapping[str, Manifest]) -> tuple[int, int, int, int]:
    """Returns how many tensors were added, changed, removed, left alone; they are followed into other files."""
    names = {path: {entry.name for entry in manifest.tensors} for path, manifest in after.items()}
    placed = followed(before, names).items()
    old = {(path, entry.name): entry for path, manifest in placed for entry in manifest.tensors}
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
    rev = named_before(repo, rev)
    created = follow_remote_branch(repo, rev)
    if rev == "HEAD":
        fill_in(repo, listener)
    return arrive(repo, rev, created=created, force=force, listener=listener)


def named_before(repo: Repository, rev: str) -> str:
    """Returns the branch, or the commit, that `-` and `@{-2}` stand for: what was checked out before.

    Raises:
        RevisionError: nothing was.
    """
    rev = "@{-1}" if rev == "-" else rev
    if not rev.startswith("@{-"):
        return rev
    code, output, _ = repo.git.attempt("check-ref-format", "--branch", rev)
    if code:
        raise RevisionError(f"'{rev}': nothing was checked out before", hint="git reflog lists where HEAD has been")
    return output.decode("utf-8", "surrogateescape").strip()


def arrive(repo: Repository, rev: str, *, created: bool, force: bool, listener: Listener) -> CheckedOut:
    """Makes the work tree the version `rev`, and says what came along and what was left behind.

    Raises:
        RepositoryError: another work tree is on that branch. DirtyWorktree, RevisionError, MissingObject: a branch
            that was `created` for this is gone again.
    """
    before = repo.head() if repo.branch() is None else None
    try:
        refuse_shared_branch(repo, rev)
        made = reach(repo, rev, force, listener)
    except ModelgitError:
        if created and repo.branch() != rev:
            repo.git.attempt("branch", "--quiet", "-D", "--end-of-options", rev)
        raise
    fill_in(repo, listener)
    kept = () if force else worktree.local_changes(repo, listener)
    return CheckedOut(made, repo.branch(), created, kept, before if before and is_lost(repo, before) else None)


def reach(repo: Repository, rev: str, force: bool, listener: Listener) -> str:
    """Makes the work tree the version `rev`, with objects from the remotes where they are not here yet."""
    try:
        return worktree.checkout(repo, rev, force=force, listener=listener)
    except MissingObject:
        from modelgit.porcelain.plumbing.seeking import seek

        target = repo.version(repo.branches().get(rev, rev))
        seek(repo, {path: write(manifest).encode() for path, manifest in target.manifests.items()}, listener)
    return worktree.checkout(repo, rev, force=force, listener=listener)


def refuse_shared_branch(repo: Repository, branch: str) -> None:
    """Refuses a branch that another work tree is on: a commit there would make files here look reverted.

    Raises:
        RepositoryError: naming that work tree.
    """
    if branch == repo.branch() or not (repo.git_dir / "worktrees").is_dir():
        return
    place = ""
    for row in repo.git.run("worktree", "list", "--porcelain").splitlines():
        place = row.removeprefix("worktree ") if row.startswith("worktree ") else place
        if row == f"branch refs/heads/{branch}":
            hint = f"work there, or make a branch of your own: modelgit switch -c NAME {branch}"
            raise RepositoryError(f"'{branch}' is checked out in another work tree, {place}", hint=hint)


def is_lost(repo: Repository, commit: str) -> bool:
    """Tells whether neither HEAD nor any branch or tag leads to a commit."""
    if repo.git.attempt("merge-base", "--is-ancestor", commit, "HEAD")[0] == 0:
        return False
    return not repo.git.run("for-each-ref", "--count=1", f"--contains={commit}")


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
    branch = named_before(repo, branch)
    created = follow_remote_branch(repo, branch)
    if branch not in repo.branches():
        raise RevisionError(f"'{branch}' is no branch", hint=f"go to the commit itself: modelgit checkout {branch}")
    return arrive(repo, branch, created=created, force=force, listener=listener)


def create_branch(
    repo: Repository, branch: str, start: str | None, listener: Listener = ignore, *, force: bool = False
) -> CheckedOut:
    """Makes a branch at `start` (HEAD) and goes to it; local changes stay, with `force` they are overwritten.

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
    return arrive(repo, branch, created=True, force=force, listener=listener)


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


def require_clean(repo: Repository, *, added: bool = False) -> None:
    """Refuses a work tree with changes, before a step that would overwrite them; files `added` may be allowed to stay.

    Raises:
        RepositoryError: in the middle of a merge. DirtyWorktree: naming the paths.
    """
    if repo.worktree is None:
        return
    refuse_merge(repo)
    changed = [change.path for change in worktree.local_changes(repo, added=not added)]
    if changed:
        hint = "commit them first: modelgit commit -m MSG; or set them aside: modelgit stash"
        raise DirtyWorktree(f"the work tree has changes: {some(changed)}", hint=hint)


def land(
    repo: Repository,
    made: str,
    listener: Listener = ignore,
    *,
    expected: str | None,
    reason: str = "advance: fast-forward",
) -> str | None:
    """Moves the branch checked out to `made`, and the work tree with it; returns the branch.

    The files come first, then the branch, so that an interruption never leaves a branch whose files look reverted.
    `expected` is where the branch was when `made` was made, `reason` goes to the reflog.

    Raises:
        DirtyWorktree, MissingObject, StorageFull: before the branch has moved.
    """
    branch = repo.branch()
    if repo.worktree is not None:
        worktree.advance(repo, made, listener=listener, expected=expected, reason=reason)
    else:
        ref = f"refs/heads/{branch}" if branch else "HEAD"
        repo.set_ref(ref, made, expected=expected, reason=reason)
    return branch
