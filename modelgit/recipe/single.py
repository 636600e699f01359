"""A recipe: one fine-tuning of the version that is checked out, told in a small TOML file.

Its `[data]` and `[train]` are those of a pipeline, key for key.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelgit.errors import RecipeError
from modelgit.recipe.binding import Table, bind, check_keys, expect_table
from modelgit.recipe.pipeline import apply_override, read_toml
from modelgit.recipe.places import beside
from modelgit.train.choices import check
from modelgit.train.config import DataConfig, FineTune

NOTHING: Table = {}
PROBED = {"steps": 1, "lr": 1e-3}  # a probe takes no steps of its own


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe says: fine-tune (`train`) or learn a head alone (`probe`), of what, on what, how.

    `architecture` is wanted only where the version's record does not say it; `head` is a version whose head is taken.
    `threads` 0 is one a core: on a CPU the bits depend on their number, and the commit records it.
    """

    data: DataConfig
    train: FineTune
    kind: Literal["train", "probe"] = "train"
    architecture: str | None = None
    head: str | None = None
    device: str = "auto"
    threads: int = 0
    message: str | None = None

    def __post_init__(self) -> None:
        check("threads", self.threads, 0 <= self.threads <= 1024, "from 0 to 1024")


def load_recipe(
    source: Path | Table, overrides: Sequence[str] = (), said: Table = NOTHING, image_size: int | None = None
) -> Recipe:
    """Returns the recipe in a file, or in a table; paths of data are relative to the file's folder, or where we are.

    `overrides` are those of the command line, `said` are keys with their values; `image_size` is that of the data where
    nothing sets it.

    Raises:
        RecipeError: the file is missing, no TOML, a pipeline, or says something that cannot be carried out.
    """
    folder = source.absolute().parent if isinstance(source, Path) else Path.cwd()
    found = read_toml(source, "recipe") if isinstance(source, Path) else source
    table = {key: dict(value) if isinstance(value, Mapping) else value for key, value in {**found, **said}.items()}
    for override in overrides:
        apply_override(table, override)
    if image_size is not None and isinstance(data := table.get("data"), dict):
        data.setdefault("image_size", image_size)
    return build_recipe(table, folder)


def build_recipe(table: Table, folder: Path) -> Recipe:
    """Returns the recipe that `table` describes."""
    if "step" in table or "pipeline" in table:
        raise RecipeError("this is a pipeline, of many steps", hint="carry it out: modelgit run FILE.toml")
    check_keys(table, [field.name for field in dataclasses.fields(Recipe)], "recipe")
    for key in ("data", "train"):
        if key not in table and (key, table.get("kind")) != ("train", "probe"):
            raise RecipeError(f"recipe: missing table [{key}]", hint="see docs/reference/recipe.md")
    trained = expect_table(table.get("train", {}), "[train]")
    if table.get("kind") == "probe":
        trained = {**PROBED, **trained}
    recipe = bind(Recipe, {**table, "train": trained}, "recipe")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=beside(folder, recipe.data.path)))
