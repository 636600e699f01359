"""Encoders of the `transformers` library by the config.json of a version, with a linear head of our own.

The library gives the layers, but those of BERT, which are built here; code that comes with a model is never run, and
nothing is fetched. Where the layout is
known every layer is a stage; hidden states then carry the attention mask as one more channel, so that they are one
tensor. Else the whole encoder is one stage.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from blake3 import blake3
from torch import Tensor, nn

from modelgit.errors import DataError, DependencyMissing, FormatError, RecipeError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.encoders.bert import BertModel, is_bert, sizes_in
from modelgit.train.networks.encoders.layouts import LAYOUTS
from modelgit.train.networks.encoders.texts import Reading, Table, reading, table_in
from modelgit.train.networks.network import Design, Inputs, Network, Stages, Takes

POOLINGS = ("mean", "cls")
MOST_LAYERS, MOST = 1024, 1 << 26  # what a config.json may ask for
FIXED = {"is_decoder": False, "add_cross_attention": False, "use_cache": False, "gradient_checkpointing": False}
CODE = ("auto_map", "custom_pipelines", "_name_or_path", "quantization_config")  # never looked at
Family = tuple[Any, type[nn.Module]]  # a configuration, and the class of its model


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How an encoder of the library is run: its type, the prefix of its names, where its layers are ("": as one)."""

    kind: str
    prefix: str
    layers: str
    pooling: str


class Encoder(nn.Module):
    """An encoder with its pooling and the head `classifier`; parameters are named as in its checkpoints."""

    head_name = "classifier"
    takes: Takes = "text"
    carries = True
    example: tuple[int, ...] = ()

    def __init__(self, base: nn.Module, layout: Layout, read: Reading, identity: str, classes: int) -> None:
        super().__init__()
        self._base = [base]  # in a list: its parts are registered below by the names of its checkpoints
        parts = {layout.prefix: base} if layout.prefix else dict(base.named_children())
        for name, part in parts.items():
            self.add_module(name, part)
        self._layout, self._read = layout, read
        self.identity = identity
        self.feature_size = int(base.config.hidden_size)  # type: ignore[union-attr, arg-type]  # the library's
        self.classifier = nn.Linear(self.feature_size, classes)

    def prepare(self, inputs: Inputs, kind: Kind = "text") -> Tensor:
        """Returns texts as tokens (n, longest). Raises DataError for anything else."""
        if isinstance(inputs, Tensor):
            raise DataError(f"an encoder of texts ({self._layout.kind}) cannot take images or arrays")
        return self._read.tokens(inputs)

    def stages(self) -> Stages:
        """Returns embeddings and layers, or all in one; the last pools."""
        base = self._base[0]
        if not self._layout.layers:
            parts = [part for name, part in self.named_children() if name != self.head_name]
            return [(self._whole, parts)]
        layers = list(base.get_submodule(self._layout.layers).children())
        embeddings = base.get_submodule("embeddings")
        first: Stages = [(partial(self._embed, embeddings), [embeddings])]
        return [*first, *((partial(self._layer, layer, layer is layers[-1]), [layer]) for layer in layers)]

    def _embed(self, embeddings: nn.Module, tokens: Tensor) -> Tensor:
        hidden: Tensor = embeddings(input_ids=self._read.ids_of(tokens))
        return with_mask(hidden, tokens.ne(0))

    def _layer(self, layer: nn.Module, last: bool, x: Tensor) -> Tensor:
        hidden, mask = x[..., :-1], x[..., -1].detach()  # kernels for attention have no gradient for a mask
        apart = (1.0 - mask)[:, None, None, :] * torch.finfo(hidden.dtype).min
        found = layer(hidden, attention_mask=apart)
        hidden = found[0] if isinstance(found, tuple) else found
        return pooled(hidden, mask, self._layout.pooling) if last else with_mask(hidden, mask)

    def _whole(self, tokens: Tensor) -> Tensor:
        mask = tokens.ne(0)
        found = self._base[0](input_ids=self._read.ids_of(tokens), attention_mask=mask.long())
        return pooled(found.last_hidden_state, mask, self._layout.pooling)


def with_mask(hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns hidden states (n, length, d) with the mask (n, length) as one more channel."""
    return torch.cat([hidden, mask.unsqueeze(-1).to(hidden.dtype)], -1)


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Returns one vector a text: the mean over its tokens, or the first token's."""
    if pooling == "cls":
        return hidden[:, 0]
    share = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * share).sum(1) / share.sum(1).clamp_min(1)


def build_encoder(design: Design, detail: str, classes: int) -> Network:
    """Returns the encoder that the version's config.json describes; `detail` is how it pools, "" as its files say.

    Raises:
        DependencyMissing: no `transformers`. RecipeError: another detail. FormatError: files that describe no encoder.
    """
    if detail not in ("", *POOLINGS):
        hint = f"'transformers', or with one of {', '.join(POOLINGS)}: 'transformers:mean'"
        raise RecipeError(f"architecture '{design.architecture}': no pooling is called {detail[:40]!r}", hint=hint)
    if "config.json" not in design.files:
        hint = "import the whole folder of the model: config.json, tokenizer.json and the weights"
        raise FormatError(f"'{design.architecture}': the version has no config.json", hint=hint)
    table = table_in(design.files, "config.json")
    config, model = family(table)
    check_room(config, model, design.room)
    layout = Layout(
        table["model_type"], prefix_of(table, model), layers_of(table), detail or pooling_said(design.files)
    )
    read = reading(design.files, config.to_dict(), positions_of(config))
    base = make(config, model)
    return cast(Network, Encoder(base, layout, read, identity_of(design, layout), classes))


def family(table: Table) -> Family:
    """Returns the configuration and class of an encoder: the library's, or ours of BERT.

    Raises:
        DependencyMissing, FormatError: a type of model that the library has no encoder of, or a size out of reach.
    """
    check_sizes(table)
    if is_bert(table):
        return sizes_in(table), BertModel
    try:
        from transformers import CONFIG_MAPPING, MODEL_MAPPING
    except ImportError as error:
        raise DependencyMissing("this network needs transformers", hint="pip install 'modelgit[text]'") from error
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = "code that comes with a model is never run"
        raise FormatError(f"config.json: model_type {str(kind)[:40]!r}: transformers has no such model", hint=hint)
    try:
        config = CONFIG_MAPPING[kind].from_dict({k: v for k, v in table.items() if k not in CODE} | FIXED)
        model: Any = MODEL_MAPPING[type(config)]
    except Exception as error:  # whatever the library raises for values that it cannot use
        raise FormatError(f"config.json: no encoder of type {kind!r}: {str(error)[:200]}") from error
    if isinstance(model, tuple) or config.is_encoder_decoder or getattr(model, "main_input_name", "") != "input_ids":
        raise FormatError(f"config.json: {kind!r} is no encoder of texts", hint="expected one such as BERT")
    config._attn_implementation = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    return config, model


def check_sizes(table: Table) -> None:
    """Raises FormatError for a configuration of sizes that no model has: building it would not end."""
    for key, value in table.items():
        most = MOST_LAYERS if "layer" in key else MOST
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > most:
            raise FormatError(f"config.json: {key[:40]}: {value}, expected at most {most}")


def check_room(config: Any, model: type[nn.Module], room: int | None) -> None:
    """Raises FormatError for a network of more numbers than its version holds, before any is allocated."""
    if room is None:
        return
    with torch.device("meta"):
        outline = make(config, model)
    count = sum(parameter.numel() for parameter in outline.parameters())
    if count > room:
        hint = "the configuration is not of these weights"
        raise FormatError(f"config.json: a network of {count} numbers, and the version holds {room}", hint=hint)


def make(config: Any, model: type[nn.Module]) -> nn.Module:
    """Returns the model with what memory holds for weights, without the layer that only pre-training needs."""
    if model is BertModel:
        return BertModel(config).eval()
    from transformers.initialization import no_init_weights

    with no_init_weights():
        try:
            return model(config, add_pooling_layer=False).eval()
        except TypeError:
            return model(config).eval()
        except (ValueError, RuntimeError) as error:  # sizes that do not go together
            raise FormatError(f"config.json: no encoder of type {config.model_type!r}: {str(error)[:200]}") from error


def prefix_of(table: Table, model: type[nn.Module]) -> str:
    """Returns what the names of a checkpoint begin with: nothing if it is of the encoder alone."""
    named = table.get("architectures")
    whole = isinstance(named, list) and named and str(named[0]) != model.__name__
    return str(getattr(model, "base_model_prefix", "")) if whole else ""


def layers_of(table: Table) -> str:
    """Returns where the layers of a known layout are, "" where it is not known."""
    plain = table.get("position_embedding_type", "absolute") == "absolute"
    return LAYOUTS.get(table["model_type"], "") if plain else ""


def pooling_said(files: Mapping[str, bytes]) -> str:
    """Returns how the files of sentence-transformers say to pool; else the mean."""
    said = table_in(files, "1_Pooling/config.json")
    return "cls" if said.get("pooling_mode_cls_token") is True else "mean"


def positions_of(config: Any) -> int:
    """Returns how many tokens the network has positions for."""
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return MOST
    padding = config.pad_token_id or 0
    return said - padding - 1 if config.model_type in ("roberta", "camembert", "xlm-roberta") else said


def identity_of(design: Design, layout: Layout) -> str:
    """Returns what tells this encoder from others of the same weights: its configuration and its tokenizer."""
    digests = [f"{path} {blake3(data).hexdigest()}" for path, data in sorted(design.files.items())]
    return f"{layout.kind} {blake3(repr([layout, digests]).encode()).hexdigest()[:16]}"
