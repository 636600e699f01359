"""Pipeline files: templates become jobs, and whatever cannot be carried out is refused before anything runs."""

import re
from pathlib import Path

import pytest

from modelgit.errors import RecipeError
from modelgit.recipe.pipeline import Pipeline, load_pipeline, matches, part_of

EXAMPLES = Path(__file__).parents[3] / "examples"

HEAD = """
[pipeline]
name = "small"
[model]
architecture = "mlp"
[variables]
seed = [0, 1]
run = [0, 1]
[data.target]
path = "target.zip"
held_out = "d"
[train]
steps = 5
lr = 0.1
[draws]
lr = [0.2, 0.3]
[[step]]
name = "base"
kind = "import"
"""
RUNS = """
[[step]]
name = "plain/{seed}/{run}"
kind = "train"
start = "base"
data = "target"
run = "{run}"
[[step]]
name = "soup/{seed}"
kind = "merge"
heads = ["plain/{seed}/*"]
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Pipeline:
    path = tmp_path / "p.toml"
    path.write_text(text)
    return load_pipeline(path, overrides)


def test_templates_expand_to_jobs_in_order(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + RUNS)
    names = [job.name for job in pipeline.jobs]
    assert names == ["base", "plain/0/0", "plain/0/1", "plain/1/0", "plain/1/1", "soup/0", "soup/1"]
    assert pipeline.job("soup/1").needs == ("plain/1/0", "plain/1/1")
    assert pipeline.job("plain/0/1").needs == ("base",)


def test_run_zero_keeps_defaults_and_others_draw(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + RUNS)
    first, second = pipeline.job("plain/0/0").config, pipeline.job("plain/0/1").config
    assert first is not None and second is not None
    assert first.lr == 0.1
    assert second.lr in (0.2, 0.3)
    assert first.seed != second.seed


def test_each_binds_variables_together_and_twins_share_their_draws(tmp_path: Path) -> None:
    text = (
        HEAD
        + RUNS
        + (
            '[[step]]\nname = "aux"\nkind = "train"\nstart = "base"\ndata = "target"\n'
            '[[step]]\nname = "recycled/{seed}/{task}"\nkind = "train"\nstart = "{task}"\nhead = "base"\n'
            'data = "target"\n'
            'run = "{run}"\neach = [{ task = "aux", run = 1 }]\n'
        )
    )
    pipeline = load(tmp_path, text)
    job = pipeline.job("recycled/1/aux")
    assert job.needs == ("aux", "base")
    assert job.head == "base"
    assert job.config == pipeline.job("plain/1/1").config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.headz=1", r"\[train\]: unknown key 'headz'"),
        ("train.lr=fast", r"\[train\]\.lr: expected a number, got a string \('fast'\)"),
        ("draws.lrr=[0.1]", r"\[draws\]: unknown key 'lrr', did you mean 'lr'"),
    ],
)
def test_a_mistake_in_a_shared_table_is_told_as_one_of_that_table(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=f"^{told}"):
        load(tmp_path, HEAD + RUNS, override)


def test_data_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    data = load(tmp_path, HEAD + RUNS).job("plain/0/0").data
    assert data is not None and data.path == str(tmp_path / "target.zip")


def test_overrides_reach_into_tables(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + RUNS, "train.steps=2", "variables.seed=[7]", "pipeline.repository=elsewhere")
    assert [job.name for job in pipeline.jobs][-1] == "soup/7"
    assert pipeline.info.repository == "elsewhere"
    assert all(job.config is None or job.config.steps == 2 for job in pipeline.jobs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[step]]\nname="x"\nkind="train"\ndata="target"\n', "a train step needs 'start'"),
        ('[[step]]\nname="x"\nkind="train"\nstart="base"\ndata="nope"\n', "unknown data set 'nope'"),
        ('[[step]]\nname="x"\nkind="train"\nstart="gone"\ndata="target"\n', "needs 'gone', which no step is called"),
        ('[[step]]\nname="x/{who}"\nkind="import"\n', "unknown variable '{who}'"),
        ('[[step]]\nname="base"\nkind="import"\n', "two steps are called 'base'"),
        ('[[step]]\nname="x"\nkind="import"\nstart="base"\n', "an import step does not use 'start'"),
        ('[[step]]\nname="x"\nkind="bake"\n', "kind: expected one of 'import'"),
        (
            '[[step]]\nname="a"\nkind="merge"\nheads=["b"]\n[[step]]\nname="b"\nkind="merge"\nheads=["a"]\n',
            "in a circle: a, b",
        ),
        ('[[report]]\nstrategy="erm"\ntitle="x"\nof=["nobody/*"]\n', "no step matches nobody/*"),
        ('[[step]]\nname="x"\nkind="train"\nstart="base"\ndata="target"\ntrain={stepz=3}\n', "unknown key 'stepz'"),
        ("[extra]\n", "unknown key 'extra'"),
        ('[[step]]\nname="x"\nkind="train"\nheadz="base"\n', "step.. 2 'x': unknown key 'headz', did you mean 'head'"),
        ("[[[\n", "not valid TOML"),
    ],
)
def test_refuses_what_cannot_be_carried_out(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("*", r"\*").replace("{", r"\{")):
        load(tmp_path, HEAD + text)


def test_of_many_steps_the_nearest_are_named(tmp_path: Path) -> None:
    """Hundreds of names would hide what went wrong."""
    wanted = '[[step]]\nname="x"\nkind="train"\nstart="plain/0/39"\ndata="target"\n'
    many = "variables.run=[" + ", ".join(map(str, range(30))) + "]"
    with pytest.raises(RecipeError, match="'plain/0/39', which no step is called") as raised:
        load(tmp_path, HEAD + RUNS + wanted, many)
    assert raised.value.hint is not None
    assert (
        re.fullmatch(r"of \d+ steps the nearest: (\S+, ){5}\S+", raised.value.hint)
        and "plain/0/29" in raised.value.hint
    )


def test_a_missing_file_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read pipeline"):
        load_pipeline(tmp_path / "none.toml")


def test_star_stays_within_one_part() -> None:
    assert matches("plain/0/1", "plain/*/1")
    assert not matches("plain/0/1", "plain/*")
    assert not matches("plain", "plain/*")


ENSEMBLE = """
[[step]]
name = "ensemble/{seed}"
kind = "ensemble"
heads = ["plain/{seed}/*"]
evaluate = "target"
[[report]]
strategy = "ensemble"
title = "Ensemble"
of = ["ensemble/*"]
[[report]]
strategy = "plain"
title = "Plain"
of = ["plain/*/*"]
"""


def test_a_part_is_the_steps_that_match_and_all_they_need(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + RUNS + ENSEMBLE, 'pipeline.compare=["ensemble","plain"]')
    part = part_of(pipeline, ["soup/1"])
    assert part.info.compare == ("plain",)
    assert [job.name for job in part.jobs] == ["base", "plain/1/0", "plain/1/1", "soup/1"]
    assert [row.strategy for row in part.report] == ["plain"]
    assert [job.name for job in part_of(pipeline, ["base", "plain/0/0"]).jobs] == ["base", "plain/0/0"]
    with pytest.raises(RecipeError, match="--only coral: no step is called so") as caught:
        part_of(pipeline, ["base", "coral"])
    assert str(caught.value.hint).endswith("steps: base, plain/*/*, soup/*, ensemble/*")


def test_nothing_starts_from_an_ensemble(tmp_path: Path) -> None:
    merged = '[[step]]\nname = "main"\nkind = "merge"\nheads = ["ensemble/*"]\n'
    with pytest.raises(RecipeError, match="step 'main' needs 'ensemble/0': an ensemble is scored, it has no weights"):
        load(tmp_path, HEAD + RUNS + ENSEMBLE + merged)


def test_an_ensemble_needs_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an ensemble step needs 'evaluate'"):
        load(tmp_path, HEAD + RUNS + ENSEMBLE.replace('evaluate = "target"\n', ""))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_every_example_can_be_carried_out(name: str) -> None:
    pipeline = load_pipeline(EXAMPLES / name)
    assert pipeline.report
    assert all(Path(data.path).is_file() for data in pipeline.data.values())
