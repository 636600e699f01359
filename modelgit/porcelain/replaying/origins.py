"""Which changes a history has already: commits say of themselves whose change they are, or whose they take back.

Both ways to say it count: modelgit's trailers, and the lines that `git cherry-pick -x` and `git revert` write.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelgit.porcelain.replaying.values import Change, Verb
from modelgit.repo.repository import Repository
from modelgit.repo.values import trailers_of

ADDED = re.compile(r"^\(cherry picked from commit ([0-9a-f]{40})\)$", re.MULTILINE)
TAKEN_BACK = re.compile(r"^This reverts commit ([0-9a-f]{40})[.,]", re.MULTILINE)
TELLING = ("cherry picked from commit ", "This reverts commit ", "Replay-Of: ")


@dataclass(frozen=True, slots=True)
class Origins:
    """For the commits whose changes a history has: the commits that added them, and that took them back, newest first.

    Those that were taken back themselves do not count.
    """

    added: Mapping[str, tuple[str, ...]]
    taken_back: Mapping[str, tuple[str, ...]]

    def there(self, change: Change, *, inside: bool, scaled: bool) -> bool:
        """Tells whether a history has a change already; `inside` says that it has the very commit.

        With a scale of one's own, a commit that it has may be added to it once more: that makes a skill stronger.
        """
        added, gone = self.added.get(change.source, ()), self.taken_back.get(change.source, ())
        net = inside + len(added) - len(gone)
        if change.verb == "revert":
            return bool(gone) and net <= 0
        return net > 0 and not (inside and scaled and not added)

    def by(self, change: Change) -> str | None:
        """Returns the last commit that says it made a change; None if it is the change's own commit that is there."""
        found = self.taken_back if change.verb == "revert" else self.added
        return next(iter(found.get(change.source, ())), None)


def read_origins(repo: Repository, head: str) -> Origins:
    """Returns the changes that the history of `head` has."""
    looks = ("--topo-order", "--no-show-signature", "--fixed-strings", *(f"--grep={word}" for word in TELLING))
    text = repo.git.run_bytes("log", *looks, "--format=%H%x00%B%x00%x01", head).decode("utf-8", "replace")
    added: dict[str, list[str]] = {}
    taken_back: dict[str, list[str]] = {}
    for row in text.split("\0\x01")[:-1]:  # children first: whoever takes a commit back comes before it
        commit, _, message = row.removeprefix("\n").partition("\0")
        if taken_back.get(commit):
            continue
        for verb, source in sources_of(message):
            (taken_back if verb == "revert" else added).setdefault(source, []).append(commit)
    return Origins(*({key: tuple(found) for key, found in table.items()} for table in (added, taken_back)))


def sources_of(message: str) -> set[tuple[Verb, str]]:
    """Returns the commits whose changes a commit says it has, or has taken back."""
    trailers = trailers_of(message)
    verb: Verb = "revert" if trailers.get("Replay-Verb") == ["revert"] else "cherry-pick"
    found: set[tuple[Verb, str]] = {(verb, source) for source in trailers.get("Replay-Of", ())}
    found |= {("cherry-pick", source) for source in ADDED.findall(message)}
    return found | {("revert", source) for source in TAKEN_BACK.findall(message)}
