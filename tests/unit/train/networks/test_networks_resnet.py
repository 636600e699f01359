"""ResNets by the names and shapes of torchvision's published checkpoints."""

import pytest
import torch

from modelgit.train.networks.registry import build_network


@pytest.mark.parametrize(("name", "numbers", "tensors"), [("resnet18", 11_689_512, 122), ("resnet50", 25_557_032, 320)])
def test_sizes_are_the_published_ones(name: str, numbers: int, tensors: int) -> None:
    with torch.device("meta"):
        network = build_network(name, 1000)
    assert sum(p.numel() for p in network.parameters()) == numbers
    assert len(network.state_dict()) == tensors


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        small, large = (build_network(name, 1000).state_dict() for name in ("resnet18", "resnet50"))
    assert {name: tuple(small[name].shape) for name in ("conv1.weight", "layer2.0.downsample.0.weight")} == {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    }
    assert "layer1.0.downsample.0.weight" not in small and "layer4.1.bn2.num_batches_tracked" in small
    expected = {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.1.running_var": (256,),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }
    assert {name: tuple(large[name].shape) for name in expected} == expected
