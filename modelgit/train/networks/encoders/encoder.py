"""Networks of the `transformers` library by the config.json of a version, with a linear head of our own.

Encoders and decoders of texts, and networks of pictures. Where the layers can be told apart each is a stage; hidden
states of texts then carry the attention mask as one more channel, so that they are one tensor. Else the whole network
is one stage.
"""

from typing import Any, cast

import torch
from blake3 import blake3
from torch import Tensor, nn

from modelgit.errors import DataError, FormatError, RecipeError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.encoders.bert import BertModel, BertStages
from modelgit.train.networks.encoders.family import MOST, Family, check_room, family_of, make
from modelgit.train.networks.encoders.models import OnPictures, OnTexts
from modelgit.train.networks.encoders.naming import adopt, names_of, put
from modelgit.train.networks.encoders.pictures import Looking, looking
from modelgit.train.networks.encoders.staging import Cut, Whole, staged
from modelgit.train.networks.encoders.texts import Reading, Table, reading, table_in
from modelgit.train.networks.network import Design, Inputs, Network, Stages, Takes, tried

POOLINGS = ("mean", "cls", "last")


class Encoder(nn.Module):
    """A model of the library and a head; parameters are named as in its checkpoints."""

    carries = True

    def __init__(self, parts: BertStages | Cut | Whole, read: Reading | Looking, identity: str, head_name: str) -> None:
        super().__init__()
        self._parts, self._read, self.identity = parts, read, identity
        self.feature_size, self.head_name = parts.feature_size, head_name
        self.takes: Takes = "text" if isinstance(read, Reading) else "numbers"
        self.example = () if isinstance(read, Reading) else tuple(read.example(1).shape[1:])
        self._tried = isinstance(parts, BertStages)

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns texts as tokens (n, longest), pictures as the model takes them. Raises DataError for others."""
        if isinstance(self._read, Looking):
            x = self._read.pixels(inputs, kind, sized=self._parts.sized)
        elif isinstance(inputs, Tensor):
            raise DataError(f"a network of texts ({self.identity.partition(' ')[0]}) cannot take images or arrays")
        else:
            x = self._read.tokens(inputs)
        if not self._tried and len(x):
            self._try(x[:1])
            self._tried = True
        return x

    def _try(self, x: Tensor) -> None:
        """Runs one example. Raises DataError unless it is taken, and the stages make of it what the model does."""
        x = x.to(next(self.parameters()).device)
        try:
            whole, parts = (tried(way, x, self.identity, self.feature_size) for way in (self._parts.whole, self._run))
        except DataError as error:
            side = f"set image_size = {self.example[1]}" if self.example else error.hint
            raise DataError(error.message, hint=side) from error
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise DataError(f"{self.identity}: its layers one by one do not make what they make together")

    def _run(self, x: Tensor) -> Tensor:
        for stage, _ in self.stages():
            x = stage(x)
        return x

    def stages(self) -> Stages:
        """Returns what comes before the layers, and the layers, or all in one; the last gives features."""
        return self._parts.stages()


def build_encoder(design: Design, detail: str, classes: int) -> Network:
    """Returns the network that the version's config.json describes; `detail` is how it pools, "" as its files say.

    Raises:
        DependencyMissing: no `transformers`. RecipeError: another detail. FormatError: files that describe no network.
    """
    if detail not in ("", *POOLINGS):
        hint = f"'transformers', or with one of {', '.join(POOLINGS)}: 'transformers:mean'"
        raise RecipeError(f"architecture '{design.architecture}': no pooling is called {detail[:40]!r}", hint=hint)
    if "config.json" not in design.files:
        hint = "import the whole folder of the model: config.json, the weights, and for texts tokenizer.json"
        raise FormatError(f"'{design.architecture}': the version has no config.json", hint=hint)
    table = table_in(design.files, "config.json")
    family = family_of(table)
    pooling = pooling_of(design, family, detail)
    pooler = family.reads == "image" and not pooling and (not design.tensors or any(map(is_pooler, design.tensors)))
    read = reader_of(design, family)
    check_room(family, design.room, pooler=pooler)
    base = make(family, pooler=pooler)
    parts = parts_of(base, family, read, pooling)
    head = "classifier.1" if "classifier.1.weight" in design.tensors else "classifier"  # the first as ResNet's
    network = Encoder(parts, read, identity_of(design, family, pooling), head)
    adopt(network, base, names_of(base, prefix_of(table, family), design.tensors))
    put(network, head, nn.Linear(parts.feature_size, classes))
    return cast(Network, network)


def parts_of(base: nn.Module, family: Family, read: Reading | Looking, pooling: str) -> BertStages | Cut | Whole:
    """Returns a model as stages."""
    if isinstance(base, BertModel):
        assert isinstance(read, Reading)  # of a BERT
        return BertStages(base, read, pooling)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()  # else it is what memory held, and how a model runs must not depend on that
    if isinstance(read, Reading):
        return staged(OnTexts(base, family.kind, read, pooling), [read.example(count) for count in (1, 2)])
    return staged(OnPictures(base, read.example(1), pooling), [read.example(count) for count in (1, 2)])


def reader_of(design: Design, family: Family) -> Reading | Looking:
    """Returns how the texts or the pictures of a version are read."""
    if family.reads == "image":
        return looking(design.files, family.kind, family.config)
    return reading(design.files, family.config.to_dict(), positions_of(family.config))


def pooling_of(design: Design, family: Family, detail: str) -> str:
    """Returns how hidden states become features: as asked, else as the files of sentence-transformers say.

    Else "" for pictures, as the model does itself; of a decoder the last token, of an encoder the mean.

    Raises:
        RecipeError: of pictures the last, or of a decoder the first, which has seen nothing.
    """
    if detail == "last" and family.reads == "image":
        raise RecipeError(f"architecture '{design.architecture}': pictures have no last token", hint="'mean', or 'cls'")
    if detail == "cls" and family.decodes:
        what = f"architecture '{design.architecture}': {family.kind} is a decoder, whose first token has seen nothing"
        raise RecipeError(what, hint="'last', or 'mean'")
    if detail or family.reads == "image":
        return detail
    said = table_in(design.files, "1_Pooling/config.json")
    words = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
    usual = "last" if family.decodes else "mean"
    return next((word for key, word in words.items() if said.get(key) is True), usual)


def is_pooler(name: str) -> bool:
    """Tells whether a tensor is of the layer that pools."""
    return "pooler" in name.split(".")


def prefix_of(table: Table, family: Family) -> str:
    """Returns what a checkpoint's names begin with, where they are not known: nothing if it is of the model alone."""
    named = table.get("architectures")
    whole = isinstance(named, list) and named and str(named[0]) != family.model.__name__
    return str(getattr(family.model, "base_model_prefix", "")) if whole else ""


def positions_of(config: Any) -> int:
    """Returns how many tokens the network has positions for."""
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return MOST
    padding = config.pad_token_id or 0
    return said - padding - 1 if config.model_type in ("roberta", "camembert", "xlm-roberta") else said


def identity_of(design: Design, family: Family, pooling: str) -> str:
    """Returns what tells this network from others of the same weights: its configuration, and how it reads."""
    digests = [f"{path} {blake3(data).hexdigest()}" for path, data in sorted(design.files.items())]
    return f"{family.kind} {blake3(repr([family.kind, pooling, digests]).encode()).hexdigest()[:16]}"
