"""The work tree: real files where git has manifests. Looking, checking out, taking in.

Files are written first (each to a temporary name, then renamed), the index next, HEAD last; so an interrupted
checkout is gone on with by running it again.
"""

import os
import stat as modes
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelgit.errors import DirtyWorktree, FormatError, MissingObject, StorageFull, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest, ManifestDiff, compare, is_manifest, parse, write
from modelgit.formats.safetensors import read_header
from modelgit.repo.index import entry_for, index_of, tracked, unchanged, write_index, written_ns
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob, CommitDraft, Version
from modelgit.store.checkpoint import FileTensors, materialise, store_file
from modelgit.store.identity import whole

PREFIX_BYTES = 64
PAST_NS = 2_000_000_000
EMPTY: Mapping[str, Blob] = {}


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs from HEAD; `problem` says why a weight file cannot be read."""

    path: str
    kind: Literal["new", "modified", "deleted"]
    tensors: ManifestDiff | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Where HEAD is, and what differs from it; `untracked` are ordinary files git has not been told of."""

    branch: str | None
    head: str | None
    changes: tuple[Change, ...]
    untracked: tuple[str, ...]


class Look:
    """The work tree as it is now: which blob each file would be, without reading what its stat proves unchanged."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self.index = index_of(repo)
        self.tracked = tracked(self.index)
        self.stats: dict[str, os.stat_result] = {}
        self.manifests: dict[str, Manifest] = {}
        self.written_ns = written_ns(self.index)

    @property
    def root(self) -> Path:
        """The work tree's folder."""
        assert self.repo.worktree is not None  # index_of has refused a bare repository
        return self.repo.worktree

    def blob(self, path: str) -> Blob | None:
        """Returns the blob that the file at `path` would be, None if there is no file. Writes nothing to git.

        Raises:
            FormatError: a weight file is malformed, or something else than a file lies there.
        """
        try:
            found = (self.root / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not modes.S_ISREG(found.st_mode):
            raise FormatError(f"{path}: expected an ordinary file, found a link or a folder")
        entry = self.index.entries.get((path, 0))
        if entry is not None and unchanged(entry, found, self.written_ns):
            blob: Blob | None = self.tracked[path]
        else:
            blob = self._hash(path)
        self.stats[path] = found
        return blob

    def _hash(self, path: str) -> Blob:
        if path.endswith(WEIGHTS_SUFFIX):
            manifest = manifest_at(self.root / path)
            self.manifests[path] = manifest
            return Blob(self.repo.git.run("hash-object", "--stdin", stdin=write(manifest).encode()))
        return Blob(self.repo.git.run("hash-object", "--end-of-options", path), mode_of(self.root / path))

    def new_files(self) -> list[str]:
        """Returns the files git has not been told of and does not ignore."""
        rows = self.repo.git.run_bytes("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
        return sorted(os.fsdecode(row) for row in rows if row)


def manifest_at(path: Path) -> Manifest:
    """Returns the manifest of a weight file; a file that holds a manifest already is taken at its word."""
    with path.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
    if is_manifest(prefix):
        return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return hashed(path)


def hashed(path: Path) -> Manifest:
    """Returns the manifest of a weight file, storing nothing; reads it once."""
    header = read_header(path)
    source = FileTensors(path)
    tensors = tuple(source.entry(name) for name in source.names())
    return Manifest(whole("blob", header.raw).hex(), len(header.raw), header.size_bytes, tensors)


def mode_of(path: Path) -> str:
    """Returns git's mode of an ordinary file."""
    return "100755" if path.stat().st_mode & 0o100 else "100644"


# ---------------------------------------------------------------------- status


def status(repo: Repository) -> Status:
    """Returns what differs from HEAD. Refreshes the index, so that the next look reads no weights.

    Raises:
        RepositoryError: the repository is bare.
    """
    look = Look(repo)
    commit = repo.head()
    version = repo.version(commit) if commit else None
    before = version.tree() if version else EMPTY
    fresh = look.new_files()
    paths = sorted({*before, *look.tracked, *(p for p in fresh if p.endswith(WEIGHTS_SUFFIX))})
    changes = [change for path in paths if (change := change_of(look, path, before.get(path), version)) is not None]
    refresh(look)
    untracked = tuple(path for path in fresh if not path.endswith(WEIGHTS_SUFFIX))
    return Status(repo.branch(), commit, tuple(changes), untracked)


def change_of(look: Look, path: str, before: Blob | None, version: Version | None) -> Change | None:
    """Returns how one path differs from HEAD, None if it does not."""
    try:
        now = look.blob(path)
    except FormatError as error:
        return Change(path, "modified" if before else "new", problem=error.message)
    if now == before or (now is None and before is None):
        return None
    if now is None:
        return Change(path, "deleted")
    if before is None or version is None:
        return Change(path, "new")
    old, new = version.manifests.get(path), look.manifests.get(path)
    return Change(path, "modified", compare(old, new) if old and new else None)


def refresh(look: Look) -> None:
    """Writes into the index the stats of files that were read and found to be what it says."""
    proven = {p: s for p, s in look.stats.items() if p in look.manifests and same_as_tracked(look, p)}
    if not proven:
        return
    for path, found in proven.items():
        look.index.entries[(path, 0)] = entry_for(path, look.tracked[path], found)
    look.index.write()


def same_as_tracked(look: Look, path: str) -> bool:
    """Tells whether a weight file that was read is what the index says."""
    if path not in look.tracked:
        return False
    text = write(look.manifests[path]).encode()
    return look.repo.git.run("hash-object", "--stdin", stdin=text) == look.tracked[path].sha


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
    target = repo.version(rev)
    look = Look(repo)
    head = repo.head()
    before = repo.version(head).tree() if head else EMPTY
    move = plan(look, before, target.tree(), force=force)
    needed = {path: target.manifests[path] for path in move.write if path in target.manifests}
    refuse_missing(repo, needed.values())
    for path in move.write:
        write_path(repo, look.root, target, path, listener)
    for path in move.delete:
        delete_path(look.root, path)
    stats = {path: found for path, found in look.stats.items() if path not in move.keep}
    stats.update({path: (look.root / path).lstat() for path in move.write})
    write_index(look.index, target.tree(), stats)
    point_head(repo, rev, target.commit)
    return target.commit


def plan(look: Look, before: Mapping[str, Blob], after: Mapping[str, Blob], *, force: bool) -> Move:
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
        raise DirtyWorktree(
            f"local changes would be overwritten: {', '.join(blocked)}",
            hint="commit them (modelgit commit), or throw them away: --force",
        )
    return Move(tuple(write), tuple(delete), tuple(keep))


def here(look: Look, path: str) -> Blob | str | None:
    """Returns the blob at `path`, or a word that equals no blob if it cannot be read."""
    try:
        return look.blob(path)
    except FormatError:
        return "unreadable"


def refuse_missing(repo: Repository, manifests: Iterable[Manifest]) -> None:
    """Raises MissingObject if any object of the manifests is not in the store."""
    wanted = {oid for manifest in manifests for oid in manifest.oids()}
    missing = repo.store.missing(wanted)
    if missing:
        raise MissingObject(
            f"{len(missing)} of {len(wanted)} objects are not in the store, the first is {min(missing)}",
            hint="get them from where the repository came from: modelgit fetch, or modelgit fsck to see the damage",
        )


def write_path(repo: Repository, root: Path, target: Version, path: str, listener: Listener) -> None:
    """Writes one file of a version, whole or not at all."""
    place = root / path
    make_parents(root, path)
    if path in target.manifests:
        materialise(repo.store, target.manifests[path], place, listener)
    else:
        write_ordinary(place, repo.read_blob(target.files[path]), target.files[path].mode)
    before = time.time_ns() - PAST_NS
    os.utime(place, ns=(before, before))


def make_parents(root: Path, path: str) -> None:
    """Makes the folders above `path`, refusing links: a link would lead the write elsewhere."""
    folder = root
    for part in path.split("/")[:-1]:
        folder = folder / part
        if folder.is_symlink():
            raise FormatError(f"{path}: {folder} is a link, expected a folder")
        folder.mkdir(exist_ok=True)


def write_ordinary(place: Path, data: bytes, mode: str) -> None:
    """Writes an ordinary file through a temporary name."""
    scratch = place.with_name(f".{place.name}.modelgit-{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.chmod(0o755 if mode == "100755" else 0o644)
        scratch.replace(place)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageFull(
            f"cannot write {place}: {error.strerror}", hint="free some space or check permissions"
        ) from error


def delete_path(root: Path, path: str) -> None:
    """Removes a file, and the folders above that it leaves empty."""
    (root / path).unlink(missing_ok=True)
    for folder in list((root / path).parents)[: path.count("/")]:
        try:
            folder.rmdir()
        except OSError:
            return


def point_head(repo: Repository, rev: str, commit: str) -> None:
    """Makes HEAD the branch `rev`, or the commit itself if it is no branch."""
    if repo.branch() == rev:
        return
    if rev in repo.branches():
        repo.git.run("symbolic-ref", "-m", f"checkout: moving to {rev}", "HEAD", f"refs/heads/{rev}")
    elif rev != "HEAD":
        repo.git.run(
            *repo.git.identity(), "update-ref", "--no-deref", "-m", f"checkout: moving to {commit}", "HEAD", commit
        )


# ---------------------------------------------------------------------- taking in


def add(repo: Repository, paths: Sequence[str] | None = None, *, listener: Listener = ignore) -> dict[str, Blob]:
    """Takes changes of the work tree into store and index, and returns what the index then says.

    Without `paths`: every change to a tracked file, and new weight files. With them: those files.

    Raises:
        FormatError: a weight file is malformed. UsageError: a path that does not exist.
    """
    look = Look(repo)
    head = repo.head()
    version = repo.version(head) if head else None
    wanted = list(paths) if paths is not None else sorted({*look.tracked, *new_weights(look)})
    files = dict(look.tracked)
    proven = stats_held(look)
    for path in wanted:
        if path in look.tracked and look.blob(path) == look.tracked[path]:
            proven[path] = look.stats[path]
            continue
        before = stat_of(look.root / path)
        blob = take_in(look, path, version, listener)
        files.pop(path, None)
        if blob is not None:
            files[path] = blob
            if before is not None and same_stat(before, stat_of(look.root / path)):
                proven[path] = before
    write_index(look.index, files, proven)
    return files


def stat_of(place: Path) -> os.stat_result | None:
    """Returns the stat of a file, None if there is none."""
    try:
        return place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def same_stat(old: os.stat_result, new: os.stat_result | None) -> bool:
    """Tells whether a file was left alone between two looks."""
    return new is not None and (old.st_mtime_ns, old.st_size, old.st_ino) == (new.st_mtime_ns, new.st_size, new.st_ino)


def stats_held(look: Look) -> dict[str, os.stat_result]:
    """Returns the stats of files that still are what the index says, by the index's own stats."""
    found = {path: stat_of(look.root / path) for path in look.tracked}
    return {
        p: s for p, s in found.items() if s is not None and unchanged(look.index.entries[(p, 0)], s, look.written_ns)
    }


def new_weights(look: Look) -> list[str]:
    """Returns weight files that git has not been told of."""
    return [path for path in look.new_files() if path.endswith(WEIGHTS_SUFFIX)]


def take_in(look: Look, path: str, version: Version | None, listener: Listener) -> Blob | None:
    """Returns the blob of a file of the work tree, its objects stored; None if the file is gone."""
    place = look.root / path
    if not place.exists():
        if path not in look.tracked:
            raise UsageError(f"{path}: no such file", hint="paths are relative to the top of the work tree")
        return None
    if not path.endswith(WEIGHTS_SUFFIX):
        return Blob(look.repo.git.run("hash-object", "-w", "--end-of-options", path), mode_of(place))
    with place.open("rb") as file:
        if is_manifest(file.read(PREFIX_BYTES)):
            return look.repo.write_blob(manifest_at(place))
    parent = version.manifests.get(path) if version else None
    with look.repo.store.begin() as pack:
        manifest = store_file(pack, place, parent, listener)
        pack.commit()
    return look.repo.write_blob(manifest)


def commit_worktree(
    repo: Repository,
    message: str,
    *,
    files: Mapping[str, Manifest | Blob | bytes] = EMPTY,
    trailers: tuple[tuple[str, str], ...] = (),
    listener: Listener = ignore,
) -> str | None:
    """Commits the changes of the work tree to the branch checked out; returns the commit, None if nothing has changed.

    `files` are added to the commit, e.g. a record.

    Raises:
        FormatError: a weight file is malformed; nothing is committed then.
    """
    head = repo.head()
    tree = add(repo, listener=listener)
    before = repo.version(head).tree() if head else EMPTY
    if dict(before) == {**before, **tree} and set(tree) == set(before):
        return None
    branch = repo.branch()
    ref = f"refs/heads/{branch}" if branch else "HEAD"
    draft = CommitDraft((head,) if head else (), {**tree, **files}, message, trailers, ref, head)
    commit = repo.commit(draft)
    settle(repo, commit)
    return commit


def settle(repo: Repository, commit: str) -> None:
    """Writes the files a commit added beyond the work tree (its record, attributes), and the index to match."""
    look = Look(repo)
    target = repo.version(commit)
    tree = target.tree()
    proven = stats_held(look)
    for path, blob in tree.items():
        if look.tracked.get(path) != blob:
            write_path(repo, look.root, target, path, ignore)
            proven[path] = (look.root / path).lstat()
    write_index(look.index, tree, proven)


__all__ = ["Change", "Status", "add", "checkout", "commit_worktree", "status"]
