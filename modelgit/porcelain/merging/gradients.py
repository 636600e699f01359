"""mergekit's values that differ by layer or by tensor: what they are for each tensor, and how `layers` say it here.

A list of numbers is a gradient: the first value in the first layer, the last in the last, straight lines between;
what lies in no layer, before or behind them, has the first value, as in mergekit. In a list of `{filter, value}` the
first counts whose filter occurs in the tensor's name; without a filter, or with '*', every name.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from modelgit.errors import UsageError
from modelgit.merge.methods.layers import Lines

Row = tuple[float, ...]
Values = TypeVar("Values", bound=tuple[Any, ...])
Number = Callable[[Any, str], float]
MAX_VALUES = 10_000  # of a gradient or a list of filters
FILTER_KEYS = {"filter", "value"}


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's name and how deep it lies, from 0 in the first layer to 1 in the last; 0 outside all layers."""

    tensor: str
    depth: float


def layers_among(names: Iterable[str]) -> int:
    """Returns how many layers tensors of these names make."""
    return 1 + max((layer for name in names if (layer := Lines().number(name)) is not None), default=-1)


def places(names: Iterable[str]) -> list[Place]:
    """Returns where the tensors of a model lie, sorted by name."""
    found = {name: Lines().number(name) for name in sorted(names)}
    last = layers_among(found) - 1
    return [Place(name, 0.0 if layer is None else layer / last if last > 0 else 1.0) for name, layer in found.items()]


def varies(setting: Any) -> bool:
    """Returns whether a setting is more than one value."""
    return isinstance(setting, list | dict)


def value_at(place: Place, setting: Any, number: Number, where: str) -> float:
    """Returns what a setting is for a tensor; `number` reads one value. Raises UsageError."""
    rows = [setting] if isinstance(setting, dict) else setting
    if not isinstance(rows, list):
        return number(rows, where)
    if not 0 < len(rows) <= MAX_VALUES:
        raise UsageError(f"{where}: expected 1 to {MAX_VALUES:,} values, got {len(rows):,}")
    if not any(varies(row) for row in rows):
        return between([number(row, where) for row in rows], place.depth)
    for row in rows:
        if not isinstance(row, dict) or "value" not in row or row.keys() - FILTER_KEYS or nested(row["value"]):
            raise UsageError(f"{where}: expected numbers, or a list of 'filter: TEXT, value: NUMBER'")
        wanted = row.get("filter")
        if wanted in (None, "*") or str(wanted) in place.tensor:
            return value_at(place, row["value"], number, where)
    hint = "end the list with a value without a filter: '- value: 1'"
    raise UsageError(f"{where}: no filter matches tensor '{place.tensor}'", hint=hint)


def nested(value: Any) -> bool:
    """Returns whether a filter's value is more than a number or a gradient."""
    return isinstance(value, dict) or (isinstance(value, list) and any(varies(one) for one in value[: MAX_VALUES + 1]))


def between(values: list[float], depth: float) -> float:
    """Returns the value at a depth of a line through values at equal distances."""
    scaled = depth * (len(values) - 1)
    low = int(scaled)
    part = scaled - low
    return (1 - part) * values[low] + part * values[min(len(values) - 1, low + 1)]


def by_layer(rows: Mapping[str, Values]) -> tuple[Values, dict[str, Values]]:
    """Returns the weights (or settings) that most tensors have, and those of layers and tensors that have others.

    A layer all of whose tensors have the same is named once. Where a row is all zeros, it is not what most have: a
    merge in which no model takes part is none.
    """
    layers: dict[str, dict[str, Values]] = {}
    for name, row in rows.items():
        layers.setdefault(layer_of(name), {})[name] = row
    counts = Counter(row for row in rows.values() if any(row)) or Counter(rows.values())
    most, told = counts.most_common(1)[0][0], dict[str, Values]()
    for layer, own in layers.items():
        alike = len(set(own.values())) == 1
        told |= {layer: next(iter(own.values()))} if alike else own
    return most, {name: row for name, row in told.items() if row != most}


def layer_of(name: str) -> str:
    """Returns the beginning of a tensor's name that says which layer it is in, up to the number; else all of it."""
    number = Lines().number(name)
    if number is None:
        return name
    parts = name.split(".")
    return ".".join(parts[: parts.index(str(number)) + 1]) if str(number) in parts else name
