"""The lineage of versions and what git notes say of them: nothing is evaluated, no network is built."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelgit.errors import FormatError
from modelgit.porcelain.records import RECORD_LIMIT_BYTES, RECORD_PATH, Record, parse_record
from modelgit.porcelain.reporting.estimates import estimated
from modelgit.porcelain.reporting.values import Board, Estimate, Model, Standing
from modelgit.porcelain.scorebook import Score, parse_row
from modelgit.repo.repository import Repository
from modelgit.repo.values import LogEntry
from modelgit.train.measuring.forgetting import forgetting

KINDS = ("import", "train", "probe", "merge")
Bests = Mapping[str, float]  # by split, the best accuracy of any ancestor


# ------------------------------------------------------------------------------------------------ lineage


def newest(entries: Sequence[LogEntry], count: int) -> list[LogEntry]:
    """Returns so many versions with the latest dates, oldest first, parents before children."""
    order = sorted(range(len(entries)), key=lambda i: (-entries[i].date, i))
    return [entries[i] for i in sorted(order[:count], reverse=True)]


def lineage(repo: Repository, entries: Sequence[LogEntry]) -> tuple[Model, ...]:
    """Returns the versions numbered from 1, in the order given."""
    numbers = {entry.commit: number for number, entry in enumerate(entries, 1)}
    records = own_records(repo, entries)
    return tuple(model(entry, records.get(entry.commit), numbers) for entry in entries)


def model(entry: LogEntry, record: Record | None, numbers: Mapping[str, int]) -> Model:
    """Returns a version as the lineage shows it."""
    merged = len(entry.parents) > 1 and "Merge-Method" in entry.trailers
    kind = "merge" if merged else record.kind if record is not None and record.kind in KINDS else "commit"
    parents = tuple(numbers[parent] for parent in entry.parents if parent in numbers)
    return Model(numbers[entry.commit], entry.commit, name_of(entry), kind, entry.date, parents, data_of(record))


def name_of(entry: LogEntry) -> str:
    """Returns the branch or tag that a version is at, else what its message begins with."""
    names = [ref.removeprefix("tag: ") for ref in sorted(entry.refs, key=lambda ref: (ref.startswith("tag: "), ref))]
    return (names or [entry.subject or entry.commit[:10]])[0]


def data_of(record: Record | None) -> str:
    """Returns the data that a version was trained on, by its record; empty for any other."""
    data = record.details.get("data") if record is not None else None
    return str(data.get("path", "")) if isinstance(data, dict) else ""


def own_records(repo: Repository, entries: Sequence[LogEntry]) -> dict[str, Record]:
    """Returns the records of versions, but for those that have a parent's; what is no record is left out."""
    commits = list(dict.fromkeys(commit for entry in entries for commit in (entry.commit, *entry.parents)))
    shas = record_blobs(repo, commits)
    own = {e.commit: shas[e.commit] for e in entries if e.commit in shas}
    own = {e.commit: own[e.commit] for e in entries if e.commit in own and not inherited(e, shas)}
    texts, found = repo.read_blobs(own.values()), dict[str, Record]()
    for commit, sha in own.items():
        try:
            found[commit] = parse_record(texts[sha], RECORD_PATH)
        except FormatError:  # anybody may have written it; the version is shown without
            continue
    return found


def inherited(entry: LogEntry, shas: Mapping[str, str]) -> bool:
    """Tells whether a version's record is a parent's: plain git carries it along as it does any file."""
    return any(shas.get(parent) == shas[entry.commit] for parent in entry.parents)


def record_blobs(repo: Repository, commits: Sequence[str]) -> dict[str, str]:
    """Returns the blob of each version's record, with one run of git; those that are too large are left out."""
    asked = "".join(f"{commit}:{RECORD_PATH}\n" for commit in commits).encode()
    answers = repo.git.run_bytes("cat-file", "--batch-check", stdin=asked).decode("utf-8", "replace").splitlines()
    rows = zip(commits, (answer.split() for answer in answers), strict=True)
    return {
        commit: words[0]
        for commit, words in rows
        if len(words) == 3 and words[1] == "blob" and int(words[2]) <= RECORD_LIMIT_BYTES
    }


# ------------------------------------------------------------------------------------------------- scores


def boards(
    shown: Sequence[LogEntry], entries: Sequence[LogEntry], scores: Mapping[str, Sequence[Score]]
) -> tuple[Board, ...]:
    """Returns what the versions shown scored, by data set, most scored first; `entries` is all of the history."""
    best = best_before(entries, scores)
    rows: dict[str, list[Standing]] = {}
    names: dict[str, str] = {}
    for number, entry in enumerate(shown, 1):
        for score in scores.get(entry.commit, ()):
            if is_ensemble(score):
                continue
            names.setdefault(score.split, score.data)
            rows.setdefault(score.split, []).append(standing(number, score, best[entry.commit]))
    found = [board(names[split], split, tuple(rows[split])) for split in rows]
    return numbered(sorted(found, key=lambda one: (-len(one.rows), one.data, one.split)))


def is_ensemble(score: Score) -> bool:
    """Tells whether a score is of several versions together, noted on the first of them."""
    return ", ensemble " in score.split


def board(data: str, split: str, rows: tuple[Standing, ...]) -> Board:
    """Returns the scores on one split of a data set."""
    key = parse_row(split) or {}
    held_out, numbers = key.get("held_out"), ((word, key.get(word)) for word in ("fold", "trial"))
    part = ", ".join(f"{word} {number}" for word, number in numbers if isinstance(number, int) and number)
    return Board(data, split, held_out if isinstance(held_out, str) else None, rows, part)


def numbered(found: Sequence[Board]) -> tuple[Board, ...]:
    """Returns boards with a number on each but the first of those that are otherwise called alike."""
    alike = Counter[tuple[str, str | None, str]]()
    told = list[Board]()
    for one in found:
        key = one.data, one.held_out, one.part
        alike[key] += 1
        number = f"split {alike[key]}" if alike[key] > 1 else ""
        told.append(replace(one, part=", ".join(word for word in (one.part, number) if word)))
    return tuple(told)


def best_before(entries: Sequence[LogEntry], scores: Mapping[str, Sequence[Score]]) -> dict[str, Bests]:
    """Returns for every version the best accuracy that any of its ancestors has on each split.

    `entries` come children before parents.
    """
    reached: dict[str, Bests] = {}
    before: dict[str, Bests] = {}
    for entry in reversed(entries):
        best: dict[str, float] = {}
        for parent in entry.parents:
            for split, value in reached.get(parent, {}).items():
                best[split] = max(value, best.get(split, value))
        own = {s.split: a for s in scores.get(entry.commit, ()) if (a := fraction(s, main_metric(s))) is not None}
        before[entry.commit] = best
        reached[entry.commit] = {**best, **{s: max(a, best.get(s, a)) for s, a in own.items()}}
    return before


def standing(number: int, score: Score, best: Bests) -> Standing:
    """Returns what one note says of a version."""
    metric = main_metric(score)
    parts = domains_of(score, metric)
    accuracy = fraction(score, metric)
    counts = [score.images[f"{metric}/{name}"] for name in parts if f"{metric}/{name}" in score.images]
    worst = min(parts, key=lambda name: (parts[name], name), default=None)
    lost = forgetting([best, {score.split: accuracy}]) if accuracy is not None else {}
    return Standing(
        number=number,
        accuracy=None if accuracy is None else estimated(accuracy, counts if len(counts) == len(parts) else ()),
        worst_domain=worst,
        worst=None if worst is None else single(score, f"{metric}/{worst}"),
        held_out=single(score, "ood_accuracy"),
        forgotten=lost.get(score.split),
        worst_group=single(score, "worst_group_accuracy"),
        ece=fraction(score, "ece"),
    )


def main_metric(score: Score) -> str:
    """Returns the accuracy that stands for a score."""
    return "accuracy" if "accuracy" in score.values else "val_accuracy"


def domains_of(score: Score, metric: str) -> dict[str, float]:
    """Returns the accuracies of single domains."""
    names = [name for name in score.values if name.startswith(f"{metric}/")]
    found = {name.split("/", 1)[1]: fraction(score, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def fraction(score: Score, metric: str) -> float | None:
    """Returns an accuracy, None where there is none or it is no share."""
    value = score.values.get(metric)
    return value if value is not None and math.isfinite(value) and 0 <= value <= 1 else None


def single(score: Score, metric: str) -> Estimate | None:
    """Returns the accuracy on one domain with its interval."""
    value = fraction(score, metric)
    return None if value is None else estimated(value, [score.images[metric]] if metric in score.images else ())
