"""Weights and settings that differ by layer: a plan whose tensors are merged as the layer they belong to says."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from modelgit.errors import UsageError
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.plan import Head, Plan, Policy, Step, plan, share_results
from modelgit.merge.methods import Method

Weights = Mapping[str, Sequence[float]]
Methods = Mapping[str, Method]
NONE: Methods = MappingProxyType({})


def layered(
    heads: Sequence[Head],
    base: TensorSource | None,
    method: Method,
    policy: Policy,
    layers: Weights,
    methods: Methods = NONE,
) -> Plan:
    """Return the plan, with a weight for each head (in their order) in each of the `layers`, beginnings of names.

    A tensor belongs to the longest of them that its name begins with; any other keeps the weights of the heads. So it
    is with `methods`: the same method with the settings of a layer.

    Raises: as `plan`; UsageError for a layer with another number of weights than heads, or settings that cannot differ.
    """
    whole = plan(heads, base, method, policy)
    for layer, row in layers.items():
        if len(row) != len(heads):
            raise UsageError(f"layer {layer!r}: {len(row)} weights for {len(heads)} models.")
    if methods and getattr(method, "scope", "tensor") != "tensor":
        raise UsageError(f"method {method.name}: settings cannot differ between layers that are looked at together.")
    known: dict[tuple[str | None, ...], dict[str, Step]] = {(None, None): {step.name: step for step in whole.steps}}
    steps = []
    for step in whole.steps:
        own = layer_among(layers, step.name), layer_among(methods, step.name)
        if own not in known:
            known[own] = _steps(heads, base, (method, policy), layers.get(str(own[0])), methods.get(str(own[1])))
        steps.append(known[own][step.name])
    return replace(whole, steps=share_results([replace(step, same_as=None) for step in steps]))


def layer_among(layers: Collection[str], name: str) -> str | None:
    """Return the longest of the layers that a tensor's name begins with, part by part."""
    found = [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]
    return max(found, key=len, default=None)


def _steps(
    heads: Sequence[Head],
    base: TensorSource | None,
    usual: tuple[Method, Policy],
    row: Sequence[float] | None,
    own: Method | None,
) -> dict[str, Step]:
    """Return the steps of the merge by name, with the weights of a layer or with a method of its own."""
    given = heads if row is None else [replace(head, weight=w) for head, w in zip(heads, row, strict=True)]
    found = plan(given, base, own or usual[0], usual[1])
    method = found.method if own is not None else None
    weighed = [replace(s, weights=tuple(found.heads[i].weight for i in s.members)) for s in found.steps]
    return {step.name: replace(step, method=method) for step in weighed}
