"""Garbage collection: first git's own, whose settings decide what is still needed, then that of the objects."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from modelgit.errors import UsageError
from modelgit.events import Finished, Listener, Started, ignore
from modelgit.porcelain.upkeep.leftovers import leftovers
from modelgit.porcelain.upkeep.lineage import lineage
from modelgit.repo.repository import Repository
from modelgit.repo.upkeep.database import needed_ids

GRACE_SETTING = "modelgit.gcgrace"  # as git writes modelgit.gcGrace
LOOK = "see what is needed"
DEFAULT_GRACE = "14d"
AGE = re.compile(r"(\d{1,9}) ?(s|m|h|d|w|)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "": 86_400}


@dataclass(frozen=True, slots=True)
class Swept:
    """What a collection did, or would do (`dry_run`).

    `bytes_before` and `bytes_after` count the packs in use; `waiting_bytes` are those of packs that a later run
    deletes; `deeper` is what storing everything better saved, None unless asked; `postponed`: somebody was writing.
    """

    dry_run: bool
    bytes_before: int
    bytes_after: int
    packs_before: int
    packs_after: int
    freed_bytes: int
    waiting_bytes: int
    deeper: int | None
    leftovers: tuple[str, ...]
    postponed: bool


def gc(
    repo: Repository,
    *,
    deep: bool = False,
    grace: str | None = None,
    prune: str | None = None,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> Swept:
    """Lets go of objects that no version needs which git still has; `deep` also stores what stays better.

    `grace` is how long nothing is touched after it was written or condemned; `prune` is handed to `git gc`.

    Raises:
        RepositoryError: git's objects cannot all be read. CorruptObject: the store is damaged. StorageFull.
    """
    from modelgit.store.upkeep.deepen import deepen
    from modelgit.store.upkeep.gc import Rules, collect

    grace_s = age_seconds(grace or repo.git.settings.get(GRACE_SETTING) or DEFAULT_GRACE)
    if not dry_run:
        git_gc(repo, prune, listener)
    needed = asked(repo, listener)  # before anything is touched: it refuses a damaged repository
    rules = Rules(time.time(), grace_s, dry_run)
    saved = deepen(repo.store, needed, lineage(repo), rules, listener) if deep and not dry_run else None
    done = collect(repo.store, lambda: asked(repo, listener), rules, listener)
    return Swept(
        dry_run=dry_run,
        bytes_before=saved.bytes_before if saved else done.bytes_before,
        bytes_after=done.bytes_after,
        packs_before=saved.packs if saved else done.packs_before,
        packs_after=done.packs_after,
        freed_bytes=done.freed_bytes,
        waiting_bytes=done.waiting_bytes,
        deeper=saved.saved_bytes if saved else None,
        leftovers=tuple(tidied(repo, dry_run)),
        postponed=done.postponed,
    )


def asked(repo: Repository, listener: Listener) -> set[bytes]:
    """Returns what is needed now. Raises RepositoryError."""
    listener(Started(LOOK, None, "objects"))
    needed = needed_ids(repo)
    listener(Finished(LOOK, f"{len(needed)} objects"))
    return needed


def git_gc(repo: Repository, prune: str | None, listener: Listener) -> None:
    """Runs git's own collection. Raises RepositoryError."""
    listener(Started("git gc", None, "objects"))
    repo.git.run("gc", "--quiet", *([f"--prune={prune}"] if prune is not None else []))
    listener(Finished("git gc"))


def tidied(repo: Repository, dry_run: bool) -> Iterator[str]:
    """Yields the scratch files of killed commands, which are removed unless it is a dry run."""
    for path in leftovers(repo, time.time()):
        if not dry_run:
            with suppress(OSError):
                path.unlink()
        yield str(path)


def age_seconds(text: str) -> float:
    """Returns the seconds that an age means: 14d, 12h, 2w, 90m, 30s, 0; a number alone counts days.

    Raises:
        UsageError: it is none.
    """
    found = AGE.fullmatch(text.strip())
    if text.strip() == "now":
        return 0.0
    if found is None:
        raise UsageError(f"not an age: expected like 14d, 12h or 0, got {text[:40]!r}", hint="see modelgit gc --help")
    return float(int(found[1]) * SECONDS[found[2]])
