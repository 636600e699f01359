"""Networks: the published names, the published outputs, and exactness of the fast paths."""

import sys

import pytest
import torch
from torch.nn import functional

from modelgit.errors import DataError, DependencyMissing, RecipeError
from modelgit.train.features import run_stages
from modelgit.train.networks import convolving
from modelgit.train.networks.convolving import Same, convolve, norm
from modelgit.train.networks.efficientnet import EfficientNetLite0
from modelgit.train.networks.registry import build_network
from modelgit.train.pretrained import pretrained_file


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(pretrained_file("efficientnet-lite0"), weights_only=True)
    return state


def test_names_and_shapes_are_the_checkpoints(published: dict[str, torch.Tensor]) -> None:
    ours = build_network("efficientnet-lite0", 1000).state_dict()
    assert {n: tuple(t.shape) for n, t in ours.items()} == {n: tuple(t.shape) for n, t in published.items()}


@pytest.mark.parametrize("size", [64, 96])
def test_logits_are_those_of_the_published_code(published: dict[str, torch.Tensor], size: int) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = reference.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(published)
    ours = EfficientNetLite0(1000).eval()
    ours.load_state_dict(published)
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0))
    x = ours.prepare(pixels)
    with torch.no_grad():
        single = ours._fc(run_stages(ours, x, 0, None))
        expected = theirs.double()(x.double().contiguous())
        exact = ours.double()._fc(run_stages(ours, x.double(), 0, None))
    assert torch.allclose(exact, expected, atol=1e-9, rtol=0)  # the same function
    assert torch.allclose(single.double(), expected, atol=1e-4, rtol=0)  # in single precision, but for rounding


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2), (1, 1)])
def test_small_pictures_give_what_convolution_and_norm_give(kernel: int, stride: int) -> None:
    torch.manual_seed(kernel * 10 + stride)
    conv, scaled = Same(6, 6, kernel, stride, groups=1 if kernel == 1 else 6), norm(6).eval()
    with torch.no_grad():
        for tensor in (scaled.weight, scaled.bias, scaled.running_mean, scaled.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(4, 6, 8, 8, requires_grad=True)
    left, right = conv.margin
    padded = functional.pad(x, (left, right, left, right))
    plain = scaled(functional.conv2d(padded, conv.weight, None, stride, 0, 1, conv.groups))
    fast = convolve(x, conv, scaled)
    inputs = [x, conv.weight, scaled.weight, scaled.bias]
    weights = torch.randn(fast.shape)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    got = torch.autograd.grad((fast * weights).sum(), inputs)
    assert torch.allclose(fast, plain, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected, strict=True))


def test_the_fast_paths_agree_with_the_library_through_the_whole_network(
    published: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("efficientnet-lite0", 1000).eval()
    network.load_state_dict(published)
    pixels = network.prepare(torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        fast = run_stages(network, pixels, 0, None)
        monkeypatch.setattr(convolving, "SMALL", 0)
        slow = run_stages(network, pixels, 0, None)
    assert fast.shape == (2, 1280)
    assert torch.allclose(fast, slow, atol=1e-4)


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="unknown architecture 'resnet'") as caught:
        build_network("resnet", 2)
    known = "cnn, efficientnet-lite0, factory, mlp, mnist-cnn, resnet18, resnet50, timm, transformers"
    assert known in str(caught.value.hint)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(DataError, match="expected multiples of 32"):
        EfficientNetLite0(2).prepare(torch.zeros(1, 3, 48, 48))


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DependencyMissing, match="this network needs timm") as caught:
        build_network("timm:resnet18", 2)
    assert "pip install 'modelgit[timm]'" in str(caught.value.hint)
