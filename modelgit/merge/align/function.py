"""Whether a permuted network computes the same function: it is run before and after.

In float64, where a sum in another order differs by less than 1e-12 of the outputs; a wrong permutation differs by far
more than the tolerance.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from modelgit.errors import FormatError
from modelgit.merge.align.graph import WAY_ON, Network, State, cast, cast_tensor, plain_operations
from modelgit.merge.align.spec import Permutations, Spec, identity, source_index

TOLERANCE = 1e-6  # of the largest output


def permuted_state(spec: Spec, state: State, found: Permutations) -> dict[str, Tensor]:
    """Return a model with its units in their new order."""
    tensors = spec.tensors()
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for axis, groups in tensors.get(name, {}).items():
            tensor = tensor.index_select(axis, torch.from_numpy(source_index(tensor.shape[axis], groups, found)))
        result[name] = tensor
    return result


def outputs(network: Network, state: State, inputs: Tensor) -> list[Tensor]:
    """Return what a network computes, in float64."""
    with plain_operations():
        made = network(cast(state, torch.float64), cast_tensor(inputs, torch.float64))
    return [t.double() for t in tree_leaves(made) if isinstance(t, Tensor)]


def difference(network: Network, one: State, other: State, inputs: Tensor) -> float:
    """Return the largest difference between what two models compute, as a share of their largest output."""
    worst = 0.0
    for a, b in zip(outputs(network, one, inputs), outputs(network, other, inputs), strict=True):
        scale = max(float(a.abs().max()), float(np.finfo(np.float64).tiny)) if a.numel() else 1.0
        gap = float((a - b).abs().max()) / scale if a.numel() else 0.0
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def require_same(network: Network, spec: Spec, state: State, found: Permutations, inputs: Tensor) -> float:
    """Return how far apart a model and the permuted one are, at most TOLERANCE.

    Raises:
        FormatError: they compute different things; the spec is wrong for this network.
    """
    gap = difference(network, state, permuted_state(spec, state, found), inputs)
    if not gap <= TOLERANCE:
        message = "permuted, the network computes something else: the spec does not fit it"
        raise FormatError(f"{message} (outputs differ by {gap:.2g} of their size, expected {TOLERANCE:g})", hint=WAY_ON)
    return gap


def shuffled(spec: Spec, seed: int) -> Mapping[str, np.ndarray]:
    """Return permutations drawn at random: what a spec is tried with."""
    draws = np.random.default_rng(seed)
    return {name: draws.permuted(rows, axis=-1) for name, rows in identity(spec).items()}
