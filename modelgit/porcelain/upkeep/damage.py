"""Checking that all objects are there and right, and mending what is not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from modelgit.errors import CorruptObject, DamageFound, ModelgitError, StoreError
from modelgit.events import Listener, Noted, announced, ignore
from modelgit.formats.manifest import Manifest, parse_bytes
from modelgit.porcelain import sharing
from modelgit.porcelain.sharing import Transferred
from modelgit.remotes.open import open_remote
from modelgit.repo import transport
from modelgit.repo.gitdir import PARTIAL_HINT
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.upkeep.database import ObjectReader, Trees, every_commit, manifests

if TYPE_CHECKING:
    from modelgit.store.objects import ObjectStore
    from modelgit.store.upkeep.fsck import Fault

Look = Callable[[str, Manifest], None]
LOOK = "look at versions"
MAX_NAMED = 5
REPAIR = "modelgit fsck --repair takes sound objects from the remotes, or from a path that you name"
FETCH = f"modelgit fetch brings what plain git has left at the remote; if that is not all, {REPAIR}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A sound repository: how many versions and objects were looked at, and whether every byte was.

    After a repair: objects `salvaged` from damaged packs, `brought` from remotes, and the packs put aside.
    """

    versions: int
    objects: int
    full: bool
    salvaged: int = 0
    brought: int = 0
    put_aside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Needs:
    """What versions need: a place that names each object, and what is wrong with the versions themselves."""

    versions: int
    objects: dict[str, str]
    problems: tuple[str, ...]


def fsck(
    repo: Repository,
    *,
    full: bool = False,
    repair: bool = False,
    remotes: Sequence[str] = (),
    listener: Listener = ignore,
) -> Checked:
    """Looks whether every object that any version needs is there and sound; with `full` every byte is recomputed.

    With `repair` what is not is taken from the remotes (all unless named; a path will do), or out of damaged packs.

    Raises:
        DamageFound: naming what is missing or wrong, after a repair what could not be found. RemoteError: a remote
            that was named cannot be opened.
    """
    from modelgit.store.upkeep.salvage import mend

    needs = needs_of(repo, listener)
    if not repair:
        report = repo.store.fsck(full=full, listener=listener)
        missing = sorted(repo.store.missing(needs.objects))
        left = missing and not report.faults and transport.is_partly(repo)
        refuse(needs, told(needs, report.faults), missing, FETCH if left else REPAIR)
        refuse_untrue(repo, full, listener)
        return Checked(needs.versions, report.objects, full)
    ids = [bytes.fromhex(oid) for oid in needs.objects]
    done = mend(repo.store, sources(repo, remotes, listener), ids, full=full, listener=listener)
    missing = sorted(oid.hex() for oid in done.lost)
    refuse(
        needs, told(needs, done.report.faults), missing, "name a repository that has them: modelgit fsck --repair PATH"
    )
    refuse_untrue(repo, full, listener)
    return Checked(needs.versions, done.report.objects, full, done.salvaged, done.brought, done.put_aside)


def fetch(repo: Repository, remote: str | None = None, listener: Listener = ignore) -> Transferred:
    """Fetches, then replaces what is damaged here by what the remote has. Raises as both do."""
    done = sharing.fetch(repo, remote, listener)
    mended = fsck(repo, repair=True, remotes=[done.remote], listener=listener)
    return replace(done, objects=done.objects + mended.brought)


def told(needs: Needs, faults: Sequence["Fault"]) -> list[str]:
    """Returns what is wrong in packs, a sentence each, with a version that suffers from it."""
    sufferers = [needs.objects.get(fault.oid.hex()) for fault in faults]
    return [f"{fault}, needed by {who}" if who else str(fault) for fault, who in zip(faults, sufferers, strict=True)]


def refuse(needs: Needs, problems: list[str], missing: Sequence[str], hint: str) -> None:
    """Raises DamageFound if anything is wrong."""
    problems += needs.problems
    problems += [f"missing object {oid}, needed by {needs.objects.get(oid, 'another object')}" for oid in missing]
    if problems:
        more = f" (and {len(problems) - MAX_NAMED} more)" if len(problems) > MAX_NAMED else ""
        raise DamageFound(f"{'; '.join(problems[:MAX_NAMED])}{more}", hint=hint)


def refuse_untrue(repo: Repository, full: bool, listener: Listener) -> None:
    """Raises DamageFound if a manifest says something else than its header and objects, which are all there."""
    from modelgit.store.files.tensors import open_tensor, stored_header

    def look(path: str, manifest: Manifest) -> None:
        try:
            stored_header(repo.store, manifest)
            for entry in manifest.tensors:
                open_tensor(repo.store, entry)
        except StoreError as error:
            raise CorruptObject(f"{path}: {error.message}") from error

    needs = needs_of(repo, listener, look) if full else Needs(0, {}, ())
    refuse(needs, [], [], "its version was made so; what it should be, only who made it can tell")


def sources(repo: Repository, remotes: Sequence[str], listener: Listener) -> list["ObjectStore"]:
    """Returns the stores of remotes: of those named (names or paths), else of all that can be opened.

    Raises:
        RemoteError: one that was named cannot be.
    """
    configured = repo.git.run("remote").split()
    found: list[ObjectStore] = []
    for name in remotes or configured:
        try:
            url = transport.url_of(repo, name) if name in configured else name
            found.append(open_remote(transport.placed(repo, url)))
        except ModelgitError as error:
            if remotes:
                raise
            listener(Noted(f"passed over {name}: {error.message}"))
    return found


def needs_of(repo: Repository, listener: Listener, look: Look = lambda _, __: None) -> Needs:
    """Returns what every version and the index of the work tree need; `look` may find a manifest wrong."""
    commits = every_commit(repo)
    problems: list[str] = []
    objects: dict[str, str] = {}
    seen = set[str]()
    with ObjectReader(repo.git) as reader:
        trees = Trees(reader)
        for commit in chain(announced(commits, LOOK, "versions", listener), (None,)):
            where = f"version {commit[:10]}" if commit else "the index"
            try:
                files = trees.weights(commit) if commit else staged(repo)
                new = {path: blob for path, blob in files.items() if blob not in seen}
                seen.update(new.values())
                for path, manifest in named(reader, new):
                    objects.update((oid, f"{path} of {where}") for oid in manifest.oids() if oid not in objects)
                    look(path, manifest)
            except ModelgitError as error:
                if error.hint == PARTIAL_HINT:  # no damage, and all that follow would say the same
                    raise
                problems.append(f"{where}: {error.message}")
    return Needs(len(commits), objects, tuple(problems))


def named(reader: ObjectReader, files: Mapping[str, str]) -> Iterator[tuple[str, Manifest]]:
    """Yields each weight file's manifest. Raises FormatError for a malformed one."""
    texts = manifests(reader, list(files.values()))
    for path, blob in files.items():
        if blob in texts:
            yield path, parse_bytes(texts[blob], path)


def staged(repo: Repository) -> dict[str, str]:
    """Returns the blobs of weight files in the index, by path."""
    if repo.worktree is None:
        return {}
    rows = repo.git.run_bytes("ls-files", "--stage", "-z").decode("utf-8", "surrogateescape").split("\0")
    pairs = [(row.partition("\t")[2], row.split()[1]) for row in rows if row.endswith(WEIGHTS_SUFFIX)]
    return dict(pairs)
