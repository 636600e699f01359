"""Before a plain `git push`: the objects that its history needs go first, so that no remote shows what it lacks."""

from collections.abc import Iterable
from dataclasses import dataclass

from modelgit.errors import RemoteError
from modelgit.events import Listener, ignore
from modelgit.remotes.open import directory_of
from modelgit.repo import transport
from modelgit.repo.repository import ZERO, Repository


@dataclass(frozen=True, slots=True)
class Sent:
    """What went before a push; `warning` says why objects stayed here."""

    objects: int = 0
    bytes: int = 0
    warning: str | None = None


def tips_in(lines: Iterable[str]) -> list[str]:
    """Returns the commits that git is about to push, from the lines it gives its hook; deletions need nothing."""
    rows = [line.split() for line in lines if line.strip()]
    return list(dict.fromkeys(row[1] for row in rows if len(row) == 4 and row[1] != ZERO))


def send_first(repo: Repository, remote: str, url: str, tips: list[str], listener: Listener = ignore) -> Sent:
    """Sends the objects that the history of `tips` needs and the remote lacks; only to a remote that is a folder.

    Raises:
        MissingObject: an object is not here either. RemoteError, StorageFull.
    """
    if not tips:
        return Sent()
    try:
        directory_of(transport.placed(repo, url))
    except RemoteError as error:
        known = list(repo.refs(f"refs/remotes/{remote}/").values())
        if not transport.needed_objects(repo, tips, known):
            return Sent()
        return Sent(warning=f"the weights stay here, {remote} gets their manifests only: {error.message}")
    report = transport.send_objects(repo, transport.look_at(repo, remote, url), tips, listener)
    return Sent(report.objects, report.bytes)
