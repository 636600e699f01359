"""The reference page of methods says what the registry has."""

from dataclasses import fields
from pathlib import Path

from modelgit.merge.methods import METHODS, make
from modelgit.merge.reference import methods_markdown

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "methods.md"


def test_page_is_what_the_registry_gives() -> None:
    assert PAGE.read_text() == methods_markdown(), "run: python -m modelgit.merge.reference > docs/reference/methods.md"


def test_page_names_every_method_setting_and_source() -> None:
    sections = {part.split("\n", 1)[0]: part for part in PAGE.read_text().split("\n## ")[1:]}
    assert sorted(sections) == sorted(METHODS)
    for name, cls in METHODS.items():
        assert cls.source in sections[name]
        assert all(f"| `{field.name}` |" in sections[name] for field in fields(make(name, {})))
