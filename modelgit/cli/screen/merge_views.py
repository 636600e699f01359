"""How the methods of merging look on the screen."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Table, faint, line, strong
from modelgit.cli.screen.views import view

if TYPE_CHECKING:
    from modelgit.merge.methods.describing import MethodInfo, MethodList


@view("MethodList", lambda result: [method.name for method in result.methods])
def method_list(result: "MethodList") -> Iterator[Block]:
    """All methods in a table, or a few at length."""
    if len(result.methods) > 3:
        yield from overview(result)
        return
    for number, method in enumerate(result.methods):
        if number:
            yield line("")
        yield from at_length(method)


def overview(result: "MethodList") -> Iterator[Block]:
    """A line for each method."""
    rows = tuple(
        (
            m.name,
            m.models,
            m.base,
            m.stored,
            " ".join(f"{s.name}={word(s.default)}" for s in m.settings) or "-",
            m.source,
        )
        for m in result.methods
    )
    yield Table(("method", "models", "base", "stored as", "settings~", "source~"), rows)
    yield line(faint("one at length: modelgit merge --list ties; your own: --method FILE.py:NAME"))


def at_length(method: "MethodInfo") -> Iterator[Block]:
    """What a method does, needs, and can be told."""
    yield line(strong(method.name))
    for row in method.text.splitlines():
        yield line(f"  {row}")
    yield line(f"  source: {method.source}")
    needs = f"  models: {method.models}; base: {method.base}; weights: {method.weights}; stored as: {method.stored}"
    yield line(needs)
    if method.settings:
        rows = tuple((f"--set {s.name}={word(s.default)}", s.type, s.meaning) for s in method.settings)
        yield Table(("setting (default)", "type", "meaning"), rows)


def word(value: object) -> str:
    """Returns a setting's value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
