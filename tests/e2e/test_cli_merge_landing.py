"""Where a merge lands: forward only, in the work tree, in a commit later, nowhere; a branch that moves meanwhile."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from telling import Tell, teller

import modelgit
from modelgit.repo.repository import Repository


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`main` at the base, `one` and `two` fine-tuned from it."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    for branch, value in (("main", 1.0), ("one", 2.0), ("two", 4.0)):
        state = {"w": full(value), "b": full(0.5)}
        repo.commit(state, message="a version", branch=branch, parents=[] if branch == "main" else ["main"])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def full(value: float) -> np.ndarray[Any, Any]:
    return np.full((64, 8), value, np.float32)


def value() -> float:
    table = load_file("model.safetensors")["w"]
    return float(table[0, 0])


def git(*words: str, code: int = 0) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout.strip()


def clean() -> bool:
    return git("status", "--porcelain") == "" and not (Path(".git") / "MERGE_HEAD").exists()


def test_forward_only(models: Path, tell: Tell) -> None:
    one = git("rev-parse", "one")
    assert tell("merge", "--ff-only", "one")["kind"] == "fast-forward"
    assert (git("rev-parse", "main"), value()) == (one, 2.0)
    error = tell("merge", "--ff-only", "two", code=1)
    assert "main cannot simply move forward: two" in error["message"] or "gone apart" in error["message"]
    assert (git("rev-parse", "main"), value(), clean()) == (one, 2.0, True)
    assert "--ff-only merges nothing" in tell("merge", "--ff-only", "two", "--method", "ties", code=2)["message"]
    assert "--ff-only merges nothing" in tell("merge", "--ff-only", "--no-ff", "two", code=2)["message"]
    assert tell("merge", "--ff-only", "one")["kind"] == "up-to-date"


def test_a_plan_says_what_would_be_read_and_changes_nothing(models: Path, tell: Tell) -> None:
    before = git("rev-parse", "HEAD")
    plan = tell("merge", "-n", "one", "two", "--method", "ties")
    assert plan["kind"] == "dry-run"
    assert [head["name"] for head in plan["heads"]] == ["one", "two"]
    assert plan["cost"] == {
        "read_bytes": 3 * 64 * 8 * 4,
        "merged_bytes": 64 * 8 * 4,
        "treatments": {"merged": 1, "the same in all models": 1},
    }
    assert (git("rev-parse", "HEAD"), clean()) == (before, True)


def test_a_plan_names_every_conflict(models: Path, tell: Tell) -> None:
    for branch, state in (("left", {"w": full(1)[:2], "x": full(1)}), ("right", {"w": full(2)[:3], "y": full(1)})):
        tell("switch", "-c", branch, "main")
        save_file(state, "model.safetensors")
        tell("commit", "-m", branch)
    error = tell("merge", "-n", "left", code=1)
    assert sorted((c["kind"], c["where"]) for c in error["conflicts"]) == [
        ("missing", "x"),
        ("missing", "y"),
        ("shape", "w"),
    ]
    assert clean()


def test_a_merge_in_the_work_tree_is_committed_later(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    one, two = git("rev-parse", "one"), git("rev-parse", "two")
    left = tell("merge", "two", "--no-commit", "-m", "both of them")
    assert (left["kind"], left["commit"]) == ("not-committed", None)
    assert (value(), git("rev-parse", "HEAD")) == (3.0, one)
    assert git("rev-parse", "MERGE_HEAD") == two
    assert {change["path"] for change in tell("status")["changes"]} >= {"model.safetensors"}
    error = tell("commit", "-m", "no", code=10)
    assert "modelgit merge --continue" in error["hint"]
    made = tell("merge", "--continue")
    assert git("rev-list", "--parents", "-1", "HEAD").split()[1:] == [one, two]
    assert git("log", "-1", "--format=%s") == "both of them"
    assert (made["commit"], clean(), value()) == (git("rev-parse", "HEAD"), True, 3.0)
    assert tell("verify", "--rerun")["tensors"] == 2


def test_git_can_commit_it_too(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    tell("merge", "two", "--no-commit")
    git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--no-edit")
    assert clean() and value() == 3.0
    assert tell("verify", "--rerun")["tensors"] == 2


@pytest.mark.parametrize("command", [("modelgit", "merge", "--abort"), ("git", "merge", "--abort")])
def test_giving_up_restores_all(models: Path, tell: Tell, command: tuple[str, ...]) -> None:
    tell("switch", "one")
    before = Path("model.safetensors").read_bytes()
    Path("notes.txt").write_text("mine")
    tell("merge", "two", "--no-commit")
    assert Path("model.safetensors").read_bytes() != before
    if command[0] == "git":
        git(*command[1:])
    else:
        assert tell(*command[1:])["kind"] == "aborted"
    assert Path("model.safetensors").read_bytes() == before
    assert Path("notes.txt").read_text() == "mine"
    assert git("status", "--porcelain") == "?? notes.txt"
    assert not any((Path(".git") / name).exists() for name in ("MERGE_HEAD", "MERGE_MODE"))


def test_what_was_changed_after_the_merge_is_what_is_committed(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    tell("merge", "two", "--no-commit")
    save_file({"w": full(3.5), "b": full(0.5)}, "model.safetensors")
    tell("merge", "--continue")
    assert value() == 3.5 and clean()
    assert "gave other weights" in tell("verify", "--rerun", code=1)["message"]


def test_misuse_is_told(models: Path, tell: Tell) -> None:
    assert "no merge is under way" in tell("merge", "--continue", code=10)["message"]
    assert "no merge is under way" in tell("merge", "--abort", code=10)["message"]
    assert "stand alone" in tell("merge", "--abort", "one", code=2)["message"]
    assert "choose one" in tell("merge", "one", "two", "-n", "--no-commit", code=2)["message"]
    assert "leave --no-commit out" in tell("merge", "one", "--ff-only", "--no-commit", code=2)["message"]
    assert "for --from-mergekit" in tell("merge", "one", "--model", "a=one", code=2)["message"]
    gate = ("--gate", "accuracy>=0.5", "--on", "data.zip")
    assert "which architecture to run: one, two" in tell("merge", "one", "two", *gate, code=2)["message"]
    assert "--device nvidia" in tell("merge", "one", "two", "-n", "--device", "nvidia", code=2)["message"]
    assert "is for --heads" in tell("merge", "one", "two", "--head-name", "w", code=2)["message"]
    assert "for fisher and regmean" in tell("merge", "one", "two", "--stats-images", "7", code=2)["message"]
    assert clean()
    Path("added.txt").write_text("staged, not committed")
    git("add", "added.txt")
    assert "changes: added.txt" in tell("merge", "one", "two", "--no-commit", code=10)["message"]
    assert git("status", "--porcelain") == "A  added.txt"


def test_a_merge_of_git_with_conflicts_is_ended_as_well(models: Path, tell: Tell) -> None:
    for branch in ("one", "two"):
        tell("switch", branch)
        Path("notes.txt").write_text(branch)
        git("add", "notes.txt")
        tell("commit", "-m", "notes")
    git("-c", "user.name=A", "-c", "user.email=a@b", "merge", "one", code=1)
    assert "conflicts in notes.txt" in tell("merge", "--continue", code=10)["message"]
    git("checkout", "--ours", "notes.txt")
    git("add", "notes.txt")
    tell("merge", "--continue")
    assert clean() and value() == 3.0 and Path("notes.txt").read_text() == "two"


def test_a_branch_that_moves_meanwhile_is_not_moved_over(
    models: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell("switch", "one")
    honest, other = Repository.commit, git("commit-tree", "-p", "one", "-m", "theirs", "one^{tree}")

    def commit_while_another_does(self: Repository, *arguments: Any) -> str:
        made = honest(self, *arguments)
        git("update-ref", "refs/heads/one", other)
        return made

    monkeypatch.setattr(Repository, "commit", commit_while_another_does)
    error = tell("merge", "two", code=10)
    assert "one has moved" in error["message"]
    assert (git("rev-parse", "one"), value()) == (other, 2.0)


def test_giving_up_a_merge_of_git_with_conflicts(models: Path, tell: Tell) -> None:
    for branch in ("one", "two"):
        tell("switch", branch)
        Path("notes.txt").write_text(branch)
        git("add", "notes.txt")
        tell("commit", "-m", "notes")
    git("-c", "user.name=A", "-c", "user.email=a@b", "merge", "one", code=1)
    assert "modelgit merge --abort" in tell("merge", "one", code=10)["hint"]
    assert tell("merge", "--abort")["kind"] == "aborted"
    assert clean() and value() == 4.0 and Path("notes.txt").read_text() == "two"


@pytest.mark.parametrize("tool", ["git", "modelgit"])
def test_giving_up_leaves_other_changes_alone(models: Path, tell: Tell, tool: str) -> None:
    tell("switch", "one")
    for name in ("notes.txt", "plan.txt"):
        Path(name).write_text("mine")
        git("add", name)
    tell("commit", "-m", "notes")
    if tool == "git":
        Path("notes.txt").write_text("changed before")
        git("-c", "user.name=A", "-c", "user.email=a@b", "merge", "--no-commit", "two")
    else:
        tell("merge", "two", "--no-commit")
        Path("notes.txt").write_text("changed before")
    Path("plan.txt").write_text("changed after")
    assert tell("merge", "--abort")["kind"] == "aborted"
    assert (value(), Path("notes.txt").read_text(), Path("plan.txt").read_text()) == (
        2.0,
        "changed before",
        "changed after",
    )
    assert git("status", "--porcelain").split() == ["M", "notes.txt", "M", "plan.txt"]


def test_weights_changed_after_the_merge_are_not_thrown_away(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    tell("merge", "two", "--no-commit")
    save_file({"w": full(3.5), "b": full(0.5)}, "model.safetensors")
    error = tell("merge", "--abort", code=10)
    assert "model.safetensors" in error["message"] and "git reset --hard" in error["hint"]
    assert value() == 3.5 and git("rev-parse", "MERGE_HEAD") == git("rev-parse", "two")
    git("reset", "--hard")
    assert clean() and value() == 2.0


def test_no_merge_begins_in_the_middle_of_another(models: Path, tell: Tell) -> None:
    tell("switch", "one")
    tell("merge", "two", "--no-commit")
    for words in (("merge", "two"), ("cherry-pick", "two"), ("revert", "HEAD")):
        error = tell(*words, code=10)
        assert "a merge is under way" in error["message"] and "modelgit merge --abort" in error["hint"]
    assert git("rev-parse", "MERGE_HEAD") == git("rev-parse", "two")
