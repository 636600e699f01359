"""EfficientNet-Lite0, by the names of its published checkpoint."""

import torch
from torch import Tensor, nn

from modelgit.train.data.dataset import Kind
from modelgit.train.networks.convolving import Same, convolve, norm, rectify
from modelgit.train.networks.network import Inputs, Stages, Takes, pictures_of, refuse_odd_size


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
    takes: Takes = "numbers"
    carries = False
    example: tuple[int, ...] = (3, 64, 64)
    identity = "efficientnet-lite0"

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

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pixels as the published weights expect them: (x - 127) / 128."""
        x = pictures_of(inputs, kind, "EfficientNet-Lite0")
        refuse_odd_size(x, 32)
        return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)

    def stages(self) -> Stages:
        """Returns stem, blocks and top."""
        blocks: Stages = [(block, [block]) for block in self._blocks]
        return [(self._stem, [self._conv_stem, self._bn0]), *blocks, (self._top, [self._conv_head, self._bn1])]

    def _stem(self, x: Tensor) -> Tensor:
        return rectify(convolve(x, self._conv_stem, self._bn0))

    def _top(self, x: Tensor) -> Tensor:
        return rectify(convolve(x, self._conv_head, self._bn1)).mean((2, 3))
