"""The scores that versions have been given, read from git notes; reading them needs no PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelgit.repo.repository import Repository

SCORES_REF = "refs/notes/modelgit-scores"
MOST_IMAGES = 1 << 40  # what no data set has: a note is anybody's word


@dataclass(frozen=True, slots=True)
class Score:
    """What a version scored on one split of one data set, by metric; `split` tells the split from all others.

    `images` is on how many each accuracy rests, where the note says so.
    """

    data: str
    split: str
    values: Mapping[str, float]
    images: Mapping[str, int] = field(default_factory=dict)


def known_scores(repo: Repository, commit: str) -> tuple[Score, ...]:
    """Returns the scores noted on one commit."""
    return parse_scores(repo.read_note(SCORES_REF, commit) or "")


def all_scores(repo: Repository) -> dict[str, tuple[Score, ...]]:
    """Returns the scores of every commit that has any, with two runs of git however many there are."""
    code, listed, _ = repo.git.attempt("notes", f"--ref={SCORES_REF}", "list")
    rows = [row.split() for row in listed.decode().splitlines()] if code == 0 else []
    if not rows:
        return {}
    blobs = repo.git.run_bytes("cat-file", "--batch", stdin="".join(f"{row[0]}\n" for row in rows).encode())
    found, start = {}, 0
    for _, commit in rows:
        heading, _, rest = blobs[start:].partition(b"\n")
        size = int(heading.split()[-1])
        found[commit] = parse_scores(rest[:size].decode("utf-8", "replace"))
        start += len(heading) + size + 2
    return found


def parse_scores(text: str) -> tuple[Score, ...]:
    """Returns the scores in a note; lines that are none are left out, since anybody may write notes."""
    tables = [table for row in text.splitlines() if (table := parse_row(row)) is not None]
    return tuple(score for table in tables if (score := as_score(table)).values)


def parse_row(row: str) -> Mapping[str, object] | None:
    """Returns the JSON object in a line, None if there is none."""
    try:
        table = json.loads(row)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def as_score(table: Mapping[str, object]) -> Score:
    """Returns the numbers of a line, by name; counts are left out."""
    values = {key: value for key, value in table.items() if isinstance(value, float)}
    counts = table.get("images")
    images = counts if isinstance(counts, dict) else {}
    known = {key: n for key, n in images.items() if isinstance(n, int) and 0 < n < MOST_IMAGES}
    return Score(str(table.get("data", "")), str(table.get("split", "")), values, known)
