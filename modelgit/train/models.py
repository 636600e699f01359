"""Networks by name: an ordered list of stages, then a linear head.

The names of parameters are those of the public checkpoints, so a version can be loaded by anyone's code. Batch
normalisation keeps its running statistics as they came (the paper's protocol): only scale and shift are trained, and
averaging weights stays well defined.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import DataError, RecipeError

Stage = Callable[[Tensor], Tensor]
SMALL = 64  # pixels up to which convolutions are done as matrix products


class Same(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME pads even sizes: more on the right at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        total = kernel - 1 if stride == 1 else kernel - 2
        self.margin = (total // 2, total - total // 2)


def convolve(x: Tensor, conv: Same, norm: nn.BatchNorm2d) -> Tensor:
    """Returns norm(conv(x)) with the running statistics, (n, inputs, h, w) -> (n, outputs, h / stride, w / stride).

    The statistics are fixed, so the norm scales the weights and adds a shift: one linear map, gradients to all of it.
    On the CPU small pictures go through matrix products: the library's gradient of a depthwise convolution on 4 x 4
    pixels is ten times slower. Those products want channels outermost in memory, and elementwise steps keep them so.
    """
    assert norm.running_mean is not None and norm.running_var is not None  # batch norms are made with statistics
    if norm.momentum is None and norm.training:  # its statistics are being estimated
        left, right = conv.margin
        padded = functional.pad(x, (left, right, left, right))
        found: Tensor = norm(functional.conv2d(padded, conv.weight, None, conv.stride, 0, 1, conv.groups))
        return found
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    small = x.device.type == "cpu" and x.shape[2] * x.shape[3] <= SMALL
    if small and conv.groups == conv.in_channels:
        return depthwise(x, weight.flatten(1), conv, shift)
    if small and conv.kernel_size == (1, 1):
        return pointwise(x, weight.flatten(1), shift)
    left, right = conv.margin
    if left != right:
        x = functional.pad(x, (left, right, left, right))
    return functional.conv2d(x, weight, shift, conv.stride, left if left == right else 0, 1, conv.groups)


def rectify(x: Tensor) -> Tensor:
    """Returns x cut to 0 … 6; in place where no gradient needs x."""
    return functional.relu6(x, inplace=not torch.is_grad_enabled())


def pointwise(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """Returns the 1 x 1 convolution of x (n, c, h, w) with weight (o, c), as one matrix product."""
    n, c, h, w = x.shape
    flat = x.transpose(0, 1).reshape(c, n * h * w)
    return torch.addmm(shift.unsqueeze(1), weight, flat).view(-1, n, h, w).transpose(0, 1)


def depthwise(x: Tensor, weight: Tensor, conv: Same, shift: Tensor) -> Tensor:
    """Returns the depthwise convolution of x (n, c, h, w) with weight (c, k * k): one matrix for each channel."""
    n, c, h, w = x.shape
    stride = conv.stride[0]
    places = neighbours(h, w, conv.kernel_size[0], stride, conv.margin[0])  # (k * k, pixels in * out)
    maps = (weight @ places.to(weight.dtype)).view(c, h * w, -1)
    flat = x.transpose(0, 1).reshape(c, n, h * w)
    y = torch.baddbmm(shift.view(c, 1, 1), flat, maps)
    return y.view(c, n, h // stride, w // stride).transpose(0, 1)


@lru_cache(maxsize=64)
def neighbours(h: int, w: int, kernel: int, stride: int, margin: int) -> Tensor:
    """Returns (k * k, h * w * out) zeros and ones: which input pixel each kernel tap of each output pixel reads."""
    rows, columns = h // stride, w // stride
    found = torch.zeros(kernel * kernel, h, w, rows, columns)
    for row, column, i, j in itertools.product(range(rows), range(columns), range(kernel), range(kernel)):
        y, x = row * stride + i - margin, column * stride + j - margin
        if 0 <= y < h and 0 <= x < w:
            found[i * kernel + j, y, x, row, column] = 1
    return found.flatten(1)


def norm(channels: int) -> nn.BatchNorm2d:
    """Returns a batch normalisation with the family's constants."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        if widening != 1:
            self._expand_conv = Same(inputs, wide, 1)
            self._bn0 = norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv = Same(wide, outputs, 1)
        self._bn2 = norm(outputs)
        self._widens = widening != 1
        self._skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = rectify(convolve(x, self._expand_conv, self._bn0)) if self._widens else x
        y = rectify(convolve(y, self._depthwise_conv, self._bn1))
        y = convolve(y, self._project_conv, self._bn2)
        return x + y if self._skips else y


# (repeats, kernel, first stride, widening, inputs, outputs), EfficientNet-Lite0: Tan & Le 2019, arXiv:1905.11946,
# without squeeze-and-excitation, with ReLU6.
LITE0 = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 18 stages (stem, 16 blocks, top), 1,280 features, head `_fc`."""

    head_name = "_fc"
    feature_size = 1280

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._conv_stem = Same(3, 32, 3, 2)
        self._bn0 = norm(32)
        blocks = [
            Block(inputs if first else outputs, outputs, kernel, stride if first else 1, widening)
            for repeats, kernel, stride, widening, inputs, outputs in LITE0
            for first in [True, *[False] * (repeats - 1)]
        ]
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = Same(320, 1280, 1)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, classes)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Returns pixels as the published weights expect them: (x - 127) / 128."""
        if pixels.shape[-1] % 32 or pixels.shape[-2] % 32:
            raise DataError(
                f"images of {tuple(pixels.shape[-2:])} pixels, expected multiples of 32", hint="set image_size = 64"
            )
        return ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)

    def stages(self) -> list[tuple[Stage, Sequence[nn.Module]]]:
        """Returns stem, blocks and top."""
        blocks: list[tuple[Stage, Sequence[nn.Module]]] = [(block, [block]) for block in self._blocks]
        return [(self._stem, [self._conv_stem, self._bn0]), *blocks, (self._top, [self._conv_head, self._bn1])]

    def _stem(self, x: Tensor) -> Tensor:
        return rectify(convolve(x, self._conv_stem, self._bn0))

    def _top(self, x: Tensor) -> Tensor:
        return rectify(convolve(x, self._conv_head, self._bn1)).mean((2, 3))


class Perceptron(nn.Module):
    """A small network of two hidden layers on 16 x 16 pixels, for small problems and quick tests."""

    head_name = "head"
    feature_size = 32

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 16 * 16, 64)
        self.second = nn.Linear(64, 32)
        self.head = nn.Linear(32, classes)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Returns pixels shrunk to 16 x 16, from -1 to 1, as (n, 768)."""
        return functional.adaptive_avg_pool2d(pixels.float() / 127.5 - 1, 16).flatten(1)

    def stages(self) -> list[tuple[Stage, Sequence[nn.Module]]]:
        """Returns the two hidden layers."""
        return [
            (lambda x: torch.relu(self.first(x)), [self.first]),
            (lambda x: torch.relu(self.second(x)), [self.second]),
        ]


class Convolutional(nn.Module):
    """A small network of three convolutions with batch normalisation, 64 features: the family's protocol in little."""

    head_name = "head"
    feature_size = 64

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.convolutions = nn.ModuleList(Same(a, b, 3, 2) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(norm(width) for width in widths[1:])
        self.head = nn.Linear(64, classes)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Returns pixels from -1 to 1. Raises DataError unless both sides are multiples of 8."""
        if pixels.shape[-1] % 8 or pixels.shape[-2] % 8:
            size = tuple(pixels.shape[-2:])
            raise DataError(f"images of {size} pixels, expected multiples of 8", hint="set image_size = 64")
        return pixels.float() / 127.5 - 1

    def stages(self) -> list[tuple[Stage, Sequence[nn.Module]]]:
        """Returns the three convolutions; the last averages over what is left of the picture."""
        layers = list(zip(self.convolutions, self.norms, strict=True))
        return [(partial(self._layer, number), pair) for number, pair in enumerate(layers)]

    def _layer(self, number: int, x: Tensor) -> Tensor:
        conv, scaled = self.convolutions[number], self.norms[number]
        assert isinstance(conv, Same) and isinstance(scaled, nn.BatchNorm2d)  # made so above
        y = rectify(convolve(x, conv, scaled))
        return y.mean((2, 3)) if number == len(self.norms) - 1 else y


# What every architecture offers: `head_name`, `feature_size`, `prepare`, `stages`.
Network = EfficientNetLite0 | Convolutional | Perceptron
ARCHITECTURES: dict[str, Callable[[int], Network]] = {
    "cnn": Convolutional,
    "efficientnet-lite0": EfficientNetLite0,
    "mlp": Perceptron,
}


def build_network(architecture: str, classes: int) -> Network:
    """Returns an untrained network of that name with a head of `classes` outputs.

    Raises:
        RecipeError: an unknown name, listing the known.
    """
    if architecture not in ARCHITECTURES:
        hint = f"known architectures: {', '.join(sorted(ARCHITECTURES))}"
        raise RecipeError(f"unknown architecture '{architecture}'", hint=hint)
    return ARCHITECTURES[architecture](classes)


def head_tensors(network: Network) -> tuple[str, str]:
    """Returns the names of the head's weight and bias in the state dict."""
    return f"{network.head_name}.weight", f"{network.head_name}.bias"
