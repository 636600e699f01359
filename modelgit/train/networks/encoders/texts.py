"""Texts as tokens, by the tokenizer that came with a version.

A row of tokens is one tensor: an id plus one for every token, 0 where there is none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from modelgit.errors import DataError, DependencyMissing, FormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 512  # tokens to a text where nothing says so
Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts are read: a tokenizer, the most tokens to a text, how many ids there are, the one for padding.

    `opening` is what an empty text is read as.
    """

    tokenizer: "Tokenizer"
    length: int
    ids: int
    padding: int
    opening: int

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Returns (n, longest) integers: ids plus one, 0 behind the end of a text.

        Raises:
            DataError: the tokenizer gives an id that the network has no embedding for.
        """
        rows = [encoding.ids or [self.opening] for encoding in self.tokenizer.encode_batch(list(texts))]
        found = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.int32)
        for number, row in enumerate(rows):
            found[number, : len(row)] = torch.tensor(row, dtype=torch.int32) + 1
        if len(rows) and int(found.max()) > self.ids:
            raise DataError(
                f"tokenizer.json gives token {int(found.max()) - 1}, and config.json has {self.ids} of them",
                hint="tokenizer and network are not of one model",
            )
        return found

    def example(self, count: int) -> Tensor:
        """Returns tokens of as many texts, the first of which is the longest."""
        found = torch.ones(count, min(3, self.length), dtype=torch.int32)
        found[1:, -1:] = 0 if self.length > 1 else 1
        return found

    def ids_of(self, tokens: Tensor) -> Tensor:
        """Returns ids (n, length) for the network, padding where there is no token."""
        return torch.where(tokens == 0, self.padding, tokens.long() - 1)


def with_mask(hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns hidden states (n, length, d) with the mask (n, length) as one more channel."""
    return torch.cat([hidden, mask.unsqueeze(-1).to(hidden.dtype)], -1)


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Returns one vector a text: the mean over its tokens, the first token's, or the last one's."""
    if pooling == "cls":
        return hidden[:, 0]
    share = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "last":
        share = share - functional.pad(share[:, 1:], (0, 0, 0, 1))  # 1 at the last token, else 0
    return (hidden * share).sum(1) / share.sum(1).clamp_min(1)


def reading(files: Mapping[str, bytes], config: Table, positions: int) -> Reading:
    """Returns how the texts of a version are read; `positions` is the most that its network can take.

    What comes in place of a token that is none is of no consequence: the network is told where texts end.

    Raises:
        DependencyMissing: no `tokenizers`. FormatError: no tokenizer, or one that cannot be read.
    """
    ids = config.get("vocab_size")
    if not isinstance(ids, int) or ids < 1:
        raise FormatError(f"config.json: vocab_size is {str(ids)[:40]}, expected how many tokens there are")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DependencyMissing("texts need a tokenizer", hint="pip install 'modelgit[text]'") from error
    if "tokenizer.json" not in files:
        raise FormatError("the version has no tokenizer.json", hint="import the whole folder of the model")
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # whatever the library raises
        raise FormatError(f"tokenizer.json: {str(error)[:200]}") from error
    length = min([*lengths_said(files), positions])
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    padding, *others = (config.get(f"{name}_token_id") for name in ("pad", "bos", "eos"))
    padding, *others = (v if isinstance(v, int) and 0 <= v < ids else None for v in (padding, *others))
    opening = next((token for token in others if token is not None), 0)
    return Reading(tokenizer, length, ids, padding or 0, opening)


def lengths_said(files: Mapping[str, bytes]) -> list[int]:
    """Returns the most tokens to a text, as the files of sentence-transformers or the tokenizer say."""
    for path, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        said = table_in(files, path).get(key)
        if isinstance(said, int) and said > 2:
            return [said]
    return [LONGEST]


def table_in(files: Mapping[str, bytes], path: str) -> Table:
    """Returns the table of a JSON file, empty where there is none. Raises FormatError for something else."""
    if path not in files:
        return {}
    try:
        table = json.loads(files[path])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from error
    if not isinstance(table, dict):
        raise FormatError(f"{path}: expected a table, got {type(table).__name__}")
    return table
