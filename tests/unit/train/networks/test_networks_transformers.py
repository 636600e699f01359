"""Networks of transformers: their own folders in and out, features as the library's, stages, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import encoder_files, picture_files
from torch import Tensor, nn

from modelgit.errors import DataError, FormatError, RecipeError
from modelgit.train.choices import Lora
from modelgit.train.config import seed_hash
from modelgit.train.features import run_stages
from modelgit.train.fitting.passes import scored_by
from modelgit.train.networks.encoders.naming import adopt
from modelgit.train.networks.encoders.pictures import looking
from modelgit.train.networks.encoders.staging import staged
from modelgit.train.networks.lora import A, B, Turned, adapt, adapter_of, keeps_turned
from modelgit.train.networks.network import Design, Network
from modelgit.train.networks.registry import build_network

TEXTS = ["this is a very good film", "bad", "a good day"]
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FOLDERS = [  # the class whose folder it is, its small files, stages
    ("ViTForImageClassification", picture_files("vit", num_labels=4), 4),
    ("SwinForImageClassification", picture_files("swin", num_labels=4), 3),
    ("ResNetForImageClassification", picture_files("resnet", num_labels=4), 3),
    ("GPT2LMHeadModel", encoder_files("gpt2"), 4),
    ("Qwen2Model", encoder_files("qwen2"), 4),
]


def saved(kind: str, files: dict[str, bytes], folder: Path) -> tuple[Any, Design, dict[str, Tensor]]:
    """Returns a model of the library with drawn weights, and its folder as a version would hold it."""
    import transformers

    model: Any = getattr(transformers, kind)
    torch.manual_seed(0)
    model = model(model.config_class.from_dict(json.loads(files["config.json"]))).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    files = files | {"config.json": (folder / "config.json").read_bytes()}
    return model, Design("transformers", files, sum(t.numel() for t in state.values()), frozenset(state)), state


def loaded(design: Design, state: dict[str, Tensor], classes: int = 4) -> Network:
    network = build_network(design, classes)
    network.load_state_dict({name: state.get(name, tensor) for name, tensor in network.state_dict().items()})
    return network


@pytest.mark.parametrize(("kind", "files", "stages"), FOLDERS, ids=[kind for kind, _, _ in FOLDERS])
def test_a_folder_keeps_its_names_and_gives_the_librarys_features(
    kind: str, files: dict[str, bytes], stages: int, tmp_path: Path
) -> None:
    from transformers import AutoModel

    model, design, state = saved(kind, files, tmp_path)
    network = loaded(design, state)
    head = {f"{network.head_name}.{part}" for part in ("weight", "bias")}
    assert set(network.state_dict()) | head == set(state) | head
    assert len(network.stages()) == stages
    library = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        if network.takes == "text":
            x = network.prepare(TEXTS, "text")
            mask = x.ne(0).long()
            hidden = library(input_ids=(x.long() - 1).clamp_min(0), attention_mask=mask).last_hidden_state
            wanted = hidden[torch.arange(len(TEXTS)), mask.sum(1) - 1]
        else:
            x = network.prepare(PIXELS)
            assert torch.allclose(x[:, 1], (PIXELS[:, 1] / 255 - 0.5) / 0.25, atol=1e-6)
            said = library(pixel_values=x)
            wanted = said.last_hidden_state[:, 0] if kind.startswith("ViT") else said.pooler_output.flatten(1)
            # the head that a folder brings reads the very features
            assert torch.allclose(scored_by(network, 0)(x), model(pixel_values=x).logits, atol=1e-6)
        assert torch.allclose(run_stages(network, x, 0, None), wanted, atol=1e-6)


def test_a_decoder_reads_to_the_last_token_and_no_further() -> None:
    network = drawn(build_network(Design("transformers", encoder_files("gpt2")), 2))
    x = network.prepare(["a good day", "", "a good day is not a film"], "text")
    assert x[1].tolist() == [4, *[0] * 6]  # nothing is read as what ends a text, 3, and one more
    with torch.no_grad():
        found = run_stages(network, x, 0, None)
        short = run_stages(network, network.prepare(["a good day"], "text"), 0, None)
    assert torch.isfinite(found).all() and torch.allclose(found[:1], short, atol=1e-6)
    assert not torch.allclose(found[0], found[2], atol=1e-2)


def drawn(network: Network, spread: float = 0.3) -> Network:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draws))
    return network


def test_pooling_is_asked_for_or_said() -> None:
    said = {"1_Pooling/config.json": json.dumps({"pooling_mode_lasttoken": True}).encode()}
    ways = [("transformers:last", {}), ("transformers", said), ("transformers:mean", said)]
    networks = [drawn(build_network(Design(way, encoder_files("roberta") | files), 2)) for way, files in ways]
    x = networks[0].prepare(TEXTS, "text")
    with torch.no_grad():
        last, by_file, mean = (run_stages(network, x, 0, None) for network in networks)
    assert torch.equal(last, by_file) and not torch.allclose(last, mean)
    with pytest.raises(RecipeError, match="gpt2 is a decoder, whose first token has seen nothing"):
        build_network(Design("transformers:cls", encoder_files("gpt2")), 2)
    with pytest.raises(RecipeError, match="pictures have no last token"):
        build_network(Design("transformers:last", picture_files()), 2)


def test_the_mean_of_a_picture_is_without_what_stands_before_its_tokens() -> None:
    ways = [drawn(build_network(Design(f"transformers:{way}", picture_files()), 2)) for way in ("mean", "cls")]
    base: Any = ways[0]._parts._model.base  # type: ignore[attr-defined]
    x = ways[0].prepare(PIXELS)
    with torch.no_grad():
        hidden = base(pixel_values=x).last_hidden_state
        found = [run_stages(network, x, 0, None) for network in ways]
    assert torch.equal(found[0], hidden[:, 1:].mean(1)) and torch.equal(found[1], hidden[:, 0])


def test_a_size_that_a_network_was_not_made_for_is_refused_with_the_one_that_it_was() -> None:
    for kind in ("swin", "vit"):
        network = drawn(build_network(Design("transformers", picture_files(kind)), 2))
        with pytest.raises(DataError) as caught:
            network.prepare(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
        assert caught.value.hint == "set image_size = 32"
    free = drawn(build_network(Design("transformers", picture_files("resnet")), 2))
    assert run_stages(free, free.prepare(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)), 0, None).shape == (2, 16)


def test_pictures_are_read_as_the_preprocessor_says() -> None:
    class Config:
        num_channels = 1
        image_size = (24, 24)

    def at(said: dict[str, object]) -> list[float]:
        read = looking({"preprocessor_config.json": json.dumps(said).encode()}, "net", Config())
        x = read.pixels(torch.full((1, 1, 24, 24), 255, dtype=torch.uint8), "images", sized=True)
        assert bool((x == x[0, 0, 0, 0]).all())
        return [float(x[0, 0, 0, 0])]

    assert at({"image_mean": 0.5, "image_std": [0.25]}) == [2.0]
    assert at({"do_normalize": False}) == pytest.approx([1.0])
    assert at({"do_normalize": False, "do_rescale": False}) == [255.0]
    assert at({"image_mean": [0.0], "image_std": [1.0], "rescale_factor": 1 / 127.5}) == pytest.approx([2.0])
    assert at({}) == pytest.approx([(1 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3)])
    wrong: dict[str, dict[str, object]] = {"numbers above 0": {"image_std": 0}, "1 numbers": {"image_mean": [1, 2]}}
    for told, said in wrong.items():
        with pytest.raises(FormatError, match=told):
            at(said)


def test_checkpoints_that_hold_other_matrices_are_refused() -> None:
    files = encoder_files("mixtral", num_local_experts=2, num_key_value_heads=2)
    names = frozenset({"model.layers.0.block_sparse_moe.experts.0.w1.weight"})
    with pytest.raises(FormatError, match=r"takes it apart, or puts it together with others, to make 'layers\.0\.mlp"):
        build_network(Design("transformers", files, None, names), 2)


def test_a_layer_is_put_where_its_tensors_are_called_to_be() -> None:
    base = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = {name: name.replace("0.", "a.b.").replace("1.", "a.") for name in base.state_dict()}
    network = nn.Module()
    adopt(network, base, names)
    assert list(network.state_dict()) == [
        *(f"a.{part}" for part in ("weight", "bias")),
        *list(names.values())[4:],
        *(f"a.b.{part}" for part in ("weight", "bias")),
    ]
    assert network.get_submodule("a.b") is base[0]
    for bad in (
        {"0.weight": "x.w"},
        {"0.weight": "x.weight"},
        {f"1.{part}": f"a.b.{part}" for part in ("weight", "bias")},
    ):
        with pytest.raises(FormatError):
            adopt(nn.Module(), base, names | bad)


class Looped(nn.Module):
    """Two layers that are run in an order of its own; `apart`, with something between them."""

    def __init__(self, order: tuple[int, ...], *, apart: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self._order, self._apart = order, apart

    def forward(self, x: Tensor) -> Tensor:
        for number in self._order:
            x = self.layers[number](x + 1 if self._apart else x)
        return x


class Plain:
    """A module as a model of pictures."""

    masked = False

    def __init__(self, base: nn.Module) -> None:
        self.base = base

    def whole(self, x: Tensor) -> Tensor:
        found: Tensor = self.base(x)
        return found

    def again(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.whole(torch.ones(1, 2))

    def features(self, found: Tensor, mask: Tensor | None) -> Tensor:
        return found


def test_layers_are_told_apart_only_if_each_is_run_once_on_what_the_last_has_made() -> None:
    one, two = torch.ones(1, 2), torch.ones(2, 2)
    for base, stages in ((Looped((0, 1)), 3), (Looped((1, 0)), 1), (Looped((0,)), 1), (Looped((0, 1, 1)), 1)):
        assert len(staged(Plain(base), [one, two]).stages()) == stages
        assert "forward" not in vars(base.layers[0])  # what stood in for it is gone
    assert len(staged(Plain(Looped((0, 1), apart=True)), [one, two]).stages()) == 1
    with pytest.raises(FormatError, match="Linear cannot be run"):
        staged(Plain(nn.Linear(3, 2)), [one, two])


def test_layers_of_gpt_2_are_adapted_turned() -> None:
    plain, adapted = (drawn(build_network(Design("transformers", encoder_files("gpt2")), 2)) for _ in range(2))
    adapt(adapted, Lora(2, 4.0, ("c_attn",)), 1, 3)
    x = plain.prepare(TEXTS, "text")
    with torch.no_grad():
        assert torch.equal(scored_by(plain, 0)(x), scored_by(adapted, 0)(x))
        layer: Any = adapted.get_submodule("h.1.attn.c_attn")
        assert isinstance(layer, Turned) and keeps_turned(adapted) and not keeps_turned(plain)
        draws = torch.Generator().manual_seed(seed_hash("b"))
        layer.lora_B.weight.copy_(torch.randn(48, 2, generator=draws))
        own: Any = plain.get_submodule("h.1.attn.c_attn")
        own.weight += 2.0 * (layer.lora_B.weight @ layer.lora_A.weight).T
        assert torch.allclose(scored_by(plain, 0)(x), scored_by(adapted, 0)(x), atol=1e-5)
    shapes = {name.rpartition("c_attn")[2]: tuple(t.shape) for name, t in adapter_of(adapted).items() if "h.2" in name}
    assert shapes == {A: (2, 16), B: (48, 2)}
