"""The sink: four manners of saying the same, and nothing that a terminal would obey."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelgit.cli.app import explain, translated
from modelgit.cli.screen.blocks import Block, Span, Table, line
from modelgit.cli.screen.output import Output, View, as_table, plain, safe
from modelgit.errors import Conflict, FormatError, MergeConflict, ModelgitError, StorageFull
from modelgit.formats.manifest import TensorEntry


@dataclass(frozen=True)
class Thing:
    """A result."""

    name: str
    sizes: tuple[int, ...] = ()
    where: Path = Path("a/b")
    score: float = float("nan")


def blocks(value: object) -> Iterator[Block]:
    assert isinstance(value, Thing)
    yield line("thing ", Span(value.name, "id"))
    yield Table(("size>",), tuple((str(size),) for size in value.sizes))


VIEW = View(blocks, lambda _: ["id1", "id2"])
THING = Thing("x\x1b[31m", (1, 20))


def said(output: Output) -> tuple[str, str]:
    assert isinstance(output.stdout, io.StringIO)
    assert isinstance(output.stderr, io.StringIO)
    return output.stdout.getvalue(), output.stderr.getvalue()


def new_output(*, as_json: bool = False, quiet: bool = False) -> Output:
    return Output(io.StringIO(), io.StringIO(), as_json, quiet)


def test_plain() -> None:
    output = new_output()
    output.result(THING, lambda _: VIEW)
    assert said(output) == ("thing x\\x1b[31m\nsize\n   1\n  20\n", "")


def test_quiet() -> None:
    output = new_output(quiet=True)
    output.result(THING, lambda _: VIEW)
    output.hint("nobody reads this")
    assert said(output) == ("id1\nid2\n", "")


def test_json_is_one_object_that_any_parser_takes() -> None:
    output = new_output(as_json=True)
    output.result(THING, lambda _: VIEW)
    table = json.loads(said(output)[0], parse_constant=lambda word: word)
    assert table == {"schema": 1, "name": "x\x1b[31m", "sizes": [1, 20], "where": "a/b", "score": None}
    assert said(output)[0].count("\n") == 1


def test_tensors_are_objects_in_json() -> None:
    old, new = TensorEntry("w", "F32", (2, 3), "a" * 64), TensorEntry("w", "F32", (2, 3), "b" * 64)
    table = {"name": "w", "dtype": "F32", "shape": [2, 3]}
    assert plain([(old, new)]) == [[{**table, "oid": "a" * 64}, {**table, "oid": "b" * 64}]]


def test_an_error_is_a_line_and_a_hint() -> None:
    output = new_output()
    output.error(FormatError("a file", hint="another one"))
    assert said(output) == ("", "error: a file\nhint: another one\n")


def test_conflicts_are_a_table_but_not_endless() -> None:
    conflicts = [Conflict("shape", f"layer.{i}", "[1]", "[2]") for i in range(30)]
    output = new_output()
    output.error(MergeConflict("no", conflicts))
    rows = said(output)[1].splitlines()
    assert rows[1].split() == ["conflict", "where", "expected", "got"]
    assert len(rows) == 1 + 1 + 20 + 1
    assert rows[-1].split(maxsplit=1) == ["…", "10 more"]


def test_an_error_as_json() -> None:
    output = new_output(as_json=True)
    output.error(MergeConflict("no", [Conflict("dtype", "a", "F32", "F16")], hint="convert"))
    assert json.loads(said(output)[0])["error"] == {
        "kind": "MergeConflict",
        "message": "no",
        "hint": "convert",
        "exit_code": 1,
        "conflicts": [{"kind": "dtype", "where": "a", "expected": "F32", "got": "F16"}],
    }


def test_warnings_go_to_stderr_in_every_manner() -> None:
    human, program = new_output(), new_output(as_json=True)
    human.warning("careful")
    program.warning("careful")
    assert said(human) == ("", "warning: careful\n")
    assert said(program) == ("", '{"event": "noted", "message": "careful"}\n')


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert safe("a\x1b[2Jb\x07\u202ec\td\ne") == "a\\x1b[2Jb\\x07\\u202ec\td\ne"
    assert safe("ünïcode → fine") == "ünïcode → fine"


def test_only_dataclasses_are_results() -> None:
    assert as_table(Thing("x", (), Path("p"), 1.0)) == {"name": "x", "sizes": [], "where": "p", "score": 1.0}


def test_foreign_errors_become_ours() -> None:
    full = translated(OSError(28, "No space left on device", "/mnt/x"))
    assert isinstance(full, StorageFull)
    assert full.message == "/mnt/x: No space left on device"
    bug = translated(ZeroDivisionError("division by zero"))
    assert type(bug) is ModelgitError
    assert bug.message == "internal error: ZeroDivisionError: division by zero"
    assert bug.exit_code == 70


def test_every_explained_error_has_a_hint() -> None:
    output = new_output()
    assert explain(FormatError("x: truncated"), output, debug=False) == 12
    assert said(output)[1].splitlines() == [
        "error: x: truncated",
        "hint: is the file complete, and a safetensors file? compare it with the original",
    ]
