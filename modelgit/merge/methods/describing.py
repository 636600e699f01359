"""What there is to know of each method: for the list on the screen and for the reference page."""

import dataclasses
import inspect
from dataclasses import dataclass

from modelgit.merge.methods.registry import (
    METHODS,
    Combined,
    Elementwise,
    Fitted,
    Method,
    Value,
    make,
    per_head,
    setting_types,
)

STORED = {True: "values", False: "recipe"}


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting of a method."""

    name: str
    type: str
    default: Value
    meaning: str


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """One method: what it gives, where it comes from, what it needs, how its results are stored, its settings."""

    name: str
    gives: str
    text: str
    source: str
    models: str
    base: str
    weights: str
    stored: str
    settings: tuple[SettingInfo, ...]


@dataclass(frozen=True, slots=True)
class MethodList:
    """The methods there are, by name."""

    methods: tuple[MethodInfo, ...]


def described(name: str) -> MethodInfo:
    """Returns what there is to know of a method. Raises UsageError for an unknown one."""
    method = make(name, {})
    fewest, most = method.heads
    text = inspect.cleandoc(type(method).__doc__ or "")
    return MethodInfo(
        name=name,
        gives=text.splitlines()[0] if text else "",
        text=text,
        source=method.source,
        models=str(fewest) if fewest == most else f"{fewest} or more",
        base="needed" if method.needs_base else "with `deltas`" if hasattr(method, "deltas") else "not used",
        weights="used" if method.weighted else "equal only",
        stored="factors"
        if hasattr(method, "adapters")
        else STORED[isinstance(method, Combined | Elementwise)] + " (fitted)" * isinstance(method, Fitted),
        settings=settings_info(type(method)),
    )


def settings_info(cls: type[Method]) -> tuple[SettingInfo, ...]:
    """Returns the settings of a method, in order."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return tuple(
        SettingInfo(
            name,
            kind.__name__,
            plain(fields[name].default),
            str(fields[name].metadata.get("meaning", ""))
            + "; one for all models, or one for each" * per_head(cls, name),
        )
        for name, kind in setting_types(cls).items()
    )


def listed(name: str | None = None) -> MethodList:
    """Returns all methods, or the one that is named. Raises UsageError for an unknown one."""
    return MethodList(tuple(described(known) for known in ([name] if name else sorted(METHODS))))


def plain(default: object) -> Value:
    """Returns a default as a value; nothing where a setting has none."""
    return default if isinstance(default, bool | int | float | str) else ""


def stored_as(method: Method) -> str:
    """Returns how results of a method are stored."""
    if hasattr(method, "adapters"):
        return "factors"
    return STORED[isinstance(method, Combined | Elementwise)] + " (fitted)" * isinstance(method, Fitted)
