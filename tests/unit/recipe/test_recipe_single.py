"""Recipes are strict, and every key of what a file may say is in the reference."""

import dataclasses
from pathlib import Path

import pytest

from modelgit.errors import RecipeError
from modelgit.recipe.expanding import ModelInfo, Outer, StepTemplate
from modelgit.recipe.pipeline import PipelineInfo, ReportRow
from modelgit.recipe.single import Recipe, load_recipe
from modelgit.train.choices import Coral, Ema, GroupDro, Irm, Lawa, Mixup, Sma, Swa, Swad, Vrex
from modelgit.train.config import Augment, DataConfig, FineTune, PowerRange

PAGE = (Path(__file__).parents[3] / "docs/reference/recipe.md").read_text()
DATA = {"path": "d.zip"}
TRAIN = {"steps": 3, "lr": 0.1}
SECTIONS = {
    "A recipe": (Recipe,),
    "[data]": (DataConfig,),
    "[train]": (FineTune,),
    "augment": (Augment,),
    "objective": (Coral, Mixup, GroupDro, Irm, Vrex),
    "averaging": (Sma, Ema, Swa, Lawa, Swad),
    "[pipeline] and [model]": (PipelineInfo, ModelInfo),
    "[[step]]": (StepTemplate, Outer),
    "[draws]": (PowerRange,),
    "[[report]]": (ReportRow,),
}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_is_in_the_reference(title: str) -> None:
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    keys = [field.name for shape in SECTIONS[title] for field in dataclasses.fields(shape)]
    assert [key for key in keys if f"`{key}`" not in section] == []


def test_paths_are_relative_to_the_file_and_defaults_are_a_pipelines(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[data]\npath = "d.zip"\n[train]\nsteps = 3\nlr = 0.1\n')
    recipe = load_recipe(path, ["train.steps=7", "message=Words"])
    assert recipe.data.path == str(tmp_path / "d.zip")
    assert recipe.train == FineTune(steps=7, lr=0.1)
    assert (recipe.kind, recipe.device, recipe.message) == ("train", "auto", "Words")


def test_pictures_keep_the_size_of_the_start_unless_one_is_set() -> None:
    assert load_recipe({"data": DATA, "train": TRAIN}, image_size=32).data.image_size == 32
    assert load_recipe({"data": DATA, "train": TRAIN}, ["data.image_size=48"], image_size=32).data.image_size == 48


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"data": DATA}, r"missing table \[train\]"),
        ({"train": TRAIN}, r"missing table \[data\]"),
        ({"data": DATA, "train": TRAIN, "modle": {}}, "recipe: unknown key 'modle'"),
        ({"data": DATA, "train": {**TRAIN, "lrr": 1}}, r"train: unknown key 'lrr', did you mean 'lr'"),
        ({"data": {**DATA, "held": "x"}, "train": TRAIN}, "data: unknown key 'held', did you mean 'held_out'"),
        ({"data": DATA, "train": TRAIN, "kind": "tune"}, "kind: expected one of 'train', 'probe'"),
        ({"data": DATA, "train": TRAIN, "threads": -1}, "threads = -1"),
        ({"data": DATA, "train": TRAIN, "step": []}, "this is a pipeline"),
        ({"data": 3, "train": TRAIN}, "data: expected a table, got an integer"),
    ],
)
def test_says_what_is_wrong(table: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(table)


def test_a_probe_needs_no_settings_of_training() -> None:
    assert load_recipe({"kind": "probe", "data": DATA}).kind == "probe"
