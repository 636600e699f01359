"""Ordinary files, merged three-way as git merges them: line by line where both sides changed a text."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from modelgit.errors import Conflict
from modelgit.porcelain.records import RECORD_PATH
from modelgit.porcelain.replaying.values import Choices, Content
from modelgit.repo.repository import Repository, blob_id
from modelgit.repo.values import Blob

Files = Mapping[str, Content]


def merged_files(
    repo: Repository, three: tuple[Files, Files, Files], choices: Choices
) -> tuple[dict[str, Content], list[Conflict]]:
    """Returns the other files of the result, and those that both sides changed in the same place; writes nothing."""
    files: dict[str, Content] = {}
    conflicts: list[Conflict] = []
    for path in sorted({path for side in three for path in side} - {RECORD_PATH}):
        base, ours, theirs = (side.get(path) for side in three)
        made = ours if base == theirs or ours == theirs else theirs
        if base not in (ours, theirs) and ours != theirs:
            made = merged_text(repo, base, ours, theirs) if all(map(is_file, (base, ours, theirs))) else None
            if made is None and choices.files == "error":
                conflicts.append(Conflict("file", path, "changed on one side only", state(base, ours, theirs)))
            made = made or ours
        if made is not None:
            files[path] = made
    return files, conflicts


def is_file(side: Content | None) -> bool:
    """Tells whether a side has an ordinary file, neither link nor submodule."""
    return isinstance(side, bytes) or (side is not None and side.ordinary)


def state(base: Content | None, ours: Content | None, theirs: Content | None) -> str:
    """Returns how both sides changed a file, in words."""
    if ours is None:
        return "deleted here, changed there"
    if theirs is None:
        return "changed here, deleted there"
    return "added on both sides, with other content" if base is None else "other changes here and there"


def merged_text(repo: Repository, base: Content | None, ours: Content | None, theirs: Content | None) -> Content | None:
    """Returns a file with both sides' changes, None if they meet or the file is no text."""
    texts = [content_of(repo, side) for side in (ours, base, theirs) if side is not None]
    with tempfile.TemporaryDirectory(prefix="modelgit-") as folder:
        paths = [Path(folder) / name for name in ("ours", "base", "theirs")]
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text)
        code, merged, _ = repo.git.attempt("merge-file", "-p", "-q", *map(str, paths))
    if code:
        return None
    mode = ours.mode if isinstance(ours, Blob) else Blob("").mode
    same = next((side for side in (ours, theirs) if isinstance(side, Blob) and side.sha == blob_id(merged)), None)
    return Blob(same.sha, mode) if same is not None else merged


def content_of(repo: Repository, content: Content) -> bytes:
    """Returns a file's bytes."""
    return repo.read_blob(content) if isinstance(content, Blob) else content
