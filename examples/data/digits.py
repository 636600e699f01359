"""Writes scikit-learn's 1,797 digits as MNIST's four files, 8 x 8 tripled and framed to 28 x 28: for tests and trials.

python digits.py FOLDER
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

TRAINED = 1500


def write(folder: Path) -> None:
    """Writes the first 1,500 digits as those to train on, the others as those to test on."""
    found = load_digits()
    pixels = (found.images * 15).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    framed = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    labels = found.target.astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(0, TRAINED)), ("t10k", slice(TRAINED, None))):
        count = len(labels[rows])
        images = struct.pack(">4I", 0x0803, count, 28, 28) + framed[rows].tobytes()
        answers = struct.pack(">2I", 0x0801, count) + labels[rows].tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(answers, mtime=0))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
