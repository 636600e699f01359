"""Each method against numbers from an independent implementation, and the registry."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from modelgit.errors import UsageError
from modelgit.merge.methods import METHODS, Inputs, check_arguments, make, settings_of
from modelgit.merge.methods.linear_form import Array, LinearForm, tree_sum, weighted_mean
from modelgit.merge.methods.registry import Value
from modelgit.merge.methods.sparse import elect, random_mask, rank_mask, top_mask

DATA = Path(__file__).parents[2] / "data" / "merge"
WEIGHTS = (0.5, 0.3, 0.4)
EQUAL = (1.0, 1.0, 1.0)
TOLERANCE = 3e-6
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
    ("breadcrumbs", "breadcrumbs", {"density": 0.7, "gamma": 0.1}, WEIGHTS),
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
    assert {k: r for k in same if (r := relative(merged[k], wanted[k])) > TOLERANCE} == {}
    assert all(np.array_equal(merged[k], base[k]) for k in set(wanted) - same)


def test_sign_election_gives_the_reference_numbers_for_given_masks() -> None:
    base, wanted, masks = load("base"), load("dare_ties_norescale"), load("dare_ties_norescale.masks")
    models = [load(f"ft{i}") for i in range(3)]
    for k in wanted:
        kept = [(m[k] - base[k]) * masks[f"ft{i}/{k}"] for i, m in enumerate(models)]
        assert relative(base[k] + elect(kept, WEIGHTS, normalize=False), wanted[k]) < TOLERANCE


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


def test_model_stock_stays_at_the_base_where_models_disagree() -> None:
    step = np.array([1.0, -2.0])
    assert make("model_stock", {})(Inputs([step, -step], (1, 1), np.zeros(2))).tolist() == [0.0, 0.0]


def test_top_mask_breaks_ties_by_place() -> None:
    assert top_mask(np.array([1.0, -2.0, 2.0, 2.0, 0.5]), 0.4).tolist() == [False, True, True, False, False]


def test_top_mask_keeps_at_least_one() -> None:
    assert top_mask(np.array([1.0, 3.0, 2.0]), 0.01).tolist() == [False, True, False]


def test_rank_mask_drops_both_ends() -> None:
    assert rank_mask(np.array([5.0, -1.0, 3.0, 0.0]), 1, 1).tolist() == [False, True, True, False]


def test_random_mask_is_pinned_and_has_the_density() -> None:
    mask = random_mask((100, 100), 0.3, "0\nlayer.weight\nabc")
    assert mask.sum() == 2933
    assert abs(float(random_mask((400, 400), 0.3, "1").mean()) - 0.3) < 0.004
    assert np.array_equal(mask, random_mask((100, 100), 0.3, "0\nlayer.weight\nabc"))
    assert random_mask((3,), 1.0, "0").all()


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
    assert settings_of(chosen) == {"density": 0.5, "scale": 2.0, "normalize": False}
    assert make("ties", settings_of(chosen)) == chosen


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("lineer", {}, "no merge method 'lineer'; known: "),
        ("ties", {"densty": 0.5}, "no setting 'densty'; its settings: density, scale, normalize"),
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


def test_registry_names_its_methods() -> None:
    assert sorted(METHODS) == [
        "breadcrumbs",
        "dare_linear",
        "dare_ties",
        "karcher",
        "linear",
        "model_stock",
        "multislerp",
        "slerp",
        "task_arithmetic",
        "ties",
        "wise_ft",
    ]
