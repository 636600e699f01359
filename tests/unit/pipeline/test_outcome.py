"""The table: means over runs, errors over seeds."""

import math
from pathlib import Path

import pytest

from modelgit.errors import RecipeError
from modelgit.pipeline.outcome import StepScore, as_json, table
from modelgit.recipe.pipeline import Pipeline, load_pipeline

TEXT = """
[pipeline]
name = "p"
[model]
architecture = "mlp"
[variables]
seed = {seeds}
run = [0, 1]
[data.t]
path = "t.zip"
held_out = "d"
[train]
steps = 1
lr = 0.1
[[step]]
name = "base"
kind = "import"
[[step]]
name = "plain/{{seed}}/{{run}}"
kind = "train"
start = "base"
data = "t"
[[step]]
name = "one"
kind = "train"
start = "base"
data = "t"
[[report]]
strategy = "erm"
title = "ERM"
of = ["plain/*/*"]
[[report]]
strategy = "one"
title = "One"
of = ["one"]
"""


def pipeline_of(tmp_path: Path, seeds: str) -> Pipeline:
    path = tmp_path / "p.toml"
    path.write_text(TEXT.format(seeds=seeds))
    return load_pipeline(path)


def scored(step: str, ood: float | None, val: float | None = 0.5) -> StepScore:
    return StepScore(step, f"commit-{step}", "train", val, ood, 100)


def test_runs_of_a_seed_are_averaged_first_and_seeds_are_the_units(tmp_path: Path) -> None:
    values = {"plain/0/0": 0.5, "plain/0/1": 0.7, "plain/1/0": 0.6, "plain/1/1": 0.8}
    row = table(pipeline_of(tmp_path, "[0, 1]"), {name: scored(name, v) for name, v in values.items()})[0]
    assert row.ood is not None
    assert row.ood.mean == pytest.approx(0.65)
    assert row.ood.stderr == pytest.approx(math.sqrt(2) * 0.05 / math.sqrt(2))  # s of (0.6, 0.7) is 0.0707
    assert row.ood.over == "seeds"
    assert row.ood_range == (0.5, 0.8)
    assert row.runs == 4
    assert row.commits == tuple(f"commit-{name}" for name in values)


def test_one_seed_takes_its_error_over_runs(tmp_path: Path) -> None:
    values = {"plain/0/0": 0.4, "plain/0/1": 0.6}
    row = table(pipeline_of(tmp_path, "[0]"), {name: scored(name, v) for name, v in values.items()})[0]
    assert row.ood is not None and row.ood.over == "runs"
    assert row.ood.stderr == pytest.approx(0.1)


def test_one_run_has_only_the_error_of_its_test_images(tmp_path: Path) -> None:
    row = table(pipeline_of(tmp_path, "[0]"), {"one": scored("one", 0.5)})[1]
    assert row.ood is not None and row.ood.over == "test images"
    assert row.ood.stderr == pytest.approx(0.05)
    assert as_json(row)["val_stderr"] is None


def test_a_row_without_scores_says_null(tmp_path: Path) -> None:
    row = as_json(table(pipeline_of(tmp_path, "[0]"), {})[0])
    assert (row["ood_accuracy"], row["ood_stderr"], row["val_accuracy"], row["commits"]) == (None, None, None, [])


HELD = """
[pipeline]
name = "p"
[model]
architecture = "mlp"
[variables]
held = ["a", "b"]
run = [0, 1]
[data.t]
path = "t.zip"
[train]
steps = 1
lr = 0.1
[[step]]
name = "base"
kind = "import"
[[step]]
name = "plain/{held}/{run}"
kind = "train"
start = "base"
data = { name = "t", held_out = "{held}" }
[[report]]
strategy = "best"
title = "Best"
of = ["plain/*/*"]
pick = "best"
"""


def test_the_best_run_is_chosen_in_each_held_out_domain(tmp_path: Path) -> None:
    """Validation of other domains is no measure: a domain whose runs all validate low has its own best."""
    path = tmp_path / "p.toml"
    path.write_text(HELD)
    scores = {
        "plain/a/0": scored("plain/a/0", 0.5, val=0.9),
        "plain/a/1": scored("plain/a/1", 0.6, val=0.8),
        "plain/b/0": scored("plain/b/0", 0.1, val=0.3),
        "plain/b/1": scored("plain/b/1", 0.3, val=0.4),
    }
    row = table(load_pipeline(path), scores)[0]
    assert row.commits == ("commit-plain/a/0", "commit-plain/b/1")
    assert row.ood is not None and row.ood.mean == pytest.approx(0.4)


def test_comparing_with_no_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(HELD.replace('name = "p"', 'name = "p"\ncompare = ["diwa"]', 1))
    with pytest.raises(RecipeError, match=r"no .*report.* has the strategy 'diwa'") as caught:
        load_pipeline(path)
    assert caught.value.hint == "strategies: best"
