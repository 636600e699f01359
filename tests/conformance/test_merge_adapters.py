"""What every registered method for LoRA adapters owes its users; the suite for tensors is `test_merge_methods.py`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelgit.errors import MergeConflict
from modelgit.formats.safetensors import build_header
from modelgit.merge.adapters.configuration import Configuration, read_configuration
from modelgit.merge.adapters.joining import Adapter, Joined
from modelgit.merge.engine.plan import Policy
from modelgit.merge.engine.reading import whole
from modelgit.merge.methods import METHODS, Method, make
from modelgit.merge.methods.linear_form import Array
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, finish
from modelgit.store.files.tensors import FileTensors

EVERY = pytest.mark.parametrize("name", sorted(name for name in METHODS if hasattr(METHODS[name], "adapters")))
DTYPES = pytest.mark.parametrize("dtype", sorted(ARITHMETIC_WIDTHS))
EXACT = {"F64": 1e-14, "F32": 1e-6, "F16": 2e-3, "BF16": 2e-2}  # what two rounded factors leave of a product
A, B, HEAD = "q.lora_A.weight", "q.lora_B.weight", "head.weight"
RANK = 4


def configured(rank: int, alpha: float) -> Configuration:
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "base"}
    return read_configuration(json.dumps(table).encode(), "here")


def adapter(
    place: Path, seed: int, dtype: str = "F32", weight: float = 1.0, other: Mapping[str, Array] | None = None
) -> Adapter:
    draws = np.random.default_rng(seed)
    shapes = {A: (RANK, 12), B: (8, RANK), HEAD: (2, 3), "scale": ()}
    tensors = {**{key: draws.normal(size=shape) for key, shape in shapes.items()}, **(other or {})}
    header = build_header([(key, dtype, values.shape) for key, values in tensors.items()], {})
    body = bytearray()
    for span in header.tensors:
        raw = np.empty(ARITHMETIC_WIDTHS[dtype] * tensors[span.name].size, np.uint8)
        finish(np.ascontiguousarray(tensors[span.name]).reshape(-1), 1.0, dtype, raw)
        body += raw.tobytes()
    path = place / f"{seed}-{dtype}"
    path.write_bytes(header.raw + body)
    return Adapter(f"adapter-{seed}", FileTensors(path), weight, configured(RANK, 2.0 * RANK))


def joined(method: Method, *adapters: Adapter) -> Joined:
    return Joined(adapters, Policy(), getattr(method, "truncated", None))


def read(source: Any, name: str) -> Array:
    return whole(source, source.entry(name))


def change(source: Any, scaling: float = 1.0) -> Array:
    return np.asarray(scaling * read(source, B) @ read(source, A))


@EVERY
@DTYPES
def test_adapters_that_are_the_same_merge_into_themselves(tmp_path: Path, name: str, dtype: str) -> None:
    one = adapter(tmp_path, 1, dtype)
    found, wanted = joined(make(name, {}), one, one), change(one.source, 2.0)
    assert np.abs(change(found) - wanted).max() <= EXACT[dtype] * np.abs(wanted).max()
    for other in (HEAD, "scale"):
        assert np.array_equal(read(found, other), read(one.source, other))
        assert (found.entry(other).dtype, found.entry(other).shape) == (dtype, one.source.entry(other).shape)


@EVERY
@DTYPES
def test_the_product_is_the_weighted_mean_of_the_products(tmp_path: Path, name: str, dtype: str) -> None:
    one, two = adapter(tmp_path, 1, dtype, 3.0), adapter(tmp_path, 2, dtype)
    files = sorted(tmp_path.iterdir())
    before = [file.read_bytes() for file in files]
    found = joined(make(name, {}), one, two)
    wanted = 0.75 * change(one.source, 2.0) + 0.25 * change(two.source, 2.0)
    assert np.abs(change(found) - wanted).max() <= EXACT[dtype] * np.abs(wanted).max()
    assert (len(files), [file.read_bytes() for file in files]) == (2, before)


@EVERY
def test_weights_count_by_their_shares_alone(tmp_path: Path, name: str) -> None:
    oids = []
    for factor in (1.0, 8.0):
        found = joined(make(name, {}), adapter(tmp_path, 1, "F32", 3 * factor), adapter(tmp_path, 2, "F32", factor))
        oids.append([found.entry(key).oid for key in found.names()])
    assert oids[0] == oids[1]


@EVERY
@pytest.mark.parametrize("where", [A, B, HEAD])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, where: str, bad: float) -> None:
    one = adapter(tmp_path, 1)
    values = read(one.source, where).copy()
    values[0, 1] = bad
    found = joined(make(name, {}), one, adapter(tmp_path, 2, other={where: values}))
    with pytest.raises(MergeConflict) as caught:
        [found.entry(key) for key in found.names()]
    assert [(c.kind, c.where, c.got) for c in caught.value.conflicts] == [
        ("non-finite", where, "infinity or not-a-number in adapter-2")
    ]
