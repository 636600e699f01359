"""What single methods promise beyond their formulas, and the registry."""

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.merge.methods import METHODS, Inputs, check_arguments, make, of_heads, settings_of
from modelgit.merge.methods.linear_form import LinearForm, tree_sum, weighted_mean
from modelgit.merge.methods.registry import Value

EQUAL = (1.0, 1.0, 1.0)


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
    each = make("della", {"density": "0.5,0.25", "epsilon": [0.1, 0.2]})
    assert settings_of(each) | {"density": (0.5, 0.25), "epsilon": (0.1, 0.2)} == settings_of(each)
    assert make("della", settings_of(each)) == each
    assert settings_of(of_heads(each, (1, 0, 1)))["density"] == (0.25, 0.5, 0.25)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("breadcrumbs", {"density": (0.5, 0.8), "gamma": (0.3, 0.0)}),
        ("dare_linear", {"density": (0.2, 1.0)}),
        ("dare_ties", {"density": (0.2, 0.7)}),
        ("della", {"density": (1.0, 0.6)}),
        ("della_linear", {"density": (0.5, 0.4), "epsilon": (0.1, 0.3)}),
        ("ties", {"density": (0.1, 0.9), "rescale": True}),
    ],
)
def test_each_model_may_have_settings_of_its_own(name: str, given: dict[str, Value]) -> None:
    heads, base = list(np.random.default_rng(2).standard_normal((2, 12, 10))), np.zeros((12, 10))
    merged = []
    for number, weights in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        inputs = Inputs(heads, weights, base, "w", ("a", "b"))
        alone = {key: value[number] if isinstance(value, tuple) else value for key, value in given.items()}
        merged.append(make(name, given)(inputs))
        assert np.array_equal(merged[-1], make(name, alone)(inputs))
        assert not np.array_equal(merged[-1], make(name, {})(inputs))
    with pytest.raises(UsageError, match="2 numbers for 3 models"):
        check_arguments(make(name, given), EQUAL, has_base=True)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("lineer", {}, "no merge method 'lineer'; known: "),
        ("ties", {"densty": 0.5}, "no setting 'densty'; its settings: density, scale, normalize, scope, rescale"),
        ("ties", {"scope": "layer"}, "ties: scope: expected tensor or model, got 'layer'"),
        ("della", {"density": 0.1}, "della: density - epsilon: expected a number from"),
        ("ties", {"density": "half"}, "ties: density: expected a number, got 'half'"),
        ("ties", {"density": 1.5}, "expected a number from 0 to 1, got 1.5"),
        ("linear", {"normalize": "maybe"}, "linear: normalize: expected true or false, got 'maybe'"),
        ("karcher", {"iterations": "2.5"}, "karcher: iterations: expected a whole number"),
        ("ties", {"density": "0.5,x"}, "ties: density: expected a number, got '0.5,x'"),
        ("ties", {"density": [0.5, 2]}, "expected a number from 0 to 1, got 2"),
        ("ties", {"density": [0.5, 0.6], "scope": "model"}, "scope model has one density for all models"),
        ("ties", {"scale": [1, 2]}, "ties: scale: expected a number, got [1, 2]"),
        ("della", {"density": [0.5, 0.6], "epsilon": [0.1, 0.1, 0.1]}, "numbers for 2 models and for 3"),
        ("breadcrumbs", {"density": "0.5,0.9", "gamma": "0.1,0.2"}, "density + gamma: expected a number from 0 to 1"),
    ],
)
def test_wrong_names_and_settings_are_named(name: str, settings: dict[str, Value], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(name, settings)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        ("lineer", {}, "Did you mean linear?"),
        ("zzz", {}, "modelgit merge --list shows what each does"),
        ("ties", {"densty": 0.5}, "Did you mean density?"),
        ("ties", {"qqq": 0.5}, "modelgit merge --list ties shows what each is"),
        ("karcher", {"iterations": "2.5"}, "iterations: most steps of the fixed-point iteration"),
    ],
)
def test_the_way_out_is_told(name: str, settings: dict[str, Value], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(name, settings)
    assert caught.value.hint is not None and caught.value.hint.startswith(hint)


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
