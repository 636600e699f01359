"""Encoders of texts: the library's own outputs, and configurations that are refused before anything is built."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import encoder_files

from modelgit.errors import FormatError, RecipeError
from modelgit.train.features import run_stages, shortened
from modelgit.train.networks.network import Design
from modelgit.train.networks.registry import build_network
from modelgit.train.pretrained import pretrained_file

TEXTS = ["hello world", "a longer text about the weather in the mountains, with [PAD] in it", "", "x"]


def test_minilm_gives_what_the_library_gives() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained_file("all-minilm-l6-v2")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
    state = load_file(folder / "model.safetensors")
    network = build_network(Design("all-minilm-l6-v2", files, sum(t.numel() for t in state.values())), 2)
    own = network.state_dict()
    assert set(own) - set(state) == {"classifier.weight", "classifier.bias"}
    network.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})
    library, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = library(**batch).last_hidden_state
        found = run_stages(network, network.prepare(TEXTS, "text"), 0, None)
    mask = batch["attention_mask"].unsqueeze(-1)
    assert len(network.stages()) == 7
    assert float((found - (hidden * mask).sum(1) / mask.sum(1)).abs().max()) < 2e-6


@pytest.mark.parametrize("changed", [{}, {"architectures": ["BertForMaskedLM"], "pad_token_id": None}])
def test_bert_is_the_librarys_bit_for_bit(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    files = encoder_files(**changed)
    ours = build_network(Design("transformers", files), 2)
    monkeypatch.setattr("modelgit.train.networks.encoders.family.is_bert", lambda table: False)
    library = build_network(Design("transformers", files), 2)
    draws = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=draws) for name, t in library.state_dict().items()}
    tokens = ours.prepare(["a good day", "the film is not very bad"], "text")
    found = list[torch.Tensor]()
    for network in (ours, library):
        network.load_state_dict(state)
        found.append(network.get_submodule(network.head_name)(run_stages(network, tokens, 0, None)))
        found[-1].square().sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(*found) and float(found[0].detach().abs().min()) > 0
    gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (ours, library)]
    assert list(gradients[0]) == list(gradients[1]) and len(gradients[0]) == 5 + 16 * 3 + 2
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None and torch.equal(gradient, other), name


def test_tokens_are_cut_at_what_the_network_has_positions_for() -> None:
    network = build_network(Design("transformers", encoder_files()), 2)
    tokens = network.prepare(["good " * 50, "day"], "text")
    assert tokens.shape == (2, 12) and tokens.dtype == torch.int32
    assert tokens[1].tolist() == [3, 7, 4, *[0] * 9]  # ids 2, 6, 3 and one more each
    assert shortened(tokens[1:]).shape == (1, 3)


def test_pooling_is_what_the_name_or_the_files_say() -> None:
    said = {"1_Pooling/config.json": json.dumps({"pooling_mode_cls_token": True}).encode()}
    by_file = build_network(Design("transformers", encoder_files() | said), 2)
    by_name = build_network(Design("transformers:cls", encoder_files()), 2)
    mean = build_network(Design("transformers:mean", encoder_files() | said), 2)
    draws = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=draws) for name, t in by_file.state_dict().items()}
    for network in (by_file, by_name, mean):
        network.load_state_dict(state)
    tokens = by_file.prepare(["a good day"], "text")
    with torch.no_grad():
        found = [run_stages(network, tokens, 0, None) for network in (by_file, by_name, mean)]
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])
    with pytest.raises(RecipeError, match="no pooling is called 'max'"):
        build_network(Design("transformers:max", encoder_files()), 2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "made-up"}, "transformers has no such model"),
        ({"model_type": "t5"}, "'t5' is an encoder with a decoder"),
        ({"model_type": "clip"}, "'clip' reads image and text, not texts alone or pictures alone"),
        ({"model_type": "wav2vec2"}, "'wav2vec2' reads audio"),
        ({"model_type": "timm_wrapper"}, "'timm_wrapper' is a network of timm"),
        ({"model_type": "detr"}, "'detr' is several models in transformers"),
        ({"model_type": "dpt", "backbone": "facebook/dinov2-base"}, "backbone names another model, and nothing is"),
        ({"model_type": "swin", "depths": [1, 10**9]}, "depths: 1000000000, expected at most 1024"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, expected at most 1024"),
        ({"vocab_size": 10**9}, "vocab_size: 1000000000, expected at most"),
        ({"hidden_size": 7}, "no encoder of type 'bert': hidden_size is '7', expected a multiple of num_attention_"),
        ({"type_vocab_size": 0}, "type_vocab_size is '0', expected a whole number from 1"),
        ({"intermediate_size": "24"}, "intermediate_size is '24', expected a whole number from 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is 'nan', expected a number between 0 and 1"),
        ({"pad_token_id": 14}, "pad_token_id is '14', expected a token from 0 to 13, or null"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        build_network(Design("transformers", encoder_files(**changed)), 2)


def test_no_more_is_allocated_than_the_version_holds() -> None:
    with pytest.raises(FormatError, match=r"a network of [0-9]+ numbers, and the version holds 100"):
        build_network(Design("transformers", encoder_files(), 100), 2)


def test_code_beside_a_model_is_never_looked_at(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    files = encoder_files(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    files["evil.py"] = f"open({str(mark)!r}, 'w')".encode()
    assert build_network(Design("transformers", files), 2).feature_size == 16
    assert not mark.exists()


def test_missing_and_malformed_files_are_named() -> None:
    with pytest.raises(FormatError, match=r"no config\.json"):
        build_network(Design("transformers"), 2)
    with pytest.raises(FormatError, match=r"no tokenizer\.json"):
        build_network(Design("transformers", {"config.json": encoder_files()["config.json"]}), 2)
    with pytest.raises(FormatError, match=r"tokenizer\.json: "):
        build_network(Design("transformers", encoder_files() | {"tokenizer.json": b"{}"}), 2)
