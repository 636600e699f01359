"""The archives that ship: what README.md and SHA256SUMS say of them holds."""

import hashlib
import io
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parents[2] / "examples/data"
AUXILIARY = ("icons", "clipart", "fashion")


def names(archive: str) -> list[tuple[str, str, str]]:
    with zipfile.ZipFile(DATA / f"{archive}.zip") as opened:
        rows = [tuple(name.split("/")) for name in opened.namelist()]
    assert all(len(row) == 3 and row[2].endswith(".png") for row in rows)
    assert rows == sorted(rows)
    return [(domain, label, name) for domain, label, name in rows]


def pixel_hashes(archive: str) -> set[bytes]:
    with zipfile.ZipFile(DATA / f"{archive}.zip") as opened:
        images = (Image.open(io.BytesIO(opened.read(name))).convert("RGB") for name in opened.namelist())
        return {hashlib.sha256(np.asarray(image).tobytes()).digest() for image in images}


def test_archives_are_the_ones_summed_up_and_small_enough() -> None:
    lines = [line.split("  ") for line in (DATA / "SHA256SUMS").read_text().splitlines()]
    rows = {name: digest for digest, name in lines}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA.glob("*.zip")}
    assert found == rows
    assert sum(path.stat().st_size for path in DATA.glob("*.zip")) <= 25_000_000


def test_every_emoji_is_drawn_by_all_four_vendors() -> None:
    found = names("emojidg")
    by_domain: dict[str, set[tuple[str, str]]] = {}
    for domain, label, name in found:
        by_domain.setdefault(domain, set()).add((label, name))
    assert set(by_domain) == {"noto", "twemoji", "openmoji", "fluent"}
    assert all(emoji == by_domain["noto"] for emoji in by_domain.values())
    assert len(by_domain["noto"]) == 780
    labels = {"animal", "face", "person", "hand", "food", "plant", "building", "vehicle", "clothing", "sky"}
    assert {label for label, _ in by_domain["noto"]} == labels


def test_auxiliary_sets_have_one_domain_and_the_classes_the_readme_counts() -> None:
    counts = {archive: (len({r[0] for r in rows}), len({r[1] for r in rows}), len(rows)) for archive, rows in
              ((archive, names(archive)) for archive in AUXILIARY)}  # fmt: skip
    assert counts == {"icons": (1, 24, 2949), "clipart": (1, 13, 1601), "fashion": (1, 10, 3000)}


def test_no_auxiliary_image_is_an_emoji() -> None:
    target = pixel_hashes("emojidg")
    assert all(not target & pixel_hashes(archive) for archive in AUXILIARY)


def test_fortunes_are_told_apart_by_the_largest_files(tmp_path: Path) -> None:
    spec = spec_from_file_location("texts", DATA / "texts.py")
    assert spec is not None and spec.loader is not None
    texts = module_from_spec(spec)
    spec.loader.exec_module(texts)
    folder = tmp_path / "fortunes/usr/share/games/fortunes"
    folder.mkdir(parents=True)
    for number in range(28):
        (folder / f"f{number:02}.dat").touch()
        sayings = [f"saying {n} of\n\t{number}" for n in range(number)]
        (folder / f"f{number:02}").write_text("\n%\n".join([*sayings, "the same", "the same", ""]))
    rows = list(texts.fortunes(tmp_path))
    assert {row[1] for row in rows} == {f"f{number:02}" for number in range(2, 28)}
    assert ("saying 3 of 9", "f09", "fortunes", "f09-3") in rows
    assert len(rows) == sum(range(2, 28)) + 1 and len({row[0] for row in rows}) == len(rows)
