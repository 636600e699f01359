"""What PyTorch's operations do to the labels of their tensors: which axes run together, which stay, which come anew.

An operation that works element by element needs no rule. Where order matters (a slice, a sum along positions) the axis
is pinned; an operation without a rule is an error, never a guess.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from modelgit.merge.align.axes import Atoms, Axis, Label

Args = Sequence[Any]


class Ledger(Protocol):
    """What rules write in: atoms, the label of every tensor, and where units meet weights."""

    atoms: Atoms

    def label(self, tensor: Tensor) -> Label:
        """Return a tensor's label; one that comes from nowhere is pinned."""

    def meets(self, one: Tensor, other: Tensor, axis: int) -> None:
        """Note that activations are contracted with weights along an axis of `one` (or the last but one of `other`)."""


Rule = Callable[[Ledger, Args, Any], Any]  # (ledger, arguments, result) -> label(s) of the result(s)
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operations."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def fresh(book: Ledger, tensor: Tensor, *, pinned: bool = False) -> Label:
    """Return a label of new atoms."""
    return tuple(book.atoms.new(size, pinned=pinned) for size in tensor.shape)


def pin(book: Ledger, axes: Sequence[Axis]) -> None:
    """Pin some axes."""
    for axis in axes:
        book.atoms.pin(axis)


# ------------------------------------------------------------------------------------------------ shapes


@rule("clone", "_to_copy", "detach", "alias", "contiguous", "lift_fresh", "_softmax", "_log_softmax", "copy", "dropout")
def same(book: Ledger, args: Args, out: Tensor) -> Label:
    """As the input."""
    return book.label(args[0])


@rule("copy_", "fill_", "zero_")
def into(book: Ledger, args: Args, out: Tensor) -> Label:
    """Written over: both run together."""
    return elementwise(book, args, out)


def elementwise(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes run together, aligned at the right."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    axes: list[Axis] = []
    for back, size in enumerate(reversed(out.shape), 1):
        having = [book.label(t)[-back] for t in tensors if t.dim() >= back and t.shape[-back] == size]
        for other in having[1:]:
            book.atoms.join(having[0], other)
        axes.insert(0, having[0] if having else book.atoms.new(size))
    return tuple(axes)


RULES.update(dict.fromkeys(("hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_"), elementwise))  # not tagged so


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze", "squeeze_")
def view(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes fall apart, or become one."""
    return book.atoms.reshaped(book.label(args[0]), out.shape)


@rule("t")
def turned(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes in reverse."""
    return book.label(args[0])[::-1]


@rule("transpose")
def transpose(book: Ledger, args: Args, out: Tensor) -> Label:
    """Two axes change places."""
    axes = list(book.label(args[0]))
    axes[args[1]], axes[args[2]] = axes[args[2]], axes[args[1]]
    return tuple(axes)


@rule("permute")
def permute(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes in another order."""
    label = book.label(args[0])
    return tuple(label[i] for i in args[1])


@rule("expand")
def expand(book: Ledger, args: Args, out: Tensor) -> Label:
    """New axes are free: the same for every index."""
    return elementwise(book, args[:1], out)


@rule("repeat")
def repeat(book: Ledger, args: Args, out: Tensor) -> Label:
    """An axis repeated is a new one over it."""
    label, given = book.label(args[0]), args[0].shape
    axes: list[Axis] = []
    for back, size in enumerate(reversed(out.shape), 1):
        inner = label[-back] if back <= len(given) else ()
        axes.insert(0, (*book.atoms.new(size // book.atoms.size(inner)), *inner))
    return tuple(axes)


@rule("select", "unbind")
def select(book: Ledger, args: Args, out: Any) -> Any:
    """The axis has an order."""
    axes = list(book.label(args[0]))
    gone = axes.pop(args[1] if len(args) > 1 else 0)
    book.atoms.pin(gone)
    return [tuple(axes)] * len(out) if isinstance(out, list | tuple) else tuple(axes)


@rule("slice", "narrow")
def cut(book: Ledger, args: Args, out: Tensor) -> Label:
    """A part of an axis gives it an order; all of it does not."""
    axes, dim = list(book.label(args[0])), args[1] if len(args) > 1 else 0
    if out.shape[dim] != args[0].shape[dim]:
        book.atoms.pin(axes[dim])
        axes[dim] = book.atoms.new(out.shape[dim], pinned=True)
    return tuple(axes)


@rule("split", "unsafe_split", "split_with_sizes", "chunk")
def split(book: Ledger, args: Args, out: Sequence[Tensor]) -> list[Label]:
    """Equal parts are an axis over the rest."""
    label, dim = book.label(args[0]), args[2] if len(args) > 2 else 0
    size = out[0].shape[dim]
    axes = list(label)
    if any(part.shape[dim] != size for part in out):
        book.atoms.pin(axes[dim])
        return [(*axes[:dim], book.atoms.new(p.shape[dim], pinned=True), *axes[dim:][1:]) for p in out]
    parts, axes[dim] = book.atoms.split(axes[dim], size)
    book.atoms.pin(parts)
    return [tuple(axes)] * len(out)


@rule("cat", "stack")
def concatenate(book: Ledger, args: Args, out: Tensor) -> Label:
    """Parts of one length run together under an axis of their own; others have an order."""
    tensors, dim = [t for t in args[0] if t.numel()], args[1] if len(args) > 1 else 0
    if tensors[0].dim() < out.dim():
        inner = elementwise(book, tensors, tensors[0])
        place = dim % out.dim()
        return (*inner[:place], book.atoms.new(len(tensors), pinned=True), *inner[place:])
    if len({t.shape for t in tensors}) == 1:
        axes = list(elementwise(book, tensors, tensors[0]))
        axes[dim] = (*book.atoms.new(len(tensors), pinned=True), *axes[dim])
        return tuple(axes)
    labels = [list(book.label(t)) for t in tensors]
    for label in labels:
        book.atoms.pin(label[dim])
        label[dim] = ()
        for one, other in zip(labels[0], label, strict=True):
            book.atoms.join(one, other)
    labels[0][dim] = book.atoms.new(out.shape[dim], pinned=True)
    return tuple(labels[0])


@rule("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "roll", "flip")
def resized(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes whose length changes have an order."""
    axes = list(book.label(args[0]))
    for i, (before, after) in enumerate(zip(args[0].shape, out.shape, strict=True)):
        if before != after:
            book.atoms.pin(axes[i])
            axes[i] = book.atoms.new(after, pinned=True)
    return tuple(axes)


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones")
def uniform(book: Ledger, args: Args, out: Tensor) -> Label:
    """The same for every index."""
    return fresh(book, out)


RULES["new_full"] = RULES["new_empty"] = RULES["scalar_tensor"] = uniform


@rule("arange", "tril", "triu", "linspace")
def ordered(book: Ledger, args: Args, out: Tensor) -> Label:
    """Values that count positions."""
    pin(book, [axis for a in args if isinstance(a, Tensor) for axis in book.label(a)])
    return fresh(book, out, pinned=True)


# --------------------------------------------------------------------------------------------- reductions


@rule("mean", "sum", "amax", "amin", "prod", "var", "std", "linalg_vector_norm", "logsumexp", "any", "all")
def reduced(book: Ledger, args: Args, out: Tensor) -> Label:
    """Axes that are summed over go; nothing depends on their order."""
    label, given = book.label(args[0]), args[0]
    at = 2 if isinstance(args[1] if len(args) > 1 else None, int | float) and len(args) > 2 else 1
    dims = args[at] if len(args) > at else None
    dims = [dims] if isinstance(dims, int) else dims
    gone = {d % given.dim() for d in dims} if dims else set(range(given.dim()))
    if out.dim() == given.dim():
        return tuple(() if i in gone else axis for i, axis in enumerate(label))
    return tuple(axis for i, axis in enumerate(label) if i not in gone)


@rule("cumsum", "sort", "topk", "argmax", "max", "min")
def positional(book: Ledger, args: Args, out: Any) -> Any:
    """All axes have an order."""
    pin(book, book.label(args[0]))
    found = [fresh(book, each, pinned=True) for each in (out if isinstance(out, list | tuple) else [out])]
    return found if isinstance(out, list | tuple) else found[0]


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d", "avg_pool1d", "adaptive_max_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
)  # fmt: skip
def pooled(book: Ledger, args: Args, out: Any) -> Any:
    """Channels stay; pixels have an order."""
    label = book.label(args[0])
    pin(book, label[2:])
    first = out[0] if isinstance(out, tuple) else out
    found = (*label[:2], *(book.atoms.new(size, pinned=True) for size in first.shape[2:]))
    return [found] * len(out) if isinstance(out, tuple) else found


# --------------------------------------------------------------------------------------------- weights


@rule("mm", "bmm")
def product(book: Ledger, args: Args, out: Tensor) -> Label:
    """(…, n, k) @ (…, k, m): k runs together and goes."""
    a, b = book.label(args[0]), book.label(args[1])
    book.meets(args[0], args[1], args[0].dim() - 1)
    book.atoms.join(a[-1], b[-2])
    for one, other in zip(a[:-2], b[:-2], strict=True):
        book.atoms.join(one, other)
    return (*a[:-1], b[-1])


@rule("addmm", "baddbmm")
def affine(book: Ledger, args: Args, out: Tensor) -> Label:
    """A product and a shift."""
    shift = book.label(args[0])
    found: Label = product(book, args[1:], out)
    for one, other, size in zip(found[::-1], shift[::-1], args[0].shape[::-1], strict=False):
        if size > 1:
            book.atoms.join(one, other)
    return found


@rule("mv", "dot")
def vector(book: Ledger, args: Args, out: Tensor) -> Label:
    """(n, k) @ (k): k runs together and goes."""
    a, b = book.label(args[0]), book.label(args[1])
    book.atoms.join(a[-1], b[-1])
    return a[:-1]


@rule("embedding")
def embedding(book: Ledger, args: Args, out: Tensor) -> Label:
    """Rows are looked up by number."""
    weight, numbers = book.label(args[0]), book.label(args[1])
    book.atoms.pin(weight[0])
    return (*numbers, weight[1])


@rule("convolution")
def convolution(book: Ledger, args: Args, out: Tensor) -> Label:
    """Channels as rows and columns of a matrix for each place of the kernel; groups of channels apart."""
    x, w = book.label(args[0]), book.label(args[1])
    pin(book, [*x[2:], *w[2:]])
    book.meets(args[0], args[1], 1)
    outputs = w[0]
    if args[6]:  # transposed: (in, out / groups, …)
        pin(book, [x[1], w[0], w[1]])
        outputs = book.atoms.new(out.shape[1], pinned=True)
    elif args[8] == 1:
        book.atoms.join(x[1], w[1])
    else:
        groups, inputs = book.atoms.split(x[1], args[0].shape[1] // args[8])
        other, _ = book.atoms.split(outputs, args[1].shape[0] // args[8])
        book.atoms.join(groups, other)
        book.atoms.join(inputs, w[1])
    if args[2] is not None:
        book.atoms.join(outputs, book.label(args[2])[0])
    return (x[0], outputs, *(book.atoms.new(size, pinned=True) for size in out.shape[2:]))


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(book: Ledger, args: Args, out: Sequence[Tensor]) -> list[Label]:
    """Scale, shift and statistics are channels'."""
    label = book.label(args[0])
    for other in args[1:5]:
        if isinstance(other, Tensor):
            book.atoms.join(label[1], book.label(other)[0])
    return [label, *(fresh(book, each) for each in out[1:])]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(book: Ledger, args: Args, out: Sequence[Tensor]) -> list[Label]:
    """Scale and shift are those of the last axes."""
    label = book.label(args[0])
    for other in args[2:4]:
        if isinstance(other, Tensor):
            for one, two in zip(label[-other.dim() :], book.label(other), strict=True):
                book.atoms.join(one, two)
    return [label, *(fresh(book, each) for each in out[1:])]


@rule("native_group_norm")
def group_norm(book: Ledger, args: Args, out: Sequence[Tensor]) -> list[Label]:
    """Channels fall into groups, which stay together."""
    label = book.label(args[0])
    for other in args[1:3]:
        if isinstance(other, Tensor):
            book.atoms.join(label[1], book.label(other)[0])
    book.atoms.split(label[1], args[0].shape[1] // args[6])
    return [label, *(fresh(book, each) for each in out[1:])]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_attention_math",
)  # fmt: skip
def attention(book: Ledger, args: Args, out: Sequence[Tensor]) -> list[Label]:
    """Heads stay apart; fewer of keys and values than of queries: each serves a group of neighbours."""
    q, k, v = (book.label(each) for each in args[:3])
    queries = q[1]
    if args[0].shape[1] != args[1].shape[1]:
        queries, _ = book.atoms.split(q[1], args[0].shape[1] // args[1].shape[1])
    for one, two in ((q[0], k[0]), (q[0], v[0]), (queries, k[1]), (queries, v[1]), (q[3], k[3]), (k[2], v[2])):
        book.atoms.join(one, two)
    pin(book, [axis for a in args[3:] if isinstance(a, Tensor) for axis in book.label(a)])
    first = (q[0], q[1], q[2], v[3])
    return [first, *(fresh(book, each) for each in out[1:] if isinstance(each, Tensor))]
