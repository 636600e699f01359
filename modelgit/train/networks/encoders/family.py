"""Which model of the `transformers` library a config.json describes, and how it is made without weights.

The library gives the layers, but those of BERT, which are built here; code that comes with a model is never run, and
nothing is fetched.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from modelgit.errors import DependencyMissing, FormatError
from modelgit.train.networks.encoders.bert import BertModel, is_bert, sizes_in
from modelgit.train.networks.encoders.texts import Table
from modelgit.train.networks.sizes import check_numbers, numbers_in

Reads = Literal["text", "image"]
MOST = 1 << 26  # what a config.json may ask for
FIXED = {"is_decoder": False, "add_cross_attention": False, "use_cache": False, "gradient_checkpointing": False}
CODE = (  # never looked at
    *("auto_map", "custom_pipelines", "_name_or_path", "quantization_config"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """A configuration and its model; `decodes` if it is a decoder, whose tokens see only what is before them."""

    kind: str
    config: Any
    model: type[nn.Module]
    reads: Reads = "text"
    decodes: bool = False


def family_of(table: Table) -> Family:
    """Returns the library's model of a configuration, or ours of BERT.

    Raises:
        DependencyMissing, FormatError: a type of model that is not run here, or a size out of reach.
    """
    sizes = ((key, n) for key, n in numbers_in(table) if isinstance(n, int) and "theta" not in key)
    check_numbers(sizes, "config.json", MOST)
    if is_bert(table):
        return Family("bert", sizes_in(table), BertModel)
    try:
        from transformers import CONFIG_MAPPING, MODEL_MAPPING
    except ImportError as error:
        raise DependencyMissing("this network needs transformers", hint="pip install 'modelgit[text]'") from error
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = "code that comes with a model is never run"
        raise FormatError(f"config.json: model_type {str(kind)[:40]!r}: transformers has no such model", hint=hint)
    refuse_others(kind, table)
    try:
        config = CONFIG_MAPPING[kind].from_dict({k: v for k, v in table.items() if k not in CODE} | FIXED)
        model: Any = MODEL_MAPPING[type(config)]
    except Exception as error:  # whatever the library raises for values that it cannot use
        raise FormatError(f"config.json: no model of type {kind!r}: {str(error)[:200]}") from error
    reads = read_by(kind, config, model)
    config._attn_implementation = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    return Family(kind, config, model, reads, reads == "text" and is_decoder(kind))


def refuse_others(kind: str, table: Table) -> None:
    """Raises FormatError for what would have the library read another model's files, or fetch them."""
    if kind.startswith("timm_"):
        raise FormatError(f"config.json: {kind!r} is a network of timm", hint="architecture = 'timm:NAME'")
    if key := next((key for key in table if "backbone" in key and table[key]), None):
        raise FormatError(f"config.json: {key[:40]} names another model, and nothing is fetched", hint="leave it out")


def read_by(kind: str, config: Any, model: Any) -> Reads:
    """Returns what a model reads. Raises FormatError unless that is texts or pictures, and it is of one piece."""
    hint = "expected an encoder such as BERT, a decoder such as GPT-2, or a network of pictures such as ViT"
    if isinstance(model, tuple) or any("backbone" in key for key in vars(config)):
        raise FormatError(f"config.json: {kind!r} is several models in transformers", hint=hint)
    if getattr(config, "is_encoder_decoder", False):
        what = f"config.json: {kind!r} is an encoder with a decoder: its features could be either's, and are not taken"
        raise FormatError(what, hint=hint)
    takes, said = model.main_input_name, model.input_modalities
    reads = {said} if isinstance(said, str) else set(said)
    if takes == "pixel_values" and reads <= {"image", "text"} and len(reads) == 1:  # "text" is what is not said
        return "image"
    if takes != "input_ids" or reads != {"text"}:
        what = " and ".join(sorted(reads)) if takes == "input_ids" or reads != {"text"} else takes
        raise FormatError(f"config.json: {kind!r} reads {what}, not texts alone or pictures alone", hint=hint)
    return "text"


def is_decoder(kind: str) -> bool:
    """Tells whether a type of model was trained to go on with a text, and not to fill gaps in it."""
    from transformers.models.auto import modeling_auto as known

    return kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def check_room(family: Family, room: int | None, *, pooler: bool) -> None:
    """Raises FormatError for a network of more numbers than its version holds, before any is allocated."""
    if room is None:
        return
    with torch.device("meta"):
        outline = make(family, pooler=pooler)
    count = sum(parameter.numel() for parameter in outline.parameters())
    if count > room:
        hint = "the configuration is not of these weights"
        raise FormatError(f"config.json: a network of {count} numbers, and the version holds {room}", hint=hint)


def make(family: Family, *, pooler: bool) -> nn.Module:
    """Returns the model with what memory holds for weights; without the layer that pools where it can be left out."""
    if family.model is BertModel:
        return BertModel(family.config).eval()
    from transformers.initialization import no_init_weights

    model: Any = family.model
    with no_init_weights():
        try:
            made = model(family.config) if pooler else without_pooler(model, family.config)
        except Exception as error:  # whatever the library raises for sizes that do not go together
            raise FormatError(f"config.json: no model of type {family.kind!r}: {str(error)[:200]}") from error
    found: nn.Module = made.eval()
    return found


def without_pooler(model: Any, config: Any) -> nn.Module:
    """Returns a model without the layer that pools, if that can be left out."""
    try:
        made: nn.Module = model(config, add_pooling_layer=False)
    except TypeError:
        made = model(config)
    return made
