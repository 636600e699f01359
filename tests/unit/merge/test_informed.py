"""Merging with statistics: the formulas, what is known of some tensors, what is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import MergeConflict, UsageError
from modelgit.formats.safetensors import build_header
from modelgit.merge.blocks.sums import Array
from modelgit.merge.engine.execution import write_merged
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.engine.reading import whole
from modelgit.merge.informed.checking import checked
from modelgit.merge.informed.statistics import Kind, Statistics
from modelgit.merge.methods import Inputs, make
from modelgit.merge.methods.registry import Value
from modelgit.store.files.tensors import FileTensors

DATA = Path(__file__).parents[2] / "data" / "merge"
Model = Mapping[str, Array]


def shared(name: str) -> FileTensors:
    return FileTensors(DATA / f"{name}.safetensors")


def values(source: FileTensors) -> dict[str, Array]:
    return {name: whole(source, source.entry(name)) for name in source.names()}


def written(place: Path, tensors: Model, dtype: str = "F32") -> FileTensors:
    kind = {"F32": np.float32, "F64": np.float64, "F16": np.float16}[dtype]
    header = build_header([(name, dtype, array.shape) for name, array in tensors.items()], {})
    data = {name: np.asarray(array, kind).tobytes() for name, array in tensors.items()}
    place.write_bytes(header.raw + b"".join(data[span.name] for span in header.tensors))
    return FileTensors(place)


def two(tmp_path: Path, kind: Kind, facts: tuple[Model, Model], dtypes: tuple[str, str] = ("F32", "F32")) -> list[Head]:
    """Return two models of a matrix and a vector, with these statistics."""
    heads = []
    for i, fact in enumerate(facts):
        model = written(tmp_path / f"m{i}", {"a": np.full((2, 2), 1.0 + i), "b": np.full(3, 10.0 * (1 + i))})
        known = checked(kind, written(tmp_path / f"s{i}", fact, dtypes[i]), model, f"s{i}")
        heads.append(Head(f"m{i}", model, statistics=known))
    return heads


def merged(tmp_path: Path, heads: list[Head], name: str, **settings: Value) -> dict[str, Array]:
    write_merged(plan(heads, None, make(name, settings), Policy()), tmp_path / "merged", threads=1)
    return values(FileTensors(tmp_path / "merged"))


def test_a_tensor_that_nothing_is_known_of_takes_the_mean(tmp_path: Path) -> None:
    facts = {"a": np.array([[3.0, 0.0], [1.0, 1.0]])}, {"a": np.array([[1.0, 0.0], [3.0, 1.0]])}
    found = merged(tmp_path, two(tmp_path, "fisher", facts), "fisher", normalize=False, floor=1e-30)
    assert found["a"].tolist() == [[1.25, 1.5], [1.75, 1.5]]
    assert found["b"].tolist() == [15.0, 15.0, 15.0]


def test_norms_are_of_whole_models(tmp_path: Path) -> None:
    facts = {"a": np.full((2, 2), 1.0), "b": np.zeros(3)}, {"a": np.full((2, 2), 4.0), "b": np.full(3, 6.0)}
    heads = two(tmp_path, "fisher", facts)
    assert [head.statistics.size for head in heads if head.statistics] == [2.0, np.sqrt(16 * 4 + 36 * 3)]
    found = merged(tmp_path, heads, "fisher", floor=1e-30)
    first, second = 1 / 2, 4 / np.sqrt(172)
    assert np.allclose(found["a"], (first * 1 + second * 2) / (first + second), rtol=1e-7)
    assert found["b"].tolist() == [20.0, 20.0, 20.0]


def test_statistics_of_some_models_only_are_a_conflict(tmp_path: Path) -> None:
    one = {"a": np.ones((2, 2))}
    heads = two(tmp_path, "fisher", ({**one, "b": np.ones(3)}, one))
    with pytest.raises(MergeConflict) as caught:
        plan(heads, None, make("fisher", {}), Policy())
    (conflict,) = caught.value.conflicts
    assert (conflict.kind, conflict.where, conflict.got) == ("statistics", "b", "none of m1")
    with pytest.raises(MergeConflict, match="statistics in F64"):
        plan(two(tmp_path, "fisher", (one, one), ("F64", "F16")), None, make("fisher", {}), Policy())


def test_no_statistics_at_all_are_a_misuse(tmp_path: Path) -> None:
    heads = [Head(f"ft{i}", shared(f"ft{i}")) for i in range(2)]
    for name in ("fisher", "regmean"):
        with pytest.raises(UsageError, match=f"{name} needs statistics of every model"):
            plan(heads, None, make(name, {}), Policy())


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_weights_that_make_no_mean_are_refused(tmp_path: Path, name: str, weights: tuple[float, float]) -> None:
    heads = [Head(f"ft{i}", shared(f"ft{i}"), weight) for i, weight in enumerate(weights)]
    with pytest.raises(UsageError, match="weights of 0 or more"):
        plan(heads, None, make(name, {}), Policy())


BAD: list[tuple[Kind, Model, str]] = [
    ("fisher", {}, "a tensor for each tensor"),
    ("fisher", {"c": np.ones(2)}, "expected a tensor of the model, got one only in facts"),
    ("fisher", {"a": np.ones(4)}, r"a: expected \[2, 2\], got \[4\] in facts"),
    ("fisher", {"a": np.array([[1.0, -1e-9], [1, 1]])}, "values of 0 or more"),
    ("fisher", {"a": np.array([[1.0, np.nan], [1, 1]])}, "finite values"),
    ("fisher", {"a": np.array([[1.0, np.inf], [1, 1]])}, "finite values"),
    ("gram", {"b": np.ones(3)}, "matrices alone to have inputs"),
    ("gram", {"a": np.ones((3, 3))}, r"a: expected \[2, 2\], got \[3, 3\]"),
    ("gram", {"a": np.array([[1.0, 0.5], [0.4, 1]])}, "a symmetric matrix"),
    ("gram", {"a": np.array([[1.0, 2.0], [2.0, 1]])}, "none above those of the diagonal"),
    ("gram", {"a": np.array([[-1.0, 0.0], [0.0, 1]])}, "no negative one on the diagonal"),
    ("gram", {"a": np.array([[np.nan, 0.0], [0.0, 1]])}, "finite values"),
]


@pytest.mark.parametrize(("kind", "facts", "told"), BAD)
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, kind: Kind, facts: Model, told: str) -> None:
    model = written(tmp_path / "model", {"a": np.ones((2, 2)), "b": np.ones(3)})
    with pytest.raises(MergeConflict, match=told):
        checked(kind, written(tmp_path / "facts", facts), model, "facts")


def test_integers_are_no_statistics(tmp_path: Path) -> None:
    header = build_header([("b", "I32", (3,))], {})
    (tmp_path / "facts").write_bytes(header.raw + bytes(12))
    model = written(tmp_path / "model", {"b": np.ones(3)})
    with pytest.raises(MergeConflict, match="I32 in facts"):
        checked("fisher", FileTensors(tmp_path / "facts"), model, "facts")


def test_tied_tensors_stay_tied_with_the_statistics_of_either_name(tmp_path: Path) -> None:
    heads = []
    for i in range(2):
        matrix = np.full((2, 2), 1.0 + i)
        model = written(tmp_path / f"m{i}", {"embed": matrix, "head": matrix})
        fact = written(tmp_path / f"s{i}", {"embed": np.full((2, 2), 3.0 - 2 * i)})
        heads.append(Head(f"m{i}", model, statistics=checked("fisher", fact, model, f"s{i}")))
    planned = plan(heads, None, make("fisher", {"normalize": False, "floor": 1e-30}), Policy())
    assert [(step.name, step.same_as) for step in planned.steps] == [("embed", None), ("head", "embed")]
    write_merged(planned, tmp_path / "merged", threads=1)
    assert values(FileTensors(tmp_path / "merged"))["head"].tolist() == [[1.25, 1.25], [1.25, 1.25]]


def test_regmean_minimises_the_distance_to_all_outputs() -> None:
    random = np.random.default_rng(3)
    inputs = [random.standard_normal((200, 6)) @ random.standard_normal((6, 6)) for _ in range(2)]
    models = [random.standard_normal((4, 6)) for _ in range(2)]
    weights = (2.0, 1.0)
    found = make("regmean", {"alpha": 1.0})(
        Inputs(models, weights, statistics=[x.T @ x / len(x) for x in inputs], sizes=(1.0, 1.0))
    )
    rows = [np.sqrt(w / len(x)) * x for w, x in zip(weights, inputs, strict=True)]
    wanted = np.concatenate([x @ m.T for x, m in zip(rows, models, strict=True)])
    best = np.linalg.lstsq(np.concatenate(rows), wanted, rcond=None)[0].T
    assert np.allclose(found, best, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.0])
def test_where_no_input_tells_the_mean_stays(alpha: float) -> None:
    models = [np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 6.0, 5.0]])]
    grams = [np.diag([3.0, 0.0, 1.0]), np.diag([1.0, 0.0, 1.0])]
    found = make("regmean", {"alpha": alpha})(Inputs(models, (1.0, 1.0), statistics=grams, sizes=(1.0, 1.0)))
    assert np.allclose(found, [[1.5, 4.0, 4.0]], rtol=1e-14)


def test_blocks_meet_their_statistics_in_large_tensors(tmp_path: Path) -> None:
    """Statistics of another width than the models: frames of one end inside those of the other."""
    random, shape, heads = np.random.default_rng(0), (3, 700_001), list[Head]()
    models = [random.standard_normal(shape).astype(np.float32) for _ in range(2)]
    facts = [random.random(shape) for _ in range(2)]
    for i in range(2):
        model = written(tmp_path / f"m{i}", {"a": models[i].astype(np.float64)})
        known = checked("fisher", written(tmp_path / f"s{i}", {"a": facts[i]}, "F64"), model, f"s{i}")
        heads.append(Head(f"m{i}", model, weight=1.0 + i, statistics=known))
    texts = set()
    for threads, order in ((1, heads), (3, heads[::-1])):
        planned = plan(order, None, make("fisher", {"normalize": False}), Policy())
        write_merged(planned, tmp_path / "merged", threads=threads)
        texts.add((tmp_path / "merged").read_bytes())
    assert len(texts) == 1
    shares = [(1.0 + i) * (fact + 1e-6) for i, fact in enumerate(facts)]
    wanted = (shares[0] * models[0] + shares[1] * models[1]) / (shares[0] + shares[1])
    assert np.abs(values(FileTensors(tmp_path / "merged"))["a"] - wanted).max() < 3e-7


def test_what_is_known_is_named_by_its_content(tmp_path: Path) -> None:
    model = written(tmp_path / "model", {"a": np.ones((2, 2))})
    known: list[Statistics] = [
        checked("fisher", written(tmp_path / f"{i}", {"a": np.full((2, 2), value)}), model, "facts")
        for i, value in enumerate((1.0, 1.0, 2.0))
    ]
    assert known[0].digest == known[1].digest != known[2].digest
