"""ResNet-18 and ResNet-50, by the names of torchvision's published checkpoints (He et al. 2016, arXiv:1512.03385)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.train.data.dataset import Kind
from modelgit.train.networks.network import Inputs, Stages, Takes, pictures_of

# ImageNet's mean and standard deviation of each channel, of pixels from 0 to 1
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = (64, 128, 256, 512)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution without bias that keeps the picture's size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Returns what brings the input of a block to the shape of its output, None where it has it."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """Two convolutions and the way around them."""

    widening = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, width, h / stride, w / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Narrow, filter, widen four times; the stride is the filter's, as in torchvision (v1.5)."""

    widening = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, 4 * width, h / stride, w / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem, four layers of blocks and the head `fc`; each block is a stage."""

    head_name = "fc"
    takes: Takes = "numbers"
    carries = False
    example: tuple[int, ...] = (3, 64, 64)

    def __init__(self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), 1):
            blocks = []
            for place in range(depth):
                blocks.append(block(inputs, width, 2 if place == 0 and number > 1 else 1))
                inputs = width * block.widening
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.feature_size = inputs
        self.identity = f"{block.__name__} {depths}"
        self.fc = nn.Linear(inputs, classes)

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pixels as the published weights expect them: less ImageNet's mean, over its spread."""
        x = pictures_of(inputs, kind, "ResNet") / 255
        mean, spread = (torch.tensor(row, device=x.device).view(3, 1, 1) for row in (MEAN, SPREAD))
        return ((x - mean) / spread).contiguous(memory_format=torch.channels_last)

    def stages(self) -> Stages:
        """Returns the stem, then the blocks; the last averages over what is left of the picture."""
        blocks = [module for n in range(1, 5) for module in self.get_submodule(f"layer{n}").children()]
        *others, last = blocks
        first: Stages = [(self._stem, [self.conv1, self.bn1])]
        return [*first, *((block, [block]) for block in others), (lambda x: last(x).mean((2, 3)), [last])]

    def _stem(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)


def resnet18(classes: int) -> ResNet:
    """Returns an untrained ResNet-18: 512 features."""
    return ResNet(Basic, (2, 2, 2, 2), classes)


def resnet50(classes: int) -> ResNet:
    """Returns an untrained ResNet-50: 2,048 features."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
