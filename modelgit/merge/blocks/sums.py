"""Sums of float64 in one order on every machine, whatever the library."""

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 14  # elements of each vector that are summed at once: they stay in the cache
Array = npt.NDArray[np.float64]


def tree_sum(values: Array) -> float:
    """Return the sum of all elements, in one order on every machine: blocks as `folded`, then one after another."""
    flat = values.reshape(1, -1)
    return float(sum(folded(flat[:, start : start + BLOCK].copy())[0] for start in range(0, flat.size, BLOCK)))


def folded(rows: Array) -> Array:
    """Return the sum of each row, (k, n) to (k,), halves folded onto each other; `rows` is used up."""
    size = rows.shape[1]
    while size > 1:
        half = (size + 1) // 2
        rows[:, : size - half] += rows[:, half:size]
        size = half
    return rows[:, 0]
