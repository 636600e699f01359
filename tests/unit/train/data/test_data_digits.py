"""ColoredMNIST and RotatedMNIST from scikit-learn's digits in MNIST's format: the protocol counted, digests frozen."""

import gzip
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelgit.errors import DataError
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset, arrays_of
from modelgit.train.data.digits import read_digits
from modelgit.train.data.loading import load_dataset

COUNT = 1797


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of MNIST's four files, of 8 x 8 digits tripled and framed."""
    path = tmp_path_factory.mktemp("digits")
    runpy.run_path(str(Path(__file__).parents[4] / "examples/data/digits.py"))["write"](path)
    return path


@pytest.fixture(scope="module")
def coloured(folder: Path) -> Dataset:
    return load_dataset(DataConfig(str(folder), kind="colored-mnist"))


@pytest.fixture(scope="module")
def rotated(folder: Path) -> Dataset:
    return load_dataset(DataConfig(str(folder), kind="rotated-mnist"))


def test_every_image_is_in_one_domain_of_coloured_digits(coloured: Dataset) -> None:
    assert (coloured.kind, coloured.shape) == ("arrays", (2, 28, 28))
    assert coloured.classes == ("0", "1") and coloured.domains == ("+90%", "+80%", "-90%")
    assert np.bincount(coloured.domain_ids).tolist() == [599, 599, 599]
    assert sorted(map(int, coloured.names)) == list(range(COUNT))


def test_a_digit_stands_in_the_channel_of_its_colour_as_it_was(coloured: Dataset, folder: Path) -> None:
    pixels, _ = read_digits(folder)
    x = arrays_of(coloured, range(COUNT))
    colours = x[:, 1].any((1, 2)).astype(int)
    assert x.dtype == np.float32 and x.max() <= 1
    for i in range(0, COUNT, 50):
        assert np.array_equal(x[i, colours[i]], pixels[int(coloured.names[i])] / np.float32(255))
        assert not x[i, 1 - colours[i]].any()


def test_labels_and_colours_differ_as_often_as_they_should(coloured: Dataset, folder: Path) -> None:
    _, digits = read_digits(folder)
    small = digits[[int(name) for name in coloured.names]] < 5
    assert abs(np.mean(small != coloured.labels) - 0.25) < 0.03
    colours = arrays_of(coloured, range(COUNT))[:, 1].max((1, 2)) > 0
    wrong = np.not_equal(colours, coloured.labels).astype(float)
    differ = [wrong[coloured.domain_ids == number].mean() for number in range(3)]
    assert np.allclose(differ, [0.1, 0.2, 0.9], atol=0.035)
    flipped = np.flatnonzero(np.not_equal(small, coloured.labels) & (coloured.domain_ids == 0))
    assert np.mean(colours[flipped] == coloured.labels[flipped]) > 0.8  # colours follow the label as it stands


def test_digits_are_turned_counter_clockwise_by_their_domain(rotated: Dataset, folder: Path) -> None:
    assert (rotated.kind, rotated.shape) == ("arrays", (1, 28, 28))
    assert rotated.classes == tuple("0123456789") and rotated.domains == ("0", "15", "30", "45", "60", "75")
    assert np.bincount(rotated.domain_ids).tolist() == [300, 300, 300, 299, 299, 299]
    pixels, digits = read_digits(folder)
    source = [int(name) for name in rotated.names]
    assert sorted(source) == list(range(COUNT)) and rotated.labels.tolist() == digits[source].tolist()
    assert np.array_equal(arrays_of(rotated, range(300))[:, 0], pixels[source[:300]] / np.float32(255))
    corner = np.zeros((28, 28), np.uint8)
    corner[2:8, 2:8] = 255  # above, on the left: turned by 75 degrees it is below
    turned = np.asarray(Image.fromarray(corner).rotate(75, Image.Resampling.BILINEAR))
    assert turned[14:].sum() > 20 * turned[:14].sum()
    last = Image.fromarray(pixels[source[-1]]).rotate(75, Image.Resampling.BILINEAR)
    assert np.array_equal(arrays_of(rotated, [COUNT - 1])[0, 0], np.asarray(last) / np.float32(255))


def test_the_sets_are_the_same_for_ever(coloured: Dataset, rotated: Dataset) -> None:
    assert coloured.digest == "88db7835a763997d92ae6d5e0d2cd6ae2040d6b11178eef4fbf2cfd3cb7cfd0d"
    assert rotated.digest == "8b6569d9fd947c4322d21accedf44b2f548b47053cc2c65c9578d0ee0ca8d078"


def test_a_limit_and_a_held_out_domain(folder: Path) -> None:
    found = load_dataset(DataConfig(str(folder), kind="rotated-mnist", held_out="75", limit_per_class=3))
    assert np.bincount(found.domain_ids * 10 + found.labels).tolist() == [3] * 60
    with pytest.raises(DataError, match="no domain is called '90'"):
        load_dataset(DataConfig(str(folder), kind="rotated-mnist", held_out="90"))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (struct.pack(">4I", 0x0803, 4_000_000_000, 28, 28), r"shape \(4000000000, 28, 28\), expected at most"),
        (struct.pack(">4I", 0x0803, 8, 32, 32), "expected at most .* images of 28 x 28"),
        (struct.pack(">4I", 0x0D03, 8, 28, 28), "not an idx file of bytes in 3 dimensions"),
        (struct.pack(">4I", 0x0803, 8, 28, 28), r"6273 bytes or more after the header, expected 6272"),
        (struct.pack(">4I", 0x0803, 9, 28, 28), r"bytes or more after the header, expected 7056"),
        (b"", "not an idx file"),
    ],
)
def test_files_that_lie_are_refused(head: bytes, said: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    body = bytes(784 * 8 + 5) if head else b""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + body))
    with pytest.raises(DataError, match=said):
        load_dataset(DataConfig(str(tmp_path), kind="rotated-mnist"))


def test_missing_damaged_and_unequal_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file 'train-images-idx3-ubyte' or"):
        load_dataset(DataConfig(str(tmp_path), kind="colored-mnist"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 0x0801, 2) + bytes(2))
    with pytest.raises(DataError, match=r"images of shape \(297, 28, 28\), expected \(2, 28, 28\)"):
        load_dataset(DataConfig(str(tmp_path), kind="colored-mnist"))
    labels.write_bytes(struct.pack(">2I", 0x0801, 297) + bytes([11] * 297))
    with pytest.raises(DataError, match="label 11, expected 0 to 9"):
        load_dataset(DataConfig(str(tmp_path), kind="colored-mnist"))
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_dataset(DataConfig(str(tmp_path), kind="colored-mnist"))
