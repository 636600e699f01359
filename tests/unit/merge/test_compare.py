"""Statistics of two models: what changed, by how much, in which direction."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from modelgit.merge.compare import Comparison, compare, not_finite
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors
from modelgit.store.objects import ObjectStore

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64"}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store", threads=1)


def stored(store: ObjectStore, arrays: dict[str, npt.NDArray[np.generic]]) -> StoredTensors:
    with store.begin() as pack:
        tensors = [(n, NAMES[a.dtype.name], a.shape, memoryview(a.tobytes())) for n, a in arrays.items()]
        manifest = store_tensors(pack, tensors, {})
        pack.commit()
    return StoredTensors(store, manifest)


def compared(store: ObjectStore, old: npt.NDArray[np.generic], new: npt.NDArray[np.generic]) -> Comparison:
    (found,) = compare(stored(store, {"w": old}), stored(store, {"w": new}))
    return found


def test_kinds_are_told_apart(store: ObjectStore) -> None:
    ones = np.ones(2, np.float32)
    old = stored(store, {"same": ones, "gone": ones, "shape": ones, "dtype": ones, "changed": ones})
    new = stored(
        store,
        {
            "same": ones,
            "new": ones,
            "shape": np.ones(3, np.float32),
            "dtype": ones.astype(np.float16),
            "changed": 2 * ones,
        },
    )
    assert {c.name: c.kind for c in compare(old, new)} == {
        "changed": "changed",
        "dtype": "dtype",
        "gone": "removed",
        "new": "added",
        "same": "same",
        "shape": "shape",
    }


def test_statistics_of_a_changed_tensor(store: ObjectStore) -> None:
    found = compared(store, np.array([3, 4, 0, 0], np.float32), np.array([3, 0, 4, 0], np.float32))
    assert found.changed_share == 0.5
    assert found.relative_norm == pytest.approx(math.sqrt(32) / 5, rel=1e-15)
    assert found.cosine == pytest.approx(9 / 25, rel=1e-15)


def test_frames_add_up_over_a_long_tensor(store: ObjectStore) -> None:
    random = np.random.default_rng(0)
    old = random.standard_normal(2_500_000).astype(np.float32)
    new = old.copy()
    new[::5] += 1
    found = compared(store, old, new)
    assert found.changed_share == 0.2
    step = (new.astype(np.float64) - old)[::5]
    assert found.relative_norm == pytest.approx(
        float(np.linalg.norm(step) / np.linalg.norm(old.astype(np.float64))), rel=1e-12
    )


def test_integers_have_a_share_only(store: ObjectStore) -> None:
    found = compared(store, np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert (found.changed_share, found.relative_norm, found.cosine) == (0.25, None, None)


def test_zeros_and_infinities_say_nothing(store: ObjectStore) -> None:
    from_zero = compared(store, np.zeros(2, np.float32), np.ones(2, np.float32))
    assert (from_zero.changed_share, from_zero.relative_norm, from_zero.cosine) == (1.0, None, None)
    to_infinity = compared(store, np.ones(2, np.float32), np.array([1, np.inf], np.float32))
    assert (to_infinity.changed_share, to_infinity.relative_norm, to_infinity.cosine) == (0.5, None, None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_values_that_came_in_and_are_not_finite_are_counted(store: ObjectStore, dtype: type[np.floating[Any]]) -> None:
    old = np.ones(1_500_000, dtype)
    old[:2] = np.nan, np.inf
    new = old.copy()
    new[[0, 3, -1]], new[[1, 4, 5]] = np.nan, np.inf
    new[2] = np.finfo(dtype).max  # its square is beyond float64, and it is finite
    found = compared(store, old, new)
    assert (found.nan, found.inf) == (2, 2)
    both = stored(store, {"w": new, "i": np.arange(3)})
    assert not_finite(both, both.entry("w")) == (3, 3)
    assert not_finite(both, both.entry("i")) == (0, 0)
