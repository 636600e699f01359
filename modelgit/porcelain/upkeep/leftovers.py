"""What commands that were killed have left: scratch files, known by names that only modelgit makes, and old."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelgit.repo.repository import STORE_FOLDER, Repository

OLD_S = 3600.0
SCRATCH = re.compile(r"\..+\.[0-9a-f]{16}\.(tmp|modelgit-tmp)", re.DOTALL)
IN_GIT = ("modelgit-index-*", "modelgit-clean-*")
HEX = "[0-9a-f]" * 16
PRIVATE = (f"index.{HEX}.tmp", f"{STORE_FOLDER}/stat-cache.json.{HEX}")


def leftovers(repo: Repository, now: float) -> list[Path]:
    """Returns scratch files that are older than an hour and that git does not track, in the git directory and outside.

    Work trees linked to this repository are looked through as well.
    """
    found = [path for pattern in IN_GIT for path in repo.git_dir.glob(pattern)]
    for private in (repo.git_dir, *(repo.git_dir / "worktrees").glob("*")):
        found += [path for pattern in PRIVATE for path in private.glob(pattern)]
    for tree in work_trees(repo):
        found += untracked(repo, tree, scratch_in(tree))
    return sorted(path for path in found if is_old(path, now))


def work_trees(repo: Repository) -> list[Path]:
    """Returns the folders of all work trees of a repository."""
    text = repo.git.run_bytes("worktree", "list", "--porcelain", "-z")
    blocks = [block.split(b"\0") for block in text.split(b"\0\0") if block]
    paths = [Path(os.fsdecode(block[0].removeprefix(b"worktree "))) for block in blocks if b"bare" not in block]
    return [path for path in paths if path.is_dir()]


def scratch_in(tree: Path) -> Iterator[str]:
    """Yields the paths in a work tree that have the name of a scratch file."""
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if name != ".git"]
        yield from (str((Path(folder) / name).relative_to(tree)) for name in files if SCRATCH.fullmatch(name))


def untracked(repo: Repository, tree: Path, paths: Iterable[str]) -> list[Path]:
    """Returns those files of a work tree that git does not track."""
    wanted = list(paths)
    if not wanted:
        return []
    rows = repo.git.run_bytes("-C", str(tree), "ls-files", "-z", "--", *(f":(literal){path}" for path in wanted))
    tracked = {os.fsdecode(row) for row in rows.split(b"\0")}
    return [tree / path for path in wanted if path not in tracked]


def is_old(path: Path, now: float) -> bool:
    """Tells whether a file was last written more than an hour ago."""
    try:
        return path.is_file() and not path.is_symlink() and now - path.stat().st_mtime > OLD_S
    except OSError:
        return False
