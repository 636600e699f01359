"""Image data sets in DomainBed's layout, `domain/class/name.png`, read from a folder or straight out of a zip.

Nothing is extracted; names and sizes are checked before anything is decoded, since archives come from other people.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import DataConfig, seed_hash
from modelgit.train.data.dataset import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_IMAGES = 5_000_000
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_TOTAL_BYTES = 64 * 1024**3
MAX_PIXELS = 64_000_000
Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Item:
    """One image: where it stands, and how to read its file."""

    domain: str
    label: str
    name: str
    read: Read


def load_images(config: DataConfig) -> Dataset:
    """Returns the images that `config` names; they are decoded when they are asked for.

    Raises:
        DataError: they are missing, not in the layout, or domains have different classes.
    """
    path = Path(config.path)
    items = sorted(items_of(path), key=lambda item: (item.domain, item.label, item.name))
    if not items:
        raise DataError(f"{path}: no images", hint="expected files domain/class/name.png")
    classes = tuple(sorted({item.label for item in items}))
    domains = tuple(sorted({item.domain for item in items}))
    check_classes(items, classes, domains, path)
    kept = limited(items, config.limit_per_class)
    contents = tuple(blake3(item.read()).digest() for item in kept)
    return Dataset(
        path=str(path),
        kind="images",
        classes=classes,
        domains=domains,
        labels=np.array([classes.index(item.label) for item in kept], np.int64),
        domain_ids=np.array([domains.index(item.domain) for item in kept], np.int64),
        names=tuple(item.name for item in kept),
        digest=digest_of(kept, contents),
        shape=(3, config.image_size, config.image_size),
        read=partial(decoded, kept, config.image_size, str(path)),
        contents=contents,
    )


def decoded(items: Sequence[Item], size: int, path: str, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Returns the images at `indices` as (n, 3, size, size), RGB on white."""
    out = np.empty((len(indices), 3, size, size), np.uint8)
    for row, index in enumerate(indices):
        item = items[index]
        out[row] = decode(item.read(), size, f"{path}: {item.domain}/{item.label}/{item.name}")
    return out


def items_of(path: Path) -> Iterator[Item]:
    """Yields the images of a folder or a zip."""
    if path.is_dir():
        yield from folder_items(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        yield from zip_items(path)
    else:
        raise DataError(
            f"{path}: no such data set", hint="expected a folder or a .zip with files domain/class/name.png"
        )


def folder_items(path: Path) -> Iterator[Item]:
    """Yields the images of a folder; links are not followed."""
    for file in path.glob("*/*/*"):
        linked = any(part.is_symlink() for part in (file, file.parent, file.parent.parent))
        if file.suffix.lower() in SUFFIXES and file.is_file() and not linked:
            domain, label, name = file.relative_to(path).parts
            check_name("/".join((domain, label, name)), path)
            yield Item(domain, label, Path(name).stem, partial(read_file, file))


def check_name(name: str, path: Path) -> None:
    """Raises DataError for a name that is not domain/class/name, or holds what no file name should."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and "\\" not in part and part.isprintable() for part in parts)
    if len(parts) != 3 or not plain:
        raise DataError(f"{path}: image {name[:200]!r}: expected domain/class/name.png")


def read_file(file: Path) -> bytes:
    """Returns the content of a file of sensible size."""
    try:
        size_bytes = file.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise DataError(f"{file}: {size_bytes} bytes, expected at most {MAX_FILE_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def zip_items(path: Path) -> Iterator[Item]:
    """Yields the images of a zip. Raises DataError for names that are paths out of it, or too much of anything."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a zip that can be read: {error}") from error
    entries = [e for e in archive.infolist() if not e.is_dir() and e.filename.lower().endswith(SUFFIXES)]
    check_amounts(entries, path)
    for entry in entries:
        check_name(entry.filename, path)
        domain, label, name = entry.filename.split("/")
        yield Item(domain, label, PurePosixPath(name).stem, partial(read_entry, archive, entry, path))


def check_amounts(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raises DataError for too many images, too large ones, or two of one name."""
    if len(entries) > MAX_IMAGES:
        raise DataError(f"{path}: {len(entries)} images, expected at most {MAX_IMAGES}")
    largest = max(entries, key=lambda entry: entry.file_size, default=None)
    if largest is not None and largest.file_size > MAX_FILE_BYTES:
        name = largest.filename[:200]
        raise DataError(f"{path}: {name!r}: {largest.file_size} bytes, expected at most {MAX_FILE_BYTES}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{path}: {total} bytes unpacked, expected at most {MAX_TOTAL_BYTES}")
    seen: set[str] = set()
    for entry in entries:
        if entry.filename in seen:
            raise DataError(f"{path}: {entry.filename[:200]!r}: more than one file has this name")
        seen.add(entry.filename)


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
    """Returns one file of a zip; never more bytes than its entry announces."""
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{path}: {entry.filename[:200]!r}: cannot be read: {error}") from error


def check_classes(items: Sequence[Item], classes: Sequence[str], domains: Sequence[str], path: Path) -> None:
    """Raises DataError if a domain lacks a class that another has."""
    found = {(item.domain, item.label) for item in items}
    missing = [f"{d}/{c}" for d in domains for c in classes if (d, c) not in found]
    if missing:
        raise DataError(f"{path}: domains have different classes: no images in {', '.join(missing[:5])}")
    if len(classes) < 2:
        raise DataError(f"{path}: one class only ({classes[0]}), expected at least two")


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Returns at most `limit` items of each domain and class, chosen by the hash of their names."""
    if limit is None:
        return list(items)
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.domain, item.label), []).append(item)
    kept = [
        item for group in groups.values() for item in sorted(group, key=lambda i: seed_hash("limit", i.name))[:limit]
    ]
    return sorted(kept, key=lambda item: (item.domain, item.label, item.name))


def digest_of(items: Sequence[Item], contents: Sequence[bytes]) -> str:
    """Returns the BLAKE3 over names and contents, in order."""
    total = blake3()
    for item, content in zip(items, contents, strict=True):
        total.update(f"{item.domain}/{item.label}/{item.name}\n".encode())
        total.update(content)
    return total.hexdigest()


def decode(data: bytes, size: int, where: str) -> npt.NDArray[np.uint8]:
    """Returns one image as (3, size, size), RGB, what is transparent made white."""
    try:
        from PIL import Image as images
        from PIL import UnidentifiedImageError
    except ImportError as error:
        raise DependencyMissing("reading images needs Pillow", hint="pip install 'modelgit[vision]'") from error
    try:
        with images.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where}: {image.width} x {image.height} pixels, expected at most {MAX_PIXELS} in all")
            return fitted(image, size)
    except images.DecompressionBombError as error:
        raise DataError(f"{where}: {error}, expected at most {MAX_PIXELS} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: not an image: {error}") from error


def fitted(image: "Image", size: int) -> npt.NDArray[np.uint8]:
    """Returns the image over white, resized to `size` x `size`."""
    from PIL import Image as images

    rgba = image.convert("RGBA")
    over_white = images.alpha_composite(images.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if over_white.size != (size, size):
        over_white = over_white.resize((size, size), images.Resampling.BILINEAR)
    return np.asarray(over_white).transpose(2, 0, 1)
