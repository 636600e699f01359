"""Verbs that are git's own: handed on as they are, with git's exit code. And what to say to a verb nobody knows."""

import difflib
import os
import subprocess
from collections.abc import Iterable, Sequence
from typing import NoReturn

from modelgit.errors import DependencyMissing, UsageError

# History and names: git does them on manifests as well as on anything. Verbs that modelgit has itself are absent.
VERBS = frozenset(
    """
    archive bisect blame branch bundle cat-file cherry config count-objects describe for-each-ref format-patch grep
    ls-files ls-remote ls-tree merge-base mv name-rev notes range-diff reflog remote rev-list rev-parse rm shortlog
    show-branch show-ref symbolic-ref tag update-ref verify-commit verify-tag whatchanged
    """.split()  # noqa: SIM905  a list that people read
)
# Handed on as well; they write files. Where our filter is not set up they leave manifests, which we fill in afterwards.
REWRITING = frozenset(["am", "cherry-pick", "rebase", "reset", "restore", "revert", "stash", "worktree"])
WITH_VALUE = ("-C",)


def verb_at(words: Sequence[str]) -> int | None:
    """Returns where the verb stands among the words, None if there is none."""
    i = 0
    while i < len(words):
        if words[i] in WITH_VALUE:
            i += 2
        elif words[i].startswith("-"):
            i += 1
        else:
            return i
    return None


def directory_of(words: Sequence[str]) -> str:
    """Returns the directory that the options before the verb name, empty for this one."""
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-C"]
    return os.path.join(*found) if found else ""  # noqa: PTH118  as git does: each relative to the one before


def run_git(words: Sequence[str]) -> int:
    """Returns git's exit code for these words. Where nothing is left to do afterwards, becomes git."""
    try:
        if words[0] not in REWRITING:
            os.execvp("git", ["git", *words])
        return subprocess.run(["git", *words], check=False).returncode
    except FileNotFoundError as error:
        raise DependencyMissing("git is not installed", hint="install git 2.38 or later") from error


def refuse_verb(verb: str, commands: Iterable[str]) -> NoReturn:
    """Says that nobody knows the verb, naming the nearest of those that are known.

    Raises:
        UsageError: always.
    """
    known = sorted({*commands, *VERBS, *REWRITING})
    near = difflib.get_close_matches(verb, known, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else "modelgit --help lists the commands"
    raise UsageError(f"'{verb}' is not a modelgit command", hint=hint)
