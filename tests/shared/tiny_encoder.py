"""The small files of a very small encoder of texts, as a version of it holds them."""

import json

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "day", "film", "good", "is", "not", "the", "this", "very"]


def encoder_files(kind: str = "bert", **changed: object) -> dict[str, bytes]:
    """Returns config.json and tokenizer.json, of a type of transformers'; `changed` are keys of the first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    table = {
        "model_type": kind,
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
        "max_position_embeddings": 12,
        **sizes,
    }
    return {
        "config.json": json.dumps({**table, **changed}).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
