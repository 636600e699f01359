"""What the evidence needs beside what the repository holds: made once, from published packages."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples/data"
SIDE = 28
Pixels = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
KINDS = {"ankle-boot": "shoe", "sandal": "shoe", "sneaker": "shoe", "bag": "bag"}  # all others: garment


def make_images(out: Path, sources: Path) -> None:
    """Makes the archives that are not shipped: two more auxiliary and test sets of drawings."""
    wanted = [name for name in ("styles", "stamps") if not (out / f"{name}.zip").exists()]
    if wanted:
        only = [word for name in wanted for word in ("--only", name)]
        run(EXAMPLES / "prepare.py", "--fetch", str(sources), *only, "--out", str(out))


def make_texts(folder: Path) -> None:
    """Makes the tables of sentences and of auxiliary texts."""
    if not (folder / "spam.csv").exists():  # the last to be written
        run(EXAMPLES / "texts.py", "--fetch", str(folder))


def make_digits(folder: Path) -> None:
    """Writes scikit-learn's digits as MNIST's files."""
    if not (folder / "t10k-labels-idx1-ubyte.gz").exists():
        run(EXAMPLES / "digits.py", str(folder))


def run(program: Path, *words: str) -> None:
    """Runs one of the programs that make data."""
    subprocess.run([sys.executable, str(program), *words], check=True)


def make_clothes(folder: Path) -> None:
    """Writes tasks on Fashion-MNIST's pictures as arrays, in one channel and in either of two."""
    if (folder / "2/kinds.npz").exists():
        return
    pixels, labels, classes = clothes(EXAMPLES / "fashion.zip")
    rng = np.random.default_rng(0)
    tasks = {
        "fashion": (pixels, labels, classes),
        "turns": turned(pixels, rng),
        "sides": mirrored(pixels, rng),
        "halves": halved(pixels, rng),
        "kinds": kinds(pixels, labels, classes),
    }
    for channels in (1, 2):
        for name, (x, y, words) in tasks.items():
            write(folder / f"{channels}/{name}.npz", coloured(x, channels, rng), y, words)


def clothes(archive: Path) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Returns the demo's pictures (n, 28, 28), light on black, from 0 to 1, with their classes."""
    pixels, words = [], []
    with zipfile.ZipFile(archive) as pack:
        for name in sorted(name for name in pack.namelist() if name.endswith(".png")):
            picture = Image.open(BytesIO(pack.read(name))).convert("L").resize((SIDE, SIDE))
            pixels.append(1 - np.asarray(picture, np.float32) / 255)
            words.append(name.split("/")[-2])
    classes = tuple(sorted(set(words)))
    return np.stack(pixels), np.array([classes.index(word) for word in words]), classes


def turned(x: Pixels, rng: np.random.Generator) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Returns the task of telling by how many right angles a picture was turned."""
    quarters = rng.integers(0, 4, len(x))
    return np.stack([np.rot90(one, k) for one, k in zip(x, quarters, strict=True)]), quarters, ("0", "90", "180", "270")


def mirrored(x: Pixels, rng: np.random.Generator) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Returns the task of telling whether a picture was turned upside down."""
    over = rng.integers(0, 2, len(x))
    return np.where(over[:, None, None] == 1, x[:, ::-1], x), over, ("up", "down")


def halved(x: Pixels, rng: np.random.Generator) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Returns the task of telling which quarter of a picture is missing."""
    which, found = rng.integers(0, 4, len(x)), x.copy()
    for one, quarter in zip(found, which, strict=True):
        top, left = SIDE // 2 * (quarter // 2), SIDE // 2 * (quarter % 2)
        one[top : top + SIDE // 2, left : left + SIDE // 2] = 0
    return found, which, ("top left", "top right", "bottom left", "bottom right")


def kinds(x: Pixels, labels: Labels, classes: tuple[str, ...]) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Returns the task of telling shoes, bags and garments."""
    words = tuple(sorted({*KINDS.values(), "garment"}))
    return x, np.array([words.index(KINDS.get(classes[label], "garment")) for label in labels]), words


def coloured(x: Pixels, channels: int, rng: np.random.Generator) -> Pixels:
    """Returns pictures (n, channels, 28, 28), each in one channel."""
    channel = rng.integers(0, channels, len(x))
    return np.asarray(x[:, None] * (channel[:, None] == np.arange(channels))[:, :, None, None], np.float32)


def write(path: Path, x: Pixels, y: Labels, classes: tuple[str, ...]) -> None:
    """Writes one task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=x, y=y, classes=np.array(classes))
