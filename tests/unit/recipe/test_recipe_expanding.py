"""Variables, rounds, weights: what a template's values become in each of its jobs."""

import math
from pathlib import Path

import pytest
from test_pipeline_file import HEAD, RUNS, load

from modelgit.errors import RecipeError
from modelgit.train.config import PowerRange, draw

ROUNDS = """
[[step]]
name = "out/{seed}/worker-{run}"
kind = "train"
start = "out/{seed-1}/mean"
first = "base"
data = { name = "target", shard = "{run}/2", trial = "{seed}", domains = ["a"] }
run = "{run}"
train = { steps = "{run}", lr = 0.5 }
[[step]]
name = "out/{seed}/mean"
kind = "merge"
heads = ["out/{seed}/worker-*"]
start = "out/{seed-1}/mean"
first = "base"
outer = { lr = 0.5, momentum = 0.8 }
"""
VARIABLES = ("variables.seed=[3,5]", "variables.run=[1,2]")


def test_a_round_starts_from_the_value_before_and_the_first_from_elsewhere(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + ROUNDS, *VARIABLES)
    assert pipeline.job("out/3/worker-1").needs == ("base",)
    assert pipeline.job("out/5/worker-2").needs == ("out/3/mean",)


def test_values_of_a_step_hold_its_variables(tmp_path: Path) -> None:
    job = load(tmp_path, HEAD + ROUNDS, *VARIABLES).job("out/5/worker-2")
    assert job.data is not None and job.config is not None
    assert (job.data.shard, job.data.trial, job.data.domains) == ("2/2", 5, ("a",))
    assert (job.config.steps, job.config.lr) == (2, 0.5)


def test_the_method_of_a_merge_may_be_a_variable(tmp_path: Path) -> None:
    text = '[[step]]\nname = "by/{method}"\nkind = "merge"\nmethod = "{method}"\nheads = ["plain/0/*"]\n'
    methods = 'variables.method=["ties","karcher"]'
    pipeline = load(tmp_path, HEAD + RUNS + text, methods)
    assert [pipeline.job(f"by/{name}").method for name in ("ties", "karcher")] == ["ties", "karcher"]


def test_a_variable_may_be_a_rate(tmp_path: Path) -> None:
    text = '[[step]]\nname = "at/{rate}"\nkind = "train"\nstart = "base"\ndata = "target"\ntrain = { lr = "{rate}" }\n'
    pipeline = load(tmp_path, HEAD + text, "variables.rate=[3e-4,1e-5]")
    found = {job.name: job.config.lr for job in pipeline.jobs if job.config is not None}
    assert found == {"at/0.0003": 0.0003, "at/1e-05": 0.00001}


def test_an_outer_step_is_a_sum_of_commits_that_adds_up_to_one(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + ROUNDS, *VARIABLES)
    first, second = pipeline.job("out/3/mean"), pipeline.job("out/5/mean")
    assert dict(zip(first.heads, first.weights, strict=True)) == pytest.approx(
        {"base": 0.1, "out/3/worker-1": 0.45, "out/3/worker-2": 0.45}
    )
    assert dict(zip(second.heads, second.weights, strict=True)) == pytest.approx(
        {
            "out/3/mean": 0.9, "out/5/worker-1": 0.45, "out/5/worker-2": 0.45,
            "base": -0.4, "out/3/worker-1": -0.2, "out/3/worker-2": -0.2,
        }
    )  # fmt: skip
    assert second.settings == {"normalize": False}


def test_with_rate_one_and_no_momentum_it_is_the_mean(tmp_path: Path) -> None:
    plain = ROUNDS.replace("lr = 0.5, momentum = 0.8", "lr = 1, momentum = 0")
    job = load(tmp_path, HEAD + plain, *VARIABLES).job("out/5/mean")
    assert dict(zip(job.heads, job.weights, strict=True)) == {"out/5/worker-1": 0.5, "out/5/worker-2": 0.5}


def test_each_of_several_that_match_has_the_weight_of_its_pattern(tmp_path: Path) -> None:
    text = '[[step]]\nname = "m"\nkind = "merge"\nheads = ["plain/0/*", "base"]\nweights = [2, 0.5]\n'
    job = load(tmp_path, HEAD + RUNS + text).job("m")
    assert dict(zip(job.heads, job.weights, strict=True)) == {"plain/0/0": 2.0, "plain/0/1": 2.0, "base": 0.5}


FUSED = """
[[step]]
name = "fused/{seed}/{run}"
kind = "merge"
heads = ["base", "soup/*"]
weights = { fusing_range = 4.0 }
run = "{run}"
drop_heads = true
"""


def test_a_run_draws_the_weights_of_what_it_fuses(tmp_path: Path) -> None:
    pipeline = load(tmp_path, HEAD + RUNS + FUSED)
    assert pipeline.job("fused/0/0").heads == ("base", "soup/0", "soup/1")
    assert pipeline.job("fused/0/0").weights == (0.0744628, 0.879903, 0.045634)
    assert pipeline.job("fused/0/1").weights == (0.0728514, 0.140468, 0.786681)
    assert pipeline.job("fused/1/1").weights == (0.687343, 0.0926794, 0.219978)


def test_a_head_more_changes_the_share_of_the_others_alone(tmp_path: Path) -> None:
    three = load(tmp_path, HEAD + RUNS + FUSED).job("fused/0/1").weights
    two = load(tmp_path, HEAD + RUNS + FUSED.replace("soup/*", "soup/1")).job("fused/0/1").weights
    assert not isinstance(two, str) and not isinstance(three, str)
    assert two[0] / two[1] == pytest.approx(three[0] / three[2], rel=1e-5)
    assert sum(two) == pytest.approx(1, abs=1e-5) and sum(three) == pytest.approx(1, abs=1e-5)


def test_weights_are_as_far_apart_as_the_range_allows(tmp_path: Path) -> None:
    near = load(tmp_path, HEAD + RUNS + FUSED.replace("4.0", "0.01")).job("fused/0/1").weights
    assert not isinstance(near, str)
    assert 1 < max(near) / min(near) < math.exp(0.01)


def test_a_setting_is_drawn_from_a_range_of_powers_as_domainbed_draws(tmp_path: Path) -> None:
    text = HEAD.replace(
        "lr = [0.2, 0.3]", "lr = { low = -4.5, high = -2.5 }\nbatch = { low = 3, high = 9, power_of = 2 }"
    )
    config = load(tmp_path, text + RUNS, "variables.seed=[0]").job("plain/0/1").config
    assert config is not None
    assert config.lr == pytest.approx(1.1906e-4, rel=1e-4)
    assert isinstance(config.batch, int) and 8 <= config.batch < 512
    batch = draw("batch_size", PowerRange(3, 9, 2), 1, 0)  # as DomainBed calls it
    assert int(batch) == 372


MERGE = '[[step]]\nname = "m"\nkind = "merge"\nheads = ["plain/0/*"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROUNDS.replace('first = "base"\n', "", 1), r"there is no {seed-1} yet"),
        (MERGE + "weights = [1, 2]\n", "2 weights for 1 heads"),
        (MERGE + 'weights = "votes"\n', "weights = 'votes': expected numbers"),
        (MERGE + "weights = { fusing_rang = 4.0 }\n", "weights: unknown key 'fusing_rang', did you mean"),
        (MERGE + "weights = { fusing_range = 0.0 }\n", "fusing_range = 0.0: expected above 0, at most 20"),
        (MERGE + "run = 1\n", "run: nothing is drawn by it"),
        (MERGE + 'run = "x"\nweights = { fusing_range = 4.0 }\n', "run = 'x': expected an integer"),
        (MERGE + 'select = "greedy"\n', "select needs 'on'"),
        (MERGE + 'select = "best"\n', "select: expected one of"),
        (MERGE + "statistics = { examples = 1 }\n", "statistics.examples = 1: expected from 2"),
        (MERGE + 'statistics = { labels = "none" }\n', "statistics.labels: expected one of 'model', 'data'"),
        (MERGE + "outer = {}\n", "outer and start belong together"),
        (MERGE + 'outer = { rate = 1 }\nstart = "base"\n', "outer: unknown key 'rate'"),
        (MERGE + 'outer = {}\nstart = "base"\nmethod = "ties"\n', "outer does not go with method ties"),
        (MERGE.replace('"m"', '"plain/0"'), "'plain/0' and 'plain/0/0' cannot both be branches"),
        (RUNS.replace('data = "target"', 'data = { name = "target", path = "x" }'), "takes the path of its data set"),
        (RUNS.replace('data = "target"', 'data = { name = "target", shards = 3 }'), "unknown key 'shards'"),
        (RUNS.replace('run = "{run}"', 'run = "{run}"\ntrain = { seed = 3 }'), "seed: the variable of that name"),
    ],
)
def test_refuses_what_does_not_go_together(tmp_path: Path, text: str, message: str) -> None:
    whole = HEAD + text if "plain/{seed}/{run}" in text or "out/" in text else HEAD + RUNS + text
    with pytest.raises(RecipeError, match=message.replace("{", r"\{")):
        load(tmp_path, whole)
