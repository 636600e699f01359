"""Weights that differ by layer: a plan whose tensors are weighed by the layer they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelgit.errors import UsageError
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.plan import Head, Plan, Policy, Step, plan, share_results
from modelgit.merge.methods import Method

Weights = Mapping[str, Sequence[float]]


def layered(heads: Sequence[Head], base: TensorSource | None, method: Method, policy: Policy, layers: Weights) -> Plan:
    """Return the plan, with a weight for each head (in their order) in each of the `layers`, beginnings of names.

    A tensor belongs to the longest of them that its name begins with; any other keeps the weights of the heads.

    Raises: as `plan`; UsageError for a layer with another number of weights than heads.
    """
    whole = plan(heads, base, method, policy)
    if not layers:
        return whole
    weighed: dict[str, dict[str, Step]] = {}
    for layer, row in layers.items():
        if len(row) != len(heads):
            raise UsageError(f"layer {layer!r}: {len(row)} weights for {len(heads)} models.")
        given = [replace(head, weight=weight) for head, weight in zip(heads, row, strict=True)]
        weighed[layer] = _steps(plan(given, base, method, policy))
    steps = []
    for step in whole.steps:
        own = layer_among(layers, step.name)
        steps.append(step if own is None else weighed[own][step.name])
    return replace(whole, steps=share_results([replace(step, same_as=None) for step in steps]))


def layer_among(layers: Weights, name: str) -> str | None:
    """Return the longest of the layers that a tensor's name begins with, part by part."""
    found = [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]
    return max(found, key=len, default=None)


def _steps(found: Plan) -> dict[str, Step]:
    """Return the steps of a plan by name, each with the weights of its members."""
    return {s.name: replace(s, weights=tuple(found.heads[i].weight for i in s.members)) for s in found.steps}
