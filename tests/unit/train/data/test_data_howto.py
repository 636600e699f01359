"""The page on data: what it shows is what is read."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from modelgit.recipe.binding import bind
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data.loading import load_dataset

PAGE = (Path(__file__).parents[4] / "docs/howto/data.md").read_text()


def blocks(language: str) -> list[str]:
    return [part.partition("```")[0] for part in PAGE.split(f"```{language}\n")[1:]]


def test_the_table_of_texts(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(blocks("csv")[0])
    found = load_dataset(DataConfig(str(tmp_path / "reviews.csv"), group="name", held_out="tweets"))
    assert found.classes == ("bad", "good") and found.domains == ("shop", "tweets")
    assert found.inputs([2]) == ["Lovely evening!"] and found.names[2] == "t-7"


def test_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(compile(block, "howto", "exec"), {})
    found = load_dataset(DataConfig("points.npz"))
    assert found.classes == ("left", "right") and found.domains == ("lab", "field")
    assert np.bincount(found.domain_ids).tolist() == [20, 20] and found.shape == (12,)


def test_the_settings() -> None:
    reviews, turned = (tomllib.loads(block)["data"] for block in blocks("toml"))
    found = bind(DataConfig, reviews["reviews"], "[data.reviews]")
    assert found.columns == Columns("review", "stars", "site", "product") and found.classes == ("1", "5")
    assert bind(DataConfig, turned["turned"], "[data.turned]").kind == "rotated-mnist"
