"""The registry of merge methods: a method is a frozen dataclass, and its fields are its settings.

Four kinds, by how much of the inputs a method must see to merge one tensor:
`Linear`      nothing: coefficients follow from the weights alone;
`Fitted`      inner products of the inputs, from which it gives coefficients;
`Elementwise` the values at one place (or in one row) of all inputs, and a few facts about the tensor;
`Combined`    all values at once.
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
from modelgit.merge.methods.linear_form import Array, LinearForm, gram

T = TypeVar("T")
Value = bool | int | float | str
MethodClass = TypeVar("MethodClass", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """One tensor of every model: `heads` (M arrays of one shape), a weight each, the base where there is one.

    `name` is the tensor's and `keys` are the ids of the heads: what random methods are seeded from. `heads` may load
    each array when it is asked for, and keep none: go through them one after another (`delta`) where that is possible.
    A block is the same for a part of a tensor, which begins at element `start`.
    """

    heads: Sequence[Array]
    weights: Sequence[float]
    base: Array | None = None
    name: str = ""
    keys: Sequence[str] = ()
    start: int = 0

    def origin(self) -> Array:
        """Return the base. Raises UsageError without one."""
        if self.base is None:
            raise UsageError(f"tensor {self.name!r}: differences to a base are asked for, and there is none.")
        return self.base

    def delta(self, head: int) -> Array:
        """Return head - base for one head. Raises UsageError without a base."""
        difference: Array = self.heads[head] - self.origin()
        return difference

    def deltas(self) -> list[Array]:
        """Return head - base for every head, all at once. Raises UsageError without a base."""
        return [self.delta(i) for i in range(len(self.heads))]


class Tensor(Protocol):
    """One tensor of every model, to be looked at block by block."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def weights(self) -> Sequence[float]:
        """A weight for each head."""

    @property
    def keys(self) -> Sequence[str]:
        """The ids of the heads."""

    @property
    def model(self) -> Any:
        """What the method's `survey` found over all tensors; None for a method that has none."""

    @property
    def unchanged(self) -> bool:
        """Whether all heads have it as the base has: then it has no blocks. Only a `survey` meets such a tensor."""

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of every block, in the order of the blocks; it may run in several threads at once.

        With `every`, only one block in so many is looked at, the first among them: a sample.

        Each call reads all inputs again (or finds them in memory, when they are few). Blocks are the same in every
        call, and lie in scratch memory that is used again: `look` must keep no part of one.
        """


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
    before the first is merged; what it returns is every tensor's `model`.
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


# ------------------------------------------------------------------------------------------------------ blocks


BLOCK_ELEMENTS = 1 << 15  # of each input: a frame holds whole blocks, and a few of them stay in the cache


def grid(shape: Sequence[int], *, whole_rows: bool) -> tuple[int, int]:
    """Return how many elements a block has, and a row of it: 0 where blocks are flat."""
    row = shape[-1] if whole_rows and shape else 0
    return (max(1, BLOCK_ELEMENTS // row) * row, row) if row else (BLOCK_ELEMENTS, 0)


@dataclasses.dataclass(slots=True)
class ArrayTensor:
    """A tensor at hand (a `Tensor`)."""

    inputs: Inputs
    whole_rows: bool = False
    model: object = None

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.inputs.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self.inputs.heads[0].shape

    @property
    def weights(self) -> Sequence[float]:
        """Return a weight for each head."""
        return self.inputs.weights

    @property
    def keys(self) -> Sequence[str]:
        """Return the ids of the heads."""
        return self.inputs.keys

    @property
    def unchanged(self) -> bool:
        """Return that there is something to look at."""
        return False

    def each(self, look: Callable[[Inputs], T], every: int = 1) -> list[T]:
        """Return what `look` says of every block."""
        step, row = grid(self.shape, whole_rows=self.whole_rows)
        heads = [head.reshape(-1) for head in self.inputs.heads]
        base = None if self.inputs.base is None else self.inputs.base.reshape(-1)

        def part(values: Array, start: int) -> Array:
            cut = values[start : start + step]
            return cut.reshape(-1, row) if row else cut

        return [
            look(
                dataclasses.replace(
                    self.inputs,
                    heads=[part(head, start) for head in heads],
                    base=None if base is None else part(base, start),
                    start=start,
                )
            )
            for start in range(0, math.prod(self.shape), step * every)
        ]


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
