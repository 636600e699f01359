"""The reference is what the code says."""

import inspect
import re
from pathlib import Path

from modelgit import errors
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
