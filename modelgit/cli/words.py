"""Arguments and options that several commands share, and how their text becomes values."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modelgit.errors import UsageError
from modelgit.events import Listener, both

if TYPE_CHECKING:
    from modelgit.porcelain.merging.values import Align

Rev = Annotated[str, typer.Argument(metavar="REV", help="A commit: branch, tag, id, HEAD~1 …")]
Revs = Annotated[list[str], typer.Argument(metavar="REV…", help="Commits: branches, tags, ids …")]
Message = Annotated[str | None, typer.Option("-m", "--message", help="What the version is.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Throw local changes away.")]
Metric = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="An accuracy that evaluate reports, or FILE.py:FUNCTION.")
]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="The metric is a loss.")]
Remote = Annotated[
    str | None,
    typer.Argument(metavar="REMOTE", help="A remote's name [default: the one your branch follows, or origin]."),
]
Curves = Annotated[
    Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write the curves there, for TensorBoard.")
]
Tracker = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Log the curves to that MLflow tracking server.")
]
ALIGNING = "Models that were trained apart"
AlignBy = Annotated[
    str | None,
    typer.Option("--align", metavar="weights|activations", help="Line units up first.", rich_help_panel=ALIGNING),
]


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
        from difflib import get_close_matches

        near = get_close_matches(word, allowed, n=1)
        hint = f"did you mean {option} {near[0]}?" if near else None
        raise UsageError(f"{option} {word}: expected one of {', '.join(allowed)}", hint=hint)
    return word


def aligning(by: str | None, seed: int, spec: Path | None, data: str | None) -> "Align | None":
    """Returns how to line units up, None if that was not asked for."""
    from modelgit.porcelain.merging.values import Align

    if not by:
        if spec is not None:
            raise UsageError("--align-spec is for --align", hint="--align weights")
        return None
    word = choice(by, ("weights", "activations"), "--align")
    if word == "activations" and not data:
        raise UsageError("--align activations needs data to compare them on", hint="--on DATA: a folder or a .zip")
    table = None
    if spec is not None:
        from modelgit.merge.align.spec import load_table

        table = load_table(spec)
    return Align(cast("Any", word), seed, data=(data or "") if word == "activations" else "", table=table)


@contextmanager
def drawing(listener: Listener, tensorboard: Path | None, mlflow: str | None) -> Iterator[Listener]:
    """Yields a listener that writes curves too, where they are wanted."""
    with ExitStack() as stack:
        told = listener
        if tensorboard is not None:
            from modelgit.integrations.tensorboard import EventFiles

            told = both(told, stack.enter_context(closing(EventFiles(tensorboard))))
        if mlflow is not None:
            from modelgit.integrations.mlflow import Tracking

            told = both(told, stack.enter_context(closing(Tracking(mlflow, listener))))
        yield told
