"""The work tree as it is now: which blob each of its files would be, without reading what a stat proves unchanged."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from modelgit.errors import FormatError, RepositoryError
from modelgit.formats.manifest import Manifest, is_manifest, parse, write
from modelgit.formats.safetensors import read_header
from modelgit.repo.files import mode_of, stat_of
from modelgit.repo.index import Stamp, read_index, stamp_of
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository, blob_id
from modelgit.repo.statcache import Prints, StatCache, key_of
from modelgit.repo.values import Blob

PREFIX_BYTES = 64
CACHE_PATH = "modelgit/stat-cache.json"
PRINTS_PATH = "modelgit/prints.json"


class Look:
    """One look at a work tree.

    `manifests` fills with those of weight files that differ from the index, `stats` with those of all files looked at.

    Raises:
        RepositoryError: the repository is bare, or in the middle of a git merge.
    """

    def __init__(self, repo: Repository) -> None:
        if repo.worktree is None:
            raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
        self.repo = repo
        self.root = repo.worktree
        self.index = read_index(repo)
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
        found = stat_of(self.root, path)
        if found is None:
            return None
        self.stats[path] = found
        if self.index.unchanged(path, found):
            return self.tracked[path]
        same = self._looks_the_same(path, found)
        blob = replace(self.tracked[path], mode=self.mode(path, found)) if same else self._hash(path, found)
        if blob == self.tracked.get(path) and self.left_alone(path, found):
            self.proven[path] = found
        return blob

    def mode(self, path: str, found: os.stat_result) -> str:
        """Returns git's mode of a file; the one that the index has, on file systems that know of no executable ones."""
        if self.repo.git.settings.get("core.filemode", "true") not in ("false", "no", "off", "0"):
            return mode_of(found)
        return self.tracked[path].mode if path in self.tracked else Blob("").mode

    def manifest(self, path: str, blob: Blob) -> Manifest | None:
        """Returns the manifest of a file that would be `blob`, from git if it is staged; None for others."""
        staged = self.tracked.get(path)
        same = staged is not None and staged.sha == blob.sha
        if path not in self.manifests and path.endswith(WEIGHTS_SUFFIX) and same:
            data = self.repo.read_blob(blob)
            return parse(data.decode("utf-8", "replace"), path) if is_manifest(data) else None
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

        return print_of(self.root / path) == known

    def _hash(self, path: str, found: os.stat_result) -> Blob:
        if is_weights(path, found):
            manifest = self.cache.get(path, found) or self._read(path, found)
            self.manifests[path] = manifest
            return Blob(blob_id(write(manifest).encode()), self.mode(path, found))
        sha = self.repo.git.run("hash-object", *filters(path), "--end-of-options", path)
        return Blob(sha, self.mode(path, found))

    def _read(self, path: str, found: os.stat_result) -> Manifest:
        manifest = manifest_at(self.root / path)
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
        """Returns the weight files among the new files; empty ones are ordinary."""
        return [path for path in self.new_files() if self.holds_weights(path)]

    def holds_weights(self, path: str) -> bool:
        """Tells whether a weight file lies at `path`. What is no file by that name counts: somebody should look."""
        try:
            found = stat_of(self.root, path)
        except FormatError:
            return path.endswith(WEIGHTS_SUFFIX)
        return found is not None and is_weights(path, found)


def is_weights(path: str, found: os.stat_result) -> bool:
    """Tells whether a file is a weight file: by its name, unless it is empty."""
    return path.endswith(WEIGHTS_SUFFIX) and found.st_size > 0


def filters(path: str) -> list[str]:
    """Returns the option that keeps an empty file away from the filter for weights."""
    return ["--no-filters"] if path.endswith(WEIGHTS_SUFFIX) else []


def manifest_at(path: Path) -> Manifest:
    """Returns the manifest of a weight file; a file that holds a manifest already is taken at its word."""
    if is_manifest(prefix_of(path)):
        return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return hashed(path)


def prefix_of(path: Path) -> bytes:
    """Returns the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(PREFIX_BYTES)


def hashed(path: Path) -> Manifest:
    """Returns the manifest of a weight file, storing nothing; reads it once."""
    from modelgit.store.files.tensors import FileTensors
    from modelgit.store.identity import whole

    header = read_header(path)
    return Manifest(whole("blob", header.raw).hex(), len(header.raw), header.size_bytes, FileTensors(path).entries())
