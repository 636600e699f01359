"""Convolutions with batch normalisation, as EfficientNets have them, fast on small pictures too.

Batch normalisation keeps its running statistics as they came unless it is told otherwise (the paper's protocol): only
scale and shift are trained, and averaging weights stays well defined.
"""

import itertools
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL = 64  # pixels up to which convolutions are done as matrix products


class Same(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME pads even sizes: more on the right at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        total = kernel - 1 if stride == 1 else kernel - 2
        self.margin = (total // 2, total - total // 2)


def convolve(x: Tensor, conv: Same, norm: nn.BatchNorm2d) -> Tensor:
    """Returns norm(conv(x)), (n, inputs, h, w) -> (n, outputs, h / stride, w / stride).

    Where the statistics are fixed the norm scales the weights and adds a shift: one linear map, gradients to all of it.
    On the CPU small pictures go through matrix products: the library's gradient of a depthwise convolution on 4 x 4
    pixels is ten times slower. Those products want channels outermost in memory, and elementwise steps keep them so.
    """
    assert norm.running_mean is not None and norm.running_var is not None  # batch norms are made with statistics
    if norm.training:  # the batch's own statistics
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
