"""Small archives of drawn pictures: squares and bars, in the colours of two or three made-up vendors."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from modelgit.train.config import seed_hash

COLOURS = {"ink": (20, 20, 20), "leaf": (30, 160, 40), "rose": (220, 40, 90)}
SIZE = 32
MakeZip = Callable[..., Path]


def drawn(label: str, domain: str, name: str) -> bytes:
    """Returns a PNG: a bar that stands or lies, somewhere, in the vendor's colour."""
    draws = np.random.RandomState(seed_hash(label, domain, name))
    place = int(draws.randint(6, 22))
    pixels = np.full((SIZE, SIZE, 3), 255, np.uint8)
    if label == "lying":
        pixels[place : place + 5, 3:29] = COLOURS[domain]
    else:
        pixels[3:29, place : place + 5] = COLOURS[domain]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def zip_maker(folder: Path) -> MakeZip:
    """Returns a function that writes a zip of `count` names for each class in every domain."""

    def make(name: str = "bars.zip", count: int = 20, domains: tuple[str, ...] = ("ink", "leaf", "rose")) -> Path:
        path = folder / name
        with zipfile.ZipFile(path, "w") as archive:
            for domain in domains:
                for label in ("lying", "standing"):
                    for number in range(count):
                        thing = f"{label}-{number}"
                        archive.writestr(f"{domain}/{label}/{thing}.png", drawn(label, domain, thing))
        return path

    return make
