"""Data as a command line names it; pictures are read at the size of the training, where no settings say another."""

from pathlib import Path

import pytest

from modelgit.errors import DataError, RecipeError, UsageError
from modelgit.porcelain.scores import data_at
from modelgit.recipe.pipeline import load_pipeline


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({"main": 32}, 32), ({"main": None}, 64), ({"main": None, "other": 32}, 32), ({"main": 96, "other": 96}, 96)],
)
def test_pictures_are_read_at_the_size_trained_at(sizes: dict[str, int | None], expected: int) -> None:
    assert data_at("target.zip", sizes).config.image_size == expected


def test_versions_of_different_sizes_are_told_apart_where_data_has_pixels() -> None:
    with pytest.raises(UsageError, match="main at 32, other at 64 pixels"):
        data_at("target.zip", {"main": 32, "other": 64})
    assert data_at("people.csv", {"main": 32, "other": 64}).label == "people"


def test_a_pipeline_says_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        '[pipeline]\nname = "p"\n[model]\narchitecture = "mlp"\n[data.d]\npath = "d.zip"\nimage_size = 48\n'
    )
    assert data_at(f"{path}#d", {"main": 32, "other": 64}).config.image_size == 48


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text('[data]\npath = "d.csv"\ncolumns = { input = "review" }\n[train]\nsteps = 3\nlr = 0.1\n')
    return path


def test_a_recipe_names_its_data_with_columns_and_splits(recipe: Path) -> None:
    found = data_at(str(recipe), {"main": 32})
    assert (found.label, found.config.columns.input, found.has_splits) == ("d", "review", True)
    assert found.config.image_size == 32


def test_a_recipe_that_sets_a_size_serves_versions_of_different_ones(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("d.csv", "d.zip"))
    with pytest.raises(UsageError, match="different sizes") as caught:
        data_at(str(recipe), {"main": 32, "other": 64})
    assert caught.value.hint is not None and "RECIPE.toml" in caught.value.hint
    recipe.write_text(recipe.read_text().replace("[train]", "image_size = 48\n[train]"))
    assert data_at(str(recipe), {"main": 32, "other": 64}).config.image_size == 48


def test_recipes_and_pipelines_are_not_taken_for_each_other(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its data has no name") as caught:
        data_at(f"{recipe}#data", {})
    assert caught.value.hint == f"--on {recipe}"
    with pytest.raises(RecipeError, match="this is a recipe, of one fine-tuning") as refused:
        load_pipeline(recipe)
    assert refused.value.hint == f"carry it out: modelgit commit --recipe {recipe}"
    pipeline = tmp_path / "p.toml"
    pipeline.write_text('[pipeline]\nname = "p"\n')
    with pytest.raises(DataError) as other:
        data_at(str(pipeline), {})
    assert other.value.hint == f"of a pipeline: --on {pipeline}#NAME"
