"""cherry-pick, revert, rebase: what they refuse, and that it leaves all as it was."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from task_vectors import copied, full, history, picture, state, values
from telling import Tell, teller

import modelgit
from modelgit.repo.repository import Repository

MISUSE: Mapping[str, tuple[tuple[str, ...], int, str]] = {
    "scale 0": (("cherry-pick", "skill", "--scale", "0"), 2, "would change nothing"),
    "scale nan": (("cherry-pick", "skill", "--scale", "nan"), 2, "a finite number"),
    "scale inf": (("revert", "skill", "--scale", "inf"), 2, "a finite number"),
    "scale below 0": (("cherry-pick", "skill", "--scale", "-1"), 2, "above 0"),
    "scale is a word": (("cherry-pick", "skill", "--scale", "much"), 2, "much"),
    "scale of a rebase": (("rebase", "main", "--scale", "-1"), 2, "above 0"),
    "too large": (("cherry-pick", "skill~1", "--scale", "1e300"), 1, "beyond its range"),
    "no such commit": (("cherry-pick", "skil"), 11, "unknown revision 'skil'"),
    "no such onto": (("rebase", "mian"), 11, "unknown revision"),
    "no branch": (("rebase", "main", "skill~1"), 11, "is no branch"),
    "nothing named": (("cherry-pick",), 2, "REV"),
    "empty range": (("cherry-pick", "skill..main"), 2, "holds no commit"),
    "three dots": (("cherry-pick", "main...skill"), 2, "a range A..B"),
    "first commit": (("cherry-pick", "main"), 2, "no parent"),
    "first commit reverted": (("revert", "main"), 2, "no parent"),
    "in the history": (("cherry-pick", "newer"), 2, "HEAD is with the change of"),
    "one message for two": (("cherry-pick", "main..skill", "-m", "x"), 2, "one message for 2"),
    "message without commit": (("cherry-pick", "skill", "-m", "x", "-n"), 2, "makes no commit"),
    "mainline of no merge": (("cherry-pick", "skill", "--mainline", "2"), 2, "is no merge"),
    "policy": (("cherry-pick", "skill", "--tensors", "theirs"), 2, "error, ours"),
    "blame of nothing": (("blame", "HEAD", "nothing.*"), 2, "no tensor of HEAD matches"),
    "blame of nobody": (("blame", "nothing"), 11, "no revision, and no tensor"),
}


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history(tmp_path_factory.mktemp("template") / "models")


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return copied(template, tmp_path / "models", monkeypatch)


@pytest.fixture(scope="module")
def untouched(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy on `newer` for all that is refused."""
    place = shutil.copytree(template, tmp_path_factory.mktemp("untouched") / "models")
    subprocess.run(["git", "switch", "-q", "newer"], cwd=place, check=True)
    return place


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_changes_nothing(untouched: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell, name: str) -> None:
    words, code, message = MISUSE[name]
    monkeypatch.chdir(untouched)
    models = Repository.open(untouched)
    before = picture(models)
    error = tell(*words, code=code)
    assert message in f"{error['message']} {error['hint']}"
    assert error["hint"]
    assert picture(models) == before


@pytest.mark.parametrize("words", [("cherry-pick", "skill"), ("revert", "skill"), ("rebase", "main", "skill")])
def test_changes_in_the_work_tree_stay(models: Repository, tell: Tell, words: tuple[str, ...]) -> None:
    save_file(state(a=7, b=7, c=7), "model.safetensors")
    before = picture(models)
    assert "the work tree has changes: model.safetensors" in tell(*words, code=10)["message"]
    assert picture(models) == before
    tell(*words, "--dry-run")
    assert picture(models) == before


def test_a_dry_run_tells_and_changes_nothing(models: Repository, tell: Tell) -> None:
    before = picture(models)
    done = tell("rebase", "newer", "skill", "--dry-run")
    assert (done["dry_run"], done["commit"], done["branch"]) == (True, None, "skill")
    assert [(step["subject"], step["computed"], step["taken"]) for step in done["steps"]] == [
        ("tune a", 1, 0),
        ("tune b", 0, 1),
    ]
    assert picture(models) == before


def test_before_the_first_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    tell("init", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path / "empty")
    for words in (("cherry-pick", "HEAD"), ("revert", "x"), ("rebase", "x"), ("blame",)):
        assert "no commits yet" in tell(*words, code=11)["message"]


def test_at_a_commit_that_is_no_branchs(models: Repository, tell: Tell) -> None:
    tell("checkout", models.resolve("newer"))
    done = tell("cherry-pick", "skill~1")
    assert (done["branch"], models.branch(), models.head()) == (None, None, done["commit"])
    assert values()["a"] == 3.5
    tell("checkout", models.resolve("skill"))
    assert tell("rebase", "newer")["branch"] is None
    assert values() == {"a": 3.5, "b": 1.25, "c": 2.0}


def test_tensors_that_a_change_adds_removes_or_reshapes(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    save_file(state(a=1.5, b=1.5, new=7), "model.safetensors")
    tell("commit", "-m", "adds new, removes c")
    tell("switch", "main")
    tell("cherry-pick", "skill")  # main left c alone: it goes
    assert values() == {"a": 1.0, "b": 1.25, "new": 7.0}
    subprocess.run(["git", "reset", "-q", "--hard", "HEAD~1"], check=True)
    tell("switch", "newer")
    before = picture(models)
    error = tell("cherry-pick", "skill", code=1)  # newer moved c
    assert [(c["kind"], c["where"]) for c in error["conflicts"]] == [("missing", "c")]
    assert "--tensors ours" in error["hint"]
    half = tell("cherry-pick", "skill", "--scale", "0.5", code=1)
    assert [c["where"] for c in half["conflicts"]] == ["c", "new"]  # half a new tensor means nothing
    assert picture(models) == before
    done = tell("cherry-pick", "skill", "--scale", "0.5", "--tensors", "ours")
    assert values() == {"a": 3.0, "b": 1.125, "c": 2.0}
    assert done["steps"][0]["notes"] == ["c: the change cannot be added, left as it is"]
    tell("verify", "--rerun")


def test_values_that_are_not_finite_are_refused(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    save_file({**state(b=1, c=1), "a": full(float("nan"))}, "model.safetensors")
    tell("commit", "-m", "broken")
    tell("switch", "newer")
    before = picture(models)
    error = tell("cherry-pick", "skill", "--scale", "0.5", code=1)
    [conflict] = error["conflicts"]
    assert error["message"].startswith(
        f"cannot cherry-pick {models.resolve('skill')[:10]} (broken): a: expected finite"
    )
    assert (conflict["kind"], conflict["where"]) == ("non-finite", "a")
    assert picture(models) == before


def test_counters_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    for branch, n, parents in (("main", 1, []), ("skill", 5, ["main"]), ("newer", 9, ["main"])):
        repo.commit({"w": full(n), "n": np.array([n])}, message=branch, branch=branch, parents=parents)
    tell("switch", "newer")
    done = tell("cherry-pick", "skill")
    assert values() == {"w": 13.0, "n": 9.0}
    assert done["steps"][0]["notes"] == ["n: integers are not added, left as it is"]


def test_a_merge_in_the_way_of_a_rebase(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    tell("merge", "newer", "-m", "both")
    tell("switch", "-c", "further", "newer")
    save_file(state(a=4, b=1, c=2), "model.safetensors")
    tell("commit", "-m", "further")
    before = picture(models)
    error = tell("rebase", "further", "skill", code=2)
    assert "is a merge" in error["message"]
    assert "--rebase-merges" in error["hint"]
    assert picture(models) == before


def test_in_the_middle_of_gits_own_merge(models: Repository, tell: Tell) -> None:
    (models.git_dir / "MERGE_HEAD").write_text(f"{models.resolve('skill')}\n")
    assert "merge is under way" in tell("cherry-pick", "skill", code=10)["message"]


def test_objects_come_from_the_remote(
    models: Repository, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", "-b", "newer", str(models.worktree), str(copy)], check=True)
    monkeypatch.chdir(copy)
    tell("checkout")
    tell("cherry-pick", "origin/skill~1")
    assert values()["a"] == 3.5
    shutil.move(models.git_dir / "modelgit", tmp_path / "elsewhere")
    before = picture(Repository.open(copy))
    assert tell("cherry-pick", "origin/skill", code=13)["kind"] == "MissingObject"
    assert picture(Repository.open(copy)) == before


def test_what_cannot_be_recomputed_says_why(models: Repository, tell: Tell) -> None:
    tell("cherry-pick", "skill~1")
    entry = models.version("HEAD").entry
    tree = models.git.run("rev-parse", "HEAD^{tree}")

    def forged(message: str) -> str:
        return models.git.run("commit-tree", tree, "-p", entry.parents[0], "-m", message)

    twice = forged(entry.message.replace("Replay-Scale: 1.0", "Replay-Scale: 2.0"))
    assert tell("verify", "--rerun", twice, code=1)["message"].endswith("gave other weights: a")
    broken = forged(entry.message.replace("Replay-Scale: 1.0", "Replay-Scale: [1"))
    assert tell("verify", "--rerun", broken, code=12)["kind"] == "FormatError"
    gone = forged(entry.message.replace(models.resolve("skill~1"), "f" * 40))
    assert "is not here" in tell("verify", "--rerun", gone, code=2)["message"]
    elsewhere = models.git.run("commit-tree", tree, "-p", "main", "-m", entry.message)
    assert "not on top of" in tell("verify", "--rerun", elsewhere, code=1)["message"]
