"""The report at work: real networks, real pictures, a page that holds what was measured, and errors that teach."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_cli_select
from telling import Tell, teller
from test_cli_gate import HEAD, perceptron
from test_cli_select import CLASSES, PIPELINE

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import Record
from modelgit.porcelain.scores import note
from modelgit.repo.repository import Repository

pictures = test_cli_select.pictures  # the fixture
SIGNS = {"good": 2.0, "fine": 0.5, "bad": -5.0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a network and three others that come from it; notes say what two of them scored."""
    repo = modelgit.Repository.init(tmp_path_factory.mktemp("template") / "models")
    repo.commit(perceptron(1.0), message="first", record=Record("train", "mlp", CLASSES, HEAD))
    for name, sign in SIGNS.items():
        repo.commit(perceptron(sign), message=name, branch=name, parents=["main"])
    inner = Repository.open(repo.path)
    for rev, accuracy in (("main", 0.875), ("bad", 0.125)):
        row = {"data": "emoji", "split": "{}", "accuracy": accuracy, "accuracy/grey": accuracy}
        note(inner, inner.resolve(rev), {**row, "images": {"accuracy/grey": 80}})
    return repo.path


@pytest.fixture
def repo(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> modelgit.Repository:
    """A copy of the template to work in."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return modelgit.Repository(tmp_path / "models")


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def test_the_history_needs_no_evaluation(repo: modelgit.Repository, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    page = Path("report.html").read_text()
    assert "wrote report.html" in capfd.readouterr().out
    assert {"good", "fine", "bad", "main"} <= set(re.findall(r">([a-z]+)</text>", page))
    assert "<td>+75.0</tr>" in page  # forgotten: 0.875 less 0.125
    assert "<td>12.5 (6.9–21.5)<td>" in page  # Wilson, 10 of 80
    assert main(["report"]) == 0  # its own page is written anew


def test_the_history_is_told_without_numerical_libraries(repo: modelgit.Repository) -> None:
    code = (
        "import sys; from modelgit.cli.app import main; code = main(['report', '-q']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_versions_are_compared_on_data(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    made = tell("report", "good", "fine", "bad", "--on", str(pictures), "--points", "3", "-o", "page.html")
    found = made["comparison"]
    alone = {one["name"]: one["accuracy"]["value"] for one in found["versions"]}
    assert {name: round(value, 4) for name, value in alone.items()} == {"good": 0.9167, "fine": 0.9167, "bad": 0.0833}
    assert {one["name"]: list(one["domains"]) for one in found["versions"]}["good"] == ["grey", "tinted"]
    assert [gain["k"] for gain in found["gains"]] == [1, 2, 3]
    assert round(found["gains"][-1]["accuracy"]["value"], 4) == 0.0833  # (2 + 0.5 - 5) / 3 is negative
    assert found["mean"]["accuracy"] == found["gains"][-1]["accuracy"]
    paths = {path["end"]: path for path in found["paths"]}
    assert paths["fine"]["barrier"] == 0
    assert paths["bad"]["barrier"] == pytest.approx(0.5 - 1 / 12)  # halfway (2 - 5) / 2 is negative
    assert paths["bad"]["places"][1]["promised"] == pytest.approx(0.5)
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert all(
        abs(pair["difference"]) == pytest.approx(5 / 6)
        for pair in pairs.values()
        if "bad" in (pair["first"], pair["second"])
    )
    assert found["law"]["limit"] < 0.5
    assert found["evaluations"] == 3 + 2 + 2
    page = Path(made["page"]).read_text()
    assert page.count("<svg") >= 9 and "<script" not in page
    assert re.search(r"<td class=word>good – bad<td>|<td class=word>fine – bad<td>", page)


def test_with_splits_the_held_out_domain_decides_nothing(
    repo: modelgit.Repository,
    pictures: Path,
    tell: Tell,
) -> None:
    Path("p.toml").write_text(PIPELINE.format(path=pictures))
    found = tell("report", "good", "bad", "--on", "p.toml#apart")["comparison"]
    assert (found["measured"], found["domains"]) == ("the held-out domain grey", ["grey"])
    assert found["ordered_by"] == "validation accuracy on the training domains"
    assert found["examples"] == 6
    assert set(found["versions"][0]["domains"]) == {"grey", "tinted"}
    assert tell("report", "good", "bad", "--on", "p.toml#apart")["page"] is None


def test_what_cannot_be_reported_is_refused_before_anything_is_written(
    repo: modelgit.Repository,
    pictures: Path,
    tell: Tell,
    tmp_path: Path,
) -> None:
    on = ("--on", str(pictures))
    one = tell("report", "good", *on, code=2)
    assert "one version is named" in one["message"] and "modelgit evaluate REV" in one["hint"]
    assert "no versions are named" in tell("report", *on, code=2)["message"]
    repo.commit(perceptron(1.0), message="plain", branch="plain", parents=["main"], record=Record("train", None))
    assert "plain: no record says" in tell("report", "good", "plain", *on, code=17)["message"]
    other = Record("train", "mlp", ("no", "yes"), HEAD)
    repo.commit(perceptron(1.0), message="other", branch="other", parents=["main"], record=other)
    assert "other and good cannot be averaged" in tell("report", "good", "other", *on, code=2)["message"]
    repo.commit(perceptron(2.0), message="another", branch="another", parents=["other"], record=other)
    assert "classes dark, light; the model knows no, yes" in tell("report", "other", "another", *on, code=17)["message"]
    assert "no folder" in tell("report", "-o", "gone/page.html", code=2)["message"]
    Path("report.html").write_text("mine")
    assert main(["report"]) == 2
    assert Path("report.html").read_text() == "mine"
    assert not Path("page.html").exists()
