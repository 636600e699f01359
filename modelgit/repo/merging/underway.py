"""What git is in the middle of: an operation that waits for its user, and the paths in conflict.

The state is git's own, the files that `git status` looks at too.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelgit.errors import RepositoryError
from modelgit.repo.repository import Repository

MAX_NAMED = 5
# The first of these files that is there says what is under way; a rebase has others' files as well.
STATES = (
    ("rebase-merge", "rebase"),
    ("rebase-apply/applying", "am"),
    ("rebase-apply", "rebase"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
    ("MERGE_HEAD", "merge"),
    ("BISECT_LOG", "bisect"),
)
HEADS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")  # the next commit is to be theirs
SEQUENCE = {"pick": "cherry-pick", "revert": "revert"}  # what is left of several, by the word it begins with
COMMIT = re.compile(r"[0-9a-f]{40}")
# Which of base, ours and theirs the index holds of a path, in the words of `git status`.
KINDS: Mapping[str, str] = {
    "1": "both deleted",
    "2": "added by us",
    "12": "deleted by them",
    "3": "added by them",
    "13": "deleted by us",
    "23": "both added",
    "123": "both modified",
}


@dataclass(frozen=True, slots=True)
class Unmerged:
    """A path in conflict; `kind` is in the words of `git status`: both modified, deleted by them …"""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What git is in the middle of: the verb, and what it works on.

    `ours` and `theirs` are the two sides of a conflict: in a rebase, what is rebased onto is ours. `go_on`, `skip` and
    `give_up` are the commands for it.
    """

    verb: str
    what: str | None
    ours: str | None
    theirs: str | None
    go_on: str
    give_up: str
    skip: str | None = None


def under_way(repo: Repository) -> UnderWay | None:
    """Returns what git is in the middle of here, None if nothing is."""
    verb = verb_under_way(repo)
    if verb is None:
        return None
    if verb == "bisect":
        return UnderWay(verb, None, None, None, "git bisect good, or git bisect bad", "git bisect reset")
    tool = "modelgit" if verb == "merge" else "git"
    what, ours, theirs = sides_of_rebase(repo) if verb == "rebase" else sides_of(repo, verb)
    skip = f"git {verb} --skip" if verb != "merge" else None
    return UnderWay(verb, what, ours, theirs, f"{tool} {verb} --continue", f"{tool} {verb} --abort", skip)


def sides_of(repo: Repository, verb: str) -> tuple[str | None, str | None, str | None]:
    """Returns what a verb works on, what it calls ours, and theirs."""
    found = read(repo, f"{verb.replace('-', '_').upper()}_HEAD") or ""
    theirs = ", ".join(str(called(repo, word)) for word in found.split()) or None
    return theirs, repo.branch() or "HEAD", theirs


def sides_of_rebase(repo: Repository) -> tuple[str | None, str | None, str | None]:
    """Returns what is rebased, what it goes onto, which is ours, and the commit that is replayed."""
    onto = called(repo, first(repo, "onto"))
    branch = (first(repo, "head-name") or "").removeprefix("refs/heads/")
    return f"{branch or 'HEAD'} onto {onto}", onto, called(repo, read(repo, "REBASE_HEAD"))


def verb_under_way(repo: Repository) -> str | None:
    """Returns the verb that git is in the middle of, None if it is in none."""
    found = next((verb for name, verb in STATES if (repo.private_dir / name).exists()), None)
    todo = read(repo, "sequencer/todo") if found in (None, "bisect") else None
    return SEQUENCE.get(todo.partition(" ")[0], found) if todo else found


def read(repo: Repository, name: str) -> str | None:
    """Returns what a small file of git's says, None if it is not there."""
    try:
        return (repo.private_dir / name).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def first(repo: Repository, name: str) -> str | None:
    """Returns what a rebase has written down under a name."""
    return read(repo, f"rebase-merge/{name}") or read(repo, f"rebase-apply/{name}")


def called(repo: Repository, commit: str | None) -> str | None:
    """Returns what people call a commit: a branch that is there, else its id and subject."""
    if commit is None or not COMMIT.fullmatch(commit):
        return None
    looks = ("--count=1", f"--points-at={commit}", "--format=%(refname:short)", "refs/heads/", "refs/remotes/")
    branch = repo.git.run("for-each-ref", *looks).strip()
    code, subject, _ = repo.git.attempt("log", "-1", "--no-show-signature", "--format=%s", commit)
    return branch or (f"{commit[:10]} ({subject.decode('utf-8', 'replace').strip()})" if code == 0 else commit[:10])


def unmerged_paths(stages: Mapping[str, str]) -> tuple[Unmerged, ...]:
    """Returns the conflicts that an index holds: by path, the numbers of the sides that are there."""
    return tuple(Unmerged(path, KINDS["".join(sorted(found))]) for path, found in sorted(stages.items()))


# ---------------------------------------------------------------------------------------------------- refusing


def refuse_merge(repo: Repository) -> None:
    """Refuses a step in the middle of a merge, cherry-pick or revert: it would lose the other side.

    Raises:
        RepositoryError: saying how to end it.
    """
    found = under_way(repo) if any((repo.private_dir / name).exists() for name in HEADS) else None
    if found is not None:
        hint = f"finish it: {found.go_on}; or: {found.give_up}"
        raise RepositoryError(f"a {found.verb} is under way here", hint=hint)


def refuse_conflicts(repo: Repository) -> None:
    """Refuses a work tree in which git waits for conflicts to be resolved. Raises RepositoryError, with the way out."""
    paths = paths_in_conflict(repo)
    if paths:
        raise conflicts_error(repo, paths)


def paths_in_conflict(repo: Repository) -> list[str]:
    """Returns the paths that wait to be resolved; a bare repository has none."""
    rows = repo.git.run_bytes("ls-files", "--unmerged", "-z").split(b"\0") if repo.worktree is not None else []
    return sorted({os.fsdecode(row.partition(b"\t")[2]) for row in rows if row})


def conflicts_error(repo: Repository, paths: list[str]) -> RepositoryError:
    """Returns the error for paths in conflict, with the way out."""
    found = under_way(repo)
    where = f"a git {found.verb} is under way here, with conflicts" if found else "git has left conflicts"
    ends = f", then {found.go_on}; or {found.give_up}" if found else "; or undo what led here: git reset --merge"
    some = ", ".join(paths[:MAX_NAMED]) + (" …" if len(paths) > MAX_NAMED else "")
    hint = f"take a side: git checkout --ours FILE, or --theirs; git add FILE{ends}"
    return RepositoryError(f"{where} in {some}", hint=hint)
