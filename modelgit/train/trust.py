"""Which functions outside modelgit may make networks: those that the user has named in this process, and no others.

Recipes and records come from other people and may name any module; to import one is to execute it. So consent comes by
another way, from the command line or from Python, and is for one function alone.
"""

import re
from collections.abc import Iterable

from modelgit.errors import UsageError

FORM = re.compile(r"[A-Za-z_]\w{0,99}(?:\.[A-Za-z_]\w{0,99}){0,9}:[A-Za-z_]\w{0,99}", re.ASCII)
TRUSTED: set[str] = set()


def trust_factory(name: str) -> None:
    """Lets the function `package.module:function` be imported and called where a version's network is made by it.

    Raises:
        UsageError: a name of another form.
    """
    if not FORM.fullmatch(name):
        what = f"--trust-factory {name[:80]}: expected package.module:function"
        raise UsageError(what, hint="the name that the recipe, or the version's record, has behind 'factory:'")
    TRUSTED.add(name)


def trust_factories(names: Iterable[str]) -> None:
    """Trusts several. Raises UsageError."""
    for name in names:
        trust_factory(name)


def trusted_factories() -> list[str]:
    """Returns the names of all functions that were named, sorted."""
    return sorted(TRUSTED)
