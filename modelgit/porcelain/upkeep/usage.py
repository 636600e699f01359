"""What uses the bytes: versions, branches, tensors; and what sharing, differences and recipes saved."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelgit.errors import ModelgitError
from modelgit.events import Listener, announced, ignore
from modelgit.porcelain.upkeep.lineage import LINE
from modelgit.repo.repository import Repository
from modelgit.repo.upkeep.database import (
    OID,
    ObjectReader,
    Trees,
    commits_from,
    every_commit,
    manifests,
    needed_ids,
)
from modelgit.repo.values import LogEntry

if TYPE_CHECKING:
    from modelgit.store.upkeep.survey import Stored, Survey

LARGEST = 10
SIZE_FIELD = b"size "
Places = Mapping[bytes, "tuple[Stored, ...]"]


@dataclass(frozen=True, slots=True)
class VersionUse:
    """What a version uses: its weight files' bytes, what is stored for them, and of that what only it needs."""

    commit: str
    subject: str
    refs: tuple[str, ...]
    size_bytes: int
    stored_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class BranchUse:
    """What the versions that a branch leads to use together; `own_bytes` are needed by no other branch or tag."""

    branch: str
    versions: int
    stored_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class TensorUse:
    """A tensor, how it is stored, and how many versions need it, themselves or for what hangs on it."""

    oid: str
    name: str
    size_bytes: int
    stored_bytes: int
    codec: str
    depth: int
    versions: int


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that need not be stored: tensors that versions share, recipes, differences, coding of the rest."""

    sharing: int
    recipes: int
    differences: int
    coding: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What uses the bytes.

    `size_bytes` are all weight files of the versions looked at, one after another; `stored_bytes` what is stored for
    them. `disk_bytes` is the whole store; of that `dead_bytes` are needed by nothing and `waiting_bytes` condemned.
    """

    versions: tuple[VersionUse, ...]
    branches: tuple[BranchUse, ...]
    tensors: tuple[TensorUse, ...]
    size_bytes: int
    stored_bytes: int
    saved: Saved
    disk_bytes: int
    dead_bytes: int
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a version holds: its weight files' bytes, its objects, and all objects that those are stored as."""

    size_bytes: int
    objects: frozenset[bytes]
    closure: frozenset[bytes]


def du(repo: Repository, revs: Sequence[str] = (), listener: Listener = ignore) -> Usage:
    """Returns what uses the bytes: of all versions, or of those named. Decodes nothing.

    Raises:
        RevisionError: no such version. CorruptObject: the store is damaged. RepositoryError: git's objects are.
    """
    from modelgit.store.upkeep.survey import closure, survey

    found = survey(repo.store)
    places = found.places()
    commits = every_commit(repo)
    held = holdings(repo, announced(commits, "look at versions", "versions", listener), places)
    chosen = list(dict.fromkeys(repo.resolve(rev) for rev in revs)) or [c for c in commits if held[c].objects]
    stored = {oid: min(record.share(oid) for record in records) for oid, records in places.items()}
    needing = Counter(oid for one in held.values() for oid in one.closure)
    entries = {entry.commit: entry for entry in repo.log(chosen)} if chosen else {}
    size = sum(held[commit].size_bytes for commit in chosen)
    used = frozenset().union(*(held[commit].objects for commit in chosen))
    everything = frozenset().union(*(held[commit].closure for commit in chosen))
    return Usage(
        versions=tuple(version_use(entries[commit], held[commit], stored, needing) for commit in chosen),
        branches=() if revs else tuple(branch_uses(repo, held, stored)),
        tensors=tuple(largest(repo, chosen, everything, places, needing)),
        size_bytes=size,
        stored_bytes=sum(stored[oid] for oid in everything),
        saved=savings(size, used, everything, places),
        disk_bytes=sum(record.length for records in (*found.live.values(),) for record in records) + condemned(found),
        dead_bytes=dead(found, closure(needed_ids(repo), places)),
        waiting_bytes=condemned(found),
    )


def condemned(found: "Survey") -> int:
    """Returns the bytes in condemned packs."""
    return sum(record.length for records in found.condemned.values() for record in records)


def dead(found: "Survey", needed: set[bytes]) -> int:
    """Returns the bytes of live packs' records in which nothing is needed."""
    records = (record for records in found.live.values() for record in records)
    return sum(record.length for record in records if needed.isdisjoint(record.entries))


def holdings(repo: Repository, commits: Iterable[str], places: Places) -> dict[str, Held]:
    """Returns what each version holds; versions with the same weight files share the answer."""
    from modelgit.store.upkeep.survey import closure

    found: dict[str, Held] = {}
    known: dict[frozenset[str], Held] = {}
    with ObjectReader(repo.git) as reader:
        trees = Trees(reader)
        for commit in commits:
            files = tuple(trees.weights(commit).values())
            key = frozenset(files)
            if key not in known or len(key) < len(files):
                texts = manifests(reader, files)
                size = sum(size_told(texts[blob]) for blob in files if blob in texts)
                oids = frozenset(bytes.fromhex(w.decode()) for text in texts.values() for w in OID.findall(text))
                here = frozenset(oid for oid in oids if oid in places)
                known[key] = Held(size, here, frozenset(closure(here, places)))
            found[commit] = known[key]
    return found


def size_told(text: bytes) -> int:
    """Returns the size of the weight file that a manifest tells of."""
    row = next((row for row in text[:200].splitlines() if row.startswith(SIZE_FIELD)), b"size 0")
    digits = row.removeprefix(SIZE_FIELD)
    return int(digits) if digits.isdigit() and len(digits) < 20 else 0


def version_use(entry: LogEntry, held: Held, stored: Mapping[bytes, int], needing: Counter[bytes]) -> VersionUse:
    """Returns what a version uses."""
    own = sum(stored[oid] for oid in held.closure if needing[oid] == 1)
    total = sum(stored[oid] for oid in held.closure)
    return VersionUse(entry.commit, entry.subject, entry.refs, held.size_bytes, total, own)


def branch_uses(repo: Repository, held: Mapping[str, Held], stored: Mapping[bytes, int]) -> Iterable[BranchUse]:
    """Yields what each local branch uses, those with most of their own first."""
    refs = {ref: commit for ref, commit in repo.refs().items() if not ref.startswith(("refs/notes/", "refs/remotes/"))}
    needs: dict[str, frozenset[bytes]] = {}
    counts: dict[str, int] = {}
    for ref, tip in refs.items():
        try:
            commits = commits_from(repo, [tip])
        except ModelgitError:
            continue  # a tag of something that is no commit
        counts[ref] = len(commits)
        needs[ref] = frozenset().union(*(held[commit].closure for commit in commits if commit in held))
    needing = Counter(oid for tip in set(refs.values()) for oid in needs.get(first(refs, tip), ()))
    found = []
    for ref, oids in needs.items():
        if ref.startswith("refs/heads/"):
            own = sum(stored[oid] for oid in oids if needing[oid] == 1)
            name = ref.removeprefix("refs/heads/")
            found.append(BranchUse(name, counts[ref], sum(stored[oid] for oid in oids), own))
    return sorted(found, key=lambda use: (-use.own_bytes, use.branch))


def first(refs: Mapping[str, str], tip: str) -> str:
    """Returns the first ref at a commit: refs at one commit need the same."""
    return next(ref for ref, commit in refs.items() if commit == tip)


def savings(size: int, used: Iterable[bytes], everything: Iterable[bytes], places: Places) -> Saved:
    """Returns what need not be stored, and why."""
    saved: Counter[str] = Counter()
    raw = 0
    for oid in everything:
        record = min(places[oid], key=lambda record: record.share(oid))
        saved[record.codec] += record.entries[oid].size - record.share(oid)
    for oid in used:
        raw += places[oid][0].entries[oid].size
    alone = saved["full"] + saved["zstd"] + saved["raw"]
    return Saved(max(0, size - raw), saved["linear"], saved["delta"], alone)


def largest(
    repo: Repository, commits: Sequence[str], oids: Iterable[bytes], places: Places, needing: Counter[bytes]
) -> Iterable[TensorUse]:
    """Yields the tensors that take most, by the names they have in the newest version that has them."""
    chosen = {oid: min(places[oid], key=lambda record: record.share(oid)) for oid in oids}
    top = sorted(chosen, key=lambda oid: (-chosen[oid].share(oid), oid))[:LARGEST]
    names = names_of(repo, commits, set(top))
    for oid in top:
        record = chosen[oid]
        told = (record.entries[oid].size, record.share(oid), record.codec, record.depth, needing[oid])
        yield TensorUse(oid.hex(), names.get(oid, "header or parent"), *told)


def names_of(repo: Repository, commits: Sequence[str], wanted: set[bytes]) -> dict[bytes, str]:
    """Returns the names of objects, as the first of the commits that has them knows them."""
    found: dict[bytes, str] = {}
    with ObjectReader(repo.git) as reader:
        trees = Trees(reader)
        for commit in commits:
            if not wanted:
                break
            for text in manifests(reader, list(trees.weights(commit).values())).values():
                for name, _, word in LINE.findall(text):
                    oid = bytes.fromhex(word.decode())
                    if oid in wanted:
                        found[oid] = name.decode("utf-8", "replace")[1:-1]
                        wanted.discard(oid)
    return found
