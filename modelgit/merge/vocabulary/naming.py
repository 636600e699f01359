"""Which tensors have a row for each token, by their names."""

import re

EMBEDDING = re.compile(r"embed\w*|(to?k(en)?|word)_embed\w*|wte|shared|lm_head|decoder|predictions|output|vocab\w*")


def is_embedding(name: str) -> bool:
    """Returns whether a tensor is an embedding of tokens, or the layer that scores them, by its module's name."""
    return EMBEDDING.fullmatch(name.split(".")[-2:][0]) is not None
