"""Each method against numbers from an independent implementation, and the registry."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from modelgit.errors import UsageError
from modelgit.merge.methods import METHODS, Inputs, check_arguments, make, settings_of
from modelgit.merge.methods.linear_form import Array, LinearForm, tree_sum, weighted_mean
from modelgit.merge.methods.registry import Value
from modelgit.merge.methods.sparse import joined

DATA = Path(__file__).parents[2] / "data" / "merge"
WEIGHTS = (0.5, 0.3, 0.4)
EQUAL = (1.0, 1.0, 1.0)
TOLERANCE = 3e-6
LOOSE = {"tsvm": 1e-5}  # the reference decomposes in float32, small matrices of close singular values
# Task vectors that point apart (mean cosine below 0): the reference walks away from them, we stay at the base.
DISAGREEING = {"model_stock": {"model.norm.weight"}}

CASES: list[tuple[str, str, dict[str, Value], tuple[float, ...]]] = [
    ("linear", "linear", {}, WEIGHTS),
    ("linear_unnormalized", "linear", {"normalize": False}, WEIGHTS),
    ("linear_negative", "linear", {}, (1.0, -0.5, 0.25)),
    ("task_arithmetic", "task_arithmetic", {}, WEIGHTS),
    ("task_arithmetic_lambda", "task_arithmetic", {"scale": 0.7}, WEIGHTS),
    ("task_arithmetic_normalized", "task_arithmetic", {"normalize": True}, WEIGHTS),
    ("task_arithmetic_normalized", "wise_ft", {"alpha": 1.0}, WEIGHTS),
    ("slerp_03", "slerp", {}, (0.7, 0.3)),
    ("nuslerp_base", "slerp", {"deltas": True}, (0.5, 0.3)),
    ("multislerp", "multislerp", {}, WEIGHTS),
    ("multislerp_base", "multislerp", {"deltas": True}, WEIGHTS),
    ("karcher", "karcher", {}, EQUAL),
    ("model_stock", "model_stock", {}, EQUAL),
    ("ties", "ties", {"density": 0.5}, WEIGHTS),
    ("ties_unnormalized", "ties", {"density": 0.5, "normalize": False}, WEIGHTS),
    ("ties_density02_equal", "ties", {"density": 0.2}, EQUAL),
    ("ties_rescale", "ties", {"density": 0.5, "rescale": True}, WEIGHTS),
    ("sce", "sce", {"top": 0.6}, EQUAL),
    ("sce_all", "sce", {}, EQUAL),
    ("breadcrumbs", "breadcrumbs", {"density": 0.7, "gamma": 0.1}, WEIGHTS),
    ("nuslerp", "nuslerp", {}, (0.5, 0.3)),
    ("nuslerp_base", "nuslerp", {"deltas": True}, (0.5, 0.3)),
    ("nuslerp_columnwise", "nuslerp_vectors", {}, (0.5, 0.3)),
    ("nuslerp_rowwise", "nuslerp_vectors", {"along": "first"}, (0.5, 0.3)),
    ("tsvm_alpha1", "tsvm", {}, EQUAL),
    ("iso_c_alpha1", "iso_c", {}, EQUAL),
    ("iso_cts_alpha1_frac08", "iso_cts", {}, EQUAL),
    ("breadcrumbs_ties", "breadcrumbs", {"density": 0.7, "gamma": 0.1, "signs": True}, WEIGHTS),
]


def load(name: str) -> dict[str, Array]:
    return {key: value.astype(np.float64) for key, value in load_file(DATA / f"{name}.safetensors").items()}


def relative(found: Array, wanted: Array) -> float:
    """Return the largest difference over the largest magnitude."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("fixture", "name", "settings", "weights"), CASES, ids=[f"{c[1]}-{c[0]}" for c in CASES])
def test_method_gives_the_reference_numbers(
    fixture: str, name: str, settings: dict[str, Value], weights: tuple[float, ...]
) -> None:
    base, wanted, chosen = load("base"), load(fixture), make(name, settings)
    models = [load(f"ft{i}") for i in range(len(weights))]
    keys = tuple("abc")[: len(weights)]
    merged = {k: chosen(Inputs([m[k] for m in models], weights, base[k], k, keys)) for k in wanted}
    same = set(wanted) - DISAGREEING.get(name, set())
    most = LOOSE.get(name, TOLERANCE)
    assert {k: r for k in same if (r := relative(merged[k], wanted[k])) > most} == {}
    assert all(np.array_equal(merged[k], base[k]) for k in set(wanted) - same)


@pytest.mark.parametrize(
    ("name", "signs", "normalize", "rescaled"),
    [
        ("dare_ties_norescale", True, False, False),
        ("dare_linear", False, False, True),
        ("della", True, True, True),
        ("della_linear", False, False, True),
    ],
)
def test_random_methods_give_the_reference_numbers_for_given_masks(
    name: str, signs: bool, normalize: bool, rescaled: bool
) -> None:
    """The reference stretches what is kept to the sum of magnitudes of the whole: here that is done by hand."""
    base, wanted, masks = load("base"), load(name), load(f"{name}.masks")
    models = [load(f"ft{i}") for i in range(3)]
    for k in wanted:
        deltas = [m[k] - base[k] for m in models]
        kept = [d * masks[f"ft{i}/{k}"] for i, d in enumerate(deltas)]
        if rescaled:
            kept = [v * (np.abs(d).sum() / max(np.abs(v).sum(), 1e-99)) for d, v in zip(deltas, kept, strict=True)]
        assert relative(base[k] + joined(kept, WEIGHTS, signs=signs, normalize=normalize), wanted[k]) < TOLERANCE


def test_model_stock_does_not_draw_small_tensors_to_the_base() -> None:
    base = np.ones(64)
    steps = np.random.default_rng(0).standard_normal((3, 64)) * 1e-7
    steps[1:] += 3 * steps[0]
    heads = [base + step for step in (steps[0] * 3, steps[1], steps[2])]
    large = [base + 1e5 * step for step in (steps[0] * 3, steps[1], steps[2])]
    merge = make("model_stock", {})
    small_move = merge(Inputs(heads, EQUAL, base)) - base
    large_move = merge(Inputs(large, EQUAL, base)) - base
    assert np.allclose(small_move * 1e5, large_move, rtol=1e-4, atol=1e-8)
    assert np.linalg.norm(small_move) > 0.5 * np.linalg.norm(np.mean(steps, 0))


def test_model_stock_by_rows_gives_the_reference_numbers_where_models_agree() -> None:
    base, wanted, chosen = load("base"), load("model_stock_filter_wise"), make("model_stock_rows", {})
    models = [load(f"ft{i}") for i in range(3)]
    agreeing = 0
    for name, reference in wanted.items():
        merged = chosen(Inputs([m[name] for m in models], EQUAL, base[name], name, tuple("abc")))
        shape = (1, -1) if reference.ndim == 1 else (len(reference), -1)
        steps = [(m[name] - base[name]).reshape(shape) for m in models]
        unit = [step / np.linalg.norm(step, axis=1, keepdims=True) for step in steps]
        cosine = sum((unit[i] * unit[j]).sum(1) for i in range(3) for j in range(i + 1, 3))
        rows, expected, start = (x.reshape(shape) for x in (merged, reference, base[name]))
        agree = cosine > 0  # elsewhere the reference walks away from the models
        assert np.abs(rows[agree] - expected[agree]).max(initial=0) <= TOLERANCE * np.abs(reference).max()
        assert np.array_equal(rows[~agree], start[~agree])
        agreeing += int(agree.sum())
    assert agreeing > 100


def test_model_stock_stays_at_the_base_where_models_disagree() -> None:
    step = np.array([1.0, -2.0])
    assert make("model_stock", {})(Inputs([step, -step], (1, 1), np.zeros(2))).tolist() == [0.0, 0.0]


def test_uniform_weights_become_ones() -> None:
    assert weighted_mean((0.1, 0.1, 0.1), normalize=True) == LinearForm((1.0, 1.0, 1.0), divisor=3.0)


def test_weights_that_cancel_are_refused() -> None:
    with pytest.raises(UsageError, match="add up to 0"):
        weighted_mean((1, -1), normalize=True)


def test_tree_sum_is_the_sum() -> None:
    values = np.random.default_rng(1).standard_normal(1001)
    assert abs(tree_sum(values) - float(np.sum(values))) < 1e-12
    assert tree_sum(np.zeros(0)) == 0.0


def test_settings_are_read_from_text_and_back() -> None:
    chosen = make("ties", {"density": "0.5", "normalize": "no", "scale": 2})
    assert settings_of(chosen) == {
        "density": 0.5,
        "scale": 2.0,
        "normalize": False,
        "scope": "tensor",
        "rescale": False,
    }
    assert make("ties", settings_of(chosen)) == chosen


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("lineer", {}, "no merge method 'lineer'; known: "),
        ("ties", {"densty": 0.5}, "no setting 'densty'; its settings: density, scale, normalize, scope, rescale"),
        ("ties", {"scope": "layer"}, "ties: scope: expected tensor or model, got 'layer'"),
        ("della", {"density": 0.1}, "della: density - epsilon: expected a number from"),
        ("ties", {"density": "half"}, "ties: density: expected float, got 'half'"),
        ("ties", {"density": 1.5}, "expected a number from 0 to 1, got 1.5"),
        ("linear", {"normalize": "maybe"}, "linear: normalize: expected bool, got 'maybe'"),
        ("karcher", {"iterations": "2.5"}, "karcher: iterations: expected int"),
    ],
)
def test_wrong_names_and_settings_are_named(name: str, settings: dict[str, Value], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(name, settings)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("name", "weights", "has_base", "says"),
    [
        ("slerp", (1, 1, 1), True, "exactly 2 models, got 3"),
        ("model_stock", (1,), True, "at least 2 models, got 1"),
        ("model_stock", (1, 2), True, "treats all models alike"),
        ("ties", (1, 1), False, "needs a merge base"),
        ("linear", (1, float("nan")), False, "must be finite"),
        ("linear", (1, -1), False, "add up to 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    name: str, weights: tuple[float, ...], has_base: bool, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        check_arguments(make(name, {}), weights, has_base=has_base)


def test_registry_has_the_methods_of_this_package() -> None:
    assert {
        "breadcrumbs",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "karcher",
        "linear",
        "model_stock",
        "multislerp",
        "sce",
        "slerp",
        "task_arithmetic",
        "ties",
        "wise_ft",
    } <= set(METHODS)


def test_sce_weighs_small_updates_by_their_energy_too() -> None:
    base, steps = np.ones(1000), np.random.default_rng(0).standard_normal((2, 1000))
    heads = [base + 1e-5 * steps[0], base + 3e-5 * steps[0]]
    moved = make("sce", {})(Inputs(heads, (1.0, 1.0), base)) - base
    assert np.allclose(moved, (0.1 * 1e-5 + 0.9 * 3e-5) * steps[0], rtol=1e-5, atol=1e-12)


def test_dare_keeps_the_expected_task_vector() -> None:
    base, head = np.zeros(40_000), np.full(40_000, 3.0)
    merged = make("dare_linear", {"density": 0.1})(Inputs([head], (1.0,), base, "w", ("a",)))
    assert set(np.unique(merged)) == {0.0, 30.0}
    assert abs(float(merged.mean()) - 3.0) < 0.15


def test_della_keeps_large_elements_of_a_row_more_often() -> None:
    row = np.arange(1.0, 1001.0)
    head = np.tile(row, (200, 1))
    settings: dict[str, Value] = {"density": 0.4, "epsilon": 0.3}
    merged = make("della_linear", settings)(Inputs([head], (1.0,), np.zeros(head.shape), "w", ("a",)))
    share = (merged != 0).mean(axis=0)
    line = 0.1 + 0.6 * np.arange(1000) / 999
    assert np.abs(share.reshape(10, 100).mean(axis=1) - line.reshape(10, 100).mean(axis=1)).max() < 0.02
    kept = merged[:, 500] != 0
    assert np.allclose(merged[kept, 500], row[500] / line[500], rtol=1e-12)
