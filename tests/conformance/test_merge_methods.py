"""What every registered merge method owes its users; a new method is held to it by being registered."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelgit.errors import MergeConflict
from modelgit.formats.manifest import write
from modelgit.merge.engine.execution import MergeResult, execute
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.informed.checking import checked
from modelgit.merge.informed.statistics import Statistics
from modelgit.merge.methods import METHODS, Inputs, Method, make, settings_of
from modelgit.merge.methods.linear_form import Array
from modelgit.merge.methods.registry import Value
from modelgit.store.codec.arithmetic import ARITHMETIC_WIDTHS, finish, widen
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors
from modelgit.store.objects import ObjectStore

VARIANTS: list[tuple[str, dict[str, Value]]] = [
    *((name, {}) for name in sorted(METHODS) if not hasattr(METHODS[name], "adapters")),
    ("breadcrumbs", {"signs": True, "gamma": 0.1}),
    ("fisher", {"normalize": False}),
    ("linear", {"normalize": False}),
    ("lines", {"shallow": 0.2, "deep": 0.9}),
    ("multislerp", {"deltas": True}),
    ("nuslerp", {"deltas": True}),
    ("regmean", {"alpha": 1.0}),
    ("nuslerp_vectors", {"along": "first"}),
    ("trimmed_mean", {"trim": 0.4}),
    ("slerp", {"deltas": True}),
    ("sce", {"top": 0.5}),
    ("task_arithmetic", {"scale": 0.4, "normalize": True}),
    ("ties", {"rescale": True, "density": 0.5}),
]
EVERY = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=[f"{n}-{s}" if s else n for n, s in VARIANTS])
DTYPES = pytest.mark.parametrize("dtype", sorted(ARITHMETIC_WIDTHS))
MOVED = {"coordinate_median", "fisher", "geometric_median", "regmean", "trimmed_mean"}  # no base, the same about any
SHAPES = {"matrix": (24, 20), "vector": (33,), "scalar": (), "empty": (0, 3)}
Model = dict[str, Array]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store", threads=1)


def raw(values: Array, dtype: str) -> bytes:
    data = bytearray(values.size * ARITHMETIC_WIDTHS[dtype])
    finish(np.ascontiguousarray(values).reshape(-1), 1.0, dtype, np.frombuffer(data, np.uint8))
    return bytes(data)


def rounded(values: Array, dtype: str) -> Array:
    result = np.empty(values.size)
    widen(np.frombuffer(raw(values, dtype), np.uint8), dtype, result)
    return result.reshape(values.shape)


def stored(store: ObjectStore, model: Mapping[str, Array], dtype: str = "F32") -> StoredTensors:
    with store.begin() as pack:
        tensors = [(name, dtype, values.shape, memoryview(raw(values, dtype))) for name, values in model.items()]
        manifest = store_tensors(pack, tensors, {})
        pack.commit()
    return StoredTensors(store, manifest)


def family(count: int, dtype: str = "F32") -> tuple[Model, list[Model]]:
    """Return a base and `count` fine-tunes that partly agree, values representable in `dtype`."""
    random = np.random.default_rng(7)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    shared = {name: 0.1 * random.standard_normal(shape) for name, shape in SHAPES.items()}
    heads = [
        {name: values + shared[name] + 0.1 * random.standard_normal(values.shape) for name, values in base.items()}
        for _ in range(count)
    ]
    return tuple_rounded(base, dtype), [tuple_rounded(head, dtype) for head in heads]


def tuple_rounded(model: Model, dtype: str) -> Model:
    return {name: rounded(values, dtype) for name, values in model.items()}


def weights_for(method: Method, count: int) -> tuple[float, ...]:
    return (0.5, 0.3, 0.4)[:count] if method.weighted else (1.0,) * count


def count_for(method: Method) -> int:
    return 2 if method.heads[1] == 2 else 3


def merge(
    store: ObjectStore, method: Method, heads: Sequence[Head], base: StoredTensors, policy: Policy | None = None
) -> MergeResult:
    planned = plan(heads, base, method, policy or Policy())
    with store.begin() as pack:
        result = execute(planned, pack, store)
        pack.commit()
    return result


def heads_of(
    store: ObjectStore, method: Method, models: Sequence[Model], weights: Sequence[float], dtype: str = "F32"
) -> list[Head]:
    heads = []
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        source = stored(store, model, dtype)
        heads.append(Head(f"model-{i}", source, weight, statistics=statistics_for(store, method, i, source)))
    return heads


def facts_of(method: Method, number: int) -> Model:
    """Return what a method that asks for statistics is told of a model: made up, representable in F32."""
    random, kind = np.random.default_rng(100 + number), getattr(method, "statistics", "")
    if kind == "fisher":
        return tuple_rounded({name: random.random(shape) ** 4 for name, shape in SHAPES.items()}, "F32")
    rows = random.standard_normal((50, SHAPES["matrix"][1]))
    return tuple_rounded({"matrix": rows.T @ rows / 50}, "F32") if kind == "gram" else {}


def statistics_for(store: ObjectStore, method: Method, number: int, model: StoredTensors) -> Statistics | None:
    kind: Any = getattr(method, "statistics", "")
    return checked(kind, stored(store, facts_of(method, number)), model, f"model-{number}") if kind else None


def told(method: Method, numbers: Sequence[int], name: str) -> dict[str, Any]:
    """Return the statistics of one tensor of models, as a method is given them."""
    facts = [facts_of(method, number) for number in numbers]
    if not all(name in fact for fact in facts):
        return {}
    sizes = [float(np.sqrt(sum((values**2).sum() for values in fact.values()))) for fact in facts]
    return {"statistics": [fact[name] for fact in facts], "sizes": sizes}


def inputs(method: Method, models: Sequence[Model], weights: Sequence[float], base: Model) -> Inputs:
    known, name = told(method, range(len(models)), "matrix"), "matrix"
    return Inputs([model[name] for model in models], weights, base[name], name, "abc"[: len(models)], **known)


@EVERY
@DTYPES
def test_models_that_are_the_same_merge_into_themselves(
    store: ObjectStore, name: str, settings: dict[str, Value], dtype: str
) -> None:
    base, _ = family(0, dtype)
    source, method = stored(store, base, dtype), make(name, settings)
    weights = weights_for(method, 2) if name != "linear" else (0.5, 0.5)
    known = statistics_for(store, method, 0, source)
    heads = [Head(n, source, w, statistics=known) for n, w in zip("ab", weights, strict=True)]
    result = merge(store, method, heads, source)
    assert [(t.name, t.oid) for t in result.manifest.tensors] == [(n, source.entry(n).oid) for n in sorted(base)]
    assert {outcome.action for outcome in result.outcomes} == {"copied"}


@EVERY
def test_equal_values_merge_into_themselves(name: str, settings: dict[str, Value]) -> None:
    base, (head,) = family(1)
    method = make(name, settings)
    weights = (0.5, 0.5) if method.weighted else (1.0, 1.0)
    origin = head if method.needs_base else base
    found = method(inputs(method, [head, head], weights, origin))
    assert np.allclose(found, head["matrix"], rtol=1e-14, atol=1e-15)


@EVERY
def test_the_order_in_which_models_are_named_reaches_no_byte(
    store: ObjectStore, name: str, settings: dict[str, Value]
) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    heads, origin = heads_of(store, method, models, weights_for(method, count)), stored(store, base)
    orders = list(itertools.permutations(heads))
    texts = {write(merge(store, method, order, origin).manifest) for order in orders}
    assert len(orders) >= 2
    assert len(texts) == 1


@EVERY
@DTYPES
def test_the_engine_writes_the_methods_values_rounded_once(
    store: ObjectStore, name: str, settings: dict[str, Value], dtype: str
) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count, dtype)
    heads, origin = heads_of(store, method, models, weights_for(method, count), dtype), stored(store, base, dtype)
    result = merge(store, method, heads, origin)
    by_name = {head.name: (model, head) for model, head in zip(models, heads, strict=True)}
    ordered = [by_name[name] for name in result.order]
    merged = StoredTensors(store, result.manifest)
    for tensor, shape in SHAPES.items():
        values = [model[tensor] for model, _ in ordered]
        keys = tuple(head.source.entry(tensor).oid for _, head in ordered)
        origin_values = base[tensor] if method.needs_base else None
        known = told(method, [int(name.removeprefix("model-")) for name in result.order], tensor)
        known = known and {
            **known,
            "sizes": [head.statistics.size for _, head in ordered if head.statistics is not None],
        }
        weights = [head.weight for _, head in ordered]
        wanted = method(Inputs(values, weights, origin_values, tensor, keys, **known))
        assert merged.entry(tensor).shape == shape
        assert bytes(merged.read(tensor)) == raw(wanted, dtype), tensor


@EVERY
def test_moving_everything_moves_the_result(name: str, settings: dict[str, Value]) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    weights = weights_for(method, count)
    shift = np.random.default_rng(1).integers(-8, 8, SHAPES["matrix"]) / 4
    moved = [{**model, "matrix": model["matrix"] + shift} for model in models]
    found = method(inputs(method, moved, weights, {**base, "matrix": base["matrix"] + shift}))
    still = method(inputs(method, models, weights, base))
    about_the_base = method.needs_base or name in MOVED or (name == "linear" and settings.get("normalize", True))
    assert np.allclose(found, still + shift, rtol=0, atol=1e-12) == bool(about_the_base)


@EVERY
def test_scaling_everything_scales_the_result(name: str, settings: dict[str, Value]) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    weights = weights_for(method, count)
    scaled = [{key: 4 * values for key, values in model.items()} for model in models]
    found = method(inputs(method, scaled, weights, {key: 4 * values for key, values in base.items()}))
    assert np.allclose(found, 4 * method(inputs(method, models, weights, base)), rtol=1e-13, atol=0)


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    store: ObjectStore, name: str, settings: dict[str, Value], bad: float
) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    models[1]["vector"][5] = bad
    heads = heads_of(store, method, models, weights_for(method, count))
    with pytest.raises(MergeConflict) as caught:
        merge(store, method, heads, stored(store, base))
    assert [(c.kind, c.where, c.got) for c in caught.value.conflicts] == [
        ("non-finite", "vector", "infinity or not-a-number in model-1")
    ]


@EVERY
def test_inputs_are_left_as_they_are(name: str, settings: dict[str, Value]) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    arrays = [base["matrix"], *(model["matrix"] for model in models)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    merged = method(inputs(method, models, weights_for(method, count), base))
    assert merged.dtype == np.float64
    assert merged.shape == SHAPES["matrix"]
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@EVERY
def test_how_arrays_lie_in_memory_reaches_no_value(name: str, settings: dict[str, Value]) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    weights = weights_for(method, count)
    wanted = method(inputs(method, models, weights, base))
    for lay in (np.asfortranarray, spaced, reversed_twice):
        laid = [{**model, "matrix": lay(model["matrix"])} for model in (base, *models)]
        assert not all(model["matrix"].flags.c_contiguous for model in laid)
        assert np.array_equal(method(inputs(method, laid[1:], weights, laid[0])), wanted)


def spaced(values: Array) -> Array:
    """Return every second element of an array twice as large."""
    return np.repeat(np.repeat(values, 2, 0), 2, 1)[::2, ::2]


def reversed_twice(values: Array) -> Array:
    """Return the values by negative strides."""
    return values[::-1, ::-1].copy()[::-1, ::-1]


@EVERY
@pytest.mark.parametrize("tensor", ["scalar", "empty"])
def test_single_values_and_none_keep_their_shape(name: str, settings: dict[str, Value], tensor: str) -> None:
    method = make(name, settings)
    count = count_for(method)
    base, models = family(count)
    known = told(method, range(count), tensor)
    if getattr(method, "statistics", "") and not known:
        return  # the engine takes the mean of a tensor that nothing is known of
    heads = [model[tensor] for model in models]
    merged = method(Inputs(heads, weights_for(method, count), base[tensor], tensor, "abc"[:count], **known))
    assert merged.shape == SHAPES[tensor]
    assert np.isfinite(merged).all()


@EVERY
def test_settings_survive_a_record(name: str, settings: dict[str, Value]) -> None:
    method = make(name, settings)
    assert make(method.name, asdict(method)) == method
    assert make(method.name, {key: str(value) for key, value in settings_of(method).items()}) == method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_cites_its_source_and_explains_its_settings(name: str) -> None:
    cls = METHODS[name]
    assert len(cls.source) > 10
    assert (cls.__doc__ or "").endswith((".", ".\n    "))
    assert all(len(field.metadata["meaning"]) > 10 for field in fields(make(name, {})))
