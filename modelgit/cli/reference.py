"""Writes docs/reference/cli.md: every command, its options, the JSON object it prints.

`python -m modelgit.cli.reference > docs/reference/cli.md`
"""

import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator

from modelgit.cli import handed_on
from modelgit.cli.app import new_app

HOMES = (
    "modelgit.porcelain.versions",
    "modelgit.porcelain.work",
    "modelgit.porcelain.merging.values",
    "modelgit.porcelain.replaying.values",
    "modelgit.porcelain.replaying.blaming",
    "modelgit.porcelain.comparing",
    "modelgit.porcelain.checking",
    "modelgit.porcelain.upkeep.collecting",
    "modelgit.porcelain.upkeep.damage",
    "modelgit.porcelain.upkeep.usage",
    "modelgit.porcelain.sharing",
    "modelgit.repo.worktree",
    "modelgit.porcelain.reporting.evaluating",
    "modelgit.porcelain.trials.values",
    "modelgit.porcelain.executing",
    "modelgit.porcelain.training.committing",
    "modelgit.porcelain.training.rerunning",
    "modelgit.porcelain.reporting.values",
    "modelgit.pipeline.start",
)
HEADING = """# Commands

Written by `python -m modelgit.cli.reference`; a test fails when it is stale.

Results go to standard output; progress, warnings, hints and errors to standard error. Text is styled on a terminal
and plain when piped; `NO_COLOR` is obeyed. Exit codes are listed in [errors.md](errors.md).

Every command takes `--json` (one JSON object on standard output, progress as
[JSON lines](events.md) on standard error, an error as the object
`{"schema": 1, "error": {"kind", "message", "hint", "exit_code", "conflicts"?}}`) and `--quiet` (ids alone).
Before the command stand `-C DIR` (run as if started in DIR), `--debug` (show where in the code an error arose) and
`--version`.
"""


def reference() -> str:
    """Returns the page."""
    app = new_app()
    sections = [section(info) for info in app.registered_commands if not info.hidden]
    return "\n".join([HEADING, *sections, git_section()])


def section(info: object) -> str:
    """Returns the section of one command."""
    name, run, text = getattr(info, "name", ""), getattr(info, "callback", None), getattr(info, "help", "")
    rows = [f"## modelgit {name}", "", " ".join(str(text).split()), ""]
    signature = inspect.signature(run) if run is not None else inspect.Signature()
    table = [row for parameter in signature.parameters.values() for row in parameter_row(parameter)]
    rows += ["| | | default |", "|---|---|---|", *table, ""] if table else []
    rows += [*list(json_rows(run))[1:], ""]
    return "\n".join(rows)


def parameter_row(parameter: inspect.Parameter) -> Iterator[str]:
    """Yields a parameter's line in the table; none for what every command has."""
    if parameter.name in ("context", "as_json", "quiet"):
        return
    kind, info = typing.get_args(parameter.annotation)[:2]
    declared = (
        [info.default, *(info.param_decls or ())] if isinstance(info.default, str) else list(info.param_decls or ())
    )
    if type(info).__name__ == "ArgumentInfo":
        word = info.metavar or parameter.name.upper()
    else:
        word = ", ".join(declared) or f"--{parameter.name.replace('_', '-')}"
        word += "" if kind is bool else f" {info.metavar or ''}".rstrip()
    default = "" if parameter.default in (inspect.Parameter.empty, None, False) else f"`{parameter.default}`"
    yield f"| `{word.replace('|', chr(92) + '|')}` | {str(info.help).replace('|', chr(92) + '|')} | {default} |"


def json_rows(run: object) -> Iterator[str]:
    """Yields what the command's JSON object holds, from the dataclass it returns."""
    for name in str(getattr(run, "returns", None)).split(" | "):
        found = [home for home in map(importlib.import_module, HOMES) if hasattr(home, name)]
        result = getattr(found[0], name) if found else None
        if result is None:
            continue
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(result))
        yield from ("", f"`--json`: `schema`, {fields}. {' '.join((inspect.getdoc(result) or '').split())}")


def git_section() -> str:
    """Returns the section on git's verbs."""
    handed = ", ".join(f"`{verb}`" for verb in sorted(handed_on.VERBS | handed_on.REWRITING))
    intro = f"Handed on to git as they are, with git's exit code: {handed}."
    both = ", ".join(f"`{verb}`" for verb in sorted(handed_on.GITS))
    intro += f" So are {both} with options that only git has (`-i`, `--continue`, `--onto`, `-- FILE` …)."
    weights = "What they do to weights is told in [plain git](../howto/plain-git.md)."
    return f"## Git's own verbs\n\n{intro}\n\n{weights}\n"


def main() -> None:
    """Writes the page to stdout."""
    sys.stdout.write(reference())


if __name__ == "__main__":
    main()
