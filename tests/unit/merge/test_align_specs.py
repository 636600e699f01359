"""Specs of permutations from the names of known layouts, and from files."""

import json
from pathlib import Path

import pytest
from test_align import groups_of

from modelgit.errors import FormatError
from modelgit.merge.align.layouts import layout_spec
from modelgit.merge.align.spec import (
    Group,
    Place,
    Spec,
    load_table,
    parse_spec,
    spec_table,
)

# --------------------------------------------------------------------------------------------------- layouts


def test_queries_stay_with_their_keys() -> None:
    shapes = {
        "model.embed_tokens.weight": (10, 16),
        "model.layers.0.self_attn.q_proj.weight": (16, 16),
        "model.layers.0.self_attn.k_proj.weight": (8, 16),
        "model.layers.0.self_attn.v_proj.weight": (8, 16),
        "model.layers.0.self_attn.o_proj.weight": (16, 16),
        "model.layers.0.self_attn.q_norm.weight": (4,),
    }
    spec = layout_spec(shapes, {"num_attention_heads": 4, "num_key_value_heads": 2})
    assert groups_of(spec) == {"residual": (16, None), "heads.0": (2, None), "queries.0": (2, "heads.0")}
    assert Place("model.layers.0.self_attn.k_proj.weight", 0, 4) in spec.by_name()["heads.0"].places
    assert Place("model.layers.0.self_attn.o_proj.weight", 1, 8) in spec.by_name()["heads.0"].places
    assert Place("model.layers.0.self_attn.o_proj.weight", 1, 4) in spec.by_name()["queries.0"].places


def test_bert_and_vit_names_are_known() -> None:
    attention = {"query": "heads", "key": "heads", "value": "heads"}
    bert = {"bert.embeddings.word_embeddings.weight": (9, 8), "bert.embeddings.LayerNorm.weight": (8,)}
    bert |= {f"bert.encoder.layer.0.attention.self.{name}.weight": (8, 8) for name in attention}
    bert |= {"bert.encoder.layer.0.attention.output.dense.weight": (8, 8), "bert.pooler.dense.weight": (8, 8)}
    bert |= {"bert.encoder.layer.0.intermediate.dense.weight": (12, 8), "classifier.weight": (2, 8)}
    found = groups_of(layout_spec(bert, {"num_attention_heads": 2}))
    assert found == {"residual": (8, None), "heads.0": (2, None), "hidden.0": (12, None), "pooled": (8, None)}
    vit = {"vit.embeddings.cls_token": (1, 1, 8), "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4)}
    vit |= {f"vit.encoder.layer.0.attention.attention.{name}.weight": (8, 8) for name in attention}
    vit |= {"vit.layernorm.weight": (8,), "classifier.weight": (2, 8), "classifier.bias": (2,)}
    assert groups_of(layout_spec(vit, {"num_attention_heads": 4})) == {"residual": (8, None), "heads.0": (4, None)}


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        ({"w": (4, 4)}, {}, "no known layout"),
        ({"layers.0.self_attn.q_proj.weight": (4, 4)}, {}, "there is no config.json in that version"),
        ({"layers.0.self_attn.q_proj.weight": (4, 4)}, {"num_attention_heads": 3}, "cannot be 3 heads"),
        (
            {"layers.0.self_attn.q_proj.weight": (4, 4), "layers.0.moe.w": (4, 4)},
            {"num_attention_heads": 2},
            "'layers.0.moe.w': not part of the llama layout",
        ),
    ],
)
def test_names_that_say_too_little(shapes: dict[str, tuple[int, ...]], config: dict[str, int], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        layout_spec(shapes, config)


# ------------------------------------------------------------------------------------------------ spec files

SHAPES = {"a": (6, 3), "b": (6,), "c": (2, 6), "empty": (0,)}


def test_a_spec_file_and_back(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('[groups]\nhidden = [["a", 0], ["b", 0], ["c", 1]]\n')
    spec = parse_spec(load_table(tmp_path / "spec.toml"), SHAPES, "here")
    assert spec == Spec((Group("hidden", 6, (Place("a", 0), Place("b", 0), Place("c", 1))),))
    assert parse_spec(json.loads(json.dumps(spec_table(spec))), SHAPES, "here") == spec
    nested = {"groups": {"o": [["a", 0, 3]], "i": {"size": 3, "inside": "o", "places": [["a", 0]]}}}
    assert groups_of(parse_spec(nested, SHAPES, "here")) == {"i": (3, "o"), "o": (2, None)}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"g": [["x", 0]]}, "no tensor 'x'"),
        ({"g": [["a", 0], ["x", 0]]}, "no such tensor or axis"),
        ({"g": [["a", 0], ["b", 1]]}, "no such tensor or axis"),
        ({"g": [["a", 0], ["a", 1]]}, "do not fit 3"),
        ({"g": [["a", 0]], "h": [["a", 0]]}, "do not fit"),
        ({"g": {"inside": "?", "places": [["a", 0]]}}, "inside an unknown group"),
        ({"o": [["a", 0, 3]], "i": {"inside": "o", "size": 3, "places": [["b", 0]]}}, "without 'o'"),
        ({"g": []}, "not a permutation spec"),
        ({"g": {"size": 10**12, "places": [["empty", 0]]}}, "do not fit 0"),
        ([], "not a permutation spec"),
    ],
)
def test_specs_that_do_not_fit_are_refused(groups: object, said: str) -> None:
    with pytest.raises(FormatError, match=said.replace("?", r"\?")):
        parse_spec({"groups": groups}, SHAPES, "here")


def test_files_that_hold_no_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{")
    for name in ("spec.json", "absent.json"):
        with pytest.raises(FormatError, match="not a permutation spec"):
            load_table(tmp_path / name)
