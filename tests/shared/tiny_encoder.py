"""The small files of very small models of transformers, as a version of one holds them."""

import json

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "day", "film", "good", "is", "not", "the", "this", "very"]
SIZES: dict[str, dict[str, object]] = {
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 12, "pad_token_id": None, "eos_token_id": 3},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    "swin": {"patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
}
USUAL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
DECODERS = ("gpt2", "qwen2")
SIDE = 32


def encoder_files(kind: str = "bert", **changed: object) -> dict[str, bytes]:
    """Returns config.json and tokenizer.json, of a type of transformers'; `changed` are keys of the first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind not in DECODERS:
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    table = {
        "model_type": kind,
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
        "max_position_embeddings": 12,
        **SIZES.get(kind, USUAL),
    }
    if kind == "qwen2":
        table |= {"num_key_value_heads": 1, "eos_token_id": 3}
    return {
        "config.json": json.dumps({**table, **changed}).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }


def picture_files(kind: str = "vit", **changed: object) -> dict[str, bytes]:
    """Returns config.json and preprocessor_config.json of a network of pictures of 32 x 32 pixels."""
    table = {"model_type": kind, "image_size": SIDE, "patch_size": 8, **SIZES.get(kind, USUAL)}
    read = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5], "size": {"height": SIDE, "width": SIDE}}
    return {
        "config.json": json.dumps({**table, **changed}).encode(),
        "preprocessor_config.json": json.dumps(read).encode(),
    }
