"""The reference page of merge methods, written from the registry: `python -m modelgit.merge.reference`."""

from modelgit.merge.methods.describing import MethodInfo, SettingInfo, listed

HEAD = """# Merge methods

Written by `python -m modelgit.merge.reference`; a test compares.

`modelgit merge REV… --method METHOD --set key=value --weights 0.5,0.3,…`

Notation: models x_i, merge base b, task vectors d_i = x_i - b, weights w_i (1 unless given). Every formula holds for
each tensor by itself. Sums are taken in float64 in an order that follows from the models' content, and rounded once.

*Stored as*: a **recipe** keeps ids and coefficients, a few bytes a model and tensor, whatever the tensor's size
(*fitted*: the coefficients follow from inner products of the inputs, each tensor has its own); **values** are stored
as any other tensor, as a difference to the base; **factors** are those of LoRA adapters.

| method | what it gives | models | base | weights | stored as |
|---|---|---|---|---|---|
"""


def methods_markdown() -> str:
    """Return the page: a table of methods, then a section for each with its settings and source."""
    methods = listed().methods
    return HEAD + "".join(_row(method) for method in methods) + "\n" + "\n".join(_section(method) for method in methods)


def _row(method: MethodInfo) -> str:
    link = f"[{method.name}](#{method.name})"
    return f"| {link} | {method.gives} | {method.models} | {method.base} | {method.weights} | {method.stored} |\n"


def _section(method: MethodInfo) -> str:
    return f"## {method.name}\n\n{method.text}\n\nSource: {method.source}.\n{_settings(method.settings)}"


def _settings(settings: tuple[SettingInfo, ...]) -> str:
    if not settings:
        return "\nNo settings.\n"
    rows = "".join(f"| `{s.name}` | {s.type} | {_shown(s.default)} | {s.meaning} |\n" for s in settings)
    return f"\n| setting | type | default | meaning |\n|---|---|---|---|\n{rows}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


if __name__ == "__main__":
    print(methods_markdown(), end="")
