"""BERT (Devlin et al. 2019, arXiv:1810.04805) by its config.json, as `transformers` has it, without loading that.

The library loads for longer than a short training trains. Names, operations and their order are its own, so that
weights are its weights and outputs and gradients its bits. There is no dropout in here: fine-tuning has it at the head.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import FormatError
from modelgit.train.networks.encoders.texts import Reading, pooled, with_mask
from modelgit.train.networks.network import Stages

PARTS = ("query", "key", "value")
ELSEWHERE = ("chunk_size_feed_forward", "embedding_size", "is_encoder_decoder")  # what only the library can do


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a config.json says of a BERT, and what it means where it does not."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    model_type: ClassVar[str] = "bert"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as a table."""
        return asdict(self)


def is_bert(table: Mapping[str, Any]) -> bool:
    """Tells whether a config.json is of a BERT that is built here; of others `transformers` knows."""
    plain = table.get("position_embedding_type", "absolute") == "absolute" and table.get("hidden_act", "gelu") == "gelu"
    return table.get("model_type") == "bert" and plain and not any(table.get(key) for key in ELSEWHERE)


def sizes_in(table: Mapping[str, Any]) -> Sizes:
    """Returns the sizes that a config.json says. Raises FormatError for those that no BERT has."""
    sizes = Sizes(**{field.name: table[field.name] for field in fields(Sizes) if field.name in table})
    numbers = sizes.to_dict()
    padding, epsilon = numbers.pop("pad_token_id"), numbers.pop("layer_norm_eps")
    for key, value in numbers.items():
        if type(value) is not int or value < 1:
            refuse(key, value, "a whole number from 1")
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        refuse("layer_norm_eps", epsilon, "a number between 0 and 1")
    if padding is not None and (type(padding) is not int or not 0 <= padding < sizes.vocab_size):
        refuse("pad_token_id", padding, f"a token from 0 to {sizes.vocab_size - 1}, or null")
    if sizes.hidden_size % sizes.num_attention_heads:
        refuse("hidden_size", sizes.hidden_size, f"a multiple of num_attention_heads, {sizes.num_attention_heads}")
    return sizes


def refuse(key: str, value: object, expected: str) -> None:
    """Raises FormatError for a value that no BERT has."""
    raise FormatError(f"config.json: no encoder of type 'bert': {key} is {str(value)[:40]!r}, expected {expected}")


class Linear(nn.Linear):
    """A linear layer that nothing is drawn for: its weights are a version's."""

    def reset_parameters(self) -> None:
        """Leaves them."""


class Embedding(nn.Embedding):
    """Embeddings that nothing is drawn for."""

    def reset_parameters(self) -> None:
        """Leaves them."""


class BertModel(nn.Module):
    """The encoder, named as the library names it."""

    base_model_prefix = "bert"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.config = sizes
        self.embeddings = Embeddings(sizes)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(sizes) for _ in range(sizes.num_hidden_layers))})


class Embeddings(nn.Module):
    """What tokens are to the first layer: embeddings of the word, of its place, and of being in a first sentence."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.word_embeddings = Embedding(sizes.vocab_size, width, padding_idx=sizes.pad_token_id)
        self.position_embeddings = Embedding(sizes.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(sizes.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns ids (n, length) as (n, length, d)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        words = self.word_embeddings(input_ids) + self.token_type_embeddings(torch.zeros_like(input_ids))
        result: Tensor = self.LayerNorm(words + self.position_embeddings(places))
        return result


class Layer(nn.Module):
    """Attention, and two linear layers; each is added to what it was given, and normalised."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        parts = {name: Linear(width, width) for name in PARTS}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": Closing(width, sizes)})
        self.intermediate = nn.ModuleDict({"dense": Linear(width, inner)})
        self.output = Closing(inner, sizes)
        self._heads, self._scale = sizes.num_attention_heads, (width // sizes.num_attention_heads) ** -0.5

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns hidden states (n, length, d); the mask (n, 1, 1, length) is added to what attention is drawn from."""
        query, key, value = (
            self.attention.get_submodule(f"self.{name}")(hidden).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for name in PARTS
        )
        found = functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=self._scale)
        hidden = self.attention["output"](found.transpose(1, 2).flatten(2), hidden)
        result: Tensor = self.output(functional.gelu(self.intermediate["dense"](hidden)), hidden)
        return result


class Closing(nn.Module):
    """What ends one half of a layer."""

    def __init__(self, inputs: int, sizes: Sizes) -> None:
        super().__init__()
        self.dense = Linear(inputs, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Returns (n, length, inputs) as (n, length, d), added to what came before it and normalised."""
        result: Tensor = self.LayerNorm(self.dense(x) + before)
        return result


class BertStages:
    """A BERT as stages: its embeddings, and each layer; the last pools."""

    sized = False

    def __init__(self, base: BertModel, read: Reading, pooling: str) -> None:
        self._base, self._read, self._pooling = base, read, pooling
        self.feature_size = base.config.hidden_size

    def stages(self) -> Stages:
        """Returns the stages."""
        embeddings, layers = self._base.embeddings, list(self._base.encoder.get_submodule("layer").children())
        others = ((partial(self._layer, layer, layer is layers[-1]), [layer]) for layer in layers)
        return [(self._embed, [embeddings]), *others]

    def whole(self, tokens: Tensor) -> Tensor:
        """Returns the features of tokens."""
        x = tokens
        for stage, _ in self.stages():
            x = stage(x)
        return x

    def _embed(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self._base.embeddings(self._read.ids_of(tokens))
        return with_mask(hidden, tokens.ne(0))

    def _layer(self, layer: nn.Module, last: bool, x: Tensor) -> Tensor:
        hidden, mask = x[..., :-1], x[..., -1].detach()  # kernels for attention have no gradient for a mask
        apart = (1.0 - mask)[:, None, None, :] * torch.finfo(hidden.dtype).min
        hidden = layer(hidden, apart)
        return pooled(hidden, mask, self._pooling) if last else with_mask(hidden, mask)
