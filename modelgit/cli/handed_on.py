"""Verbs that are git's own: handed on as they are, with git's exit code. And what to say to a verb nobody knows."""

import difflib
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from modelgit.errors import DependencyMissing, UsageError

# History and names: git does them on manifests as well as on anything. Verbs that modelgit has itself are absent.
VERBS = frozenset(
    """
    archive bisect branch bundle cat-file cherry config count-objects describe for-each-ref format-patch grep
    ls-files ls-remote ls-tree merge-base mv name-rev notes range-diff reflog remote rev-list rev-parse rm shortlog
    show-branch show-ref symbolic-ref tag update-ref verify-commit verify-tag whatchanged
    """.split()  # noqa: SIM905  a list that people read
)
# Handed on as well; they write files. Where our filter is not set up they leave manifests, which we fill in afterwards.
REWRITING = frozenset(["am", "reset", "restore", "stash", "worktree"])
# Verbs that both have: with one of these options git is meant.
UNDER_WAY = ("--abort", "--continue", "--quit", "--skip")
EDITING = ("-e", "--edit", "-s", "--signoff", "-S", "--gpg-sign", "--no-gpg-sign", "--cleanup", "--rerere-autoupdate")
STRATEGY = ("--strategy", "--strategy-option", "-X")
GITS: Mapping[str, tuple[str, ...]] = {
    "blame": (
        *(
            "--",
            "-L",
            "-l",
            "-t",
            "-S",
            "-p",
            "-M",
            "-C",
            "-w",
            "-b",
            "-f",
            "-n",
            "-s",
            "-e",
            "-c",
            "--root",
            "--reverse",
        ),
        *("--porcelain", "--line-porcelain", "--incremental", "--contents", "--date", "--ignore-rev", "--show-name"),
        *("--show-number", "--show-email", "--show-stats", "--first-parent", "--since", "--abbrev"),
    ),
    "cherry-pick": (*UNDER_WAY, *EDITING, *STRATEGY, "-x", "--ff", "--allow-empty", "--keep-redundant-commits"),
    "revert": (*UNDER_WAY, *EDITING, *STRATEGY, "--no-edit", "--reference"),
    "rebase": (
        *(*UNDER_WAY, *EDITING, *STRATEGY, "-i", "--interactive", "-r", "--rebase-merges", "--onto", "-x", "--exec"),
        *("--edit-todo", "--show-current-patch", "--autosquash", "--autostash", "--no-autostash", "--root"),
        *("--keep-base", "--fork-point", "--no-fork-point", "--apply", "--merge", "-m", "-f", "--force-rebase"),
        *("--no-ff", "--empty", "--update-refs", "--committer-date-is-author-date", "--ignore-date", "--no-verify"),
    ),
}
WITH_VALUE = ("-C",)
# Verbs that both have and that mean the same: what ours does not take, git's may.
BOTH = frozenset(
    "add blame checkout cherry-pick commit diff fetch log merge pull push rebase revert show status switch".split()  # noqa: SIM905
)
COUNT = re.compile(r"-[1-9][0-9]*")


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


def is_gits(words: Sequence[str]) -> bool:
    """Tells whether git is meant: by a verb that it alone has, or by an option that it alone has."""
    verb, *rest = words
    if verb in VERBS | REWRITING:
        return True
    return any(word.partition("=")[0] in GITS.get(verb, ()) for word in rest)


def spelled_out(words: Sequence[str]) -> list[str]:
    """Returns a verb and its words, `log -5` as `log -n 5`."""
    verb, *rest = words
    if verb != "log":
        return [verb, *rest]
    return [verb, *(part for word in rest for part in (("-n", word[1:]) if COUNT.fullmatch(word) else (word,)))]


def gits_way(words: Sequence[str]) -> str | None:
    """Returns what plain git is told to get what ours does not know, None for a verb that git lacks, or does otherwise.

    In a repository with weights that is sound: filters, drivers and hook are set up.
    """
    if not words or words[0] not in BOTH:
        return None
    if words[0] == "commit" and "--amend" in words:
        words = ["commit", "--all", *words[1:]]  # ours takes changed files without being told
    return shlex.join(["git", *words])


def directory_of(words: Sequence[str]) -> str:
    """Returns the directory that the options before the verb name, empty for this one."""
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-C"]
    return os.path.join(*found) if found else ""  # noqa: PTH118  as git does: each relative to the one before


def run_git(words: Sequence[str]) -> int:
    """Returns git's exit code for these words. Where nothing is left to do afterwards, becomes git."""
    try:
        if words[0] not in REWRITING | GITS.keys() - {"blame"}:
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
