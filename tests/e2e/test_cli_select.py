"""Selection, search and barriers at work: real networks, real pictures, and what is refused leaves no trace."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from telling import Tell, teller
from test_cli_gate import HEAD, perceptron

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import Record, read_record
from modelgit.porcelain.scores import note, parse_data_name, split_key
from modelgit.porcelain.trials.measuring import metrics_of
from modelgit.repo.repository import Repository
from modelgit.train.data.loading import load_dataset

CLASSES = ("dark", "light")
SIGNS = {"good": 2.0, "fine": 0.5, "bad": -5.0, "poor": -0.1}  # what the heads of four branches are multiplied by


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of dark and light pictures; one of the twelve is labelled wrong."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    for domain, shade in (("grey", 0), ("tinted", 20)):
        for label, value in (("dark", 40), ("light", 200)):
            (root / domain / label).mkdir(parents=True)
            for i in range(3):
                wrong = (domain, label, i) == ("grey", "dark", 2)
                colour = (220, 220, 220) if wrong else (value + shade, value, value + i)
                Image.new("RGB", (16, 16), colour).save(root / domain / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a network and four others that come from it: two are right, two mostly wrong."""
    repo = modelgit.Repository.init(tmp_path_factory.mktemp("template") / "models")
    repo.commit(perceptron(1.0), message="first", record=Record("train", "mlp", CLASSES, HEAD))
    for name, sign in SIGNS.items():
        repo.commit(perceptron(sign), message=name, branch=name, parents=["main"])
    return repo.path


@pytest.fixture
def repo(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> modelgit.Repository:
    """A copy of the template to work in."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return modelgit.Repository(tmp_path / "models")


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def snapshot(repo: modelgit.Repository) -> tuple[dict[str, str], bytes, list[str]]:
    """Returns what no refused command may change: refs, the work tree's file, the packs."""
    store = repo.path / ".git" / "modelgit"
    packs = sorted(str(path) for path in store.rglob("*.pack"))
    refs = Repository.open(repo.path).refs()
    return refs, (repo.path / "model.safetensors").read_bytes(), packs


def test_a_greedy_soup_its_curve_and_its_record(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    merged = tell("merge", *SIGNS, "--select", "greedy", "--on", str(pictures))
    chosen = merged["findings"]["selection"]
    assert (chosen["singles"], chosen["means"], chosen["reads"]) == (4, 3, 2)
    rows = {row["name"]: (round(row["alone"], 4), round(row["together"], 4), row["kept"]) for row in chosen["tried"]}
    assert rows["bad"] == (0.0833, 0.0833, False)
    assert rows["poor"] == (0.0833, 0.9167, True)  # poor alone, and no loss to the mean
    assert {rows["good"], rows["fine"]} == {(0.9167, 0.9167, True)}
    assert chosen["score"] == pytest.approx(11 / 12)
    assert sorted(head["name"] for head in merged["heads"]) == ["fine", "good", "poor"]
    entry = Repository.open(repo.path).version("main").entry
    assert sorted(entry.parents) == sorted(repo.branches()[name] for name in ("good", "fine", "poor"))
    assert json.loads(entry.trailers["Merge-Selection"][0])["mode"] == "greedy"
    record = read_record(Repository.open(repo.path), "main")
    assert record is not None
    assert [row["name"] for row in record.details["findings"]["selection"]["tried"]] == [
        r["name"] for r in chosen["tried"]
    ]
    assert torch.allclose(repo.load("main")["head.weight"][1, 0], torch.tensor((2.0 + 0.5 - 0.1) / 3))
    assert tell("verify", "--rerun")["inputs"] == [head["commit"] for head in merged["heads"]]


def test_scores_that_are_known_are_not_measured_again(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    on = ("--on", str(pictures))
    assert tell("merge", *SIGNS, "--select", "greedy", *on, "--dry-run")["notes"] == [
        "greedy selection would take up to 4 evaluations of single models, 3 of means"
    ]
    tell("merge", *SIGNS, "--select", "greedy", *on)
    tell("switch", "-c", "again", repo.branches()["good"])
    options = ("--select", "greedier", "--metric", "accuracy/tinted", *on)
    merged = tell("merge", "bad", "fine", *options)
    chosen = merged["findings"]["selection"]
    assert (chosen["singles"], chosen["means"]) == (0, 3)
    assert {row["known"] for row in chosen["tried"]} == {True}
    assert [head["name"] for head in merged["heads"]] == ["again", "fine"]


def test_scores_that_a_pipeline_noted_are_known(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    inner = Repository.open(repo.path)
    name = parse_data_name(str(pictures))
    split = split_key(name.config, load_dataset(name.config).digest)
    note(inner, repo.branches()["bad"], {"split": split, "accuracy": 0.99, "images": {}})
    chosen = tell("merge", "good", "bad", "--select", "greedy", "--on", str(pictures))["findings"]["selection"]
    assert [(row["name"], row["known"]) for row in chosen["tried"]] == [("bad", True), ("good", False)]
    assert (chosen["singles"], chosen["tried"][0]["alone"]) == (1, 0.99)
    assert tell("fsck")["objects"] > 0


def test_every_accuracy_that_is_reported_can_be_asked_for(
    pictures: Path, repo: modelgit.Repository, tell: Tell
) -> None:
    beside = {"worst_group_accuracy", "ece", "accuracy_gap", "parity_gap", "odds_gap"}  # nothing is selected by these
    values = tell("evaluate", "good", "--on", str(pictures))["values"]
    assert metrics_of(["grey", "tinted"], None, has_splits=False) == [name for name in values if name not in beside]
    Path("p.toml").write_text(PIPELINE.format(path=pictures))
    beside.add("worst_domain_accuracy")  # nor by this, where one of the domains is held out
    for data, held_out, validated in (("plain", None, ["grey", "tinted"]), ("apart", "grey", ["tinted"])):
        values = tell("evaluate", "good", "--on", f"p.toml#{data}")["values"]
        assert metrics_of(validated, held_out, has_splits=True) == [name for name in values if name not in beside]


PIPELINE = """
[pipeline]
name = "p"
repository = "p"
[model]
architecture = "mlp"
weights = "pretrained"
[data.plain]
path = "{path}"
[data.apart]
path = "{path}"
held_out = "grey"
[[step]]
name = "base"
kind = "import"
"""


def test_uniform_takes_all_and_shows_the_curve(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    merged = tell("merge", "good", "bad", "--select", "uniform", "--on", str(pictures), "--holdout", str(pictures))
    assert [(row["name"], row["kept"]) for row in merged["findings"]["selection"]["tried"]] == [
        ("good", True),
        ("bad", True),
    ]
    assert merged["findings"]["selection"]["score"] == merged["findings"]["holdout"]["score"] == pytest.approx(1 / 12)
    assert merged["findings"]["notes"] == []


def test_a_head_that_is_left_out_is_still_what_the_branch_was(
    repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    tell("switch", "bad")
    before = repo.head()
    tell("merge", "good", "fine", "--select", "greedy", "--on", str(pictures))
    parents = Repository.open(repo.path).version("bad").entry.parents
    assert parents[0] == before
    assert set(parents[1:]) == {repo.branches()["good"], repo.branches()["fine"]}
    assert tell("verify", "--rerun")["tensors"] == 6


def test_when_nothing_is_worth_merging_the_branch_stays(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    tell("switch", "good")
    before = snapshot(repo)
    merged = tell("merge", "bad", "--select", "greedy", "--on", str(pictures))
    assert (merged["kind"], [row["kept"] for row in merged["findings"]["selection"]["tried"]]) == (
        "up-to-date",
        [True, False],
    )
    assert snapshot(repo) == before


METRICS = """
import torch
def size(state, data):
    state["head.weight"][:] = 0  # a function's own copy
    return float(state["head.bias"].abs().max())
def not_a_number(state, data): return float("nan")
def broken(state, data): raise ValueError("no such thing")
def path(state, data): return len(data)
"""


def test_a_metric_of_ones_own_for_weights_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    repo = modelgit.Repository.init(tmp_path / "any")
    monkeypatch.chdir(repo.path)
    Path("../metrics.py").write_text(METRICS)
    repo.commit({"head.bias": torch.zeros(3), "head.weight": torch.ones(2)}, message="base")
    for name, value in (("a", 1.0), ("b", 4.0), ("c", 3.0)):
        state = {"head.bias": torch.full((3,), value), "head.weight": torch.ones(2)}
        repo.commit(state, message=name, branch=name, parents=["main"])
    metric = ("--metric", "../metrics.py:size")
    merged = tell("merge", "a", "b", "c", "--select", "greedy", "--on", "anything", *metric, "--lower-is-better")
    chosen = merged["findings"]["selection"]
    assert [(row["name"], row["alone"], row["together"], row["kept"]) for row in chosen["tried"]] == [
        ("a", 1.0, 1.0, True),
        ("c", 3.0, 2.0, False),
        ("b", 4.0, 2.5, False),
    ]
    assert repo.load("main")["head.weight"].tolist() == [1.0, 1.0]
    for name, code, told in (
        ("not_a_number", 1, "its ../metrics.py:not_a_number on anything is nan"),
        ("broken", 2, "metric '../metrics.py:broken' failed: ValueError: no such thing"),
        ("absent", 2, "no 'absent' there to call"),
    ):
        tell("switch", "a")
        before = snapshot(repo)
        words = ("--select", "greedy", "--on", "anything", "--metric", f"../metrics.py:{name}")
        assert told in tell("merge", "b", *words, code=code)["message"]
        assert snapshot(repo) == before


def test_coefficients_that_are_found_are_recorded_and_recomputed(
    repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    on = ("--on", str(pictures), "--evaluations", "14")
    tell("switch", "bad")
    merged = tell("merge", "good", "--search", "weights", *on)
    found = merged["findings"]["search"]
    assert found["attempts"][0]["values"] == {"bad": 0.5, "good": 0.5}
    assert found["best"]["values"]["good"] == 1.0
    assert len(found["attempts"]) <= 14
    assert [head["weight"] for head in merged["heads"]] == [found["best"]["values"][name] for name in ("bad", "good")]
    assert tell("verify", "--rerun")["tensors"] == 6
    tell("switch", "-c", "layers", repo.branches()["good"])
    merged = tell("merge", "poor", "bad~1", "--search", "layers", "--layers", "2", *on)
    assert set(merged["findings"]["search"]["best"]["values"]) >= {"head.weight layers", "head.bias poor"}
    assert "Merge-Layer-Weights" in Repository.open(repo.path).version("layers").entry.trailers
    assert tell("verify", "--rerun")["tensors"] == 6


def test_one_setting_is_searched(repo: modelgit.Repository, pictures: Path, tell: Tell) -> None:
    words = ("merge", "bad", "--method", "wise_ft", "--search", "alpha=0.5:1", "--evaluations", "6")
    merged = tell(*words, "--on", str(pictures), "--lower-is-better")  # as if it were a loss
    attempts = merged["findings"]["search"]["attempts"]
    assert [row["values"]["alpha"] for row in attempts] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert (merged["settings"]["alpha"], merged["findings"]["search"]["best"]["score"]) == (0.5, pytest.approx(1 / 12))
    assert tell("verify", "--rerun")["tensors"] == 6


def test_one_head_is_weighed_by_layer_where_its_weight_means_something(
    repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    words = ("merge", "bad", "--search", "layers", "--layers", "1", "--evaluations", "4", "--on", str(pictures))
    assert "one model takes part (bad)" in tell(*words, "--method", "wise_ft", code=2)["message"]
    merged = tell(*words, "--method", "task_arithmetic")
    assert [row["values"] for row in merged["findings"]["search"]["attempts"]] == [
        {"head bad": value} for value in (1.0, 1.5, 0.5, 1.25)
    ]
    assert tell("verify", "--rerun")["tensors"] == 6


def test_a_barrier_is_a_conflict_and_a_shorter_way_is_not(
    repo: modelgit.Repository, pictures: Path, tell: Tell
) -> None:
    before = snapshot(repo)
    words = ("merge", "good", "bad", "--on", str(pictures), "--barrier-max", "0.02", "--barrier-points", "5")
    error = tell(*words, code=1)
    assert [(c["kind"], c["where"]) for c in error["conflicts"]] == [("barrier", "good – bad")]
    assert error["conflicts"][0]["got"] == "0.4167 at 0.5"
    assert "--method wise_ft" in error["hint"]
    assert snapshot(repo) == before
    assert tell(*words, "--dry-run")["notes"] == ["paths would take up to 5 evaluations"]
    merged = tell(*words, "--method", "wise_ft", "--set", "alpha=0.1")
    assert merged["findings"]["barriers"]["paths"][0]["barrier"] == 0
    assert tell("merge", "fine", "--no-ff", *words[3:])["kind"] == "merge"


def test_looking_at_a_path_changes_nothing(
    repo: modelgit.Repository, pictures: Path, tell: Tell, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, drawing = snapshot(repo), tmp_path / "paths.svg"
    seen = tell("barrier", "good", "bad", "--on", str(pictures), "--points", "5", "--plot", str(drawing))
    assert [round(point["score"], 4) for point in seen["paths"][0]["points"]] == [
        0.9167,
        0.9167,
        0.0833,
        0.0833,
        0.0833,
    ]
    assert (seen["paths"][0]["at"], seen["evaluations"]) == (0.5, 5)
    assert drawing.read_text().startswith("<svg") and "good – bad" in drawing.read_text()
    assert drawing.read_text().count("<circle") == 5 and drawing.read_text().count("dasharray") == 1
    many = tell("barrier", *SIGNS, "--on", str(pictures), "--points", "3")
    assert [(path["start"], path["end"]) for path in many["paths"]] == [("the merge", name) for name in SIGNS]
    assert snapshot(repo) == before
    capfd.readouterr()
    assert main(["barrier", "good", "fine", "--on", str(pictures), "--points", "3"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "good – fine: no barrier"


MISUSES = {
    "--select greedy": "--select needs data to measure models on",
    "--barrier-max 0.1": "--barrier-max needs data to measure models on",
    "--select most --on DATA": "--select most: expected one of uniform, greedy, greedier",
    "--select greedy --on DATA --metric f1": "metric 'f1': none of that name on pictures",
    "--select greedy --on DATA --metric gone.py:f": "metric 'gone.py:f': no file gone.py",
    "--select greedy --on DATA --method ties": "chooses what a plain mean is made of",
    "--select greedy --on DATA --heads drop": "--heads drop: models that lack parts cannot be measured",
    "--search alpha --on DATA": "--search alpha: method linear has no such number",
    "--search weights --on DATA --method model_stock": "--search weights: method model_stock treats all models alike",
    "--search scale=2:1 --method task_arithmetic --on DATA": "expected NAME=LOW:HIGH, LOW below HIGH",
    "--search weights --on DATA --evaluations 1": "--evaluations 1: expected at least 2",
    "--search layers --layers 0 --on DATA": "--layers 0: expected 1 or more parts of a name",
    "--barrier-max nan --on DATA": "--barrier-max nan: expected a number of 0 or more",
    "--barrier-max 0.1 --barrier-points 2 --on DATA": "2 points on a path: expected 3 to 101",
    "--metric accuracy --on DATA --gate accuracy>=0": "--metric is for --select, --search or --barrier-max",
    "--evaluations 9": "--evaluations is for --search",
    "--search weights --layers 3 --on DATA": "--layers is for --search layers",
    "--barrier-points 5": "--barrier-points is for --barrier-max",
    "--search weights --on DATA --evaluations 1 -n": "--evaluations 1: expected at least 2",
    "--select greedy --on DATA --metric f1 -n": "metric 'f1': none of that name on pictures",
}


@pytest.mark.parametrize("words", MISUSES)
def test_misuse_is_told_and_changes_nothing(repo: modelgit.Repository, pictures: Path, tell: Tell, words: str) -> None:
    before = snapshot(repo)
    error = tell("merge", "good", "bad", *words.replace("DATA", str(pictures)).split(), code=2)
    assert MISUSES[words] in error["message"]
    assert error["hint"]
    assert snapshot(repo) == before


def test_models_that_the_data_does_not_fit(
    repo: modelgit.Repository, pictures: Path, tell: Tell, tmp_path: Path
) -> None:
    before = snapshot(repo)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "pets" / "photos" / name / "0.png")
    error = tell("merge", "good", "--select", "greedy", "--on", str(pictures), code=2)
    assert error["message"] == "--select: one model takes part (good), nothing to choose from"
    error = tell("merge", "good", "bad", "--select", "greedy", "--on", str(tmp_path / "pets"), code=1)
    assert [(c["kind"], c["got"]) for c in error["conflicts"]] == [("classes", "cat, dog")] * 2
    assert tell("barrier", "good", "good", "--on", str(pictures), code=2)["message"].startswith("a path has two ends")
    assert snapshot(repo) == before
    for name in ("x", "y"):
        repo.commit(perceptron(1.0 if name == "x" else 2.0), message=name, branch=name, record=Record("train"))
    error = tell("merge", "x", "y", "--select", "greedy", "--on", str(pictures), code=2)
    assert "x, y: no record says which architecture to run" in error["message"]
    assert "--metric FILE.py:FUNCTION" in error["hint"]


def test_python_takes_the_same_words_and_a_function(repo: modelgit.Repository, pictures: Path) -> None:
    merged = repo.merge(["good", "bad"], select="greedy", on=str(pictures))
    assert merged.findings.selection is not None
    assert [row.name for row in merged.findings.selection.kept] == ["good"]

    def weight(state: dict[str, torch.Tensor], _: str) -> float:
        return float(state["head.weight"][1, 0])

    found = repo.merge(["fine", "poor"], search="weights", on="nothing", evaluations=20, metric=weight).findings.search
    assert found is not None
    assert (found.on.metric, found.best.values["main"]) == ("weight", 1.0)


def test_an_interruption_leaves_everything_as_it_was(repo: modelgit.Repository, tell: Tell) -> None:
    Path("../stop.py").write_text("def stop(state, data): raise KeyboardInterrupt\n")
    before = snapshot(repo)
    for words in (("--select", "greedy"), ("--search", "weights"), ("--barrier-max", "0")):
        assert main(["merge", "good", "bad", *words, "--on", "nothing", "--metric", "../stop.py:stop"]) == 130
        assert snapshot(repo) == before
        assert tell("status")["changes"] == []


def test_twenty_heads_are_read_twice_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = modelgit.Repository.init(tmp_path / "twenty")
    monkeypatch.chdir(repo.path)
    repo.commit({"w": torch.zeros(64), "b": torch.zeros(())}, message="base")
    for i in range(20):
        state = {"w": torch.full((64,), float(i)), "b": torch.tensor(float(i % 3))}
        repo.commit(state, message=f"{i}", branch=f"h{i:02}", parents=["main"])

    def near(state: dict[str, torch.Tensor], _: str) -> float:
        return -abs(float(state["w"].mean()) - 11.3)

    merged = repo.merge([f"h{i:02}" for i in range(20)], select="greedy", on="numbers", metric=near)
    chosen = merged.findings.selection
    assert chosen is not None
    assert (chosen.singles, chosen.means, chosen.reads) == (20, 19, 2)
    assert [row.name for row in chosen.kept] == ["h11", "h12"]
    assert repo.load("main")["w"].mean() == 11.5
