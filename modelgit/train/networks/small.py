"""Small networks for small problems."""

import itertools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import DataError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.convolving import Same, convolve, norm, rectify
from modelgit.train.networks.network import Inputs, Stages, Takes, numbers_of, pictures_of, refuse_odd_size


class Perceptron(nn.Module):
    """A small network of two hidden layers for small problems and quick tests.

    It reads pictures as 16 x 16 pixels, or, made for so many `inputs`, arrays of that many numbers as they are.
    """

    head_name = "head"
    feature_size = 32
    takes: Takes = "numbers"
    carries = False
    identity = "mlp"

    def __init__(self, classes: int, inputs: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(inputs or 3 * 16 * 16, 64)
        self.second = nn.Linear(64, 32)
        self.head = nn.Linear(32, classes)
        self._inputs = inputs
        self.example: tuple[int, ...] = (inputs,) if inputs else (3, 64, 64)

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pixels shrunk to 16 x 16, from -1 to 1, as (n, 768); arrays as they are, bytes from 0 to 1."""
        if not self._inputs:
            return functional.adaptive_avg_pool2d(pictures_of(inputs, kind, "mlp") / 127.5 - 1, 16).flatten(1)
        x = numbers_of(inputs, "mlp").flatten(1)
        if x.shape[1] != self._inputs:
            hint = f"architecture = 'mlp:{x.shape[1]}'"
            raise DataError(f"an mlp of {self._inputs} inputs, got arrays of {x.shape[1]} numbers", hint=hint)
        return x.float() if x.is_floating_point() and kind == "arrays" else x.float() / 255

    def stages(self) -> Stages:
        """Returns the two hidden layers."""
        return [
            (lambda x: torch.relu(self.first(x)), [self.first]),
            (lambda x: torch.relu(self.second(x)), [self.second]),
        ]


class Convolutional(nn.Module):
    """A small network of three convolutions with batch normalisation, 64 features: the family's protocol in little."""

    head_name = "head"
    feature_size = 64
    takes: Takes = "numbers"
    carries = False
    identity = "cnn"

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64)
        self.convolutions = nn.ModuleList(Same(a, b, 3, 2) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(norm(width) for width in widths[1:])
        self.head = nn.Linear(64, classes)
        self._channels = channels
        self.example: tuple[int, ...] = (channels, 64, 64)

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pixels from -1 to 1. Raises DataError unless both sides are multiples of 8."""
        x = pictures_of(inputs, kind, "cnn", self._channels)
        refuse_odd_size(x, 8)
        return x / 127.5 - 1

    def stages(self) -> Stages:
        """Returns the three convolutions; the last averages over what is left of the picture."""
        layers = list(zip(self.convolutions, self.norms, strict=True))
        return [(partial(self._layer, number), pair) for number, pair in enumerate(layers)]

    def _layer(self, number: int, x: Tensor) -> Tensor:
        conv, scaled = self.convolutions[number], self.norms[number]
        assert isinstance(conv, Same) and isinstance(scaled, nn.BatchNorm2d)  # made so above
        y = rectify(convolve(x, conv, scaled))
        return y.mean((2, 3)) if number == len(self.norms) - 1 else y


class MnistCnn(nn.Module):
    """DomainBed's network for 28 x 28 digits: four convolutions with group normalisation, 128 features.

    No statistics are kept, so averaging is safe. Source: Gulrajani & Lopez-Paz 2021, arXiv:2007.01434,
    `domainbed/networks.py`, whose parameter names the featurizer has.
    """

    head_name = "classifier"
    feature_size = 128
    takes: Takes = "numbers"
    carries = False
    identity = "mnist-cnn"

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.conv4 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.bn0 = nn.GroupNorm(8, 64)
        self.bn1 = nn.GroupNorm(8, 128)
        self.bn2 = nn.GroupNorm(8, 128)
        self.bn3 = nn.GroupNorm(8, 128)
        self.classifier = nn.Linear(128, classes)
        self._channels = channels
        self.example: tuple[int, ...] = (channels, 28, 28)

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pixels from 0 to 1; arrays of floats as they are."""
        x = numbers_of(inputs, "mnist-cnn")
        found = pictures_of(x, kind, "mnist-cnn", self._channels)
        return x.float() if kind == "arrays" and x.is_floating_point() else found / 255

    def stages(self) -> Stages:
        """Returns the four convolutions; the last averages over what is left of the picture."""
        pairs = [(self.conv1, self.bn0), (self.conv2, self.bn1), (self.conv3, self.bn2), (self.conv4, self.bn3)]
        return [(partial(self._layer, number), pair) for number, pair in enumerate(pairs)]

    def _layer(self, number: int, x: Tensor) -> Tensor:
        conv, scaled = self.get_submodule(f"conv{number + 1}"), self.get_submodule(f"bn{number}")
        y: Tensor = scaled(torch.relu(conv(x)))
        return y.mean((2, 3)) if number == 3 else y
