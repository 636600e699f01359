"""Plans and their execution: conflicts all at once and before reading, recipes, copies, and what policies change."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from modelgit.errors import Conflict, MergeConflict, UsageError
from modelgit.events import Advanced, Event, Finished, Started
from modelgit.formats.manifest import TensorEntry, write
from modelgit.formats.safetensors import read_header
from modelgit.merge.engine.execution import MergeResult, execute
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.engine.ways import HINTS, options_for, way_on
from modelgit.merge.methods import make
from modelgit.store.files.intake import store_file, store_tensors
from modelgit.store.files.materialise import materialise
from modelgit.store.files.tensors import FileTensors, StoredTensors
from modelgit.store.objects import ObjectStore

NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "bool": "BOOL"}
DATA = Path(__file__).parents[2] / "data" / "merge"
Arrays = Mapping[str, npt.NDArray[np.generic]]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store", threads=1)


class Unreadable:
    """A source that knows its tensors but must not be read."""

    def __init__(self, source: StoredTensors) -> None:
        self.source = source

    def names(self) -> Sequence[str]:
        return self.source.names()

    def entry(self, name: str) -> TensorEntry:
        return self.source.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        raise AssertionError(f"{name} was read")


def stored(store: ObjectStore, arrays: Arrays) -> StoredTensors:
    with store.begin() as pack:
        tensors = [(n, NAMES[a.dtype.name], a.shape, memoryview(a.tobytes())) for n, a in arrays.items()]
        manifest = store_tensors(pack, tensors, {})
        pack.commit()
    return StoredTensors(store, manifest)


def floats(*values: float, dtype: str = "float32") -> npt.NDArray[np.generic]:
    return np.array(values, dtype)


def merge(
    store: ObjectStore,
    heads: Sequence[Head],
    base: StoredTensors | None = None,
    policy: Policy | None = None,
    method: str = "linear",
) -> tuple[MergeResult, dict[str, npt.NDArray[np.generic]]]:
    with store.begin() as pack:
        result = execute(plan(heads, base, make(method, {}), policy or Policy()), pack, store)
        pack.commit()
    source = StoredTensors(store, result.manifest)
    kinds = {dtype: name for name, dtype in NAMES.items()}
    arrays = {
        t.name: np.frombuffer(source.read(t.name), kinds[t.dtype]).reshape(t.shape) for t in result.manifest.tensors
    }
    return result, arrays


def conflicts(heads: Sequence[Head], base: StoredTensors | None = None, method: str = "linear") -> tuple[Conflict, ...]:
    with pytest.raises(MergeConflict) as caught:
        plan(heads, base, make(method, {}), Policy())
    return caught.value.conflicts


# ----------------------------------------------------------------------------------------------- conflicts


def test_all_structural_conflicts_are_found_before_anything_is_read(store: ObjectStore) -> None:
    a = stored(store, {"w": floats(1, 2), "v": floats(1), "only.a": floats(1), "k": floats(3)})
    b = stored(store, {"w": floats(1, 2, 3), "v": floats(1, dtype="float16"), "k": floats(4)})
    heads = [
        Head("A", Unreadable(a), classes=("cat", "dog")),
        Head("B", Unreadable(b), classes=("cat", "dog", "owl", "cow")),
    ]
    with pytest.raises(MergeConflict) as caught:
        plan(heads, None, make("linear", {}), Policy())
    two, four = "2 classes (cat, dog)", "4 classes (cat, dog, owl, …)"
    sides = [f"{two} as in A", f"{four} in B"], [f"{four} as in B", f"{two} in A"]
    rows = {c.kind: [c.expected, c.got] for c in caught.value.conflicts}
    assert rows["classes"] in sides
    assert rows["missing"] == ["in every model", "absent from B"]
    assert (rows["dtype"], rows["shape"]) == (["F32 as in A", "F16 in B"], ["[2] as in A", "[3] in B"])
    assert {c.kind: c.where for c in caught.value.conflicts} == {
        "classes": "classes",
        "missing": "only.a",
        "dtype": "v",
        "shape": "w",
    }
    assert sorted(c.kind for c in caught.value.conflicts) == ["classes", "dtype", "missing", "shape"]
    assert "--heads drop" in (caught.value.hint or "") and "--on-missing keep" in (caught.value.hint or "")
    assert "(4 conflicts)" in caught.value.message


def test_every_kind_of_conflict_has_a_hint() -> None:
    kinds = {"missing", "shape", "dtype", "classes", "integers", "non-finite", "overflow", "empty"}
    later = {"adapter", "statistics", "vocabulary", "tied", "file"}
    assert set(HINTS) == kinds | later and all(hint.endswith(".") for hint in HINTS.values())


def of_kinds(*rows: tuple[str, str]) -> list[Conflict]:
    return [Conflict(kind, where, "this", "that") for kind, where in rows]


@pytest.mark.parametrize(
    ("found", "known", "options"),
    [
        ([("missing", "x"), ("missing", "y")], (), ["--on-missing keep"]),
        ([("shape", "a.fc.weight"), ("shape", "a.fc.bias")], (), ["--heads ours", "--head-name a.fc"]),
        ([("shape", "a.fc.weight")], ("a.fc",), ["--heads ours"]),
        ([("shape", "b$(x)")], ("a.fc",), ["--heads ours", "--head-name a.fc", "--head-name 'b$(x)'"]),
        ([("classes", "classes"), ("file", "r"), ("dtype", "w")], ("fc",), ["--files ours", "--heads ours"]),
        ([("vocabulary", "tokenizer"), ("shape", "lm_head.weight")], (), ["--vocabulary union"]),
        ([("overflow", "w")], (), []),
    ],
)
def test_all_the_options_that_are_needed_are_named_at_once(
    found: list[tuple[str, str]], known: tuple[str, ...], options: list[str]
) -> None:
    assert options_for(of_kinds(*found), known) == options
    lead = "The others" if ("dtype", "w") in found else "All"
    together = f" {lead} at once: {' '.join(options)}."
    assert way_on(of_kinds(*found), known).endswith(together) == (len(options) > 1)


def test_what_is_expected_is_the_model_named_first(store: ObjectStore) -> None:
    heads = [
        Head(name, stored(store, {"w": np.zeros(2, dtype)}), classes=(name,))
        for name, dtype in (("A", "float32"), ("B", "float16"), ("C", "float32"))
    ]
    for first, others in (("A", ["F16 in B"]), ("B", ["F32 in A", "F32 in C"]), ("C", ["F16 in B"])):
        named = sorted(heads, key=lambda head: head.name != first)
        found = conflicts(named)
        assert {c.expected.split()[-1] for c in found} == {first}
        assert sorted(c.got for c in found if c.kind == "dtype") == others


def test_base_of_another_shape_or_without_a_tensor_is_a_conflict_for_methods_that_use_it(store: ObjectStore) -> None:
    a, b = {"w": floats(1, 2), "v": floats(1)}, {"w": floats(3, 4), "v": floats(2)}
    heads = [Head("A", stored(store, a)), Head("B", stored(store, b))]
    base = stored(store, {"w": floats(0)})
    assert conflicts(heads, base, "ties") == (
        Conflict("missing", "v", "in the merge base", "absent from it"),
        Conflict("shape", "w", "F32 [2] as in the models", "F32 [1] in the merge base"),
    )
    assert merge(store, heads, base)[1]["w"].tolist() == [2, 3]


def test_narrow_floats_cannot_be_averaged_but_may_be_equal(store: ObjectStore) -> None:
    def model(last: int) -> StoredTensors:
        with store.begin() as pack:
            eight = ("w", "F8_E4M3", (2,), memoryview(bytes([1, last])))
            manifest = store_tensors(pack, [eight, ("same", "F8_E4M3", (1,), memoryview(b"\x07"))], {})
            pack.commit()
        return StoredTensors(store, manifest)

    found = conflicts([Head("A", model(2)), Head("B", model(3))])
    assert found == (Conflict("dtype", "w", "one of F64, F32, F16, BF16 where values differ", "F8_E4M3"),)


def test_nothing_in_common_is_a_conflict(store: ObjectStore) -> None:
    heads = [Head("A", stored(store, {"a": floats(1)})), Head("B", stored(store, {"b": floats(1)}))]
    with pytest.raises(MergeConflict, match="at least one tensor"):
        plan(heads, None, make("linear", {}), Policy(on_missing="drop"))


def test_a_sum_that_the_dtype_cannot_hold_is_a_conflict(store: ObjectStore) -> None:
    large = [np.full(500, value, np.float16) for value in (60000, 59936)]
    heads = [Head(name, stored(store, {"w": array})) for name, array in zip("AB", large, strict=True)]
    base = stored(store, {"w": np.zeros(500, np.float16)})
    with pytest.raises(MergeConflict, match="w: expected a result that F16 can hold") as caught:
        merge(store, heads, base, method="task_arithmetic")
    assert caught.value.conflicts[0].kind == "overflow"
    assert float(merge(store, heads, base)[1]["w"][0]) == 59968.0  # the mean is in range


def test_a_bound_beyond_the_range_is_no_conflict_when_the_sum_is_within(store: ObjectStore) -> None:
    models = [{"w": np.full(500, value, np.float16)} for value in (60000, -60000)]
    heads = [Head(name, stored(store, model)) for name, model in zip("AB", models, strict=True)]
    _, arrays = merge(store, heads, stored(store, {"w": np.zeros(500, np.float16)}), method="task_arithmetic")
    assert set(arrays["w"].tolist()) == {0.0}


# ------------------------------------------------------------------------------------------------ policies


def test_tensors_that_some_models_lack(store: ObjectStore) -> None:
    heads = [
        Head("A", stored(store, {"w": floats(1, 2), "two": floats(2)}), 1.0),
        Head("B", stored(store, {"w": floats(3, 4), "two": floats(5), "one": floats(7)}), 2.0),
        Head("C", stored(store, {"w": floats(8, 9)}), 1.0),
    ]
    dropped, without = merge(store, heads, policy=Policy(on_missing="drop"))
    assert (dropped.dropped, sorted(without)) == (("one", "two"), ["w"])
    kept, arrays = merge(store, heads, policy=Policy(on_missing="keep"))
    assert {name: array.tolist() for name, array in arrays.items()} == {"one": [7], "two": [4], "w": [3.75, 4.75]}
    assert {o.name: (o.action, o.why) for o in kept.outcomes}["one"] == ("copied", "only in B")


def test_tensor_that_the_base_lacks_is_the_mean_when_kept(store: ObjectStore) -> None:
    heads = [Head("A", stored(store, {"w": floats(1)})), Head("B", stored(store, {"w": floats(3)}))]
    base = stored(store, {"x": floats(0)})
    result, arrays = merge(store, heads, base, Policy(on_missing="keep"), "ties")
    assert arrays["w"].tolist() == [2]
    assert result.outcomes[0].why == "mean: not in the base"


def test_a_file_that_one_model_has_alone_is_kept_by_methods_that_merge_two(store: ObjectStore) -> None:
    head = Head("A", stored(store, {"w": floats(1, 2)}))
    result, arrays = merge(store, [head], policy=Policy(on_missing="keep"), method="slerp")
    assert (arrays["w"].tolist(), result.outcomes[0].why) == ([1, 2], "only in A")
    with pytest.raises(UsageError, match="exactly 2 models, got 1"):
        plan([head], None, make("slerp", {}), Policy())


@pytest.mark.parametrize(("heads", "wanted"), [("drop", None), ("ours", [5, 6, 7])])
def test_heads_of_different_tasks(store: ObjectStore, heads: str, wanted: list[int] | None) -> None:
    models = [
        Head("B", stored(store, {"body.w": floats(3), "fc.weight": floats(5, 6, 7)}), classes=("x", "y", "z")),
        Head("A", stored(store, {"body.w": floats(1), "fc.weight": floats(1, 2)}), classes=("p", "q")),
    ]
    policy = Policy(heads="drop" if heads == "drop" else "ours", head_names=("fc",))
    result, arrays = merge(store, models, policy=policy)
    assert arrays["body.w"].tolist() == [2]
    assert (arrays["fc.weight"].tolist() if "fc.weight" in arrays else None) == wanted
    assert (result.dropped == ("fc.weight",)) == (wanted is None)


def test_head_names_are_whole_module_names() -> None:
    policy = Policy(head_names=("fc", "out.bias"))
    names = ("fc.weight", "fc", "fc2.weight", "out.bias", "out.weight")
    assert [name for name in names if policy.is_head(name)] == ["fc.weight", "fc", "out.bias"]


def test_integers_are_those_of_one_model_whatever_the_order(store: ObjectStore) -> None:
    heads = [Head(n, stored(store, {"steps": np.array(s), "w": floats(s)})) for n, s in (("A", 7), ("B", 9), ("C", 8))]
    results = [merge(store, order) for order in permutations(heads)]
    first = int(results[0][1]["steps"])
    assert {(int(arrays["steps"]), float(arrays["w"][0])) for _, arrays in results} == {(first, 8.0)}
    assert results[0][0].outcomes[0].why == f"integers of {results[0][0].order[0]}"
    with pytest.raises(MergeConflict, match="steps: expected equal integers in every model"):
        plan(heads, None, make("linear", {}), Policy(integers="error"))


# ------------------------------------------------------------------------------------- copies and recipes


def test_a_merge_is_stored_as_a_recipe_and_unchanged_tensors_as_they_are(store: ObjectStore) -> None:
    random = np.random.default_rng(0)
    shared = random.standard_normal(300_000).astype(np.float32)
    own = [random.standard_normal(300_000).astype(np.float32) for _ in range(4)]
    models = [{"w": values, "frozen": shared, "b": floats(i)} for i, values in enumerate(own)]
    heads = [Head(str(i), stored(store, model)) for i, model in enumerate(models)]
    before = store.size_on_disk()
    result, arrays = merge(store, heads)
    assert result.counts() == {"copied": 1, "recipe": 1, "computed": 1}
    assert store.size_on_disk() - before < 3000  # for 2,400,004 bytes
    assert np.array_equal(arrays["frozen"], shared)
    exact = np.mean(own, axis=0, dtype=np.float64)
    assert np.abs(arrays["w"].astype(np.float64) - exact).max() < 2e-7
    info = store.info(result.manifest.entry("w").oid)
    assert (info.codec, len(info.parents)) == ("linear", 4)


@pytest.mark.parametrize("method", ["slerp", "karcher", "multislerp", "model_stock", "wise_ft", "task_arithmetic"])
def test_methods_whose_coefficients_depend_on_values_are_recipes_too(store: ObjectStore, method: str) -> None:
    random = np.random.default_rng(0)
    base, *models = ({"w": random.standard_normal((60, 50)).astype(np.float32)} for _ in range(3))
    heads = [Head(str(i), stored(store, model)) for i, model in enumerate(models)]
    result, _ = merge(store, heads, stored(store, base), method=method)
    assert result.counts() == {"copied": 0, "recipe": 1, "computed": 0}
    assert store.info(result.manifest.entry("w").oid).codec == "linear"


def test_a_weight_of_all_is_a_copy(store: ObjectStore) -> None:
    heads = [Head("A", stored(store, {"w": floats(1, 2)}), 0.0), Head("B", stored(store, {"w": floats(3, 4)}), 2.0)]
    result, _ = merge(store, heads)
    assert result.manifest.entry("w").oid == heads[1].source.entry("w").oid
    assert result.outcomes[0].action == "copied"


def test_tied_weights_stay_tied_even_where_masks_are_drawn_by_name(store: ObjectStore) -> None:
    random = np.random.default_rng(0)

    def model() -> StoredTensors:
        table = random.standard_normal((40, 8)).astype(np.float32)
        return stored(store, {"embed.weight": table, "lm_head.weight": table})

    result, arrays = merge(store, [Head("A", model()), Head("B", model())], model(), method="dare_linear")
    assert len({entry.oid for entry in result.manifest.tensors}) == 1
    assert [outcome.why for outcome in result.outcomes] == ["", "as embed.weight"]
    assert np.array_equal(arrays["embed.weight"], arrays["lm_head.weight"])


def test_weights_tied_in_one_model_only_are_noted(store: ObjectStore) -> None:
    one, two, three = (np.full((2, 2), v, np.float32) for v in (1, 2, 3))
    heads = [Head("A", stored(store, {"e": one, "h": one})), Head("B", stored(store, {"e": two, "h": three}))]
    notes = plan(heads, None, make("linear", {}), Policy()).notes
    assert notes == ("e and h are one tensor in A only: the result has two",)


def test_equal_bytes_of_another_dtype_are_looked_at_anew(store: ObjectStore) -> None:
    quiet = np.array([0x7F80_0000_0000_0001], np.uint64)  # finite as one F64, but its upper half is infinite as F32
    heads = [
        Head("A", stored(store, {"a": quiet.view(np.float64), "b": quiet.view(np.float32)})),
        Head("B", stored(store, {"a": floats(1, dtype="float64"), "b": floats(1, 2)})),
    ]
    with pytest.raises(MergeConflict, match="b: expected finite values, got infinity or not-a-number in A"):
        merge(store, heads)


# ------------------------------------------------------------------------------------------ files, records


def test_files_that_are_in_no_store_are_merged_and_come_out_as_a_file(store: ObjectStore, tmp_path: Path) -> None:
    heads = [Head(f"ft{i}", FileTensors(DATA / f"ft{i}.safetensors"), w) for i, w in enumerate((0.5, 0.3, 0.4))]
    with store.begin() as pack:
        result = execute(plan(heads, None, make("linear", {}), Policy()), pack, store, {"format": "pt"})
        pack.commit()
    materialise(store, result.manifest, tmp_path / "merged.safetensors")
    merged, wanted = FileTensors(tmp_path / "merged.safetensors"), FileTensors(DATA / "linear.safetensors")
    assert dict(read_header(tmp_path / "merged.safetensors").metadata) == {"format": "pt"}
    for name in wanted.names():
        a, b = (np.frombuffer(source.read(name), np.float32) for source in (merged, wanted))
        assert np.abs(a - b).max() < 3e-6


def test_the_same_merge_of_another_stored_form_is_the_same_bytes(store: ObjectStore, tmp_path: Path) -> None:
    other = ObjectStore(tmp_path / "other", threads=2)
    texts = []
    for place in (store, other):
        heads = []
        for i in range(3):
            with place.begin() as pack:
                manifest = store_file(pack, DATA / f"ft{i}.safetensors")
                pack.commit()
            heads.append(Head(f"ft{i}", StoredTensors(place, manifest), (0.5, 0.3, 0.4)[i]))
        order = heads if place is store else heads[::-1]
        with place.begin() as pack:
            texts.append(write(execute(plan(order, None, make("karcher", {}), Policy()), pack, place).manifest))
            pack.commit()
    assert texts[0] == texts[1]


def test_listener_hears_of_every_tensor(store: ObjectStore) -> None:
    heads = [Head(n, stored(store, {"a": floats(v), "b": floats(v)})) for n, v in (("A", 1), ("B", 2))]
    heard: list[Event] = []
    with store.begin() as pack:
        execute(plan(heads, None, make("linear", {}), Policy()), pack, store, listener=heard.append)
    steps = [Advanced("merge", 1), Advanced("merge", 1)]
    assert heard == [Started("merge", 2, "tensors"), *steps, Finished("merge", "2 computed")]


def test_a_method_without_its_base_is_a_usage_error(store: ObjectStore) -> None:
    source = stored(store, {"w": floats(1)})
    with pytest.raises(UsageError, match="needs a merge base"):
        plan([Head("A", source), Head("B", source)], None, make("model_stock", {}), Policy())
