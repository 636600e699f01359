"""Encoders of texts whose layout is known, by the library's name of their type: where their layers are."""

LAYOUTS = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
