"""Image data sets in DomainBed's layout, `domain/class/name.png`, read from a folder or straight out of a zip.

Nothing is extracted; names and sizes are checked before anything is decoded, since archives come from other people.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.rows import Rows, assemble, check_amount

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
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
    file: str
    read: Read

    def where(self, path: str) -> str:
        """Returns where the image stands in the data set at `path`."""
        return f"{path}: {self.domain}/{self.label}/{self.file}"


def load_images(config: DataConfig) -> Dataset:
    """Returns the images that `config` names; they are decoded when they are asked for.

    Raises:
        DataError: they are missing, or not in the layout.
    """
    path = Path(config.path)
    items = sorted(items_of(path), key=lambda item: (item.domain, item.label, item.name))
    if not items:
        raise DataError(f"{path}: no images", hint="expected files domain/class/name.png")
    check_amount(len(items), config.path)
    rows = rows_of(items, config.image_size, config.path)
    empty = empty_classes(path, set(rows.labels)) if path.is_dir() else []
    return assemble(replace(rows, notes=tuple(f"{path}: class '{name}' has no images" for name in empty)), config)


def rows_of(items: Sequence[Item], size: int, path: str) -> Rows:
    """Returns the images as examples; their classes and domains by the alphabet."""
    return Rows(
        kind="images",
        shape=(3, size, size),
        labels=[item.label for item in items],
        domains=[item.domain for item in items],
        names=[item.name for item in items],
        read=partial(decoded, items, size, path),
        content=lambda index: items[index].read(),
        classes=tuple(sorted({item.label for item in items})),
        domain_names=tuple(sorted({item.domain for item in items})),
        where=lambda index: items[index].where(path),
    )


def decoded(items: Sequence[Item], size: int, path: str, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Returns the images at `indices` as (n, 3, size, size), RGB on white."""
    chosen = (items[index] for index in indices)
    files = ((item.read(), item.where(path)) for item in chosen)
    return decode_all(files, len(indices), size)


def decode_all(files: Iterable[tuple[bytes, str]], count: int, size: int) -> npt.NDArray[np.uint8]:
    """Returns `count` images from their files' bytes, each with where it stands, as (n, 3, size, size)."""
    out = np.empty((count, 3, size, size), np.uint8)
    for row, (data, where) in enumerate(files):
        out[row] = decode(data, size, where)
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
    found = set[str]()
    for file in path.glob("*/*/*"):
        linked = any(part.is_symlink() for part in (file, file.parent, file.parent.parent))
        if file.suffix.lower() in SUFFIXES and file.is_file() and not linked:
            domain, label, name = file.relative_to(path).parts
            check_name("/".join((domain, label, name)), path)
            found.add(domain)
            yield Item(domain, label, Path(name).stem, name, partial(read_file, file))
    if found:
        check_domains(path, found)


def check_domains(path: Path, found: set[str]) -> None:
    """Raises DataError for a folder that holds folders alone, as a domain does, but no image in them."""
    for folder in sorted(path.iterdir()):
        skipped = folder.name in found or folder.name.startswith((".", "_")) or folder.is_symlink()
        if not skipped and folder.is_dir() and all(inner.is_dir() for inner in folder.iterdir()):
            hint = f"expected files {folder.name}/class/name.png, or no such folder"
            raise DataError(f"{path}: domain '{folder.name}' is empty", hint=hint)


def empty_classes(path: Path, known: set[str]) -> list[str]:
    """Returns the names of folders that stand where classes do, and hold images in no domain."""
    folders = (folder for folder in path.glob("*/*") if folder.is_dir() and not folder.is_symlink())
    names = {folder.name for folder in folders if not folder.name.startswith((".", "_"))}
    return sorted(name for name in names - known if name.isprintable())


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
        yield Item(domain, label, PurePosixPath(name).stem, name, partial(read_entry, archive, entry, path))


def check_amounts(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raises DataError for too many images, too large ones, or two of one name."""
    check_amount(len(entries), str(path))
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
