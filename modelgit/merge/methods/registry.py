"""The registry of merge methods: a method is a frozen dataclass, and its fields are its settings.

Three kinds, by how much of the inputs a method must see to merge one tensor:
`Linear`   nothing: coefficients follow from the weights alone;
`Fitted`   inner products of the inputs, from which it gives coefficients;
`Combined` the values themselves.
The first two end in a weighted sum, which the store keeps as a recipe of a few bytes.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints, runtime_checkable

from modelgit.errors import UsageError
from modelgit.merge.methods.linear_form import Array, LinearForm, gram

T = TypeVar("T")
Value = bool | int | float | str
MethodClass = TypeVar("MethodClass", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """One tensor of every model: `heads` (M arrays of one shape), a weight each, the base where there is one.

    `name` is the tensor's and `keys` are the ids of the heads: what random methods are seeded from.
    """

    heads: Sequence[Array]
    weights: Sequence[float]
    base: Array | None = None
    name: str = ""
    keys: Sequence[str] = ()

    def origin(self) -> Array:
        """Return the base. Raises UsageError without one."""
        if self.base is None:
            raise UsageError(f"tensor {self.name!r}: differences to a base are asked for, and there is none.")
        return self.base

    def deltas(self) -> list[Array]:
        """Return head - base for every head. Raises UsageError without a base."""
        return [head - self.origin() for head in self.heads]


class Method(Protocol):
    """What every method has. Weights are one finite number a head, in the order of the heads."""

    name: ClassVar[str]
    source: ClassVar[str]  # the paper
    heads: ClassVar[tuple[int, int | None]]  # fewest and most heads it can merge
    weighted: ClassVar[bool]  # whether unequal weights mean anything to it
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def needs_base(self) -> bool:
        """Whether it works on differences to the merge base."""

    def __call__(self, inputs: Inputs) -> Array:
        """Return the merged tensor in float64; the inputs are left as they are."""


@runtime_checkable
class Linear(Method, Protocol):
    """A method whose coefficients do not depend on the values."""

    def linear_terms(self, weights: Sequence[float]) -> LinearForm:
        """Return the coefficients for these weights. Raises UsageError for weights that make no sense."""


@runtime_checkable
class Fitted(Method, Protocol):
    """A method whose coefficients follow from the inner products of the inputs."""

    def fitted_terms(self, products: Array, weights: Sequence[float]) -> LinearForm:
        """Return the coefficients; `products` (M, M) are those of the heads, or of head - base when it `needs_base`."""


@runtime_checkable
class Combined(Method, Protocol):
    """A method that must see all values of a tensor."""

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged tensor, as `__call__`."""


METHODS: dict[str, type[Method]] = {}


def method(name: str, source: str) -> Callable[[MethodClass], MethodClass]:
    """Enter the decorated dataclass under `name`; `source` cites where the method comes from."""

    def register(cls: MethodClass) -> MethodClass:
        cls.name, cls.source = name, source  # type: ignore[attr-defined]
        METHODS[name] = cls
        return cls

    return register


def setting(default: T, meaning: str) -> T:
    """Return a dataclass field: a setting with its default and what it means, for --help and the reference."""
    field: T = dataclasses.field(default=default, metadata={"meaning": meaning})
    return field


def call_linear(self: Linear, inputs: Inputs) -> Array:
    """`__call__` of a Linear method."""
    return self.linear_terms(inputs.weights)(inputs.heads, inputs.base)


def call_fitted(self: Fitted, inputs: Inputs) -> Array:
    """`__call__` of a Fitted method."""
    products = gram(inputs.deltas() if self.needs_base else inputs.heads)
    return self.fitted_terms(products, inputs.weights)(inputs.heads, inputs.base)


def call_combined(self: Combined, inputs: Inputs) -> Array:
    """`__call__` of a Combined method."""
    return self.combine(inputs)


# ------------------------------------------------------------------------------------------ by name, from text


def make(name: str, settings: Mapping[str, Value]) -> Method:
    """Return the method called `name` with these settings; values may be text, as from `--set key=value`.

    Raises: UsageError for an unknown name, setting or value, listing the known ones.
    """
    cls = METHODS.get(name)
    if cls is None:
        raise UsageError(f"no merge method {name!r}; known: {', '.join(sorted(METHODS))}.", hint=_near(name, METHODS))
    kinds = setting_types(cls)
    for key in settings:
        if key not in kinds:
            known = ", ".join(kinds) or "none"
            raise UsageError(f"method {name} has no setting {key!r}; its settings: {known}.", hint=_near(key, kinds))
    return cls(**{key: _parse(f"{name}: {key}", kinds[key], value) for key, value in settings.items()})


def setting_types(cls: type[Method]) -> dict[str, type]:
    """Return the type of each setting, in order."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def settings_of(chosen: Method) -> dict[str, Value]:
    """Return the settings as plain values; `make(chosen.name, settings_of(chosen))` is the same method."""
    return {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}


def check_arguments(chosen: Method, weights: Sequence[float], *, has_base: bool) -> None:
    """Raise UsageError unless the method can merge this many heads, with these weights, with or without a base."""
    fewest, most = chosen.heads
    if not fewest <= len(weights) <= (most or len(weights)):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        raise UsageError(f"method {chosen.name} merges {wanted} models, got {len(weights)}.")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"weights must be finite numbers, got {list(weights)}.")
    if not chosen.weighted and len(set(weights)) > 1:
        hint = "Leave weights out, or use the method linear."
        raise UsageError(f"method {chosen.name} treats all models alike, got weights {list(weights)}.", hint=hint)
    if chosen.needs_base and not has_base:
        hint = "Name a common ancestor with --base, or use the method linear."
        raise UsageError(f"method {chosen.name} needs a merge base, and there is none.", hint=hint)
    if isinstance(chosen, Linear):
        chosen.linear_terms(weights)


def within(where: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"{where}: expected a number from {low:g} to {high:g}, got {value:g}.")


def _near(name: str, known: Mapping[str, object]) -> str | None:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else None


def _parse(where: str, kind: type, value: Value) -> Value:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            return words[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError(value)
        return value if isinstance(value, kind) else _number(kind, value)
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: expected {kind.__name__}, got {value!r}.") from error


def _number(kind: type, value: Value) -> Value:
    if kind is int:
        return int(str(value))
    if kind is float:
        return float(value)
    return str(value)
