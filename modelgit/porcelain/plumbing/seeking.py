"""Objects that are not here, from the repository's remotes."""

from collections.abc import Mapping

from modelgit.events import Listener, ignore
from modelgit.formats.manifest import parse_bytes
from modelgit.repo.repository import Repository


def seek(repo: Repository, texts: Mapping[str, bytes], listener: Listener = ignore) -> None:
    """Brings the objects that manifests (by path) name and the store lacks, from the first remotes that have them.

    What no remote has stays missing: whoever needs it says so. Raises FormatError for what is no manifest.
    """
    manifests = [parse_bytes(text, path) for path, text in texts.items()]
    wanted = {oid for manifest in manifests for oid in manifest.oids()}
    missing = repo.store.missing(wanted)
    if missing:
        from modelgit.repo import transport

        transport.seek(repo, missing, listener)
