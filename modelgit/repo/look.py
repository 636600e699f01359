"""The work tree as it is now: which blob each of its files would be, without reading what a stat proves unchanged."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from modelgit.errors import FormatError, RepositoryError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest, ManifestDiff, compare, is_manifest, parse_bytes, write
from modelgit.formats.safetensors import LFS_MARK, header_length, read_header
from modelgit.repo.files import backdate, link_at, mode_of, recent, stat_of
from modelgit.repo.filling import left_over
from modelgit.repo.index import read_index, write_index
from modelgit.repo.merging.underway import UnderWay, Unmerged, under_way, unmerged_paths
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository, blob_id
from modelgit.repo.stamps import Stamp, stamp_of
from modelgit.repo.statcache import Prints, StatCache, key_of
from modelgit.repo.values import LINK, SUBMODULE, Blob, Upstream

PREFIX_BYTES, MAX_POINTER_BYTES = 64, 1024
WAY_BACK = "bring the file back: modelgit restore FILE"
CACHE_PATH = "modelgit/stat-cache.json"
PRINTS_PATH = "modelgit/prints.json"
EMPTY: Mapping[str, Blob] = {}


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs from HEAD; `problem` says why a weight file cannot be read, `mode` is there if it changed."""

    path: str
    kind: Literal["new", "modified", "deleted"]
    tensors: ManifestDiff | None = None
    problem: str | None = None
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Where HEAD is, and what differs from it; `untracked` are ordinary files git has not been told of.

    `manifests` are weight files in whose place manifests lie, written by git without our filter. `elsewhere` are the
    branches that remotes have, where there is no commit here yet; `upstream` is what the branch follows. `tag` is
    one of a detached HEAD; `ignored` are weight files that git ignores, where there are no others. `under_way` is what
    git is in the middle of; `conflicts` are the paths that wait to be resolved, and are none of the changes.
    """

    branch: str | None
    head: str | None
    changes: tuple[Change, ...]
    untracked: tuple[str, ...]
    manifests: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    upstream: Upstream | None = None
    tag: str | None = None
    ignored: tuple[str, ...] = ()
    under_way: UnderWay | None = None
    conflicts: tuple[Unmerged, ...] = ()


class Look:
    """One look at a work tree, also where there are conflicts if it may be `conflicted`.

    `manifests` fills with those of weight files that differ from the index, `stats` with those of all files looked at.

    Raises:
        RepositoryError: the repository is bare, or git has left conflicts.
    """

    def __init__(self, repo: Repository, listener: Listener = ignore, *, conflicted: bool = False) -> None:
        if repo.worktree is None:
            raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
        self.repo, self.listener = repo, listener
        self.root = repo.worktree
        self.index = read_index(repo, conflicted=conflicted)
        self.tracked: Mapping[str, Blob] = self.index.blobs
        self.stats: dict[str, os.stat_result] = {}
        self.manifests: dict[str, Manifest] = {}
        self.proven: dict[str, os.stat_result] = {}  # of files that were read, and are what the index says

    @cached_property
    def cache(self) -> StatCache:
        """What changed weight files held at the last look."""
        return StatCache(self.repo.private_dir / CACHE_PATH)

    def blob(self, path: str) -> Blob | None:
        """Returns the blob that the file at `path` would be, None if there is no file. Writes nothing to git.

        Raises:
            FormatError: a weight file is malformed, or something else than a file lies there.
        """
        if self.behind_link(path):
            return None
        other = self.other(path)
        if other is not None:
            return other
        found = stat_of(self.root, path)
        if found is None:
            return None
        self.stats[path] = found
        if self.index.unchanged(path, found):
            return self.tracked[path]
        same = self._looks_the_same(path, found)
        blob = replace(self.tracked[path], mode=self.mode(path, found)) if same else self._hash(path, found)
        if blob == self.tracked.get(path) and not self.index.intended(path) and self.left_alone(path, found):
            self.proven[path] = found
        return blob

    def behind_link(self, path: str) -> bool:
        """Tells whether git has a link where a path would need a folder: then there is no such file."""
        above = (str(folder) for folder in PurePosixPath(path).parents)
        return any(folder in self.tracked and self.tracked[folder].mode == LINK for folder in above)

    def other(self, path: str) -> Blob | None:
        """Returns the blob of a link, or of a submodule, which is as git has it; None for ordinary files.

        A link in the place of weights is none of them, unless git has a link there: somebody should look at it.
        """
        mode = self.tracked[path].mode if path in self.tracked else ""
        if mode == SUBMODULE:
            return self.tracked[path]
        target = link_at(self.root, path) if mode == LINK or not path.endswith(WEIGHTS_SUFFIX) else None
        return None if target is None else Blob(blob_id(target), LINK)

    def mode(self, path: str, found: os.stat_result) -> str:
        """Returns git's mode of a file; the one that the index has, on file systems that know of no executable ones."""
        if self.repo.git.settings.get("core.filemode", "true") not in ("false", "no", "off", "0"):
            return mode_of(found)
        return self.tracked[path].mode if path in self.tracked else Blob("").mode

    def manifest(self, path: str, blob: Blob) -> Manifest | None:
        """Returns the manifest of a file that would be `blob`, from git if it is staged; None for others."""
        staged = self.tracked.get(path)
        same = staged is not None and staged.sha == blob.sha and blob.ordinary
        if path not in self.manifests and path.endswith(WEIGHTS_SUFFIX) and same:
            data = self.repo.read_blob(blob)
            return parse_bytes(data, path) if is_manifest(data) else None
        return self.manifests.get(path)

    def left_alone(self, path: str, found: os.stat_result) -> bool:
        """Tells whether a file still has the stat it had before it was read."""
        now = stat_of(self.root, path)
        return now is not None and key_of(now) == key_of(found)

    @cached_property
    def prints(self) -> Prints:
        """The prints of weight files that were committed here."""
        return Prints(self.repo.private_dir / PRINTS_PATH)

    def same_as_index(self, path: str, found: os.stat_result) -> bool:
        """Tells whether a file has mode and print of what the index has in its place, and was left alone meanwhile."""
        tracked = self.tracked.get(path)
        if tracked is None or tracked.mode != self.mode(path, found):
            return False
        return self._looks_the_same(path, found) and self.left_alone(path, found)

    def _looks_the_same(self, path: str, found: os.stat_result) -> bool:
        staged = self.tracked.get(path)
        known = self.prints.get(staged.sha) if staged is not None and is_weights(path, found) else None
        if known is None or is_manifest(prefix_of(self.root / path)):
            return False
        from modelgit.store.files.prints import print_of

        return print_of(self.root / path, known) == known

    def refuse_empty(self, path: str, found: os.stat_result) -> None:
        """Refuses an empty weight file, such as a trainer that died leaves, unless git has it so already.

        Raises:
            FormatError: saying what was expected.
        """
        staged = self.tracked.get(path)
        had = staged is not None and staged.sha == blob_id(b"") and not self.index.intended(path)
        if path.endswith(WEIGHTS_SUFFIX) and not found.st_size and not had:
            try:
                header_length(b"", 0, path)
            except FormatError as error:
                hint = WAY_BACK if staged is not None else "write it again, or remove it"
                raise FormatError(error.message, hint=hint) from error

    def _hash(self, path: str, found: os.stat_result) -> Blob:
        self.refuse_empty(path, found)
        pointer = pointer_at(self.root / path) if is_weights(path, found) else None
        if pointer is not None:
            return Blob(blob_id(pointer), self.mode(path, found))
        if is_weights(path, found):
            manifest = self.cache.get(path, found) or self._read(path, found)
            self.manifests[path] = manifest
            return Blob(blob_id(write(manifest).encode()), self.mode(path, found))
        sha = self.repo.git.run("hash-object", *filters(path), "--end-of-options", path)
        return Blob(sha, self.mode(path, found))

    def _read(self, path: str, found: os.stat_result) -> Manifest:
        manifest = manifest_at(self.root / path, self.listener)
        if self.left_alone(path, found):
            self.cache.put(path, found, manifest)
        return manifest

    def held(self) -> dict[str, Stamp]:
        """Returns the stamps of the files that still are what the index says, as far as stats can tell."""
        stamps: dict[str, Stamp] = {}
        for path in self.tracked:
            try:
                found = stat_of(self.root, path)
            except FormatError:
                continue
            if found is not None and self.index.unchanged(path, found):
                stamps[path] = stamp_of(found)
        return stamps

    def new_files(self) -> list[str]:
        """Returns the files git has not been told of and does not ignore."""
        rows = self.repo.git.run_bytes("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
        return sorted(os.fsdecode(row) for row in rows if row)

    def new_weights(self) -> list[str]:
        """Returns the weight files among the new files. What is no file by that name counts: somebody should look."""
        return [path for path in self.new_files() if path.endswith(WEIGHTS_SUFFIX)]

    def ignored_weights(self) -> tuple[str, ...]:
        """Returns the weight files that git ignores and has not been told of, those in few folders first."""
        looks = ("ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", f"*{WEIGHTS_SUFFIX}")
        rows = self.repo.git.run_bytes(*looks).split(b"\0")
        return tuple(sorted((os.fsdecode(row) for row in rows if row), key=lambda path: (path.count("/"), path)))


def is_weights(path: str, found: os.stat_result) -> bool:
    """Tells whether a file holds weights: by its name, unless it is empty, as git may have one."""
    return path.endswith(WEIGHTS_SUFFIX) and found.st_size > 0


def pointer_at(path: Path) -> bytes | None:
    """Returns the Git LFS pointer that lies in the place of a weight file, as versions before modelgit may have one."""
    if path.stat().st_size > MAX_POINTER_BYTES:
        return None
    text = path.read_bytes()
    return text if text.startswith(LFS_MARK) else None


def filters(path: str) -> list[str]:
    """Returns the option that keeps an empty file away from the filter for weights."""
    return ["--no-filters"] if path.endswith(WEIGHTS_SUFFIX) else []


def manifest_at(path: Path, listener: Listener = ignore) -> Manifest:
    """Returns the manifest of a weight file; a file that holds a manifest already is taken at its word."""
    if is_manifest(prefix_of(path)):
        return parse_bytes(path.read_bytes(), str(path))
    return hashed(path, listener)


def prefix_of(path: Path) -> bytes:
    """Returns the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(PREFIX_BYTES)


def hashed(path: Path, listener: Listener = ignore) -> Manifest:
    """Returns the manifest of a weight file, storing nothing; reads it once."""
    from modelgit.store.files.tensors import FileTensors
    from modelgit.store.identity import whole

    header = read_header(path)
    entries = FileTensors(path).entries(listener)
    return Manifest(whole("blob", header.raw).hex(), len(header.raw), header.size_bytes, entries)


# ---------------------------------------------------------------------- what differs


def status(repo: Repository, listener: Listener = ignore) -> Status:
    """Returns what differs from HEAD. Keeps stats of what it read, so that the next look reads no weights.

    Raises:
        RepositoryError: the repository is bare.
    """
    look = Look(repo, listener, conflicted=True)
    commit = repo.head()
    fresh = look.new_files()
    weights = {path for path in fresh if path.endswith(WEIGHTS_SUFFIX)}
    changes = changes_of(look, commit, weights)
    untracked = tuple(path for path in fresh if path not in weights)
    branch, elsewhere = repo.branch(), () if commit else repo.remote_branches()
    left = tuple(left_over(repo, {*look.tracked, *look.index.unmerged}))
    tag = repo.tag_of(commit) if commit and branch is None else None
    any_weights = weights or any(path.endswith(WEIGHTS_SUFFIX) for path in (*look.tracked, *look.index.unmerged))
    ignored = () if any_weights else look.ignored_weights()
    ends = tag, ignored, under_way(repo), unmerged_paths(look.index.unmerged)
    return Status(branch, commit, changes, untracked, left, elsewhere, repo.upstream(branch), *ends)


def local_changes(repo: Repository, listener: Listener = ignore, *, added: bool = False) -> tuple[Change, ...]:
    """Returns the files of HEAD that are changed or gone; with `added`, also what is new in the index.

    Raises as `status` does.
    """
    changes = changes_of(Look(repo, listener), repo.head())
    return tuple(change for change in changes if added or change.kind != "new")


def changes_since(repo: Repository, commit: str) -> tuple[Change, ...]:
    """Returns how the files of the work tree differ from a version, new weight files and conflicts among them."""
    look = Look(repo, conflicted=True)
    return changes_of(look, commit, {*look.new_weights(), *look.index.unmerged})


def changes_of(look: Look, head: str | None, fresh: Iterable[str] = ()) -> tuple[Change, ...]:
    """Returns how tracked files and `fresh` ones differ from the commit `head`; stats of what was read are kept."""
    before = look.repo.tree(head) if head else EMPTY
    paths = sorted({*before, *look.tracked} - look.index.unmerged.keys() | set(fresh))
    changes = [change for path in paths if (change := change_of(look, path, before.get(path), head)) is not None]
    remember(look)
    return tuple(changes)


def change_of(look: Look, path: str, before: Blob | None, head: str | None) -> Change | None:
    """Returns how one path differs from the commit `head`, None if it does not."""
    try:
        now = look.blob(path)
    except FormatError as error:
        return Change(path, "modified" if before else "new", problem=error.message)
    if now == before or (now is None and before is None):
        return None
    if now is None:
        return Change(path, "deleted")
    if before is None or head is None:
        return Change(path, "new")
    new = look.manifest(path, now)
    old = look.repo.version(head).manifests.get(path) if new else None
    mode = now.mode if now.mode != before.mode else None
    return Change(path, "modified", compare(old, new) if old and new else None, mode=mode)


def remember(look: Look) -> None:
    """Writes down the stats of files that were read: in the index if they are what it says, else in the cache.

    Best effort: another git command may be writing the index.
    """
    look.cache.save()
    if not look.proven or look.index.unmerged:
        return
    proven = {path: stamp_of(dated(look, path, found)) for path, found in look.proven.items()}
    try:
        write_index(look.index, look.tracked, {**look.index.settled(), **proven})
    except (FormatError, RepositoryError):
        return


def dated(look: Look, path: str, found: os.stat_result) -> os.stat_result:
    """Returns the stat of a file that is as git will have it; a weight file written just now is backdated first."""
    lately = path.endswith(WEIGHTS_SUFFIX) and recent(found) and look.left_alone(path, found)
    return backdate(look.root / path) if lately else found
