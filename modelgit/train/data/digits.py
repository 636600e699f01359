"""ColoredMNIST and RotatedMNIST, made from 28 x 28 digits in MNIST's own files.

As in DomainBed (Gulrajani & Lopez-Paz 2021, arXiv:2007.01434, `domainbed/datasets.py`), but for one thing: there the
run's seed shuffles and colours, so that two runs see other domains and averaging them mixes validation into training.
Here the draws are the data set's own, the same in every run.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import DataConfig, seed_hash
from modelgit.train.data.dataset import Dataset, Integers
from modelgit.train.data.rows import MAX_EXAMPLES, Rows, assemble

SIDE = 28
PARTS = ("train", "t10k")
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
COLOURED = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}  # how often the colour is not the label
FLIPPED = 0.25  # how often the label is not what the digit says
ANGLES = (0, 15, 30, 45, 60, 75)  # degrees, counter-clockwise
Pixels = npt.NDArray[np.uint8]


def load_coloured(config: DataConfig) -> Dataset:
    """Returns ColoredMNIST: is the digit below five, by its shape and by a colour that lies in one domain of three.

    Inputs are (n, 2, 28, 28) from 0 to 1; the digit stands in the channel of its colour. A quarter of the labels
    is wrong; colours are the labels as they then stand, but for 10, 20 and 90 % of them.

    Raises:
        DataError: the files are missing or damaged.
    """
    pixels, digits = read_digits(Path(config.path))
    parts = dealt(len(digits), len(COLOURED))
    labels, colours = [], []
    for part, (domain, differ) in zip(parts, COLOURED.items(), strict=True):
        labels.append((digits[part] < 5) ^ (coins("label", domain, len(part)) < FLIPPED))
        colours.append(labels[-1] ^ (coins("colour", domain, len(part)) < differ))
    channels = np.concatenate(colours)[:, None] == np.arange(2)  # (n, 2)
    images = pixels[np.concatenate(parts), None] * channels[:, :, None, None]
    return assemble(rows_of(images, np.concatenate(labels).astype(int), parts, tuple(COLOURED)), config)


def load_rotated(config: DataConfig) -> Dataset:
    """Returns RotatedMNIST: ten digits, turned by another angle in each of six domains; (n, 1, 28, 28) from 0 to 1.

    Raises:
        DataError: the files are missing or damaged.
    """
    pixels, digits = read_digits(Path(config.path))
    parts = dealt(len(digits), len(ANGLES))
    images = np.concatenate([rotated(pixels[part], angle) for part, angle in zip(parts, ANGLES, strict=True)])
    return assemble(rows_of(images[:, None], digits[np.concatenate(parts)], parts, tuple(map(str, ANGLES))), config)


def dealt(count: int, domains: int) -> list[Integers]:
    """Returns each domain's images: all of them shuffled, then dealt like cards."""
    order = np.random.RandomState(seed_hash("mnist")).permutation(count)
    return [order[number::domains] for number in range(domains)]


def coins(what: str, domain: str, count: int) -> npt.NDArray[np.float64]:
    """Returns `count` draws from 0 to 1: of one thing in one domain, whatever else is drawn."""
    return np.random.RandomState(seed_hash("colored-mnist", what, domain)).random_sample(count)


def rows_of(images: Pixels, labels: npt.NDArray[Any], parts: Sequence[Integers], domains: tuple[str, ...]) -> Rows:
    """Returns images as examples from 0 to 1, called by their place in the source."""

    def read(indices: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.divide(images[np.asarray(indices, np.int64)], 255, dtype=np.float32)

    return Rows(
        kind="arrays",
        shape=images.shape[1:],
        labels=[str(label) for label in labels.tolist()],
        domains=[domain for domain, part in zip(domains, parts, strict=True) for _ in part],
        names=[str(index) for part in parts for index in part.tolist()],
        read=read,
        content=lambda index: images[index].tobytes(),
        domain_names=domains,
    )


def rotated(pixels: Pixels, angle: int) -> Pixels:
    """Returns images (n, 28, 28) turned counter-clockwise, bilinear, black outside: torchvision's `rotate` is this."""
    try:
        from PIL import Image as images
    except ImportError as error:
        raise DependencyMissing("rotating images needs Pillow", hint="pip install 'modelgit[vision]'") from error
    out = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        out[row] = np.asarray(images.fromarray(image).rotate(angle, images.Resampling.BILINEAR, fillcolor=0))
    return out


# ------------------------------------------------------------------------------------------------- MNIST's files


def read_digits(path: Path) -> tuple[Pixels, Integers]:
    """Returns all images (n, 28, 28) and their digits (n,): those to train on, then those to test on.

    Raises:
        DataError: a file is missing, damaged, or says another number of images than the one beside it.
    """
    pixels, digits = [], []
    for part in PARTS:
        images, labels = (file_named(path, f"{part}-{name}") for name in (IMAGES, LABELS))
        pixels.append(read_idx(images, 3))
        digits.append(read_idx(labels, 1).astype(np.int64))
        if pixels[-1].shape != (len(digits[-1]), SIDE, SIDE):
            raise DataError(f"{images}: images of shape {pixels[-1].shape}, expected ({len(digits[-1])}, 28, 28)")
        if len(wrong := digits[-1][digits[-1] > 9]):
            raise DataError(f"{labels}: label {wrong[0]}, expected 0 to 9")
    return np.concatenate(pixels), np.concatenate(digits)


def file_named(path: Path, name: str) -> Path:
    """Returns the file of that name, packed or not. Raises DataError for none."""
    for file in (path / name, path / f"{name}.gz"):
        if file.is_file():
            return file
    hint = "expected MNIST's four files, or others in their format, such as Debian's dataset-fashion-mnist"
    raise DataError(f"{path}: no file '{name}' or '{name}.gz'", hint=hint)


def read_idx(path: Path, dimensions: int) -> Pixels:
    """Returns a file's bytes as an array; no more is unpacked than its header announces.

    Format: http://yann.lecun.com/exdb/mnist (two zeros, the type, the number of dimensions, each as a big-endian u32).
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(f"{path}: not an idx file of bytes in {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            if shape[0] > MAX_EXAMPLES or any(side != SIDE for side in shape[1:]):
                raise DataError(f"{path}: shape {shape}, expected at most {MAX_EXAMPLES} images of 28 x 28")
            wanted = int(np.prod(shape, dtype=np.int64))
            data = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(data) != wanted:
        raise DataError(f"{path}: {len(data)} bytes or more after the header, expected {wanted}")
    return np.frombuffer(data, np.uint8).reshape(shape)
