"""From examples as a file holds them to a data set: classes and domains numbered, checked, limited, summed up."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from modelgit.errors import DataError
from modelgit.train.config import DataConfig, seed_hash
from modelgit.train.data.dataset import Dataset, Inputs, Integers, Kind
from modelgit.train.data.doubts import alike, doubts

MAX_EXAMPLES = 5_000_000
MAX_NAME = 200
GIVEN = "classes = […] in [data] refuses all others"
SHOWN = 20  # how many known names an error lists


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples in their order, with labels and domains by name.

    `read` gives inputs by index, `content` the bytes of one that the digest is made of. `classes` and `domain_names`
    are those that the file announces, in order; without, they are what is found, sorted. `named` says that names are
    the data's own, so that a split may go by them. `where` tells where an example stands, by index; `notes` what looks
    odd.
    """

    kind: Kind
    shape: tuple[int, ...]
    labels: Sequence[str]
    domains: Sequence[str]
    names: Sequence[str]
    read: Callable[[Sequence[int]], Inputs]
    content: Callable[[int], bytes]
    classes: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()
    named: bool = True
    where: Callable[[int], str] | None = None
    notes: tuple[str, ...] = ()


def assemble(rows: Rows, config: DataConfig) -> Dataset:
    """Returns the data set that `rows` make.

    Raises:
        DataError: there are none, a label is no class, there is one class only, a domain is empty.
    """
    path = config.path
    if not rows.labels:
        raise DataError(f"{path}: no {rows.kind}: expected at least one example of two classes")
    if config.group == "name" and not rows.named:
        hint = "give each example the name of what it belongs to, and say which column holds it: columns.name"
        raise DataError(f"{path}: no names to split by", hint=hint)
    classes = config.classes or rows.classes or ordered(rows.labels)
    domains = rows.domain_names or ordered(rows.domains)
    where = rows.where or (lambda index: f"{path}: example {index + 1}")
    labels = numbered(rows.labels, classes, where, ("label", "classes"))
    domain_ids = numbered(rows.domains, domains, where, ("domain", "domains"))
    check_filled(domain_ids, classes, domains, path)
    odd = "" if config.classes else doubts(labels, classes)
    notes = (f"{path}: mistyped? class {odd}; {GIVEN}",) if odd else ()
    kept = limited(rows, labels, domain_ids, config.limit_per_class)
    digest, contents = digest_of(rows, kept, heading(rows, classes, domains))
    return Dataset(
        path=path,
        kind=rows.kind,
        classes=classes,
        domains=domains,
        labels=labels[kept],
        domain_ids=domain_ids[kept],
        names=tuple(rows.names[i] for i in kept),
        digest=digest,
        shape=rows.shape,
        read=lambda indices: rows.read([int(kept[i]) for i in indices]),
        contents=contents,
        notes=(*rows.notes, *notes),
    )


def ordered(found: Iterable[str]) -> tuple[str, ...]:
    """Returns each name once: whole numbers by value, anything else by the alphabet."""
    names = set(found)
    whole = all(name.isdecimal() and name.isascii() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if whole else sorted(names))


def numbered(
    values: Sequence[str], known: Sequence[str], where: Callable[[int], str], what: tuple[str, str]
) -> Integers:
    """Returns each value's place among the known. Raises DataError for one that is not there."""
    place = {name: number for number, name in enumerate(known)}
    found = np.fromiter((place.get(value, -1) for value in values), np.int64, len(values))
    if len(wrong := np.flatnonzero(found < 0)):
        (one, plural), first = what, int(wrong[0])
        near = next((f", did you mean {name!r}?" for name in known if alike(values[first], name)), "")
        told = f"{where(first)}: {one} {values[first]!r} is none of the {plural}{near}"
        raise DataError(told, hint=f"{plural}: {listed(known)}")
    return found


def check_filled(domain_ids: Integers, classes: Sequence[str], domains: Sequence[str], path: str) -> None:
    """Raises DataError if there is one class only, or a domain is empty."""
    if len(classes) < 2:
        raise DataError(f"{path}: one class only ({classes[0]}), expected at least two")
    empty = np.flatnonzero(np.bincount(domain_ids, minlength=len(domains)) == 0)
    if len(empty):
        told = f"domain '{domains[int(empty[0])]}' is empty, expected examples of {len(classes)} classes"
        raise DataError(f"{path}: {told}")


def limited(rows: Rows, labels: Integers, domain_ids: Integers, limit: int | None) -> Integers:
    """Returns the indices of at most `limit` examples of each domain and class, chosen by the hash of their names."""
    everything = np.arange(len(labels))
    if limit is None:
        return everything
    places = np.fromiter((seed_hash("limit", name) for name in rows.names), np.int64, len(labels))
    order = np.lexsort((everything, places, labels, domain_ids))
    groups = np.stack((domain_ids, labels))[:, order]
    starts = np.flatnonzero(np.any(np.diff(groups, axis=1, prepend=-1), axis=0))
    rank = everything - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank < limit])


def heading(rows: Rows, classes: Sequence[str], domains: Sequence[str]) -> bytes:
    """Returns what the digest holds beside the examples; nothing for images in the order of the alphabet."""
    if rows.kind == "images" and all(list(names) == sorted(names) for names in (classes, domains)):
        return b""
    return encoded([rows.kind, list(rows.shape), list(classes), list(domains)])


def digest_of(rows: Rows, kept: Integers, head: bytes) -> tuple[str, tuple[bytes, ...]]:
    """Returns the BLAKE3 over names and contents, in order, and images' own; one example in memory at a time."""
    total, contents = blake3(head), list[bytes]()
    for i in kept.tolist():
        who = (rows.domains[i], rows.labels[i], rows.names[i])
        plain = rows.kind == "images" and not any("/" in name for name in who)
        total.update(f"{'/'.join(who)}\n".encode() if plain else encoded(who))
        content = blake3(rows.content(i)).digest()
        total.update(content)
        if rows.kind == "images":  # of others the inputs say the same, and are at hand
            contents.append(content)
    return total.hexdigest(), tuple(contents)


def encoded(values: Sequence[object]) -> bytes:
    """Returns values as a line that no other values give."""
    return (json.dumps(values, separators=(",", ":")) + "\n").encode()


def listed(names: Sequence[str]) -> str:
    """Returns names for a message: the first of them, with nothing that a terminal would obey."""
    return ", ".join(repr(name)[1:-1] for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def check_amount(count: int, what: str) -> None:
    """Raises DataError for more examples than a data set may have."""
    if count > MAX_EXAMPLES:
        raise DataError(f"{what}: {count} examples, expected at most {MAX_EXAMPLES}")


def word(value: object, where: str) -> str:
    """Returns a label, domain or name as text. Raises DataError for one that is empty, too long or unprintable."""
    text = str(int(value) if isinstance(value, bool) else value) if isinstance(value, str | int) else ""
    if not text or len(text) > MAX_NAME or not text.isprintable():
        got = repr(value)[:60]
        raise DataError(f"{where}: expected a word or a whole number of at most {MAX_NAME} characters, got {got}")
    return text


def words_of(values: Sequence[object], where: str) -> tuple[str, ...]:
    """Returns names of classes or domains. Raises DataError for two that are the same, or one that is no word."""
    found = tuple(word(value, where) for value in values)
    if len(set(found)) != len(found):
        raise DataError(f"{where}: a name stands there twice")
    return found
