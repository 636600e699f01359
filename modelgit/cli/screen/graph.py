"""The lines between versions in `log --graph`: one column for each line of descent under way.

Drawn row by row: `*` where a version stands, `|` where a line passes, `\\` where a merge opens lines to its further
parents, `/` where lines that lead to the same version come together. A line to a version that is not in the list runs
on to the end, where `~` says that history goes on: whatever stands below `*` without a line is no parent of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the drawing; `commit` is the version that stands in it, None between versions."""

    drawing: str
    commit: str | None


def draw(versions: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[Row]:
    """Yields the rows for (commit, parents), children before parents; lines to parents beyond the list stay open."""
    lanes: list[str] = []  # for each column the version that its line leads to
    ended: int | None = None  # the column in which the row before has a version without parents
    for commit, parents in versions:
        if commit not in lanes:
            if len(lanes) == ended:
                yield drawn(marks_for(lanes))  # else this one would look like its parent
            lanes.append(commit)
        while lanes.count(commit) > 1:
            yield from join(lanes, commit)
        at = lanes.index(commit)
        yield Row(" ".join("*" if i == at else "|" for i in range(len(lanes))), commit)
        ended = None if parents else at
        yield from leave(lanes, at, list(parents))
    if lanes:
        yield Row(" ".join("~" for _ in lanes), None)


def marks_for(lanes: list[str]) -> list[str]:
    """Returns a row in which every line passes straight; columns are two characters apart."""
    return [mark for _ in lanes for mark in ("|", " ")]


def drawn(marks: list[str]) -> Row:
    """Returns a row between versions."""
    return Row("".join(marks).rstrip(), None)


def move_left(marks: list[str], start: int, count: int) -> None:
    """Lets the lines from column `start` on move one column to the left."""
    for i in range(start, count):
        marks[2 * i], marks[2 * i - 1] = " ", "/"


def join(lanes: list[str], commit: str) -> Iterator[Row]:
    """Yields the row in which the second line to `commit` comes to the first, and takes it out of the lanes."""
    first = lanes.index(commit)
    second = lanes.index(commit, first + 1)
    marks = marks_for(lanes)
    for i in range(first, second - 1):
        marks[2 * i + 1] = "_"  # it passes under the lines between
    move_left(marks, second, len(lanes))
    del lanes[second]
    yield drawn(marks)


def leave(lanes: list[str], at: int, parents: list[str]) -> Iterator[Row]:
    """Yields the rows in which lines to the parents open, and enters them into the lanes."""
    if not parents:
        if at < len(lanes) - 1:
            marks = marks_for(lanes)
            marks[2 * at] = " "
            move_left(marks, at + 1, len(lanes))
            yield drawn(marks)
        del lanes[at]
        return
    lanes[at] = parents[0]
    for parent in reversed(parents[1:]):
        marks = marks_for(lanes)
        for i in range(at, len(lanes)):
            marks[2 * i], marks[2 * i + 1] = ("|" if i == at else " "), "\\"
        lanes.insert(at + 1, parent)
        yield drawn(marks)
