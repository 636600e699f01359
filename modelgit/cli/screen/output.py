"""The only place that prints. Results go to stdout; progress, warnings, hints and errors to stderr.

rich on a terminal, plain text when piped, one JSON object with --json, ids alone with --quiet. NO_COLOR is obeyed.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TextIO

from modelgit.cli.screen.blocks import Block, Line, Table, plain_table
from modelgit.errors import MergeConflict, ModelgitError

SCHEMA = 1
MAX_CONFLICTS = 20
# What a terminal would obey and nobody meant to print: commit messages and names come from other people.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127, *range(0x80, 0xA0))}
CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
STYLES = {"plain": "", "strong": "bold", "faint": "dim", "id": "yellow", "name": "cyan", "good": "green"}
STYLES |= {"bad": "red", "changed": "magenta"}


@dataclass(frozen=True, slots=True)
class View:
    """How a kind of result is shown to people, and which ids stand for it with --quiet."""

    blocks: Callable[[object], Iterable[Block]]
    ids: Callable[[object], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Output:
    """Where words go, and in which of the four manners."""

    stdout: TextIO
    stderr: TextIO
    json: bool = False
    quiet: bool = False

    def result(self, value: object, views: Callable[[object], View]) -> None:
        """Writes a command's result to stdout."""
        if self.json:
            self._line(self.stdout, json_text({"schema": SCHEMA, **as_table(value)}))
        elif self.quiet:
            for identifier in views(value).ids(value):
                self._line(self.stdout, safe(identifier))
        else:
            show(views(value).blocks(value), self.stdout)

    def error(self, error: ModelgitError) -> None:
        """Says what went wrong, and what to do next."""
        if self.json:
            self._line(self.stdout, json_text({"schema": SCHEMA, "error": error_table(error)}))
            return
        self._say("error", "bad", error.message)
        if isinstance(error, MergeConflict) and len(error.conflicts) > 1:
            show([conflict_table(error)], self.stderr)
        if error.hint:
            self._say("hint", "faint", error.hint)

    def warning(self, text: str) -> None:
        """Says something that need not stop anybody."""
        if self.json:
            self._line(self.stderr, json_text({"event": "noted", "message": text}))
        else:
            self._say("warning", "changed", text)

    def hint(self, text: str) -> None:
        """Names a next step; nobody reads it with --json or --quiet."""
        if not self.json and not self.quiet:
            self._say("hint", "faint", text)

    def _say(self, word: str, style: str, text: str) -> None:
        if colours(self.stderr):
            console(self.stderr).print(f"{word}: ", style=STYLES[style], end="")
            self._line(self.stderr, safe(text))
        else:
            self._line(self.stderr, f"{word}: {safe(text)}")

    @staticmethod
    def _line(stream: TextIO, text: str) -> None:
        stream.write(text + "\n")
        stream.flush()


def show(blocks: Iterable[Block], stream: TextIO) -> None:
    """Writes blocks: styled on a terminal, plain elsewhere."""
    if is_terminal(stream):
        show_rich(blocks, stream)
        return
    for block in blocks:
        lines = [str(block)] if isinstance(block, Line) else plain_table(block)
        stream.writelines(one_line(text) + "\n" for text in lines)
    stream.flush()


def show_rich(blocks: Iterable[Block], stream: TextIO) -> None:
    """Writes blocks through rich."""
    from rich.text import Text

    terminal = console(stream)
    for block in blocks:
        if isinstance(block, Line):
            text = Text.assemble(*((one_line(span.text), STYLES[span.style]) for span in block.spans))
            terminal.print(text, soft_wrap=True)
        else:
            terminal.print(rich_table(block))


def rich_table(table: Table) -> object:
    """Returns the table as rich draws it."""
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, pad_edge=False, header_style="bold")
    for title, right in zip(table.titles, table.right, strict=True):
        drawn.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in table.rows:
        cells = zip(row, table.cut, strict=True)
        drawn.add_row(
            *(Text(safe(cell), no_wrap=cut or None, overflow="ellipsis" if cut else None) for cell, cut in cells)
        )
    return drawn


def console(stream: TextIO):  # type: ignore[no-untyped-def]  # rich is loaded only where there is a terminal
    """Returns a rich console that adds nothing of its own."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def is_terminal(stream: TextIO) -> bool:
    """Tells whether a person watches."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colours(stream: TextIO) -> bool:
    """Tells whether colours are welcome."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def safe(text: str) -> str:
    """Returns text that a terminal only shows: control and direction characters are written out."""
    return text.translate(CONTROLS)


def one_line(text: str) -> str:
    """Returns text that stays on its line, whatever a file is called."""
    return safe(text).replace("\n", "\\n")


# ----------------------------------------------------------------------------------------------------- JSON


def json_text(table: Mapping[str, object]) -> str:
    """Returns one line of JSON."""
    return json.dumps(table, ensure_ascii=False)


def as_table(value: object) -> dict[str, object]:
    """Returns a result, a dataclass, as a JSON object."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"a result is a dataclass, got {type(value).__name__}")
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def plain(value: object) -> object:
    """Returns a value as JSON knows it."""
    if dataclasses.is_dataclass(value):
        return as_table(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named one
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and value - value != 0:
        return None  # JSON has no word for infinity
    return value


def error_table(error: ModelgitError) -> dict[str, object]:
    """Returns an error as a JSON object."""
    table: dict[str, object] = {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, MergeConflict):
        table["conflicts"] = [plain(conflict) for conflict in error.conflicts]
    return table


def conflict_table(error: MergeConflict) -> Table:
    """Returns the conflicts, the first of them if they are many."""
    rows = [(c.kind, c.where, c.expected, c.got) for c in error.conflicts[:MAX_CONFLICTS]]
    if len(error.conflicts) > MAX_CONFLICTS:
        rows.append(("…", f"{len(error.conflicts) - MAX_CONFLICTS} more", "", ""))
    return Table(("conflict", "where", "expected", "got"), tuple(rows))
