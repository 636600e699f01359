"""What views are made of: lines of styled text, and tables. Nothing here knows whether anybody sees colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["plain", "strong", "faint", "id", "name", "good", "bad", "changed"]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text in one style."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: pieces side by side."""

    spans: tuple[Span, ...]

    def __str__(self) -> str:
        """The line without its styles."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column titles.

    A title that ends with `>` is of a column of numbers, flush right; one with `~` of text that is cut rather than
    broken where a terminal is narrow.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles as they are shown."""
        return tuple(column.rstrip(">~") for column in self.columns)

    @property
    def right(self) -> tuple[bool, ...]:
        """Which columns are flush right."""
        return tuple(column.endswith(">") for column in self.columns)

    @property
    def cut(self) -> tuple[bool, ...]:
        """Which columns are cut on a narrow terminal."""
        return tuple(column.endswith("~") for column in self.columns)


Block = Line | Table


def line(*parts: str | Span) -> Line:
    """Returns a line of plain and styled pieces."""
    return Line(tuple(Span(part) if isinstance(part, str) else part for part in parts))


def strong(text: str) -> Span:
    """Returns text that stands out."""
    return Span(text, "strong")


def faint(text: str) -> Span:
    """Returns text that steps back."""
    return Span(text, "faint")


def identity(commit: str) -> Span:
    """Returns an id, short."""
    return Span(commit[:10], "id")


def plain_table(table: Table) -> list[str]:
    """Returns the table as aligned lines, two spaces between columns, none at line ends."""
    rows = [table.titles, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return [pad(row, widths, table.right) for row in rows]


def pad(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    """Returns one aligned line."""
    cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
    return "  ".join(cells).rstrip()


# -------------------------------------------------------------------------------------------------- wording


def bytes_text(count: int) -> str:
    """Returns a size as people say it: 18.8 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def count_text(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 tensor, 12 tensors."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def seconds_text(seconds: float) -> str:
    """Returns a time as people say it: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
