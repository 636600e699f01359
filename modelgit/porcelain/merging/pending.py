"""A merge that is made but not committed: it lies in work tree and index, and git knows that it is under way.

The state is git's own (MERGE_HEAD, MERGE_MSG), so `git status`, `git commit` and `git merge --abort` know it too, and
going on or giving up works for a merge that `git merge` left with conflicts.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from modelgit.errors import DirtyWorktree, RepositoryError, UsageError
from modelgit.events import Listener, ignore
from modelgit.porcelain.merging.values import Merged
from modelgit.porcelain.work import Committed, committed
from modelgit.repo import worktree
from modelgit.repo.gitdir import failure
from modelgit.repo.merging.underway import refuse_conflicts
from modelgit.repo.repository import Repository
from modelgit.repo.values import CommitDraft

HEADS, MESSAGE, MODE = "MERGE_HEAD", "MERGE_MSG", "MERGE_MODE"
CHANGED = re.compile(r"^error: Entry '(.+)' not uptodate", re.MULTILINE)  # git's complaint


def leave(repo: Repository, commit: str, parents: Sequence[str], listener: Listener = ignore) -> None:
    """Makes work tree and index those of a merge commit that no branch has, HEAD staying; notes that it is under way.

    Raises:
        DirtyWorktree, MissingObject: nothing has changed then. UsageError: there is no work tree.
    """
    if repo.worktree is None:
        raise UsageError("--no-commit leaves the merge in the work tree, and a bare repository has none")
    version = repo.version(commit)
    written(repo.private_dir / MESSAGE, repo.git.run("log", "-1", "--format=%B", commit).strip() + "\n")
    worktree.put(repo, version, listener=listener)
    written(repo.private_dir / MODE, "no-ff")
    written(repo.private_dir / HEADS, "".join(f"{parent}\n" for parent in parents[1:]))


def go_on(repo: Repository, listener: Listener = ignore) -> Committed:
    """Commits the merge that is under way, as work tree and index have it now, with the message it began with.

    Raises:
        RepositoryError: none is under way, conflicts are left, or the branch has moved.
    """
    others, head = under_way(repo), repo.head()
    refuse_conflicts(repo)
    before, branch = repo.packed_bytes(), repo.branch()
    tree = worktree.add(repo, None, listener=listener)
    rows = (repo.private_dir / MESSAGE).read_text(encoding="utf-8", errors="replace").splitlines()
    message = "\n".join(row for row in rows if not row.startswith("#")).strip() or "Merge"
    ref = f"refs/heads/{branch}" if branch else "HEAD"
    made = repo.commit(CommitDraft((*([head] if head else []), *others), tree, message, (), ref, head))
    worktree.settle(repo, made, tree)
    finish(repo)
    return committed(repo, made, branch, repo.packed_bytes() - before)


def give_up(repo: Repository, listener: Listener = ignore) -> Merged:
    """Undoes what the merge that is under way did to work tree and index, as git does: other changes stay.

    Raises:
        RepositoryError: none is under way. DirtyWorktree: what was merged has been changed since; nothing is lost.
    """
    under_way(repo)
    head, command = repo.head(), ("merge", "--abort")
    if head is None:
        raise RepositoryError("a merge is under way on a branch without a commit", hint="end it: git merge --abort")
    code, _, complaint = repo.git.attempt(*command)
    if changed := CHANGED.findall(complaint):
        hint = "keep them: modelgit merge --continue; or throw all changes away: git reset --hard"
        raise DirtyWorktree(f"changed since the merge: {', '.join(changed)}", hint=hint)
    if code:
        raise failure(command, code, complaint)
    worktree.rewrite(repo, repo.version(head), listener=listener)
    finish(repo)
    return Merged("aborted", head, repo.branch())


def under_way(repo: Repository) -> tuple[str, ...]:
    """Returns the commits that are being merged into HEAD. Raises RepositoryError if none are."""
    try:
        text = (repo.private_dir / HEADS).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise RepositoryError("no merge is under way", hint="begin one: modelgit merge BRANCH…") from None
    return tuple(repo.resolve(word) for word in text.split())


def finish(repo: Repository) -> None:
    """Forgets the merge; MERGE_HEAD goes first: without it git sees none."""
    for name in (HEADS, MODE, MESSAGE):
        (repo.private_dir / name).unlink(missing_ok=True)


def written(place: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    draft = place.with_name(f"{place.name}.modelgit-{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(place)
