"""Arguments and options that several commands share, and how their text becomes values."""

from collections.abc import Iterable
from typing import Annotated

import typer

from modelgit.errors import UsageError

Rev = Annotated[str, typer.Argument(metavar="REV", help="A commit: branch, tag, id, HEAD~1 …")]
Revs = Annotated[list[str], typer.Argument(metavar="REV", help="Commits: branches, tags, ids …")]
Message = Annotated[str | None, typer.Option("-m", "--message", help="What the version is.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Throw local changes away.")]
Metric = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="Of those that evaluate reports, or FILE.py:FUNCTION.")
]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="The metric is a loss.")]
Remote = Annotated[str | None, typer.Argument(metavar="REMOTE", help="A remote's name [default: origin].")]


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """Returns `key=value` words as a table. Raises UsageError for another form."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {word}: expected KEY=VALUE")
        found[key] = value
    return found


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Returns comma-separated numbers. Raises UsageError for anything else."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected numbers with commas between them") from error


def choice(word: str, allowed: tuple[str, ...], option: str) -> str:
    """Returns the word if it is allowed. Raises UsageError, listing what is."""
    if word not in allowed:
        raise UsageError(f"{option} {word}: expected one of {', '.join(allowed)}")
    return word
