"""Keys of steps: what was made by an earlier version is found again, as long as it means the same."""

import pytest

from modelgit.pipeline.keys import step_key
from modelgit.recipe.expanding import Job
from modelgit.recipe.pipeline import load_pipeline

PIPELINE = """
[pipeline]
name = "small"
[model]
architecture = "mlp"
[data.target]
path = "target.zip"
held_out = "d"
[train]
steps = 5
lr = 0.1
[[step]]
name = "base"
kind = "import"
[[step]]
name = "probe"
kind = "probe"
start = "base"
data = "target"
[[step]]
name = "run"
kind = "train"
start = "base"
head = "probe"
data = { name = "target", trial = 1 }
run = 1
[[step]]
name = "soup"
kind = "merge"
heads = ["probe", "run"]
[[step]]
name = "weighed"
kind = "merge"
heads = ["probe", "run"]
weights = [0.25, 0.75]
drop_heads = true
[[step]]
name = "chosen"
kind = "merge"
method = "ties"
heads = ["probe", "run"]
base = "base"
select = "greedy"
on = "target"
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    path = tmp_path_factory.mktemp("keys") / "p.toml"
    path.write_text(PIPELINE)
    return {job.name: job for job in load_pipeline(path).jobs}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("base", "cfca8f8063e244794b6cb7457782e46c66d9be5e1d75a77a8d40c55f61739f12"),
        ("probe", "7b82111546250ad48c0a997d25cb293a6710152a3e7867301c8a07c9bd58385c"),
        ("run", "c7a7c28e980ea3b4aa2b102710236f28a42a2ab5fbfb0a690a85e267a7182e66"),
        ("soup", "1a9e7403abf60d6a65519c45c6262718b962417a706f1c524fc143f0e20152d5"),
        ("weighed", "4938bbbb2bb60c1016a299d8f9efd85d4e4ad6269d37167b5edbafec9b23969a"),
        ("chosen", "5a95d2df7e1866f56905b0ea3c6141ab78ed631cefd139387664ae8e86bc5310"),
    ],
)
def test_keys_are_those_that_earlier_versions_kept_results_by(jobs: dict[str, Job], name: str, key: str) -> None:
    job = jobs[name]
    inputs = [f"contents of {need}" for need in job.needs]
    assert step_key(job, inputs, "data" if job.data else None, "on" if job.on else None) == key
