"""The work tree: real files where git has manifests. Checking out, taking in; `look` looks.

Files are written first (each to a temporary name, then renamed), the index next, HEAD last; so an interrupted
checkout is gone on with by running it again.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import DirtyWorktree, FormatError, MissingObject, RepositoryError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest, TensorEntry, by_name, is_manifest, relatives
from modelgit.repo.drivers import ATTRIBUTES_PATH, keep_current
from modelgit.repo.files import (
    backdate,
    delete_path,
    link_at,
    make_parents,
    make_submodule,
    refuse_obstacles,
    stat_of,
    write_link,
    write_ordinary,
)
from modelgit.repo.gitdir import check_path
from modelgit.repo.index import refuse_lock, write_index
from modelgit.repo.look import (
    EMPTY,
    PREFIX_BYTES,
    Change,
    Look,
    Status,
    changes_since,
    dated,
    filters,
    is_weights,
    local_changes,
    manifest_at,
    pointer_at,
    prefix_of,
    status,
)
from modelgit.repo.merging.underway import refuse_merge
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository, blob_id
from modelgit.repo.stamps import Stamp, stamp_of
from modelgit.repo.upkeep.locks import taking_turns
from modelgit.repo.values import LINK, SUBMODULE, Blob, CommitDraft, Version

if TYPE_CHECKING:
    from modelgit.store.files.intake import Older
    from modelgit.store.writing import PackWriter

EXECUTABLE = "100755"
TURNS = "modelgit-turns"  # held while the branch checked out moves with its files
MAX_EARLIER = 8  # versions before HEAD that are looked at for tensors HEAD lacks
THROW_AWAY = "commit them (modelgit commit), or throw them away: --force"
SET_ASIDE = "commit them first: modelgit commit -m MSG; or set them aside: modelgit stash"


# ---------------------------------------------------------------------- checkout


@dataclass(frozen=True, slots=True)
class Move:
    """What a checkout will do to the files."""

    write: tuple[str, ...]
    delete: tuple[str, ...]
    keep: tuple[str, ...]  # local changes that stay


def checkout(repo: Repository, rev: str, *, force: bool = False, listener: Listener = ignore) -> str:
    """Makes the work tree the version `rev` and returns its commit; a branch's name also switches to the branch.

    Local changes to files that the versions share stay. With `force` all local changes are overwritten.

    Raises:
        DirtyWorktree: local changes lie in the way. MissingObject: objects are not here yet. Nothing has changed then.
    """
    target = repo.version(repo.branches().get(rev, rev))  # a tag of the same name does not stand in the way
    put(repo, target, force=force, listener=listener, way_out=THROW_AWAY)
    point_head(repo, rev, target.commit)
    return target.commit


def advance(
    repo: Repository,
    commit: str,
    *,
    expected: str | None,
    listener: Listener = ignore,
    reason: str = "advance: fast-forward",
) -> None:
    """Moves the branch checked out (or a detached HEAD) to `commit`, the files first.

    An interruption leaves the branch where it was, and running the same again goes on. `expected` is where the branch
    was when `commit` was made, `reason` goes to the reflog. Of several at once one goes first, and the others then find
    that the branch has moved, before they touch a file.

    Raises:
        DirtyWorktree, MissingObject: nothing has changed then. RepositoryError: the branch has moved meanwhile.
    """
    with taking_turns(repo.private_dir / TURNS):
        head, branch = repo.head(), repo.branch()
        if expected != head:
            was, now = (str(one)[:10] if one else "no commit" for one in (expected, head))
            hint = f"{commit[:10]} is kept: modelgit merge {commit[:10]}; or do it again on top of what is there now"
            raise RepositoryError(f"{branch or 'HEAD'} has moved meanwhile, from {was} to {now}", hint=hint)
        put(repo, repo.version(commit), listener=listener)
        ref = f"refs/heads/{branch}" if branch else "HEAD"
        repo.set_ref(ref, commit, expected=head, reason=reason)


def put(
    repo: Repository,
    target: Version,
    *,
    force: bool = False,
    listener: Listener = ignore,
    way_out: str = SET_ASIDE,
) -> None:
    """Makes files and index those of a version; HEAD stays. `way_out` is what to do about changes in the way.

    Raises:
        RepositoryError: in the middle of a merge. DirtyWorktree, MissingObject: nothing has changed then.
    """
    refuse_merge(repo)
    rewrite(repo, target, force=force, listener=listener, way_out=way_out)


def rewrite(
    repo: Repository,
    target: Version,
    *,
    force: bool = False,
    listener: Listener = ignore,
    way_out: str = SET_ASIDE,
) -> None:
    """Makes files and index those of a version, also in the middle of a merge. Raises as `put`."""
    keep_current(repo.git, repo.git_dir)
    look = Look(repo, listener)
    refuse_lock(look.index)
    head = repo.head()
    old = repo.version(head) if head else None
    move = plan(look, old.tree() if old else EMPTY, target.tree(), force=force, way_out=way_out)
    move = replace(move, write=tuple(sorted({*move.write, *manifests_left(look, target, move)})))
    files = [path for path in move.write if not is_submodule(target, path)]
    refuse_linked_weights(target, files)
    refuse_obstacles(look.root, files, move.delete)
    refuse_missing(repo, [target.manifests[path] for path in move.write if path in target.manifests])
    if target.manifests:
        repo.set_up(listener)
    for path in move.delete:
        delete_path(look.root, path)
    previous = old.manifests if old else {}
    written = {path: write_path(repo, target, path, previous.get(path), listener) for path in move.write}
    kept = {path: dated(look, path, found) for path, found in look.stats.items() if path not in move.keep}
    added = {} if force else staged(look, (old.tree() if old else EMPTY, target.tree()))
    stamps = {path: stamp_of(found) for path, found in {**kept, **written}.items()}
    write_index(look.index, {**target.tree(), **added}, stamps)


def staged(look: Look, trees: Sequence[Mapping[str, Blob]]) -> dict[str, Blob]:
    """Returns what the index alone has: files that were added and are in none of the trees."""
    return {path: blob for path, blob in look.tracked.items() if not any(path in tree for tree in trees)}


def is_submodule(target: Version, path: str) -> bool:
    """Tells whether a version has a submodule at a path: git looks after what is in it."""
    return path in target.files and target.files[path].mode == SUBMODULE


def refuse_linked_weights(target: Version, paths: Iterable[str]) -> None:
    """Refuses to put a link where weights are looked for: whoever writes the weights would write to where it leads.

    Raises:
        FormatError: naming it; nothing has changed then.
    """
    for path in paths:
        if path.endswith(WEIGHTS_SUFFIX) and path in target.files and target.files[path].mode == LINK:
            hint = "whoever made the version must commit the file itself in its place"
            raise FormatError(f"{path} in {target.commit[:12]}: expected a weight file, got a link", hint=hint)


def manifests_left(look: Look, target: Version, move: Move) -> list[str]:
    """Returns the weight files in whose place plain git has left their manifests: right, but too small."""
    return [
        path
        for path, manifest in target.manifests.items()
        if path not in move.keep and path in look.stats and look.stats[path].st_size != manifest.size_bytes
    ]


def plan(look: Look, before: Mapping[str, Blob], after: Mapping[str, Blob], *, force: bool, way_out: str) -> Move:
    """Returns what to write and delete, refusing to overwrite changes.

    Raises:
        DirtyWorktree: naming every path in the way.
    """
    write: list[str] = []
    delete: list[str] = []
    keep: list[str] = []
    blocked: list[str] = []
    for path in sorted({*before, *after, *look.tracked}):
        now, old, new = here(look, path), before.get(path), after.get(path)
        if now == new:
            continue
        if force or now == old or (now is None and old != new):
            (write if new else delete).append(path)
        elif old == new:
            keep.append(path)
        else:
            blocked.append(path)
    if blocked:
        raise DirtyWorktree(f"local changes would be overwritten: {', '.join(blocked)}", hint=way_out)
    return Move(tuple(write), tuple(delete), tuple(keep))


def here(look: Look, path: str) -> Blob | str | None:
    """Returns the blob at `path`, or a word that equals no blob if it cannot be read."""
    try:
        return look.blob(path)
    except FormatError:
        return "unreadable"


def refuse_missing(repo: Repository, manifests: Iterable[Manifest]) -> None:
    """Raises MissingObject if any object of the manifests, or one that it is a difference to, is not in the store."""
    wanted = {oid for manifest in manifests for oid in manifest.oids()}
    if not wanted:
        return
    try:
        repo.store.closure(wanted)
    except MissingObject:
        missing = repo.store.missing(wanted)
        if not missing:  # one that they are differences to
            raise
        raise MissingObject(
            f"{len(missing)} of {len(wanted)} objects are not in the store, the first is {min(missing)}",
            hint="get them from where the repository came from: modelgit fetch, or modelgit fsck to see the damage",
        ) from None


def write_path(
    repo: Repository, target: Version, path: str, previous: Manifest | None = None, listener: Listener = ignore
) -> os.stat_result:
    """Writes one file of a version, whole or not at all, and returns its stat; what `previous` shares is copied."""
    from modelgit.store.files.materialise import materialise

    root = root_of(repo)
    if is_submodule(target, path):
        return make_submodule(root, path)
    make_parents(root, path)
    if path in target.manifests:
        materialise(repo.store, target.manifests[path], root / path, listener, previous)
        if target.manifest_blobs[path].mode == EXECUTABLE:
            (root / path).chmod((root / path).stat().st_mode | 0o111)
    elif target.files[path].mode == LINK:
        write_link(root / path, repo.read_link(target.files[path]))
    else:
        write_ordinary(root / path, repo.read_blob(target.files[path]), target.files[path].mode)
    return backdate(root / path)


def root_of(repo: Repository) -> Path:
    """Returns the work tree's folder. Raises RepositoryError for a bare repository."""
    if repo.worktree is None:
        raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
    return repo.worktree


def point_head(repo: Repository, rev: str, commit: str) -> None:
    """Makes HEAD the branch `rev`, or the commit itself if it is no branch.

    The reflog says so in git's words: `git switch -` finds its way back by them.
    """
    branch = repo.branch()
    if branch == rev:
        return
    known = rev in repo.branches()
    reason = f"checkout: moving from {branch or repo.head()} to {rev if known else commit}"
    if known:
        repo.git.run(*repo.git.identity(), "symbolic-ref", "-m", reason, "HEAD", f"refs/heads/{rev}")
    elif rev != "HEAD":
        repo.git.run(*repo.git.identity(), "update-ref", "--no-deref", "-m", reason, "HEAD", commit)


# ---------------------------------------------------------------------- taking in


def add(repo: Repository, paths: Sequence[str] | None = None, *, listener: Listener = ignore) -> dict[str, Blob]:
    """Takes changes of the work tree into store and index, and returns what the index then says.

    Without `paths`: every change to a tracked file, and new weight files. With them: those files, and all below
    those folders; paths are relative to the top of the work tree.

    Raises:
        FormatError: a weight file is malformed. UsageError: a path that does not exist.
    """
    keep_current(repo.git, repo.git_dir)
    look = Look(repo)
    refuse_lock(look.index)
    files, stamps = dict(look.tracked), look.held()
    wanted = [path for path in wanted_paths(look, paths) if path not in stamps]
    others = {path: blob for path in wanted if (blob := look.other(path)) is not None}
    files |= {path: taken_link(look, path, blob) for path, blob in others.items()}
    changed = {path: stat_of(look.root, path) for path in wanted if path not in others}
    if not changed and files == look.tracked:
        return files
    for path, found in list(changed.items()):
        if found is not None and look.same_as_index(path, found):
            stamps |= proven_stamp(look, path, found)
            del changed[path]
    if not changed:
        write_index(look.index, files, stamps)
        return files
    head = repo.head()
    parents, older = repo.version(head).manifests if head else {}, Earlier(repo, head)
    with pack_for(repo, changed) as pack:
        if pack is not None:
            repo.set_up(listener)
        for path, found in changed.items():
            files.pop(path, None)
            if found is not None:
                files[path] = take_in(look, path, found, (pack, relatives(parents, path), older.like(path)), listener)
                stamps |= proven_stamp(look, path, found)
        if pack is not None:
            pack.commit()
    look.prints.save()
    write_index(look.index, files, stamps)
    return files


def taken_link(look: Look, path: str, blob: Blob) -> Blob:
    """Returns the blob of a link, which git has then; a submodule's is that of the index."""
    target = link_at(look.root, path) if blob.mode == LINK else None
    return blob if target is None else replace(look.repo.write_blob(target), mode=LINK)


class Earlier:
    """The weights of versions before a commit, along first parents: what tensors that the commit lacks may be like.

    Git is asked when the first is wanted, once for all files. `head` may be "HEAD", of no commit even.
    """

    def __init__(self, repo: Repository, head: str | None) -> None:
        self.repo, self.head = repo, head

    @cached_property
    def versions(self) -> list[tuple[Mapping[str, Manifest], Mapping[str, TensorEntry]]]:
        """The last versions with other weights: by file, and of all files by name; none where a manifest is malformed.

        The last commit that touched weights has those of `head`.
        """
        limits = ("--first-parent", f"--max-count={MAX_EARLIER + 1}", str(self.head), "--", f"*{WEIGHTS_SUFFIX}")
        code, output, _ = self.repo.git.attempt("rev-list", *limits) if self.head else (1, b"", "")
        commits = output.decode().split() if code == 0 else []
        try:
            found = [self.repo.version(commit).manifests for commit in commits[1:]]
        except FormatError:
            return []
        return [(files, by_name(relatives(files, ""))) for files in found]

    def like(self, path: str) -> Iterator[Mapping[str, TensorEntry]]:
        """Yields the tensors that a file may be like, the nearest version first, in it those at the same path."""
        for files, everything in self.versions:
            yield by_name(files.get(path))
            yield everything


def pack_for(
    repo: Repository, changed: Mapping[str, os.stat_result | None]
) -> "AbstractContextManager[PackWriter | None]":
    """Returns a pack for the weight files among those that changed, None if there are none: numpy loads slowly."""
    weights = any(found is not None and is_weights(path, found) for path, found in changed.items())
    return repo.store.begin() if weights else nullcontext()


def wanted_paths(look: Look, paths: Sequence[str] | None) -> list[str]:
    """Returns the files to take in.

    Raises:
        UsageError: a path that does not exist. FormatError: one that may not be in a version.
    """
    if paths is None:
        linked = look.other(ATTRIBUTES_PATH) is not None
        attributes = [ATTRIBUTES_PATH] if not linked and stat_of(look.root, ATTRIBUTES_PATH) is not None else []
        new = [check_path(path, "commit") for path in look.new_weights()]  # others would stop every further command
        return sorted({*look.tracked, *new, *attributes})
    fresh = look.new_files()
    found: set[str] = set()
    for given in paths:
        path = os.path.normpath(given)
        if path == "." or ((look.root / path).is_dir() and look.other(path) is None):
            prefix = "" if path == "." else f"{path}/"
            below = {name for name in (*look.tracked, *fresh) if name.startswith(prefix)}
        else:
            below = {check_path(path, "add")}
            if path not in look.tracked and look.other(path) is None and stat_of(look.root, path) is None:
                raise UsageError(f"{path}: no such file", hint="paths are relative to the top of the work tree")
        found |= below
    return sorted(found)


def take_in(
    look: Look,
    path: str,
    found: os.stat_result,
    target: "tuple[PackWriter | None, Manifest | None, Older]",
    listener: Listener,
) -> Blob:
    """Returns the blob of a file of the work tree, its objects in the pack, as differences to the parent's."""
    pack, parent, older = target
    look.refuse_empty(path, found)
    place, mode = look.root / path, look.mode(path, found)
    if pack is None or not is_weights(path, found):
        return Blob(look.repo.git.run("hash-object", "-w", *filters(path), "--end-of-options", path), mode)
    pointer, tracked = pointer_at(place), look.tracked.get(path)
    if pointer is not None and tracked is not None and tracked.sha == blob_id(pointer):
        return replace(tracked, mode=mode)  # of a version before modelgit, and left alone
    if is_manifest(prefix_of(place)):
        return replace(look.repo.write_blob(manifest_at(place)), mode=mode)
    from modelgit.store.files.intake import store_and_print

    manifest, print_ = store_and_print(pack, place, parent, listener, older)
    blob = look.repo.write_blob(manifest)
    look.prints.put(blob.sha, print_)
    return replace(blob, mode=mode)


def proven_stamp(look: Look, path: str, found: os.stat_result) -> dict[str, Stamp]:
    """Returns the stamp of a file that was just taken in, nothing if it was written to meanwhile."""
    return {path: stamp_of(dated(look, path, found))} if look.left_alone(path, found) else {}


def commit_worktree(
    repo: Repository,
    message: str,
    *,
    paths: Sequence[str] | None = None,
    files: Callable[[], Mapping[str, Manifest | Blob | bytes]] = dict,
    trailers: tuple[tuple[str, str], ...] = (),
    listener: Listener = ignore,
) -> str | None:
    """Commits the changes of the work tree to the branch checked out; returns the commit, None if nothing has changed.

    `paths` as in `add`. What `files` returns is added to the commit, e.g. a record.

    Raises:
        FormatError: a weight file is malformed; nothing is committed then. RepositoryError: the branch has moved.
    """
    head = repo.head()
    refuse_merge(repo)
    tree = add(repo, paths, listener=listener)
    before = repo.tree(head) if head else EMPTY
    if {**before, **tree} == dict(before) and set(tree) == set(before):
        return None
    branch = repo.branch()
    ref = f"refs/heads/{branch}" if branch else "HEAD"
    draft = CommitDraft((head,) if head else (), {**tree, **files()}, message, trailers, ref, head)
    commit = repo.commit(draft)
    settle(repo, commit, tree)
    return commit


def settle(repo: Repository, commit: str, tree: Mapping[str, Blob]) -> None:
    """Writes the files a commit added beyond the index (its record, attributes), and the index to match."""
    files = repo.tree(commit)
    extra = [path for path, blob in files.items() if tree.get(path) != blob]
    if not extra:
        return
    look, target = Look(repo), repo.version(commit)
    stamps = look.held()
    for path in extra:
        stamps[path] = stamp_of(write_path(repo, target, path))
    write_index(look.index, files, stamps)


__all__ = [
    "PREFIX_BYTES",
    "Change",
    "Earlier",
    "Look",
    "Status",
    "add",
    "advance",
    "changes_since",
    "checkout",
    "commit_worktree",
    "local_changes",
    "manifest_at",
    "status",
]
