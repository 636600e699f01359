"""The spec of a network, derived by running it once and following every operation.

Nobody writes a spec by hand: parameters begin with an atom for each axis, operations join and split them, inputs and
outputs are pinned; what is left free are the units that may change places.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelgit.errors import FormatError
from modelgit.merge.align.axes import Atoms, Axis, Label
from modelgit.merge.align.rules import RULES, elementwise
from modelgit.merge.align.spec import Group, Place, Spec, check

State = Mapping[str, Tensor]
Network = Callable[[State, Tensor], object]  # (state, inputs) -> outputs
WAY_ON = "describe its permutations in a file: --align-spec FILE (docs/howto/align.md)"


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels every tensor that a network makes; remembers where activations meet weights."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.atoms = Atoms()
        self.labels: dict[int, Label] = {}
        self.live: set[int] = set()  # what depends on the inputs
        self.met: list[tuple[Tensor, Axis]] = []
        self.read: set[int] = set()
        self._kept: list[Tensor] = []  # so that no id is used twice

    def enter(self, tensor: Tensor, label: Label) -> None:
        """Give a tensor its label."""
        self.labels[id(tensor)] = label
        self._kept.append(tensor)

    def label(self, tensor: Tensor) -> Label:
        """Return a tensor's label; one that comes from nowhere is pinned."""
        if id(tensor) not in self.labels:
            self.enter(tensor, tuple(self.atoms.new(size, pinned=True) for size in tensor.shape))
        return self.labels[id(tensor)]

    def meets(self, one: Tensor, other: Tensor, axis: int) -> None:
        """Note activations that are contracted with weights."""
        if id(one) in self.live and id(other) not in self.live:
            self.met.append((one.movedim(axis, 0), self.label(one)[axis]))
        elif id(other) in self.live and id(one) not in self.live:
            self.met.append((other.movedim(-2, 0), self.label(other)[-2]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and follow it."""
        made = func(*args, **(kwargs or {}))
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        self.read.update(map(id, given))
        results = [r for r in tree_leaves(made) if isinstance(r, Tensor)]
        if not results:
            return made
        labels = self._followed(func, args, made, given)
        for tensor, label in zip(results, labels, strict=False):
            self.enter(tensor, label)
            if any(id(a) in self.live for a in given):
                self.live.add(id(tensor))
        return made

    def _followed(self, func: Any, args: Any, made: Any, given: Sequence[Tensor]) -> Sequence[Label]:
        name = str(func).split(".")[1]
        known = RULES.get(name)
        if known is None and torch.Tag.pointwise in func.tags:
            return [elementwise(self, given, made)]
        if known is None:
            shapes = ", ".join(str(list(t.shape)) for t in given)
            raise FormatError(
                f"operation '{name}' on tensors {shapes}: units cannot be followed through it", hint=WAY_ON
            )
        found = known(self, args, made)
        return found if isinstance(found, list) else [found]


@contextmanager
def plain_operations() -> Iterator[None]:
    """Lets modules run operation by operation: no fused blocks, no gradients, one result for one input."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def cast(state: State, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model in another precision."""
    return {name: cast_tensor(tensor, dtype) for name, tensor in state.items()}


def cast_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another precision; integers as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def trace(network: Network, state: State, inputs: Tensor) -> Tracer:
    """Return the tracer after one run. Raises FormatError naming the operation that has no rule."""
    tracer = Tracer()
    for tensor in {id(t): t for t in state.values()}.values():
        tracer.enter(tensor, tuple(tracer.atoms.new(size) for size in tensor.shape))
    tracer.live.add(id(inputs))
    tracer.label(inputs)
    with plain_operations(), tracer:
        made = network(state, inputs)
    for result in tree_leaves(made):
        if isinstance(result, Tensor):
            for axis in tracer.label(result):
                tracer.atoms.pin(axis)
    return tracer


def derive(network: Network, state: State, inputs: Tensor) -> Spec:
    """Return the spec of a network, from one run of it on a few inputs (pinned, so any will do).

    Raises:
        FormatError: an operation without a rule, or nothing that may be permuted.
    """
    state = cast(state, torch.float64)
    return spec_from(trace(network, state, cast_tensor(inputs, torch.float64)), state)[0]


def spec_from(tracer: Tracer, state: State) -> tuple[Spec, dict[int, str]]:
    """Return the spec that a trace found, and the group's name of each atom. Raises as `derive`."""
    atoms = tracer.atoms
    used = {name: tracer.label(t) for name, t in state.items() if id(t) in tracer.read}
    axes = {(name, i): atoms.leaves(axis) for name, label in used.items() for i, axis in enumerate(label) if axis}
    places: dict[int, list[Place]] = {}
    for (name, axis), leaves in axes.items():
        for i, leaf in enumerate(leaves):
            if leaf not in atoms.pinned and leaves.count(leaf) == 1:
                places.setdefault(leaf, []).append(Place(name, axis, atoms.size(leaves[i + 1 :])))
    twice = {leaf for leaves in axes.values() for leaf in leaves if leaves.count(leaf) > 1}
    free = [leaf for leaf in places if leaf not in twice]
    if not free:
        raise FormatError("the network has no units that could change places", hint=WAY_ON)
    names = named({leaf: places[leaf] for leaf in free})
    inside = nesting(tracer, free, list(axes.values()))
    groups = tuple(
        Group(names[leaf], atoms.sizes[leaf], tuple(places[leaf]), names.get(inside.get(leaf, -1))) for leaf in free
    )
    spec = Spec(tuple(sorted(groups, key=lambda group: group.name)), "graph")
    check(spec, {name: tuple(t.shape) for name, t in state.items()})
    return spec, names


def named(places: Mapping[int, Sequence[Place]]) -> dict[int, str]:
    """Return a name for each group: that of the first weight whose outputs it counts."""
    names: dict[int, str] = {}
    for leaf, found in places.items():
        first = next((p for p in found if p.axis == 0), found[0])
        stem = first.tensor.removesuffix(".weight").removesuffix(".bias")
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}#{number}", number + 1
        names[leaf] = name
    return names


def nesting(tracer: Tracer, free: Sequence[int], axes: Sequence[Axis]) -> dict[int, int]:
    """Return which groups may be permuted in each block of another one for itself.

    That is so if wherever one of them is counted the other is counted too: on the same axis of every weight, and in
    every activation. A group has one inside it on an axis, and is inside no other.
    """
    seen = [{leaf for axis in label for leaf in tracer.atoms.leaves(axis)} for label in tracer.labels.values()]
    found: dict[int, int] = {}
    for inner in free:
        having = [axis[: axis.index(inner)] for axis in axes if inner in axis]
        shared = set.intersection(*map(set, having)) & set(free)
        outer = next((leaf for leaf in having[0] if leaf in shared), None)
        if outer is None or outer in found or not all(outer in leaves for leaves in seen if inner in leaves):
            continue
        crowded = any(found.get(leaf) == outer for axis in axes if inner in axis for leaf in axis)
        if not crowded and inner not in found.values():
            found[inner] = outer
    return found
