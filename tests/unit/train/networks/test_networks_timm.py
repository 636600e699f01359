"""Networks of timm: the library's names and numbers, split before the classifier; a configuration is not trusted."""

import json
from typing import Any

import pytest
import torch

from modelgit.errors import DataError, FormatError, RecipeError
from modelgit.train.networks.network import Design, Network, head_tensors
from modelgit.train.networks.registry import build_network, is_ours, needs_nothing, untrained

try:
    import timm
except (ImportError, RuntimeError) as error:  # a torchvision of another build than PyTorch raises RuntimeError
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)

TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
}
HEADS = {"resnet18": "fc", "vit_tiny_patch16_224": "head", "convnext_atto": "head.fc"}
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def design(name: str, room: int | None = None, **more: object) -> Design:
    table = {
        "architecture": name,
        "model_args": TINY.get(name, {}),
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3]},
        **more,
    }
    return Design("timm", {"config.json": json.dumps(table).encode()}, room)


def features(network: Network, x: torch.Tensor) -> torch.Tensor:
    ((stage, _),) = network.stages()
    return stage(x)


@pytest.mark.parametrize("name", TINY)
def test_it_is_the_librarys_network_split_before_the_classifier(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(design(name), 5)
    theirs = timm.create_model(name, num_classes=5, **TINY[name]).eval()
    theirs.load_state_dict(network.state_dict())
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor(theirs.pretrained_cfg["std"])
    x = network.prepare(PIXELS)
    assert torch.allclose(x, (PIXELS / 255 - mean[:, None, None]) / std[:, None, None], atol=1e-6)
    with torch.no_grad():
        scores = network.get_submodule(network.head_name)(features(network, x))
        assert torch.allclose(scores, theirs(x), rtol=1e-4, atol=1e-5)
    assert network.head_name == HEADS[name] and theirs.get_classifier().in_features == network.feature_size
    assert [tuple(network.state_dict()[key].shape) for key in head_tensors(network)] == [
        (5, network.feature_size),
        (5,),
    ]


@pytest.mark.parametrize("name", TINY)
def test_the_stage_holds_everything_but_the_classifier(name: str) -> None:
    network = build_network(design(name), 5)
    ((_, parts),) = network.stages()
    held = {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
    head = {id(tensor) for tensor in network.get_submodule(network.head_name).parameters()}
    every = {id(tensor) for _, tensor in (*network.named_parameters(), *network.named_buffers())}
    assert held | head == every and not held & head


def test_a_name_alone_will_do_and_weights_can_be_drawn() -> None:
    assert needs_nothing("timm:resnet18") and not needs_nothing("timm") and not is_ours("timm:resnet18")
    one, again = (untrained("timm:mobilenetv3_small_050", 3) for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one) and "classifier.weight" not in one


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"architecture": "../resnet18"}, r"timm has no network '../resnet18'"),
        ({"architecture": "hf-hub:somebody/model"}, "timm has no network 'hf-hub:somebody/model'"),
        ({"architecture": "resnet18.a1_in1k"}, "timm has no network"),
        ({"architecture": 3}, "no config.json of timm's"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path' is not for a version to say"),
        ({"model_args": {"pretrained_cfg": "x"}}, "'pretrained_cfg' is not for a version to say"),
        ({"model_args": {"num_classes": 7}}, "'num_classes' is not for a version to say"),
        ({"model_args": {"layers": [10**9, 1, 1, 1]}}, "layers: 1000000000, expected at most 1024"),
        ({"model_args": {"width": [[10**9]]}}, "width: 1000000000, expected at most 65536"),
        ({"model_args": {"width": 4}}, "no network 'resnet18' with"),
    ],
)
def test_a_configuration_that_is_none_or_asks_for_more_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        build_network(design("resnet18", **said), 3)


def test_more_numbers_than_the_version_holds_are_never_allocated() -> None:
    held = sum(p.numel() for n, p in build_network(design("resnet18"), 5).named_parameters() if n[:3] != "fc.")
    build_network(design("resnet18", room=held), 5)
    wide = {"layers": [1, 1, 1, 1], "channels": [64, 64, 128, 8192]}
    with pytest.raises(FormatError, match=r"a network of .* numbers, and the version holds"):
        build_network(design("resnet18", room=held, model_args=wide), 5)


def test_other_names_heads_and_sizes_are_told() -> None:
    with pytest.raises(RecipeError, match="timm has no network 'resnet19'") as caught:
        build_network("timm:resnet19", 3)
    assert "near it: " in str(caught.value.hint)
    with pytest.raises(RecipeError, match="expected one linear layer behind the features, got tuple"):
        build_network(design("levit_128s", room=10**8), 3)
    with pytest.raises(DataError, match="cannot take an example of 3x16x16: AssertionError"):
        build_network(design("vit_tiny_patch16_224"), 3).prepare(PIXELS[..., :16, :16])
    with pytest.raises(DataError, match="pictures of 3 channels"):
        build_network(design("resnet18"), 3).prepare(PIXELS[:, :1])
