"""An adapter folded into its base: W + scaling * B A in single precision, rounded once to the type of W.

PEFT names an adapter's tensors `base_model.model.NAME`, after the module in the base; tensors that are no factors (a
trained head, biases) take the place of the base's. What PEFT's `merge_and_unload` makes, but for its roundings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelgit.errors import DataError, FormatError, UsageError
from modelgit.merge.adapters.configuration import Configuration
from modelgit.merge.adapters.naming import PREFIX, UNKNOWN, Pair, pair_of

Shapes = Mapping[str, Sequence[int]]
NAMED = 3


@dataclass(frozen=True, slots=True)
class Product:
    """The change of a matrix: `scaling` times the product of two tensors of the adapter, `turned` where W is W^T."""

    b: str
    a: str
    scaling: float
    turned: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A tensor of the adapter that takes the place of the base's."""

    name: str


Change = Product | Taken


def changes_of(adapter: Shapes, base: Shapes, told: Configuration) -> dict[str, Change]:
    """Returns what an adapter does, by the names of the base's tensors.

    Raises:
        DataError: a tensor of the adapter finds no place in the base. UsageError: it is of a kind with no such place.
    """
    if told.table.get("layer_replication"):
        raise UsageError("adapter_config.json: 'layer_replication' is set: its base has layers that no file holds")
    found, problems = dict[str, Change](), list[str]()
    for name in sorted(adapter):
        try:
            place, change = change_of(name, adapter, base, told)
            found[place] = change
        except (DataError, FormatError) as error:
            problems.append(error.message)
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        what = f"the adapter does not fit its base: {'; '.join(problems[:NAMED])}{more}"
        raise DataError(what, hint=nearest(adapter, base))
    return found


def change_of(name: str, adapter: Shapes, base: Shapes, told: Configuration) -> tuple[str, Change]:
    """Returns which of the base's tensors one of an adapter's changes, and how. Raises DataError, FormatError."""
    if not name.startswith(PREFIX) or name.endswith(UNKNOWN):
        raise DataError(f"'{name}': expected a factor, or a whole tensor, by PEFT's names")
    pair = pair_of(name)
    if pair is not None:
        return product_of(pair, adapter, base, told)
    place = name.removeprefix(PREFIX)
    if not is_saved(place, told) and tuple(base.get(place, ())) != tuple(adapter[name]):
        raise DataError(f"'{name}' {list(adapter[name])}: the base has {described(base, place)}")
    return place, Taken(name)


def product_of(pair: Pair, adapter: Shapes, base: Shapes, told: Configuration) -> tuple[str, Product]:
    """Returns the matrix of the base that a pair of factors changes, and how. Raises DataError, FormatError."""
    a, b = adapter.get(pair.a), adapter.get(pair.b)
    if a is None or b is None:
        raise DataError(f"'{pair.module}': expected factors A and B, got one of them")
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(size != 1 for size in b[2:]):
        raise DataError(f"'{pair.module}': expected factors of one rank, got A {list(a)} and B {list(b)}")
    turned = pair.a.endswith(".lora_embedding_A") or (len(a) == 2 and bool(told.table.get("fan_in_fan_out")))
    wanted = (a[1], b[0]) if turned else (b[0], *a[1:])
    place = f"{pair.module}.weight"
    if tuple(base.get(place, ())) != wanted:
        raise DataError(
            f"'{place}': the product of its factors is {list(wanted)}, the base has {described(base, place)}"
        )
    return place, Product(pair.b, pair.a, told.scaling(pair.module, a[0]), turned)


def described(base: Shapes, place: str) -> str:
    """Returns the shape of a tensor of the base, in words."""
    return str(list(base[place])) if place in base else "none of that name"


def is_saved(place: str, told: Configuration) -> bool:
    """Tells whether a tensor belongs to a module that was trained whole: it may be new, or of another shape."""
    modules = told.table.get("modules_to_save")
    return isinstance(modules, list) and any(f".{module}." in f".{place}" for module in modules)


def nearest(adapter: Shapes, base: Shapes) -> str:
    """Returns a hint: how the base calls what the adapter calls otherwise, if that can be seen."""
    places = {f"{pair.module}.weight" for name in sorted(adapter) if (pair := pair_of(name)) is not None}
    for place in sorted(places - set(base)):
        for name in sorted(base):
            if name.endswith("." + place) or place.endswith("." + name):
                return f"the base calls '{place}' '{name}': save the adapter from the class that the base's file is of"
    return "name the version that it was trained from: --base REV"


def folded(weight: Tensor | None, change: Change, adapter: Mapping[str, Tensor]) -> Tensor:
    """Returns what a tensor of the base becomes; `weight` None: it has none of that name yet.

    Raises:
        DataError: the base's are no floating point numbers (it is quantised).
    """
    if isinstance(change, Taken):
        return adapter[change.name] if weight is None else adapter[change.name].to(weight.dtype)
    if weight is None or not weight.is_floating_point():
        got = "none" if weight is None else str(weight.dtype).removeprefix("torch.")
        raise DataError(f"'{change.b}': expected floating point numbers in the base, got {got}")
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    b, a = (adapter[name].to(exact).flatten(1) for name in (change.b, change.a))
    product = b @ a
    added = (product.T if change.turned else product).reshape(weight.shape)
    return (weight.to(exact) + change.scaling * added).to(weight.dtype)
