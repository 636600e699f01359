"""Adapters: the product of the merged factors is the mean of the products; the rest is told before a tensor is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import FormatError, MergeConflict, UsageError
from modelgit.merge.adapters.configuration import Configuration, differences, merged_configuration, read_configuration
from modelgit.merge.adapters.joining import Adapter, Joined, adapter_conflicts, cut_off, ranks_of
from modelgit.merge.adapters.naming import is_adapter, pair_of
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.methods import Inputs, make
from modelgit.store.files.tensors import FileTensors

Array = np.ndarray[Any, Any]
STEM = "base_model.model.layers.0.q_proj"
Shapes = Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]
SHAPES: dict[
    str, tuple[tuple[str, str], Shapes]
] = {  # shapes of A and B for rank r: a matrix, a convolution, an embedding
    STEM: ((".lora_A.weight", ".lora_B.weight"), lambda r: ((r, 12), (8, r))),
    "base_model.model.conv": ((".lora_A.weight", ".lora_B.weight"), lambda r: ((r, 3, 3, 3), (5, r, 1, 1))),
    "base_model.model.embed": ((".lora_embedding_A", ".lora_embedding_B"), lambda r: ((r, 20), (6, r))),
}


def configured(rank: int, alpha: float, **more: Any) -> Configuration:
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "base", **more}
    return read_configuration(json.dumps(table).encode(), "here")


def adapter(place: Path, name: str, rank: int, alpha: float, weight: float = 1.0, **more: Any) -> Adapter:
    draws, tensors = np.random.default_rng(len(name) + rank), {}
    for stem, (suffixes, shapes) in SHAPES.items():
        for suffix, shape in zip(suffixes, shapes(rank), strict=True):
            tensors[stem + suffix] = draws.normal(size=shape).astype(np.float32)
    tensors["base_model.model.head.weight"] = draws.normal(size=(2, 3)).astype(np.float32)
    save_file(tensors, place / name)
    return Adapter(name, FileTensors(place / name), weight, configured(rank, alpha, **more))


def read(source: Any, name: str) -> Array:
    entry = source.entry(name)
    assert entry.dtype == "F32"
    return np.frombuffer(b"".join(bytes(f) for f in source.frames(name)), "<f4").reshape(entry.shape).astype(np.float64)


def change(source: Any, stem: str, scaling: float = 1.0) -> Array:
    a, b = (read(source, stem + suffix) for suffix in SHAPES[stem][0])
    return np.asarray(scaling * b.reshape(len(b), -1) @ a.reshape(len(a), -1))


def test_the_product_is_the_mean_of_the_products(tmp_path: Path) -> None:
    one = adapter(tmp_path, "one", 4, 8, 3.0)
    two = adapter(tmp_path, "second", 2, 8, 1.0, use_rslora=True)
    joined = Joined([one, two], Policy())
    for stem in SHAPES:
        wanted = 0.75 * change(one.source, stem, 8 / 4) + 0.25 * change(two.source, stem, 8 / np.sqrt(2))
        assert np.abs(change(joined, stem) - wanted).max() <= 2e-6 * np.abs(wanted).max()
        assert joined.entry(stem + SHAPES[stem][0][0]).shape == SHAPES[stem][1](6)[0]
        assert joined.entry(stem + SHAPES[stem][0][1]).shape == SHAPES[stem][1](6)[1]
    head = "base_model.model.head.weight"
    assert np.allclose(read(joined, head), 0.75 * read(one.source, head) + 0.25 * read(two.source, head), atol=1e-7)
    assert joined.shares == {}
    assert set(ranks_of([one, two], None).values()) == {6} == set(joined.ranks.values())


def test_the_mean_of_factors_would_be_another_matrix(tmp_path: Path) -> None:
    one, two = adapter(tmp_path, "one", 4, 4), adapter(tmp_path, "second", 4, 4)
    wanted = (change(one.source, STEM) + change(two.source, STEM)) / 2
    a, b = ((read(one.source, n) + read(two.source, n)) / 2 for n in (f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"))
    assert np.linalg.norm(b @ a - wanted) > 0.5 * np.linalg.norm(wanted)
    heads = [Head(each.name, each.source) for each in (one, two)]
    with pytest.raises(MergeConflict) as caught:
        plan(heads, None, make("linear", {}), Policy())
    assert [conflict.kind for conflict in caught.value.conflicts] == ["adapter"]
    assert "--method lora_cat" in str(caught.value.hint)
    assert plan([heads[0], Head("again", one.source)], None, make("linear", {}), Policy()).steps  # nothing differs


def test_the_best_approximation_of_a_rank(tmp_path: Path) -> None:
    one, two = adapter(tmp_path, "one", 4, 8), adapter(tmp_path, "second", 3, 3)
    joined = Joined([one, two], Policy(), rank=2)
    lost = size = 0.0
    for stem in SHAPES:
        wanted = (change(one.source, stem, 2.0) + change(two.source, stem)) / 2
        u, s, v = np.linalg.svd(wanted, full_matrices=False)
        best = (u[:, :2] * s[:2]) @ v[:2]
        assert np.abs(change(joined, stem) - best).max() <= 5e-6 * np.abs(best).max()
        lost, size = lost + (s[2:] ** 2).sum(), size + (s**2).sum()
    assert joined.error()[0] == pytest.approx(np.sqrt(lost / size), rel=1e-9)
    exact = Joined([one, two], Policy(), rank=7)
    assert np.abs(change(exact, STEM) - (change(one.source, STEM, 2.0) + change(two.source, STEM)) / 2).max() < 1e-4
    assert exact.shares == {}


def test_a_rank_beyond_the_matrix_is_filled_with_zeros() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=(9, 3)), draws.normal(size=(4, 9))
    new_a, new_b, (lost, _) = cut_off(a, b, 8)
    assert (new_a.shape, new_b.shape, lost) == ((8, 3), (4, 8), 0.0)
    assert np.allclose(new_b @ new_a, b @ a)


def test_the_order_of_adapters_reaches_no_byte_once_they_are_sorted(tmp_path: Path) -> None:
    one = adapter(tmp_path, "one", 4, 8)
    oid = Joined([one], Policy()).entry(f"{STEM}.lora_A.weight").oid
    assert oid == one.source.entry(f"{STEM}.lora_A.weight").oid


def test_a_module_that_one_leaves_alone_is_zero_there(tmp_path: Path) -> None:
    one, two = adapter(tmp_path, "one", 4, 4), adapter(tmp_path, "second", 4, 4)
    save_file({"base_model.model.head.weight": np.ones((2, 3), np.float32)}, tmp_path / "less")
    less = Adapter("less", FileTensors(tmp_path / "less"), 1.0, two.configuration)
    kinds = {conflict.kind for conflict in adapter_conflicts([one, less], Policy())}
    assert kinds == {"missing"}
    assert adapter_conflicts([one, less], Policy("keep")) == []
    joined = Joined([one, less], Policy("keep"))
    assert np.allclose(change(joined, STEM), change(one.source, STEM) / 2, rtol=1e-6)
    assert Joined([one, less], Policy("drop")).names() == ["base_model.model.head.weight"]


def test_what_does_not_fit_is_a_conflict(tmp_path: Path) -> None:
    one = adapter(tmp_path, "one", 4, 4)
    wrong = Adapter("wrong", one.source, 1.0, configured(8, 4))
    assert "r is 8, but its factors are of rank 4" in adapter_conflicts([wrong], Policy())[0].got
    tensors: dict[str, Array] = {
        f"{STEM}.lora_A.weight": np.ones((4, 13), np.float32),
        f"{STEM}.lora_B.weight": np.ones((8, 3), np.float32),
    }
    tensors["base_model.model.x.lora_magnitude_vector"] = np.ones(3, np.float32)
    tensors["base_model.model.y.lora_A.weight"] = np.ones((4, 3), np.float32)
    save_file(tensors, tmp_path / "odd")
    odd = Adapter("odd", FileTensors(tmp_path / "odd"), 1.0, configured(4, 4))
    found = [(c.kind, c.where) for c in adapter_conflicts([one, odd], Policy("keep"))]
    assert ("shape", f"{STEM}.lora_A.weight") in found
    assert ("adapter", "layers.0.q_proj") in found
    assert ("adapter", "y") in found
    assert ("adapter", "base_model.model.x.lora_magnitude_vector") in found
    other = configured(4, 4, base_model_name_or_path="another")
    assert [c.where for c in differences({"one": one.configuration, "other": other})] == [
        "adapter_config.json: base_model_name_or_path"
    ]


def test_patterns_and_the_configuration_of_the_result() -> None:
    chosen = configured(
        4, 8, rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.\d+\.q_proj": 6}, target_modules=["v"]
    )
    assert chosen.scaling("layers.0.q_proj", 2) == 3.0
    assert chosen.scaling("layers.0.v_proj", 4) == 2.0
    with pytest.raises(FormatError, match="r is 2, but its factors are of rank 4"):
        chosen.scaling("q_proj", 4)
    ranks = {"layers.0.q_proj": 6, "layers.0.v_proj": 8, "layers.1.v_proj": 8}
    again = read_configuration(merged_configuration([chosen, configured(4, 8, target_modules=["q"])], ranks), "here")
    assert {module: again.scaling(module, rank) for module, rank in ranks.items()} == dict.fromkeys(ranks, 1.0)
    assert again.table["target_modules"] == ["v"] or again.table["target_modules"] == ["q", "v"]
    assert again.table["r"] == 8


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (b"[]", FormatError, "expected a table, got list"),
        (b"{", FormatError, "here:"),
        (b"{}", FormatError, "expected 'r', got none"),
        (b'{"r": true, "lora_alpha": 1}', FormatError, "r: expected a number from 1 to"),
        (b'{"r": 1000000000, "lora_alpha": 1}', FormatError, "r: expected a number from 1 to"),
        (b'{"r": 4, "lora_alpha": "x"}', FormatError, "lora_alpha: expected a number"),
        (b'{"r": 4, "lora_alpha": 1, "peft_type": "LOHA"}', UsageError, "an adapter of kind LOHA"),
        (b'{"r": 4, "lora_alpha": 1, "use_dora": true}', UsageError, "'use_dora' is set"),
    ],
)
def test_malformed_configurations_are_told(data: bytes, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        read_configuration(data, "here")
    assert expected in str(caught.value)


def test_names() -> None:
    pair = pair_of(f"{STEM}.lora_B.weight")
    assert pair is not None and (pair.module, pair.a) == ("layers.0.q_proj", f"{STEM}.lora_A.weight")
    assert not is_adapter(["model.embed.weight"])
    with pytest.raises(UsageError, match="merges adapters as a whole"):
        make("lora_cat", {})(Inputs([np.ones(2)], [1.0]))
    with pytest.raises(UsageError, match="rank: expected a number of 1 or more"):
        make("lora_svd", {"rank": 0})


def test_a_name_that_ends_another_keeps_its_own_rank() -> None:
    plain = read_configuration(b'{"r": 4, "lora_alpha": 4}', "c")
    ranks = {"q": 8, "x.q": 4, "y.q": 4}
    merged = read_configuration(merged_configuration([plain, plain], ranks), "c")
    assert [merged.scaling(module, rank) for module, rank in ranks.items()] == [1.0, 1.0, 1.0]
    assert merged.table["rank_pattern"] == {"^q": 8}


def test_targets_and_heads_of_all_adapters_are_in_the_result() -> None:
    one = read_configuration(b'{"r": 4, "lora_alpha": 4, "target_modules": ".*q"}', "c")
    two = read_configuration(b'{"r": 4, "lora_alpha": 4, "target_modules": ["v"], "modules_to_save": ["head"]}', "c")
    table = read_configuration(merged_configuration([one, two], {"a.q": 4, "a.v": 4}), "c").table
    assert (table["target_modules"], table["modules_to_save"]) == (["a.q", "a.v"], ["head"])


def test_an_initialisation_that_changes_the_base_is_refused() -> None:
    with pytest.raises(UsageError, match=r"pissa_niter_4.*changes the base"):
        read_configuration(b'{"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}', "c")
    read_configuration(b'{"r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian"}', "c")


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*x", "a" * 300, "(a|aa){9}b"])
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    chosen = configured(4, 8, rank_pattern={pattern: 2})
    with pytest.raises(FormatError, match="it could take for ever"):
        chosen.scaling("a" * 100, 4)


def test_a_result_that_its_type_cannot_hold_is_told(tmp_path: Path) -> None:
    tensors = {
        f"{STEM}.lora_A.weight": np.ones((2, 3), np.float16),
        f"{STEM}.lora_B.weight": np.ones((3, 2), np.float16),
    }
    save_file(tensors, tmp_path / "half")
    big = Adapter("half", FileTensors(tmp_path / "half"), 1.0, configured(2, 400_000))
    with pytest.raises(MergeConflict, match="a value beyond its range"):
        Joined([big], Policy()).entry(f"{STEM}.lora_B.weight")
