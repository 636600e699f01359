"""Robust, spectral and layer-wise methods against what defines them."""

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from modelgit.errors import UsageError
from modelgit.merge.blocks.linalg import using
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.methods import make
from modelgit.merge.methods.linear_form import Array

DRAWS = np.random.default_rng(5)
BASE = DRAWS.standard_normal((12, 9))
HEADS = [BASE + 0.1 * DRAWS.standard_normal((12, 9)) for _ in range(5)]
EQUAL = (1.0,) * 5


def given(heads: list[Array], weights: tuple[float, ...] | None = None, name: str = "a") -> Inputs:
    keys = tuple(str(i) for i in range(len(heads)))
    return Inputs(heads, weights or (1.0,) * len(heads), BASE, name, keys)


def test_at_the_geometric_median_the_pulls_of_all_models_cancel() -> None:
    weights = (1.0, 2.0, 0.5, 1.0, 1.5)
    found = make("geometric_median", {})(given(HEADS, weights))
    pulls = [w * (h - found) / np.linalg.norm(h - found) for w, h in zip(weights, HEADS, strict=True)]
    assert np.linalg.norm(sum(pulls)) < 1e-5 * sum(weights)


def test_a_model_far_away_hardly_moves_the_medians() -> None:
    odd = [*HEADS[:4], HEADS[4] + 1e6]
    mean = np.mean(HEADS[:4], axis=0)
    for name in ("geometric_median", "coordinate_median", "trimmed_mean"):
        assert np.abs(make(name, {})(given(odd)) - mean).max() < 0.5, name
    assert np.abs(make("linear", {})(given(odd)) - mean).max() > 1e5


def test_where_most_models_agree_the_geometric_median_is_theirs() -> None:
    found = make("geometric_median", {})(given([HEADS[0], HEADS[0], HEADS[0], HEADS[1], HEADS[2]]))
    assert np.allclose(found, HEADS[0], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_coordinate_median_is_numpys(count: int) -> None:
    assert np.allclose(make("coordinate_median", {})(given(HEADS[:count])), np.median(HEADS[:count], axis=0))


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.25, 0.4])
def test_trimmed_mean_is_scipys(trim: float) -> None:
    assert np.allclose(make("trimmed_mean", {"trim": trim})(given(HEADS)), trim_mean(HEADS, trim, axis=0))


def test_trimming_leaves_at_least_one_model() -> None:
    assert np.allclose(make("trimmed_mean", {"trim": 0.5})(given(HEADS[:4])), np.median(HEADS[:4], axis=0))


def test_task_singular_vectors_of_one_model_are_the_model() -> None:
    assert np.allclose(make("tsvm", {})(given(HEADS[:1])), HEADS[0])


def test_task_singular_vectors_of_unlike_tasks_do_not_mix() -> None:
    one, two = np.zeros_like(BASE), np.zeros_like(BASE)
    one[:4, :4], two[4:8, 4:8] = DRAWS.standard_normal((2, 4, 4))
    assert np.allclose(make("tsvm", {})(given([BASE + one, BASE + two])), BASE + one + two)


def test_iso_c_makes_all_directions_of_the_sum_equally_strong() -> None:
    moved = make("iso_c", {"scale": 2.0})(given(HEADS)) - BASE
    total = sum(HEADS) - 5 * BASE
    u, s, v = np.linalg.svd(total, full_matrices=False)
    assert np.allclose(np.linalg.svd(moved)[1], 2 * s.mean())
    assert np.allclose(u.T @ moved @ v.T, 2 * s.mean() * np.eye(9), atol=1e-9)


@pytest.mark.parametrize("name", ["tsvm", "iso_c", "iso_cts"])
def test_spectral_methods_take_the_mean_of_what_is_no_matrix(name: str) -> None:
    heads = [head[0] for head in HEADS]
    inputs = Inputs(heads, EQUAL, BASE[0], "bias", tuple("abcde"))
    assert np.allclose(make(name, {})(inputs), np.mean(heads, axis=0))


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("along", ["last", "first"])
def test_an_arc_for_each_vector_keeps_its_place(shape: tuple[int, ...], along: str) -> None:
    one, two = DRAWS.standard_normal((2, *shape))
    found = make("nuslerp_vectors", {"along": along})(Inputs([one, two], (0.7, 0.3), None, "a", ("a", "b")))
    axis = -1 if along == "last" or len(shape) == 1 else 0
    for place in np.ndindex(*np.moveaxis(one, axis, -1).shape[:-1]):
        a, b, c = (np.moveaxis(x, axis, -1)[place] for x in (one, two, found))
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert np.allclose(c, (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle))


def test_vectors_of_zeros_are_joined_by_a_straight_line() -> None:
    one, two = np.zeros((3, 4)), np.ones((3, 4))
    found = make("nuslerp_vectors", {})(Inputs([one, two], (0.5, 0.5), None, "a", ("a", "b")))
    assert np.allclose(found, 0.5)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.embed_tokens.weight", 0.0),
        ("model.layers.0.mlp.weight", 0.0),
        ("model.layers.3.mlp.weight", 0.75),
        ("model.layers.4.mlp.weight", 1.0),
        ("model.norm.weight", 1.0),
        ("lm_head.weight", 1.0),
    ],
)
def test_lines_scales_by_depth(name: str, depth: float) -> None:
    chosen = make("lines", {"shallow": 0.2, "deep": 1.0})
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(5)), "lm_head.weight"]

    class Named:
        """A tensor of which the name is known."""

        def __init__(self, name: str, model: object = None) -> None:
            self.name, self.model = name, model

    last = chosen.survey([Named(n) for n in names])  # type: ignore[attr-defined]
    assert last == 4
    assert chosen.facts(Named(name, last)) == pytest.approx(0.2 + 0.8 * depth)  # type: ignore[attr-defined]


def test_lines_of_a_model_without_numbers_is_the_deep_end() -> None:
    moved = make("lines", {"deep": 0.5})(given(HEADS, name="head.weight"))
    assert np.allclose(moved, BASE + 0.5 * (np.mean(HEADS, axis=0) - BASE))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lines", {"layer": "("}, "not a regular expression"),
        ("lines", {"layer": "layers"}, "expected a group"),
        ("trimmed_mean", {"trim": 0.6}, "trim"),
        ("iso_cts", {"common": 2.0}, "common"),
        ("nuslerp_vectors", {"along": "middle"}, "expected last or first"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, str | float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name, settings)


@pytest.mark.parametrize("name", ["tsvm", "iso_c", "iso_cts"])
def test_a_device_agrees_with_the_processor(name: str) -> None:
    """PyTorch's decompositions, here on the processor: a GPU is held to the same tolerance where there is one."""
    draws = np.random.default_rng(3)
    base = draws.normal(size=(24, 16))
    heads = [base + 0.1 * draws.normal(size=base.shape) for _ in range(3)]
    chosen = make(name, {})
    wanted = chosen(Inputs(heads, (1, 1, 1), base))
    for device in ["cpu:0", *(["cuda"] if torch.cuda.is_available() else [])]:
        with using(device):
            merged = chosen(Inputs(heads, (1, 1, 1), base))
        assert np.abs(merged - wanted).max() <= 1e-9 * np.abs(wanted).max()


def test_a_device_that_is_not_there_is_told() -> None:
    for device in ("nowhere", "cuda:99", "cpu; rm", "x" * 100):
        with pytest.raises(UsageError, match="--device"), using(device):
            pass
