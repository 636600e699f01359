"""The registry of merge methods: a method is a frozen dataclass, and its fields are its settings.

Four kinds, by how much of the inputs a method must see to merge one tensor:
`Linear`      nothing: coefficients follow from the weights alone;
`Fitted`      inner products of the inputs, from which it gives coefficients;
`Elementwise` the values at one place (or in one row) of all inputs, and a few facts about the tensor;
`Combined`    all values at once.
A method with `statistics`, a kind of them, is given those of each model too (`merge/informed`).
The first two end in a weighted sum, which the store keeps as a recipe of a few bytes. The first three are streamed:
their memory does not depend on the size of the tensor.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints, runtime_checkable

import numpy as np

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import ArrayTensor, Inputs, Tensor
from modelgit.merge.methods.linear_form import LinearForm, gram

__all__ = [
    "METHODS",
    "Combined",
    "Elementwise",
    "Fitted",
    "Inputs",
    "Linear",
    "Method",
    "PerHead",
    "Tensor",
    "Value",
    "call_combined",
    "call_elementwise",
    "call_fitted",
    "call_linear",
    "check_arguments",
    "make",
    "method",
    "no_facts",
    "of_heads",
    "setting",
    "setting_types",
    "settings_of",
    "spread",
    "together",
    "within",
]
T = TypeVar("T")
Value = bool | int | float | str | Sequence[float]
PerHead = float | tuple[float, ...]  # one number for all heads, or one for each, in their order
MethodClass = TypeVar("MethodClass", bound=type)


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
class Elementwise(Method, Protocol):
    """A method that merges each element (or row) by itself, once it knows some facts about the tensor.

    It may have `survey(self, tensors: Sequence[Tensor]) -> object` too, which then sees all tensors of the model
    before the first is merged; what it returns is every tensor's `model`. With a true `task_vectors`, blocks have
    the differences to the base in place of the heads (`block.deltas()`), which saves a pass over them.
    """

    @property
    def whole_rows(self) -> bool:
        """Whether blocks hold whole rows of the last axis, (rows, length); else they are flat, (n,)."""

    def facts(self, tensor: Tensor) -> Any:
        """Return what must be known of the whole tensor: thresholds, sums; None if nothing (`no_facts`)."""

    def block(self, block: Inputs, facts: Any) -> Array:
        """Return the merged values of one block, in its shape; the block is left as it is. Runs in several threads."""


@runtime_checkable
class Combined(Method, Protocol):
    """A method that must see all values of a tensor."""

    def combine(self, inputs: Inputs) -> Array:
        """Return the merged tensor, as `__call__`."""


KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
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


def call_elementwise(self: Elementwise, inputs: Inputs) -> Array:
    """`__call__` of an Elementwise method, for a tensor that is a model of its own."""
    tensor = ArrayTensor(inputs, self.whole_rows)
    if survey := getattr(self, "survey", None):
        tensor.model = survey([tensor])
    facts = self.facts(tensor)
    merged = tensor.each(lambda block: self.block(block, facts).reshape(-1))
    return np.concatenate([np.empty(0), *merged]).reshape(tensor.shape)


def no_facts(self: object, tensor: Tensor) -> None:
    """`facts` of an Elementwise method that needs none."""


def call_combined(self: Combined, inputs: Inputs) -> Array:
    """`__call__` of a Combined method."""
    return self.combine(inputs)


def spread(value: PerHead, heads: int) -> tuple[float, ...]:
    """Return a setting for each head: its own, or the one that all have."""
    return value if isinstance(value, tuple) else (value,) * heads


def together(where: str, *values: PerHead, heads: int = 1) -> list[tuple[float, ...]]:
    """Return several settings of each head. Raises UsageError for settings of unequal numbers of heads."""
    counts = {len(value) for value in values if isinstance(value, tuple)} or {heads}
    if len(counts) > 1:
        raise UsageError(f"{where}: numbers for {min(counts)} models and for {max(counts)}.")
    count = counts.pop()
    return list(zip(*(spread(value, count) for value in values), strict=True))


def of_heads(chosen: Method, heads: Sequence[int]) -> Method:
    """Return the method for some of the heads, or for them in another order: with their settings."""
    own = {name: tuple(values[i] for i in heads) for name, values in each_own(chosen).items()}
    found: Method = dataclasses.replace(chosen, **own) if own else chosen
    return found


def each_own(chosen: Method) -> dict[str, tuple[float, ...]]:
    """Return the settings of which every head has its own."""
    several = {key: value for key, value in settings_of(chosen).items() if isinstance(value, tuple)}
    return {key: value for key, value in several.items() if per_head(type(chosen), key)}


# ------------------------------------------------------------------------------------------ by name, from text


def make(name: str, settings: Mapping[str, Value]) -> Method:
    """Return the method called `name` with these settings; values may be text, as from `--set key=value`.

    Raises: UsageError for an unknown name, setting or value, listing the known ones.
    """
    cls = METHODS.get(name)
    if cls is None:
        known, hint = ", ".join(sorted(METHODS)), _near(name, METHODS) or "modelgit merge --list shows what each does"
        raise UsageError(f"no merge method {name!r}; known: {known}.", hint=hint)
    kinds = setting_types(cls)
    for key in settings:
        if key not in kinds:
            known = ", ".join(kinds) or "none"
            hint = _near(key, kinds) or f"modelgit merge --list {name} shows what each is"
            raise UsageError(f"method {name} has no setting {key!r}; its settings: {known}.", hint=hint)
    return cls(**{key: _parse(cls, key, kinds[key], value) for key, value in settings.items()})


def setting_types(cls: type[Method]) -> dict[str, type]:
    """Return the type of each setting, in order."""
    hints = get_type_hints(cls)
    return {field.name: float if per_head(cls, field.name) else hints[field.name] for field in dataclasses.fields(cls)}


def per_head(cls: type[Method], key: str) -> bool:
    """Return whether each head can have a setting of its own."""
    return bool(get_type_hints(cls)[key] == PerHead)


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
    for name, values in each_own(chosen).items():
        if len(values) != len(weights):
            hint = "One number for all, or one for each in the order of --weights: HEAD first."
            raise UsageError(f"{chosen.name}: {name}: {len(values)} numbers for {len(weights)} models.", hint=hint)
    if not chosen.weighted and len(set(weights)) > 1:
        hint = "Leave weights out, or use the method linear."
        raise UsageError(f"method {chosen.name} treats all models alike, got weights {list(weights)}.", hint=hint)
    if chosen.needs_base and not has_base:
        hint = "Name a common ancestor with --base, or use the method linear."
        raise UsageError(f"method {chosen.name} needs a merge base, and there is none.", hint=hint)
    if isinstance(chosen, Linear):
        chosen.linear_terms(weights)
    elif check := getattr(chosen, "check_weights", None):
        check(weights)


def within(where: str, value: PerHead, low: float, high: float) -> None:
    """Raise UsageError unless low <= value <= high, of each head."""
    for one in spread(value, 1):
        if not low <= one <= high:
            raise UsageError(f"{where}: expected a number from {low:g} to {high:g}, got {one:g}.")


def _near(name: str, known: Mapping[str, object]) -> str | None:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else None


def _parse(cls: type[Method], key: str, kind: type, value: Value) -> Value:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            return words[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError(value)
        if per_head(cls, key) and isinstance(several := several_of(value), list | tuple):
            return tuple(float(one) for one in several)
        return value if isinstance(value, kind) else _number(kind, value)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        meaning = cls.__dataclass_fields__[key].metadata.get("meaning")
        hint = f"{key}: {meaning}" if meaning else None
        wanted = KINDS.get(kind, kind.__name__)
        raise UsageError(f"{cls.name}: {key}: expected {wanted}, got {value!r}.", hint=hint) from error


def several_of(value: Value) -> object:
    """Return the parts of text with commas; any other value as it is."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def _number(kind: type, value: Value) -> Value:
    if kind is int:
        return int(str(value))
    if kind is float:
        return float(value)  # type: ignore[arg-type]  # whatever is none raises
    return str(value)
