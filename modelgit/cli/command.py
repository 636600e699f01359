"""How a function becomes a command: parse, call the porcelain, hand the result to the sink.

A command takes a `Session` first and returns a dataclass, or None. --json and --quiet are added to each. A parameter
that is a dataclass stands for its fields: options that belong together are declared together.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from modelgit.cli.session import Session, UnreadError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone, and no progress.")]
Run = Callable[..., object]

EVERY_OPTION = (
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, annotation=Json, default=False),
    inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, annotation=Quiet, default=False),
)
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-factory", metavar="MODULE:FUNCTION", help="Import this function: it makes the network; repeat."
    ),
]
TRUST = inspect.Parameter("trust", inspect.Parameter.KEYWORD_ONLY, annotation=Trust, default=None)
CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def command(
    app: typer.Typer, name: str, *, panel: str, hidden: bool = False, networks: bool = False
) -> Callable[[Run], Run]:
    """Enters the decorated function into `app` as the command `name`; its docstring is the help.

    A command that may run `networks` takes --trust-factory.
    """

    def register(function: Run) -> Run:
        run = adapted(function, networks=networks)
        help_text = inspect.cleandoc(function.__doc__ or "")
        app.command(name, help=help_text, rich_help_panel=panel, hidden=hidden)(run)
        return function

    return register


def adapted(function: Run, *, networks: bool = False) -> Run:
    """Returns a function with the signature that typer reads: the session out, --json and --quiet in."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[1:]
    groups = {parameter.name: parameter.annotation for parameter in own if is_group(parameter)}
    flat = [option for parameter in own for option in options_of(parameter)]
    parameters = [CONTEXT, *flat, *([TRUST] if networks else []), *EVERY_OPTION]

    def run(context: typer.Context, *, as_json: bool, quiet: bool, **arguments: Any) -> None:
        session: Session = context.obj
        session.speak(as_json=as_json, quiet=quiet)
        trust(arguments.pop("trust", None) if networks else None)
        try:
            given = {
                name: group(**{f.name: arguments.pop(f.name) for f in fields(group)}) for name, group in groups.items()
            }
            result = function(session, **arguments, **given)
        except BrokenPipeError as error:
            raise UnreadError from error
        finally:
            close = getattr(session.listener, "close", None)
            if close is not None:
                close()  # bars leave the screen before anything else is said
        if result is not None:
            from modelgit.cli.screen.views import view_of

            try:
                session.out.result(result, view_of)
                session.out.stdout.flush()
            except BrokenPipeError as error:
                raise UnreadError from error

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.returns = inspect.get_annotations(function).get("return")  # type: ignore[attr-defined]  # for the reference
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def trust(names: list[str] | None) -> None:
    """Lets the functions that the user names be imported. Raises UsageError."""
    if names:
        from modelgit.train.trust import trust_factories

        trust_factories(names)


def is_group(parameter: inspect.Parameter) -> bool:
    """Returns whether a parameter stands for several options."""
    return isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)


def options_of(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yields the options that a parameter stands for: itself, or the fields of its group."""
    if not is_group(parameter):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(parameter.annotation, include_extras=True)
    for option in fields(parameter.annotation):
        default = inspect.Parameter.empty if option.default is MISSING else option.default
        yield inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[option.name], default=default
        )
