"""Pictures as a version of a model of the library reads them: as its preprocessor_config.json says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelgit.errors import DataError, FormatError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.encoders.texts import Table, table_in
from modelgit.train.networks.network import Inputs, pictures_of

FILE = "preprocessor_config.json"
USUAL = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # of ImageNet
SIDE = 64  # where nothing says how large pictures are


@dataclass(frozen=True, slots=True)
class Looking:
    """How pictures are read: channels, the side that the model was made for, and per channel x * scale + offset."""

    kind: str
    channels: int
    side: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def example(self, count: int) -> Tensor:
        """Returns empty pictures of the size that the model was made for."""
        return torch.zeros(count, self.channels, self.side, self.side)

    def pixels(self, inputs: Inputs, kind: Kind, *, sized: bool) -> Tensor:
        """Returns pictures as the model takes them. Raises DataError: no pictures, or `sized`, and of another size."""
        x = pictures_of(inputs, kind, f"network of transformers ({self.kind})", self.channels)
        if sized and tuple(x.shape[-2:]) != (self.side, self.side):
            size, wanted = "x".join(map(str, x.shape[-2:])), f"{self.side}x{self.side}"
            what = f"pictures of {size} pixels, and this network ({self.kind}) takes {wanted}"
            raise DataError(what, hint=f"set image_size = {self.side}")
        scale, offset = (torch.tensor(row)[:, None, None] for row in (self.scale, self.offset))
        return (x * scale + offset).contiguous(memory_format=torch.channels_last)


def looking(files: Mapping[str, bytes], kind: str, config: Any) -> Looking:
    """Returns how the pictures of a version are read.

    Without a preprocessor_config.json they are numbers from 0 to 1, less ImageNet's mean, over its deviation.

    Raises:
        FormatError: means and deviations that are not numbers, one a channel.
    """
    said = table_in(files, FILE)
    channels = getattr(config, "num_channels", 3)
    channels = channels if isinstance(channels, int) and channels > 0 else 3
    factor = number(said.get("rescale_factor"), 1 / 255) if said.get("do_rescale", True) else 1.0
    mean, spread = [0.0] * channels, [1.0] * channels
    if said.get("do_normalize", True):
        mean, spread = (rows_of(said, key, channels) for key in ("image_mean", "image_std"))
    if not all(s > 0 for s in spread):
        raise FormatError(f"{FILE}: image_std is {spread}, expected numbers above 0")
    scale = tuple(factor / s for s in spread)
    side = side_of(getattr(config, "image_size", None)) or side_of(said.get("crop_size")) or side_of(said.get("size"))
    return Looking(kind, channels, side or SIDE, scale, tuple(-m / s for m, s in zip(mean, spread, strict=True)))


def rows_of(said: Table, key: str, channels: int) -> list[float]:
    """Returns a number for each channel. Raises FormatError."""
    value = said.get(key)
    if value is None:
        usual = USUAL[key]
        return list(usual) if channels == len(usual) else [sum(usual) / len(usual)] * channels
    row = value if isinstance(value, list) else [value] * channels
    if len(row) != channels or not all(type(v) in (int, float) and abs(v) < 1e6 for v in row):
        raise FormatError(f"{FILE}: {key} is {str(value)[:60]}, expected {channels} numbers, one a channel")
    return [float(v) for v in row]


def number(value: object, usual: float) -> float:
    """Returns a number that is said, else the usual."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1e6 else usual


def side_of(size: object) -> int:
    """Returns the side of square pictures, 0 for none: of 224, [224, 224], {"height": 224, "width": 224}."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge")
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else 0
    return side if isinstance(side, int) and 0 < side <= 4096 else 0
