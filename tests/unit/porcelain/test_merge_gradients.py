"""mergekit's gradients and filters: the value of each tensor, and the fewest layers that say the same."""

import re
from typing import Any

import pytest

from modelgit.errors import UsageError
from modelgit.merge.engine.layers import layer_among
from modelgit.porcelain.merging.gradients import Place, Row, by_layer, layers_among, places, value_at
from modelgit.porcelain.merging.mergekit import number

NAMES = ["embed.weight", *(f"model.layers.{i}.{part}" for i in range(12) for part in ("attn.q", "mlp.up")), "norm"]
Rows = dict[str, Row]


def at(depth: float, setting: Any, tensor: str = "model.layers.0.mlp.up") -> float:
    return value_at(Place(tensor, depth), setting, number, "t")


def test_depth_is_counted_over_layers_and_is_0_outside() -> None:
    depths = {place.tensor: place.depth for place in places(NAMES)}
    assert depths["model.layers.0.mlp.up"] == depths["embed.weight"] == depths["norm"] == 0
    assert depths["model.layers.11.mlp.up"] == 1 and depths["model.layers.10.attn.q"] == 10 / 11
    assert places(["layers.0.w"]) == [Place("layers.0.w", 1.0)]  # as there: a single layer is the last
    assert places(["a", "b"]) == [Place("a", 0.0), Place("b", 0.0)]
    assert (layers_among(NAMES), layers_among(["a"])) == (12, 0)


def test_a_list_of_numbers_is_a_line_through_them() -> None:
    assert [at(depth, [0, 1, 0.5]) for depth in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.75, 0.5]
    assert at(0.3, [2]) == at(0.3, 2) == at(0.3, "2e0") == 2


def test_the_first_filter_that_matches_counts() -> None:
    setting = [{"filter": "mlp", "value": [1, 0]}, {"filter": "*", "value": 3}, {"value": 4}]
    assert (at(0.25, setting), at(0.25, setting, "norm"), at(1, {"value": 5})) == (0.75, 3, 5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ([], "t: expected 1 to 10,000 values, got 0"),
        ([0] * 10_001, "got 10,001"),
        ([1, "x"], "expected a number, got 'x'"),
        ([1, {"value": 1}], "expected numbers, or a list of 'filter"),
        ([{"filter": "mlp"}], "expected numbers, or a list of 'filter"),
        ([{"filter": "mlp", "values": 1, "value": 1}], "expected numbers, or a list of 'filter"),
        ([{"value": {"value": 1}}], "expected numbers, or a list of 'filter"),
        ([{"value": [{"value": 1}]}], "expected numbers, or a list of 'filter"),
        ([{"value": [[1]]}], "expected numbers, or a list of 'filter"),
        ([{"filter": "attn", "value": 1}], "no filter matches tensor 'model.layers.0.mlp.up'"),
    ],
)
def test_other_settings_are_refused(setting: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        at(0.5, setting)


@pytest.mark.parametrize(
    ("rows", "most", "told"),
    [
        (dict.fromkeys(NAMES, (1.0, 2.0)), (1.0, 2.0), 0),
        ({place.tensor: (place.depth, 1.0) for place in places(NAMES)}, (0.0, 1.0), 11),  # by layer
        ({name: (float("mlp" in name),) for name in NAMES}, (1.0,), 14),  # by tensor; what is 0 is not the rule
        (dict.fromkeys(NAMES, (0.0,)), (0.0,), 0),
    ],
)
def test_layers_say_what_each_tensor_has(rows: Rows, most: Row, told: int) -> None:
    found, layers = by_layer(rows)
    assert (found, len(layers)) == (most, told)
    said = {name: layers[layer] if (layer := layer_among(layers, name)) else found for name in rows}
    assert said == rows
