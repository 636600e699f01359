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
    message = tell("run", "one.toml", "two.toml", code=16)["message"]
    assert message.startswith("two.toml: ") and "kine" in message
    assert not Path("one").exists()


def test_several_do_not_go_into_one_place(tell: Tell) -> None:
    assert "--repo names one place" in tell("run", "one.toml", "two.toml", "--repo", "x", code=2)["message"]
    assert not Path("x").exists()


def test_a_history_without_a_checked_out_branch_can_be_looked_at(tell: Tell) -> None:
    here = Path.cwd()
    tell("run", "one.toml", "--workers", "1")
    tell("init", "none")
    assert len(tell("-C", str(here / "one"), "log", "--all")["entries"]) == 1
    error = tell("-C", str(here / "one"), "log", code=11)
    assert (error["message"], error["hint"]) == (
        "there are no commits on this branch yet",
        "go to a branch: modelgit switch base",
    )
    assert tell("-C", str(here / "none"), "log", "--all", code=11)["message"] == "there are no commits yet"
