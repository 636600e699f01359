"""Letting go of what nobody needs, in two phases, so that nobody who is at work beside loses anything.

First, what is needed of a pack with much waste is copied into a new pack, and the old one is *condemned*: writers no
longer count on it, readers still find objects in it. Only a later run, after a grace period, deletes it, when what is
needed has been looked up afresh and copied out once more. At every moment the live packs are complete in themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from modelgit.events import Listener, ignore
from modelgit.store.catalog import CONDEMNED, LIVE
from modelgit.store.objects import ObjectStore
from modelgit.store.upkeep.copying import alone, batches, copy_records
from modelgit.store.upkeep.survey import Stored, Survey, closure, survey

DAY_S = 86_400.0
GRACE_S = 14 * DAY_S
WASTE = 0.1  # a pack is written anew when this share of it is needed by nobody
SMALL_PACK_BYTES = 256 * 1024 * 1024
MANY_PACKS = 24  # small packs that are gathered into one
Roots = Callable[[], Iterable[bytes]]
Places = Mapping[bytes, tuple[Stored, ...]]


@dataclass(frozen=True, slots=True)
class Rules:
    """How old a pack must be before anything in it may go (and a condemned one before it does); what time it is."""

    now: float
    grace_s: float = GRACE_S
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen: records copied, packs condemned, condemned packs deleted."""

    copy: tuple[Stored, ...] = ()
    condemn: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did (or would do): packs and bytes before and after; `waiting_bytes` are condemned."""

    objects: int
    packs_before: int
    packs_after: int
    bytes_before: int
    bytes_after: int
    copied_bytes: int
    condemned_packs: int
    deleted_packs: int
    freed_bytes: int
    waiting_bytes: int
    postponed: bool


@dataclass(slots=True)
class Choice:
    """Which live packs stay as they are, and which are written anew."""

    keep: set[str]
    rewrite: set[str] = field(default_factory=set)


def collect(store: ObjectStore, roots: Roots, rules: Rules, listener: Listener = ignore) -> Collected:
    """Let go of what neither `roots` (ids, asked for afresh before anything is deleted) nor a young pack needs.

    Raises:
        CorruptObject: the store is damaged; nothing was changed. StoreError: another collection is running.
        StorageFull.
    """
    with alone(store.backend):
        before = survey(store)
        plan = make_plan(store, before, roots(), rules)
        if rules.dry_run:
            return told(before, plan, plan.delete)
        new = copy_records(store, plan.copy, listener)
        again = tuple(name for name in plan.condemn if name in new)  # a pack that was copied whole is what it was
        plan = replace(plan, condemn=tuple(name for name in plan.condemn if name not in again))
        return told(before, plan, carry_out(store, plan, roots), len(again))


def carry_out(store: ObjectStore, plan: Plan, roots: Roots) -> tuple[str, ...]:
    """Condemn and delete; return what was deleted: nothing while somebody writes or a need has come up."""
    for name in plan.condemn:
        store.backend.move(name, condemned_name(name))
    store.catalog.refresh()
    if not plan.delete or store.backend.busy():
        return ()
    now = survey(store)
    here = {oid for records in now.live.values() for record in records for oid in record.entries}
    if not closure([*roots(), *here], now.places()) <= here:
        return ()
    deleted = tuple(name for name in plan.delete if name in now.condemned)
    for name in deleted:
        store.backend.delete(name)
    store.catalog.refresh()
    return deleted


def condemned_name(name: str) -> str:
    """Return the name a live pack gets when it is condemned."""
    return CONDEMNED + name.removeprefix(LIVE)


def make_plan(store: ObjectStore, before: Survey, roots: Iterable[bytes], rules: Rules) -> Plan:
    """Return what a collection has to do."""
    places = before.places()
    living = closure(roots, places)
    young = {name for name in before.live if age(store, name, rules) < rules.grace_s}
    choice = choose(store, before, places, living, young)
    kept = {oid for name in choice.keep for record in before.live[name] for oid in record.entries}
    entire = {oid for name in choice.rewrite & young for record in before.live[name] for oid in record.entries}
    needed = closure(living | kept | entire, places)
    condemn = tuple(sorted(choice.rewrite))
    sources = [before.live[name] for name in condemn] + [before.condemned[name] for name in sorted(before.condemned)]
    old = [name for name in sorted(before.condemned) if age(store, name, rules) >= rules.grace_s]
    old += [condemned_name(name) for name in condemn if rules.grace_s <= 0]
    return Plan(to_copy(sources, needed - kept), condemn, tuple(old))


def age(store: ObjectStore, name: str, rules: Rules) -> float:
    """Return the seconds since a pack was published or condemned."""
    return max(0.0, rules.now - store.backend.changed_at(name))


def to_copy(sources: Iterable[Iterable[Stored]], wanted: set[bytes]) -> tuple[Stored, ...]:
    """Return the records that hold the wanted objects, each object once, the first sources first."""
    left, chosen = set(wanted), list[Stored]()
    for record in (record for records in sources for record in records):
        if not left.isdisjoint(record.entries):
            left.difference_update(record.entries)
            chosen.append(record)
    return tuple(chosen)


def choose(store: ObjectStore, before: Survey, places: Places, living: set[bytes], young: set[str]) -> Choice:
    """Return which packs to write anew: the wasteful, and the small if they are many.

    What stays needs its parents too, wanted or not; so a pack chosen for its waste may turn out to have little.
    """
    sizes = {name: store.backend.size(name) for name in before.live}
    choice = Choice(set(young))
    needed = closure(living | objects_of(before, choice.keep), places)
    choice.rewrite = wasteful(before, sizes, needed) - young
    while True:
        choice.keep = before.live.keys() - choice.rewrite
        needed = closure(living | objects_of(before, choice.keep), places)
        still = choice.rewrite & wasteful(before, sizes, needed)
        if still == choice.rewrite:
            break
        choice.rewrite = still
    small = {name for name in choice.keep if sizes[name] < SMALL_PACK_BYTES}
    if len(small) > MANY_PACKS:
        choice.keep, choice.rewrite = choice.keep - small, choice.rewrite | small
    return choice


def objects_of(before: Survey, names: Iterable[str]) -> set[bytes]:
    """Return the objects in some live packs."""
    return {oid for name in names for record in before.live[name] for oid in record.entries}


def wasteful(before: Survey, sizes: Mapping[str, int], needed: set[bytes]) -> set[str]:
    """Return the packs of which much is needed by nobody, or lies in another pack too; the largest keeps its copy."""
    found, seen = set[str](), set[bytes]()
    for name in sorted(before.live, key=lambda name: (-sizes[name], name)):
        dead = 0
        for record in before.live[name]:
            wanted = [oid for oid in record.entries if oid in needed and oid not in seen]
            dead += 0 if wanted else record.length
            seen.update(wanted)
        if dead >= WASTE * sizes[name]:
            found.add(name)
    return found


def told(before: Survey, plan: Plan, deleted: tuple[str, ...], again: int = 0) -> Collected:
    """Return the report on a collection that was carried out, or would be; `again` packs were copied whole."""
    kept = [name for name in before.live if name not in plan.condemn]
    copied = 0 if again else sum(record.length for record in plan.copy)
    condemned = {condemned_name(name) for name in plan.condemn} | before.condemned.keys()
    sizes = {name: length(before, name) for name in condemned}
    return Collected(
        objects=len({oid for records in before.live.values() for record in records for oid in record.entries}),
        packs_before=len(before.live),
        packs_after=len(kept) + sum(1 for _ in batches(plan.copy)) - again,
        bytes_before=sum(length(before, name) for name in before.live),
        bytes_after=copied + sum(length(before, name) for name in kept),
        copied_bytes=copied,
        condemned_packs=len(plan.condemn),
        deleted_packs=len(deleted),
        freed_bytes=sum(sizes[name] for name in deleted),
        waiting_bytes=sum(size for name, size in sizes.items() if name not in deleted),
        postponed=not set(deleted) >= {name for name in plan.delete if name in sizes},
    )


def length(before: Survey, name: str) -> int:
    """Return the bytes of a pack's records, by the name it had or has."""
    records = before.condemned.get(name) or before.live.get(LIVE + name.rpartition("/")[2], ())
    return sum(record.length for record in records)
