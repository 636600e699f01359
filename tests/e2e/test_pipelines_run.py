"""Several pipelines in one command: one after another, and none where one of them is wrong."""

from pathlib import Path

import pytest
from telling import Tell, teller

PIPELINE = """
[pipeline]
name = "{name}"
repository = "{name}"
[model]
architecture = "mlp"
weights = "random"
[[step]]
name = "base"
kind = "import"
"""


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(PIPELINE.format(name=name))
    return teller(capfd)


def test_pipelines_run_one_after_another(tell: Tell) -> None:
    runs = tell("run", "one.toml", "two.toml", "--workers", "1")["runs"]
    assert [(run["pipeline"], run["made"]) for run in runs] == [("one", ["base"]), ("two", ["base"])]
    assert (Path("one/.git").is_dir(), Path("two/.git").is_dir()) == (True, True)
    again = tell("run", "two.toml", "one.toml", "--workers", "1")["runs"]
    assert [(run["pipeline"], run["found"]) for run in again] == [("two", ["base"]), ("one", ["base"])]


def test_none_runs_where_one_is_wrong(tell: Tell) -> None:
    Path("two.toml").write_text(PIPELINE.format(name="two").replace("kind", "kine"))
    assert "kine" in tell("run", "one.toml", "two.toml", code=16)["message"]
    assert not Path("one").exists()


def test_several_do_not_go_into_one_place(tell: Tell) -> None:
    assert "--repo names one place" in tell("run", "one.toml", "two.toml", "--repo", "x", code=2)["message"]
    assert not Path("x").exists()
