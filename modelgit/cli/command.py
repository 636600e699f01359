"""How a function becomes a command: parse, call the porcelain, hand the result to the sink.

A command takes a `Session` first and returns a dataclass, or None. --json and --quiet are added to each.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from modelgit.cli.session import Session

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone, and no progress.")]
Run = Callable[..., object]

EVERY_OPTION = (
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, annotation=Json, default=False),
    inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, annotation=Quiet, default=False),
)
CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def command(app: typer.Typer, name: str, *, panel: str, hidden: bool = False) -> Callable[[Run], Run]:
    """Enters the decorated function into `app` as the command `name`; its docstring is the help."""

    def register(function: Run) -> Run:
        run = adapted(function)
        help_text = inspect.cleandoc(function.__doc__ or "")
        app.command(name, help=help_text, rich_help_panel=panel, hidden=hidden)(run)
        return function

    return register


def adapted(function: Run) -> Run:
    """Returns a function with the signature that typer reads: the session out, --json and --quiet in."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[1:]
    parameters = [CONTEXT, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *EVERY_OPTION]

    def run(context: typer.Context, *, as_json: bool, quiet: bool, **arguments: Any) -> None:
        session: Session = context.obj
        session.speak(as_json=as_json, quiet=quiet)
        try:
            result = function(session, **arguments)
        finally:
            close = getattr(session.listener, "close", None)
            if close is not None:
                close()  # bars leave the screen before anything else is said
        if result is not None:
            from modelgit.cli.screen.views import view_of

            session.out.result(result, view_of)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.returns = inspect.get_annotations(function).get("return")  # type: ignore[attr-defined]  # for the reference
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
