"""The reference is what the code says."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_args

from modelgit import errors, events
from modelgit.cli.app import command_names, new_app
from modelgit.cli.reference import reference

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def test_the_command_reference_is_not_stale() -> None:
    assert (DOCS / "cli.md").read_text() == reference(), "run: python -m modelgit.cli.reference > docs/reference/cli.md"


def test_every_command_and_option_has_help_and_a_json_object() -> None:
    page = reference()
    sections = {part.split("\n", 1)[0]: part for part in page.split("## modelgit ")[1:]}
    names = command_names(new_app())
    assert sorted(sections) == sorted(names)
    assert len(names) >= 18
    for name, section in sections.items():
        assert section.split("\n")[2].endswith("."), name
        assert "`--json`: `schema`, " in section, name
        assert "| None |" not in section, name


def test_every_error_class_is_documented_with_its_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    documented = {name: int(code) for code, name in rows}
    classes = [
        value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, errors.ModelgitError)
    ]
    assert documented == {value.__name__: value.exit_code for value in classes}


def test_every_event_is_documented_with_its_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (DOCS / "events.md").read_text(), re.MULTILINE)
    kinds = {
        kind.__name__.lower(): [f"`{field.name}`" for field in dataclasses.fields(kind)]
        for kind in get_args(events.Event)
    }
    assert {name: fields.split(", ") for name, fields in rows[1:]} == kinds
    assert set(get_args(events.Unit)) <= set(re.findall(r"`(\w+)`", (DOCS / "events.md").read_text()))
