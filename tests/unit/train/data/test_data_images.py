"""Data sets: the layout, folder and zip alike, and everything a hostile or careless archive may hold."""

import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import DataConfig
from modelgit.train.data import images, rows
from modelgit.train.data.dataset import arrays_of
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import split

MakeZip = Callable[..., Path]


def config(path: Path, held_out: str | None = None, limit: int | None = None, size: int = 32) -> DataConfig:
    return DataConfig(str(path), held_out=held_out, limit_per_class=limit, image_size=size)


def test_domains_classes_and_pixels(make_zip: MakeZip) -> None:
    found = load_dataset(config(make_zip(count=3)))
    assert found.domains == ("ink", "leaf", "rose")
    assert found.classes == ("lying", "standing")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1] * 3
    assert found.domain_ids.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found.names[:3] == ("lying-0", "lying-1", "lying-2")
    pixels = arrays_of(found, [0, 17])
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == np.uint8
    assert sorted(np.unique(pixels[1, 0]).tolist()) == [220, 255]  # rose on white, red channel


def test_a_folder_is_the_same_data_set_as_a_zip(make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip(count=2)
    zipfile.ZipFile(path).extractall(tmp_path / "out")
    packed, unpacked = load_dataset(config(path)), load_dataset(config(tmp_path / "out"))
    assert packed.digest == unpacked.digest
    assert np.array_equal(packed.inputs(range(12)), unpacked.inputs(range(12)))


def test_the_digest_follows_contents_and_names_not_the_order_in_the_zip(make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip(count=2)
    source = zipfile.ZipFile(path)
    entries = {name: source.read(name) for name in source.namelist()}
    digests = []
    first, second = sorted(entries)[:2]
    swapped = {**entries, first: entries[second], second: entries[first]}
    for number, contents in enumerate((entries, dict(reversed(entries.items())), swapped)):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        digests.append(load_dataset(config(tmp_path / f"{number}.zip")).digest)
    assert digests[0] == digests[1] == load_dataset(config(path)).digest
    assert digests[2] != digests[0]


def test_a_limit_keeps_the_same_names_in_every_domain(make_zip: MakeZip) -> None:
    found = load_dataset(config(make_zip(count=10), limit=4))
    names = [{n for n, d in zip(found.names, found.domain_ids, strict=True) if d == i} for i in range(3)]
    assert len(found.names) == 24
    assert names[0] == names[1] == names[2]


def test_what_is_transparent_becomes_white_and_sizes_fit(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        Image.new("RGBA", (50, 30), (255, 0, 0, 0)).save(tmp_path / "d" / label / "x.png")
    pixels = arrays_of(load_dataset(config(tmp_path)), [0])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.min() == 255


@pytest.mark.parametrize(
    "name",
    ["a/b.png", "a/b/c/d.png", "../b/c.png", "a/../c.png", "/b/c.png", "a//c.png", "a/b\\c/d.png", "a/b/c\n.png"],
)
def test_names_that_are_no_domain_class_name_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(DataError, match=r"expected domain/class/name\.png"):
        load_dataset(config(tmp_path / "bad.zip"))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("d/a/x.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("d/a/x.png", b"2")
    with pytest.raises(DataError, match="more than one file has this name"):
        load_dataset(config(tmp_path / "bad.zip"))


def test_too_many_and_too_large_are_refused(make_zip: MakeZip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(count=2)
    limits = {
        "MAX_EXAMPLES": (rows, "12 examples, expected at most 5"),
        "MAX_FILE_BYTES": (images, "bytes, expected at most 5"),
        "MAX_TOTAL_BYTES": (images, "unpacked"),
    }
    for limit, (module, said) in limits.items():
        with monkeypatch.context() as patch, pytest.raises(DataError, match=said):
            patch.setattr(module, limit, 5)
            load_dataset(config(path))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # says 60,000 x 60,000 and holds nothing
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "x.png").write_bytes(png)
    with pytest.raises(DataError, match=r"d/a/x\.png: .*pixels.*64000000"):
        load_dataset(config(tmp_path)).inputs([0])


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "x.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"d/b/x\.png: not an image"):
        load_dataset(config(tmp_path)).inputs([1])


def test_a_damaged_zip_is_named(make_zip: MakeZip) -> None:
    path = make_zip(count=2)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)  # inside the first picture
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bars\.zip: .*ink/lying/lying-0\.png.*cannot be read"):
        load_dataset(config(path))


def test_links_in_a_folder_are_not_followed(make_zip: MakeZip, tmp_path: Path) -> None:
    zipfile.ZipFile(make_zip(count=2)).extractall(tmp_path / "out")
    before = load_dataset(config(tmp_path / "out")).digest
    (tmp_path / "out" / "link").symlink_to(tmp_path / "out" / "ink")
    (tmp_path / "out" / "ink" / "lying" / "z.png").symlink_to(tmp_path / "out" / "ink" / "standing" / "standing-0.png")
    assert load_dataset(config(tmp_path / "out")).digest == before


def test_missing_empty_and_unknown_are_told_apart(make_zip: MakeZip, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data set"):
        load_dataset(config(tmp_path / "absent.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_dataset(config(tmp_path / "empty"))
    with pytest.raises(DataError, match="no domain is called 'inc'") as caught:
        load_dataset(config(make_zip(count=1), held_out="inc"))
    assert caught.value.hint == "domains: ink, leaf, rose"


def test_a_class_that_a_domain_lacks_is_named(make_zip: MakeZip, tmp_path: Path) -> None:
    zipfile.ZipFile(make_zip(count=1)).extractall(tmp_path / "out")
    (tmp_path / "out" / "leaf" / "standing" / "standing-0.png").unlink()
    asked = config(tmp_path / "out")
    with pytest.raises(DataError, match="no examples in leaf/standing"):
        split(load_dataset(asked), asked)


def test_an_image_of_no_class_is_named_with_its_file(make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ink/lyin/odd.jpeg", b"unread")
    with pytest.raises(DataError, match=r"ink/lyin/odd\.jpeg: label 'lyin' is none of the classes") as caught:
        load_dataset(replace(config(path), classes=("lying", "standing")))
    assert caught.value.hint == "classes: lying, standing"


def test_a_folder_of_a_class_without_images_is_noted(make_zip: MakeZip, tmp_path: Path) -> None:
    with zipfile.ZipFile(make_zip()) as archive:
        archive.extractall(tmp_path / "folder")
    (tmp_path / "folder" / "ink" / "falling").mkdir()
    (tmp_path / "folder" / "ink" / ".cache").mkdir()
    found = load_dataset(config(tmp_path / "folder"))
    assert (found.classes, found.notes) == (
        ("lying", "standing"),
        (f"{tmp_path / 'folder'}: class 'falling' has no images",),
    )


def test_without_pillow_the_package_to_install_is_named(make_zip: MakeZip, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_dataset(config(make_zip(count=1)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DependencyMissing) as caught:
        found.inputs([0])
    assert caught.value.hint == "pip install 'modelgit[vision]'"
