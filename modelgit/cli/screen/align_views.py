"""How lining units up, and setting activations right, look on the screen."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, line

if TYPE_CHECKING:
    from modelgit.porcelain.merging.values import Aligned, Informed, Merged, Repaired

CHECKED = "function unchanged"
UNCHECKED = "the network cannot be run here: that its function is unchanged was not checked, only that the spec fits"


def lined_up(result: "Merged") -> Iterator[Block]:
    """What was done to models that were trained apart."""
    if result.aligned is not None:
        yield from aligned(result.aligned)
    if result.informed is not None:
        yield from informed(result.informed)
    if result.repaired is not None:
        yield line(f"  repaired: {repaired(result.repaired)}")


def aligned(found: "Aligned") -> Iterator[Block]:
    """Which units moved, and what that did to the distance."""
    on = f" on {found.data}" if found.data else ""
    yield line(f"  aligned by {found.by}{on}, spec from {found.source}, {found.units:,} units")
    for head in found.heads:
        yield line(f"    {head.name}: {head.moved:,} moved, distance {head.before:.3f} to {head.after:.3f}")
    if found.difference is None:
        yield line(f"  note: {UNCHECKED}")
    else:
        yield line(f"    {CHECKED} (outputs differ by {found.difference:.1g} of their size)")


def informed(found: "Informed") -> Iterator[Block]:
    """What was known of each model besides its weights."""
    what = {"fisher": "Fisher information", "gram": "inner products of inputs"}[found.kind]
    seen = ", ".join(dict.fromkeys(f"{head.images:,} images of {head.data}" for head in found.heads if head.data))
    yield line(f"  statistics: {what}{f' on {seen}' if seen else ', from files'}")


def repaired(found: "Repaired") -> str:
    """What was set right."""
    what = {"statistics": "batch statistics estimated again", "moments": "hidden layers scaled"}[found.what]
    return f"{what} on {found.images:,} images of {found.data}, {found.tensors} tensors changed"
