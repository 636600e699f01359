"""Specs from tensor names, shapes and config.json, for the common layouts of Hugging Face models.

For models that cannot be built and run here. Heads move as blocks, and where several queries share a key they stay
with it; rotary positions keep the units of a head in their order, so those stay in every layout.
"""

import re
from collections.abc import Mapping
from typing import Any

from modelgit.errors import FormatError
from modelgit.merge.align.spec import Group, Place, Shapes, Spec, check

# name: what its axes count, "." nothing. `queries` and `heads` are of the layer, as is `hidden`.
LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "llama": {
        r"embed_tokens\.weight": ". residual",
        r"layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)": "queries residual",
        r"layers\.(\d+)\.self_attn\.[kv]_proj\.(weight|bias)": "heads residual",
        r"layers\.(\d+)\.self_attn\.o_proj\.weight": "residual queries",
        r"layers\.(\d+)\.self_attn\.o_proj\.bias": "residual",
        r"layers\.(\d+)\.self_attn\.[qk]_norm\.weight": ".",
        r"layers\.(\d+)\.mlp\.(gate|up)_proj\.(weight|bias)": "hidden residual",
        r"layers\.(\d+)\.mlp\.down_proj\.weight": "residual hidden",
        r"layers\.(\d+)\.mlp\.down_proj\.bias": "residual",
        r"(layers\.\d+\.\w+_layernorm|norm)\.(weight|bias)": "residual",
        r"(lm_head|score)\.weight": ". residual",
    },
    "bert": {
        r"embeddings\.(word|position|token_type)_embeddings\.weight": ". residual",
        r"embeddings\.(position_ids|token_type_ids)": ". .",
        r"layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)": "heads residual",
        r"layer\.(\d+)\.attention\.output\.dense\.weight": "residual heads",
        r"layer\.(\d+)\.intermediate\.dense\.(weight|bias)": "hidden residual",
        r"layer\.(\d+)\.output\.dense\.weight": "residual hidden",
        r"layer\.(\d+)\.(attention\.)?output\.dense\.bias": "residual",
        r"(LayerNorm|layer_norm)\.(weight|bias|gamma|beta)": "residual",
        r"pooler\.dense\.(weight|bias)": "pooled residual",
        r"cls\.predictions\.transform\.dense\.(weight|bias)": "residual residual",
        r"cls\.predictions\.decoder\.weight": ". residual",
        r"cls\.predictions\.(decoder\.)?bias": ".",
        r"(classifier|cls\.seq_relationship)\.weight": ". pooled",
        r"qa_outputs\.weight": ". residual",
        r"(classifier|qa_outputs|cls\.seq_relationship)\.bias": ".",
    },
    "vit": {
        r"embeddings\.(cls_token|mask_token|distillation_token|position_embeddings)": ". . residual",
        r"embeddings\.patch_embeddings\.projection\.(weight|bias)": "residual . . .",
        r"layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)": "heads residual",
        r"layer\.(\d+)\.attention\.output\.dense\.weight": "residual heads",
        r"layer\.(\d+)\.intermediate\.dense\.(weight|bias)": "hidden residual",
        r"layer\.(\d+)\.output\.dense\.weight": "residual hidden",
        r"layer\.(\d+)\.(attention\.)?output\.dense\.bias": "residual",
        r"layernorm(_before|_after)?\.(weight|bias)": "residual",
        r"pooler\.dense\.(weight|bias)": "pooled residual",
        r"classifier\.weight": ". residual",
        r"classifier\.bias": ".",
    },
}
MARKS = {"llama": "self_attn.q_proj.weight", "bert": "attention.self.query.weight", "vit": "attention.attention.query."}


def layout_spec(shapes: Shapes, config: Mapping[str, Any]) -> Spec:
    """Return the spec of a model in a known layout; `config` is its config.json.

    Raises:
        FormatError: an unknown layout, naming the known; a tensor that is not of the layout; no count of heads.
    """
    layout = next((name for name, mark in MARKS.items() if any(mark in tensor for tensor in shapes)), None)
    if layout is None:
        known = ", ".join(MARKS)
        raise FormatError(f"no known layout of tensor names (known: {known})", hint="give a file: --align-spec FILE")
    places: dict[tuple[str, int, str | None], list[Place]] = {}
    pooled = any("pooler.dense" in name for name in shapes)
    for tensor, shape in sorted(shapes.items()):
        layer, axes = row_of(LAYOUTS[layout], layout, tensor)
        words = [w if w != "pooled" or pooled else "residual" for w in axes.split()]
        for axis, (word, length) in enumerate(zip(words, shape, strict=False)):
            for name, size, block, inside in groups_of(word, layer, length, config):
                places.setdefault((name, size, inside), []).append(Place(tensor, axis, block))
    inner = {inside for _, _, inside in places if inside}
    kept = {key: found for key, found in places.items() if key[1] > 1 or key[0] in inner}
    spec = Spec(tuple(Group(name, size, tuple(p), inside) for (name, size, inside), p in kept.items()), "layout")
    check(spec, shapes)
    return spec


def row_of(rows: Mapping[str, str], layout: str, tensor: str) -> tuple[str, str]:
    """Return a tensor's layer and what its axes count. Raises FormatError for one that is not of the layout."""
    for pattern, axes in rows.items():
        found = re.search(rf"(?:^|\.){pattern}$", tensor)
        if found:
            number = re.search(r"layers?\.(\d+)\.", tensor)
            return (f".{number[1]}" if number else ""), axes
    hint = "give a file: --align-spec FILE (docs/howto/align.md)"
    raise FormatError(f"tensor '{tensor}': not part of the {layout} layout, its units cannot be followed", hint=hint)


def groups_of(word: str, layer: str, length: int, config: Mapping[str, Any]) -> list[tuple[str, int, int, str | None]]:
    """Return the groups along an axis: name, size, block, what it is inside of."""
    if word == ".":
        return []
    if word in ("residual", "pooled"):
        return [(word, length, 1, None)]
    if word == "hidden":
        return [(f"hidden{layer}", length, 1, None)]
    queries = count_in(config, "num_attention_heads")
    heads = count_in(config, "num_key_value_heads", queries)
    outer = (f"heads{layer}", heads, length // heads, None)
    if length % heads or queries % heads or (word == "queries" and length % queries):
        raise FormatError(f"{length} rows cannot be {queries} heads of {heads} keys, as config.json says")
    if word == "heads" or queries == heads:
        return [outer]
    return [outer, (f"queries{layer}", queries // heads, length // queries, f"heads{layer}")]


def count_in(config: Mapping[str, Any], name: str, default: int = 0) -> int:
    """Return a count in config.json. Raises FormatError if it is absent or no count."""
    value = config.get(name) or default
    if not isinstance(value, int) or value < 1:
        got = f"got {config.get(name)!r}" if config else "and there is no config.json in that version"
        hint = "commit the model's config.json beside its weights, or give a file: --align-spec FILE"
        raise FormatError(f"config.json: expected '{name}', a number above 0, {got}", hint=hint)
    return value
