"""Texts merged three-way by git, line by line; what git is told of a path by attributes counts here too."""

import tempfile
from pathlib import Path

from modelgit.errors import FormatError
from modelgit.repo.repository import Repository, blob_id
from modelgit.repo.values import Blob

Content = Blob | bytes
MAX_TEXT_BYTES = 64 * 1024**2  # what is larger is no text that people merge
MAX_PLACES = 127  # as git counts them, in an exit code
WHOLE = ("unset", "binary")  # attributes that say: never line by line


def merge_texts(repo: Repository, path: str, base: Content, ours: Content, theirs: Content) -> Content | int:
    """Returns a file with both sides' changes, or in how many places they meet; 0 if it is not merged line by line.

    The blob of a side if the result is that, else its bytes; nothing is written.
    """
    how = repo.git.run("check-attr", "-z", "merge", "--", path).split("\0")[2:3] or ["unspecified"]
    if how[0] not in ("unspecified", "set", "text", "union"):
        return 0  # a program of the user's own would have to be run for any other word
    try:
        texts = [content_of(repo, side) for side in (ours, base, theirs)]
    except FormatError:
        return 0
    code, merged = merged_lines(repo, texts, ("--union",) if how[0] == "union" else ())
    if code:
        return code if code <= MAX_PLACES else 0
    mode = mode_of(base, ours, theirs)
    same = next((side for side in (ours, theirs) if isinstance(side, Blob) and side.sha == blob_id(merged)), None)
    return Blob(same.sha, mode) if same is not None else merged


def merged_lines(repo: Repository, texts: list[bytes], options: tuple[str, ...]) -> tuple[int, bytes]:
    """Returns git's exit code for a merge of ours, base, theirs, and what it makes of them."""
    with tempfile.TemporaryDirectory(prefix="modelgit-") as folder:
        paths = [Path(folder) / name for name in ("ours", "base", "theirs")]
        for place, text in zip(paths, texts, strict=True):
            place.write_bytes(text)
        code, merged, _ = repo.git.attempt("merge-file", "-p", "-q", *options, *map(str, paths))
    return code, merged


def merge_blobs(repo: Repository, path: str, base: Blob, ours: Blob, theirs: Blob) -> Blob | int:
    """Returns the merged file as a blob that git has, or in how many places both sides meet; 0 if it is no text."""
    if not (base.ordinary and ours.ordinary and theirs.ordinary):
        return 0
    found = merge_texts(repo, path, base, ours, theirs)
    return Blob(repo.write_blob(found).sha, mode_of(base, ours, theirs)) if isinstance(found, bytes) else found


def mode_of(base: Content, ours: Content, theirs: Content) -> str:
    """Returns the mode of the result: that of the side that changed it."""
    old, mine, its = (side.mode if isinstance(side, Blob) else Blob("").mode for side in (base, ours, theirs))
    return its if mine == old else mine


def content_of(repo: Repository, content: Content) -> bytes:
    """Returns a file's bytes. Raises FormatError if they are too many, or it is no ordinary file."""
    return repo.read_blob(content, MAX_TEXT_BYTES) if isinstance(content, Blob) else content
