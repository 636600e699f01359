"""Styles that no run has seen: asked of every strategy, on whole things kept for testing."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.evidence.measuring import tested_on as asked_about
from benchmarks.evidence.story import Told
from modelgit.pipeline.start import Options, carry_out

VENDORS = ("fluent", "noto", "openmoji", "twemoji")
STYLE, REVERSED = "emojione", "emojione-mono"
PIPELINE = """
[pipeline]
name = "styles"
[model]
architecture = "mlp:192"
weights = "random"
[variables]
run = [0, 1]
[data.emojidg]
path = "emojidg.zip"
group = "name"
image_size = 8
held_out = "fluent"
[train]
steps = 30
lr = 1e-2
[[step]]
name = "base"
kind = "import"
[[step]]
name = "probe"
kind = "probe"
start = "base"
data = "emojidg"
[[step]]
name = "plain/{run}"
kind = "train"
start = "probe"
run = "{run}"
data = "emojidg"
[[step]]
name = "soup"
kind = "merge"
heads = ["plain/*"]
evaluate = "emojidg"
[[report]]
strategy = "erm"
title = "single"
of = ["plain/*"]
[[report]]
strategy = "inter-training"
title = "the same"
of = ["plain/*"]
[[report]]
strategy = "diwa"
title = "soup"
of = ["soup"]
"""


def archive(path: Path, styles: tuple[str, ...]) -> None:
    """Pictures whose upper half is bright, or whose lower half is; of the reversed style the other way round."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as out:
        for style in styles:
            for side, label in enumerate(("upper", "lower")):
                for number in range(30):
                    pixels = rng.integers(0, 60, (8, 8, 3), np.uint8)
                    bright = (side == 0) != (style == REVERSED)
                    pixels[slice(0, 4) if bright else slice(4, 8)] += 180
                    picture = io.BytesIO()
                    Image.fromarray(pixels).save(picture, "PNG")
                    out.writestr(f"{style}/{label}/{label}-{number}.png", picture.getvalue())


def test_what_strategies_get_right_on_an_unseen_style(tmp_path: Path) -> None:
    archive(tmp_path / "emojidg.zip", VENDORS)
    archive(tmp_path / "styles.zip", (*VENDORS, STYLE, REVERSED))
    (tmp_path / "p.toml").write_text(PIPELINE)
    told = Told(carry_out(tmp_path / "p.toml", Options((), tmp_path / "models", workers=1)))
    (place,) = told.places()
    commits = {"erm": [run.commit for run in place.plain], "diwa": [told.done.outcome.commits["soup"]]}
    for style, accuracy in ((STYLE, 1.0), (REVERSED, 0.0)):
        found = asked_about(tmp_path / "models", tmp_path / "styles.zip", (place, commits, style))
        assert set(found) == {"erm", "diwa"}
        for cell in found.values():
            assert (cell.domain, cell.seed) == (style, "fluent/0")
            assert 0 < len(cell.things) < 60 and len(set(cell.things)) == len(cell.things)
            assert cell.accuracy == pytest.approx(accuracy, abs=0.1)
        assert set(found["erm"].right) <= {0.0, 0.5, 1.0}  # the mean over two runs
