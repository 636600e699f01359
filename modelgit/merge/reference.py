"""The reference page of merge methods, written from the registry: `python -m modelgit.merge.reference`."""

import dataclasses
import inspect

from modelgit.merge.methods import METHODS, Combined, Elementwise, Fitted, Method, make, setting_types

HEAD = """# Merge methods

Written by `python -m modelgit.merge.reference`; a test compares.

`modelgit merge REV… --method METHOD --set key=value --weights 0.5,0.3,…`

Notation: models x_i, merge base b, task vectors d_i = x_i - b, weights w_i (1 unless given). Every formula holds for
each tensor by itself. Sums are taken in float64 in an order that follows from the models' content, and rounded once.

*Stored as*: a **recipe** keeps ids and coefficients, a few bytes a model and tensor, whatever the tensor's size
(*fitted*: the coefficients follow from inner products of the inputs, each tensor has its own); **values** are stored
as any other tensor, as a difference to the base.

| method | what it gives | models | base | weights | stored as |
|---|---|---|---|---|---|
"""
STORED = {True: "values", False: "recipe"}


def methods_markdown() -> str:
    """Return the page: a table of methods, then a section for each with its settings and source."""
    rows = "".join(_row(make(name, {})) for name in sorted(METHODS))
    return HEAD + rows + "\n" + "\n".join(_section(METHODS[name]) for name in sorted(METHODS))


def _row(method: Method) -> str:
    fewest, most = method.heads
    models = str(fewest) if fewest == most else f"{fewest} or more"
    base = "needed" if method.needs_base else "with `deltas`" if hasattr(method, "deltas") else "not used"
    weights = "used" if method.weighted else "equal only"
    first = inspect.cleandoc(method.__doc__ or "").splitlines()[0]
    kind = STORED[isinstance(method, Combined | Elementwise)] + (" (fitted)" if isinstance(method, Fitted) else "")
    return f"| [{method.name}](#{method.name}) | {first} | {models} | {base} | {weights} | {kind} |\n"


def _section(cls: type[Method]) -> str:
    text = inspect.cleandoc(cls.__doc__ or "")
    return f"## {cls.name}\n\n{text}\n\nSource: {cls.source}.\n{_settings(cls)}"


def _settings(cls: type[Method]) -> str:
    kinds = setting_types(cls)
    if not kinds:
        return "\nNo settings.\n"
    fields = {field.name: field for field in dataclasses.fields(cls)}
    rows = "".join(
        f"| `{name}` | {kind.__name__} | {_shown(fields[name].default)} | {fields[name].metadata['meaning']} |\n"
        for name, kind in kinds.items()
    )
    return f"\n| setting | type | default | meaning |\n|---|---|---|---|\n{rows}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


if __name__ == "__main__":
    print(methods_markdown(), end="")
