"""Ordinary files, merged three-way as git merges them: line by line where both sides changed a text."""

from collections.abc import Mapping

from modelgit.errors import Conflict
from modelgit.porcelain.records import RECORD_PATH
from modelgit.porcelain.replaying.values import Choices, Content
from modelgit.repo.merging.texts import merge_texts
from modelgit.repo.repository import Repository

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
            made = merged(repo, path, (base, ours, theirs))
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


def merged(repo: Repository, path: str, three: tuple[Content | None, Content | None, Content | None]) -> Content | None:
    """Returns a file with both sides' changes, None if they meet or it is not merged line by line."""
    base, ours, theirs = three
    if base is None or ours is None or theirs is None or not all(map(is_file, three)):
        return None
    made = merge_texts(repo, path, base, ours, theirs)
    return None if isinstance(made, int) else made
