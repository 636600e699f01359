"""Which axes of tensors count the same units: atoms, joined when an operation makes two of them run together.

The label of a tensor has an axis for each of its dimensions; an axis is a product of atoms, the slowest first, so
that a view which splits units into heads splits an atom. Atoms whose order has a meaning (pixels, classes) are pinned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Axis = tuple[int, ...]
Label = tuple[Axis, ...]


@dataclass(slots=True)
class Atoms:
    """Atoms by number: what each was joined to, its size, the parts it was split into, whether it is pinned."""

    above: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    parts: dict[int, Axis] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)

    def new(self, size: int, *, pinned: bool = False) -> Axis:
        """Return an axis of one new atom; one of size 1 has none."""
        if size == 1:
            return ()
        self.above.append(len(self.above))
        self.sizes.append(size)
        if pinned:
            self.pinned.add(len(self.above) - 1)
        return (len(self.above) - 1,)

    def leaves(self, axis: Sequence[int]) -> Axis:
        """Return the axis in atoms that are not split."""
        found: list[int] = []
        for atom in map(self._top, axis):
            found += self.leaves(self.parts[atom]) if atom in self.parts else (atom,)
        return tuple(found)

    def size(self, axis: Sequence[int]) -> int:
        """Return the length of an axis."""
        total = 1
        for atom in axis:
            total *= self.sizes[atom]
        return total

    def pin(self, axis: Sequence[int]) -> None:
        """Forbid that units of an axis change places."""
        self.pinned.update(self.leaves(axis))

    def is_pinned(self, leaf: int) -> bool:
        """Tell whether a leaf may not be permuted."""
        return leaf in self.pinned

    def split(self, axis: Sequence[int], inner: int) -> tuple[Axis, Axis]:
        """Return the axis as a product of an outer part and one of length `inner`, which divides its length.

        Where the atoms do not fall apart so, they are pinned, and so are the parts.
        """
        left, right, length = list(self.leaves(axis)), list[int](), 1
        while length < inner:
            atom = left.pop()
            wanted = inner // length
            if wanted % self.sizes[atom] and self.sizes[atom] % wanted:
                break
            if wanted < self.sizes[atom]:
                outer, atom = self._halved(atom, wanted)
                left.append(outer)
            right.insert(0, atom)
            length *= self.sizes[atom]
        if length != inner or inner % length:
            total = self.size(axis)
            self.pin(axis)
            return self.new(total // inner, pinned=True), self.new(inner, pinned=True)
        return tuple(left), tuple(right)

    def join(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Let two axes of one length run together; what cannot be laid side by side is pinned."""
        a, b = list(self.leaves(one)), list(self.leaves(other))
        while a and b:
            s, t = self.sizes[a[-1]], self.sizes[b[-1]]
            if s != t and s % t and t % s:
                self.pin(a)
                self.pin(b)
                return
            longer = a if s > t else b
            if s != t:
                longer[-1:] = self._halved(longer[-1], min(s, t))
            self._merge(a.pop(), b.pop())
            a, b = list(self.leaves(a)), list(self.leaves(b))

    def reshaped(self, label: Label, shape: Sequence[int]) -> Label:
        """Return the label after a view as `shape`."""
        rest: Axis = tuple(atom for axis in label for atom in axis)
        axes: list[Axis] = []
        for size in reversed(shape):
            rest, axis = self.split(rest, size)
            axes.insert(0, axis)
        return tuple(axes)

    def _top(self, atom: int) -> int:
        while self.above[atom] != atom:
            atom = self.above[atom]
        return atom

    def _halved(self, atom: int, inner: int) -> tuple[int, int]:
        pinned = atom in self.pinned
        (outer,), (part,) = self.new(self.sizes[atom] // inner, pinned=pinned), self.new(inner, pinned=pinned)
        self.parts[atom] = (outer, part)
        return outer, part

    def _merge(self, a: int, b: int) -> None:
        if a == b:
            return
        self.above[b] = a
        if b in self.pinned:
            self.pinned.add(a)
