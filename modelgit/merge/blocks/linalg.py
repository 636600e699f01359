"""Decompositions and products of matrices, float64: LAPACK's in one thread, or those of PyTorch on a device.

The device is that of the merge under way (`using`). On a GPU the results are the same up to rounding, not bit for bit.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from threadpoolctl import threadpool_limits

from modelgit.errors import UsageError
from modelgit.merge.blocks.sums import Array

Triple = tuple[Array, Array, Array]  # (m, r), (r,), (r, n)
HERE, NAME = "cpu", re.compile(r"[a-z]{1,20}(:\d{1,3})?")
_device: ContextVar[str] = ContextVar("device", default=HERE)


@contextmanager
def using(device: str) -> Iterator[None]:
    """Let matrices be worked on by a device: `cpu`, or one of PyTorch's by its name there.

    Raises: UsageError: there is no such device, or it has no float64.
    """
    require(device)
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def require(device: str) -> None:
    """Raise UsageError unless it is the CPU, or PyTorch can work on a device in float64."""
    if device == HERE:
        return
    if not NAME.fullmatch(device):
        raise UsageError(f"--device {device[:40]!r}: expected cpu, cuda or cuda:1")
    import torch

    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"--device {device}: {first}", hint="the default is cpu; a GPU is cuda, or cuda:1") from error


def decomposed(matrix: Array) -> Triple:
    """Return the thin singular value decomposition of a matrix (m, n), r = min(m, n)."""
    if _device.get() != HERE:
        import torch

        found = torch.linalg.svd(torch.from_numpy(matrix).to(_device.get()), full_matrices=False)
        u, s, v = (part.cpu().numpy() for part in found)
        return u, s, v
    with threadpool_limits(1, "blas"):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u, s, v


def product(*factors: Array) -> Array:
    """Return the product of matrices, from the left."""
    if _device.get() != HERE:
        import torch

        on_device = [torch.from_numpy(np.ascontiguousarray(factor)).to(_device.get()) for factor in factors]
        found = on_device[0]
        for other in on_device[1:]:
            found = found @ other
        result: Array = found.cpu().numpy()
        return result
    total = factors[0]
    with threadpool_limits(1, "blas"):
        for factor in factors[1:]:
            total = total @ factor
    return total


def polar(matrix: Array) -> Array:
    """Return the nearest matrix with orthonormal columns (or rows, where there are fewer)."""
    u, _, v = decomposed(matrix)
    return product(u, v)
