"""Permutation specs as values: groups of units, and every axis of every tensor that counts them.

An axis may count several groups at once: attention's rows are heads of some units each. A place says how: along its
axis the group's index is `(position // block) % size`. A group `inside` another one is permuted in each of that one's
blocks for itself (the channels of a normalisation's groups, the units of a head).
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from modelgit.errors import FormatError

Indices = npt.NDArray[np.int64]
Permutations = Mapping[str, Indices]  # take(b, permutation) is like a; a group inside another has a row for each block
Shapes = Mapping[str, tuple[int, ...]]
SPEC_LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """An axis of a tensor along which a group is counted, each unit being `block` long."""

    tensor: str
    axis: int
    block: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are permuted together wherever they appear."""

    name: str
    size: int
    places: tuple[Place, ...]
    inside: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """All groups of a network; `source` says where they come from: graph, layout, file."""

    groups: tuple[Group, ...]
    source: str = "file"

    def by_name(self) -> dict[str, Group]:
        """Return the groups by name."""
        return {group.name: group for group in self.groups}

    def along(self, tensor: str) -> dict[int, list[tuple[Group, int]]]:
        """Return, for each permuted axis of a tensor, its groups with their blocks."""
        return self.tensors().get(tensor, {})

    def tensors(self) -> dict[str, dict[int, list[tuple[Group, int]]]]:
        """Return what `along` says of every tensor that is permuted."""
        found: dict[str, dict[int, list[tuple[Group, int]]]] = {}
        for group in self.groups:
            for place in group.places:
                found.setdefault(place.tensor, {}).setdefault(place.axis, []).append((group, place.block))
        return found

    def units(self) -> int:
        """Return how many units may change places, rows of groups inside others counted one by one."""
        names = self.by_name()
        return sum(group.size * (names[group.inside].size if group.inside else 1) for group in self.groups)


def check(spec: Spec, shapes: Shapes) -> None:
    """Refuse a spec that does not fit the tensors.

    Raises:
        FormatError: an unknown tensor or axis, a length that blocks do not divide, groups that overlap on an axis.
    """
    names = spec.by_name()
    if len(names) != len(spec.groups):
        raise FormatError("permutation spec: two groups of one name")
    for group in spec.groups:
        if group.size < 1 or (group.inside is not None and group.inside not in names):
            raise FormatError(f"permutation spec: group '{group.name}' is empty or inside an unknown group")
    for tensor, axes in spec.tensors().items():
        for axis, found in axes.items():
            check_axis(tensor, axis, found, shapes)


def check_axis(tensor: str, axis: int, found: Sequence[tuple[Group, int]], shapes: Shapes) -> None:
    """Raise FormatError unless the groups fit along an axis, side by side."""
    where = f"permutation spec: tensor '{tensor}', axis {axis}"
    if tensor not in shapes or not 0 <= axis < len(shapes[tensor]):
        raise FormatError(f"{where}: the model has no such tensor or axis")
    here, length, below = {group.name for group, _ in found}, shapes[tensor][axis], 1
    for group, block in sorted(found, key=lambda pair: pair[1]):
        if block < below or block % below or length % (block * group.size) or not length:
            raise FormatError(f"{where}: {group.size} units of {block} of group '{group.name}' do not fit {length}")
        if group.inside is not None and group.inside not in here:
            raise FormatError(f"{where}: group '{group.name}' without '{group.inside}', which it is inside of")
        below = block * group.size


# ------------------------------------------------------------------------------------------------- permutations


def identity(spec: Spec) -> dict[str, Indices]:
    """Return the permutations that move nothing."""
    names = spec.by_name()
    rows = {group.name: names[group.inside].size if group.inside else 0 for group in spec.groups}
    plain = {group.name: np.arange(group.size) for group in spec.groups}
    return {name: np.tile(plain[name], (count, 1)) if count else plain[name] for name, count in rows.items()}


def inverse(spec: Spec, found: Permutations) -> dict[str, Indices]:
    """Return the permutations that undo others."""
    back: dict[str, Indices] = {}
    for group in spec.groups:
        undone = np.argsort(found[group.name], axis=-1)
        back[group.name] = undone if group.inside is None else undone[np.argsort(found[group.inside])]
    return back


def source_index(length: int, groups: Sequence[tuple[Group, int]], found: Permutations) -> Indices:
    """Return, for each position along an axis, the position its values come from."""
    at = np.arange(length)
    digits = {group.name: (at // block) % group.size for group, block in groups}
    come = at.copy()
    for group, block in groups:
        rows, digit = found[group.name], digits[group.name]
        come += ((rows[digit] if group.inside is None else rows[digits[group.inside], digit]) - digit) * block
    return come


def digest(found: Permutations) -> str:
    """Return what identifies permutations."""
    total = blake3()
    for name, rows in sorted(found.items()):
        total.update(f"{name}\0{list(rows.shape)}\0".encode() + rows.astype("<i8").tobytes())
    return total.hexdigest()[:32]


# --------------------------------------------------------------------------------------------------- as a file


def load_table(path: Path) -> Any:
    """Return what a JSON or TOML file holds, for `parse_spec`. Raises FormatError."""
    try:
        data = path.read_bytes()
        if len(data) > SPEC_LIMIT_BYTES:
            raise FormatError(f"{path}: {len(data)} bytes, expected at most {SPEC_LIMIT_BYTES}")
        return tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not a permutation spec: {error}", hint="see docs/howto/align.md") from error


def parse_spec(table: Any, shapes: Shapes, where: str) -> Spec:
    """Return the spec that a table `{"groups": {NAME: {"places": [[TENSOR, AXIS, BLOCK]], "inside": NAME}}}` holds.

    `size` follows from the first place where it is left out, a block is 1; a group may be its places alone.

    Raises:
        FormatError: anything else, or a spec that does not fit the tensors.
    """
    try:
        spec = Spec(tuple(_group(name, value, shapes) for name, value in sorted(table["groups"].items())))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        hint = '{"groups": {"hidden": [["first.weight", 0], ["first.bias", 0], ["second.weight", 1]]}}'
        raise FormatError(f"{where}: not a permutation spec: {error!r}", hint=f"for example {hint}") from error
    check(spec, shapes)
    return spec


def _group(name: str, value: Any, shapes: Shapes) -> Group:
    rows = value["places"] if isinstance(value, dict) else value
    options = value if isinstance(value, dict) else {}
    places = tuple(Place(str(row[0]), int(row[1]), int(row[2]) if len(row) > 2 else 1) for row in rows)
    first = places[0]
    if first.tensor not in shapes or min(place.block for place in places) < 1:
        raise ValueError(f"group {name!r}: no tensor {first.tensor!r}, or a block below 1")
    size = int(options.get("size", shapes[first.tensor][first.axis] // first.block))
    inside = options.get("inside")
    return Group(str(name), size, places, None if inside is None else str(inside))


def spec_table(spec: Spec) -> dict[str, Any]:
    """Return what `parse_spec` reads."""
    return {
        "groups": {
            group.name: {
                "size": group.size,
                "places": [[place.tensor, place.axis, place.block] for place in group.places],
                **({"inside": group.inside} if group.inside else {}),
            }
            for group in spec.groups
        }
    }
