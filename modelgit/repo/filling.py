"""Weight files in the place of manifests that git has written into the work tree.

A file is streamed to a name beside its place. Then, with git's index locked, it takes the place of the manifest, if
that still lies there, and the index entry takes its stat, if the entry's blob is that very manifest. Else, after a
`git stash pop` say, git must go on seeing a changed file: written blindly, the stat would hide the change.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from os import urandom
from pathlib import Path

from modelgit.errors import FormatError, StorageFull
from modelgit.events import Event, Listener, Noted, ignore
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, Manifest, is_manifest, parse_bytes
from modelgit.repo.files import PAST_NS, stat_of
from modelgit.repo.gitdir import sync_folder
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository, blob_id
from modelgit.repo.stamps import index_lock, put_stamp, stamp_of

PREFIX_BYTES = 64


def manifest_text(root: Path, path: str) -> bytes | None:
    """Returns the manifest that lies in the place of a weight file, None if none does. Reads little of other files."""
    try:
        found = stat_of(root, path)
        if found is None or not 0 < found.st_size <= MAX_MANIFEST_BYTES:
            return None
        with (root / path).open("rb") as file:
            prefix = file.read(PREFIX_BYTES)
            return prefix + file.read() if is_manifest(prefix) else None
    except (FormatError, OSError):
        return None


def left_over(repo: Repository, paths: Iterable[str]) -> dict[str, bytes]:
    """Returns the manifests that lie in the place of weight files, by their paths."""
    root = repo.worktree
    if root is None:
        return {}
    texts = {path: manifest_text(root, path) for path in sorted(paths) if path.endswith(WEIGHTS_SUFFIX)}
    return {path: text for path, text in texts.items() if text is not None}


def fill(repo: Repository, path: str, text: bytes, listener: Listener = ignore) -> bool:
    """Writes the weight file that the manifest at `path` describes; False if the manifest was gone by then.

    Raises:
        FormatError: no manifest. MissingObject, CorruptObject, StorageFull. RepositoryError: git's index is locked.
        The manifest is still there then.
    """
    from modelgit.store.files.materialise import materialise  # brings numpy

    root = repo.worktree
    manifest: Manifest = parse_bytes(text, path)
    if root is None or manifest_text(root, path) != text:
        return False
    place = root / path
    scratch = place.with_name(f".{place.name[:100]}.{urandom(8).hex()}.tmp")
    try:
        materialise(repo.store, manifest, scratch, renamed(listener, scratch.name, place.name))
        scratch.chmod(place.stat().st_mode & 0o777)
        return put(repo, path, scratch, text)
    except OSError as error:
        hint = "free some space, or check the permissions"
        raise StorageFull(f"cannot write {path}: {error.strerror}", hint=hint) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


def put(repo: Repository, path: str, scratch: Path, text: bytes) -> bool:
    """Puts a complete weight file into its place, and its stat into the index; git is kept out meanwhile."""
    root = repo.worktree or repo.git_dir
    place, sha = root / path, blob_id(text)
    with repo.git.taking_locks(), index_lock(repo.index_file) as lock:
        if manifest_text(root, path) != text:
            return False
        set_back(scratch, repo.index_file)
        scratch.replace(place)
        sync_folder(place.parent)
        stamped = not repo.index_file.exists()
        stamped = stamped or put_stamp(repo.index_file, lock, path, sha, stamp_of(place.lstat()))
    if not stamped:
        look_again(repo, path, sha)
    return True


def look_again(repo: Repository, path: str, sha: str) -> None:
    """Has git itself look at a file, where its entry was not found: in a split index, or none has this blob."""
    rows = repo.git.run_bytes("--literal-pathspecs", "ls-files", "--stage", "-z", "--", path).split(b"\0")
    if any(row.split(b"\t")[0].split()[1:] == [sha.encode(), b"0"] for row in rows if row):
        repo.git.run("update-index", "--", path)


def set_back(scratch: Path, index: Path) -> None:
    """Gives a file a time before the index's own: git reads one that is not older again, through the filter."""
    written = index.stat().st_mtime_ns if index.exists() else scratch.stat().st_mtime_ns
    past = min(written, scratch.stat().st_mtime_ns) - PAST_NS
    os.utime(scratch, ns=(past, past))


def renamed(listener: Listener, old: str, new: str) -> Listener:
    """Returns a listener that hears of the file by the name people know."""

    def tell(event: Event) -> None:
        listener(event if isinstance(event, Noted) else replace(event, task=event.task.replace(old, new)))

    return tell
