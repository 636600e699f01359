"""cherry-pick, revert, rebase: what they do to weights, files and history, and what they leave as it was."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from task_vectors import copied, full, history, picture, state, values
from telling import Tell, teller

import modelgit
from modelgit.cli.app import main
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.repo.repository import Repository


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history(tmp_path_factory.mktemp("template") / "models")


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return copied(template, tmp_path / "models", monkeypatch)


def author_of(rev: str) -> str:
    done = subprocess.run(
        ["git", "log", "-1", "--date=raw", "--format=%an %ad", rev], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------- cherry-pick


def test_a_pick_adds_the_task_vector(models: Repository, tell: Tell) -> None:
    skill, head = models.resolve("skill~1"), models.head()
    picked = tell("cherry-pick", "skill~1", "--scale", "0.5")
    assert values() == {"a": 3.25, "b": 1.0, "c": 2.0}
    [step] = picked["steps"]
    assert (step["source"], step["kept"], step["taken"], step["recipes"], step["computed"]) == (skill, 2, 0, 1, 0)
    entry = models.version("HEAD").entry
    assert (entry.parents, entry.subject) == ((head,), "tune a")
    assert f"\n\n(cherry picked from commit {skill})\n\n" in entry.message
    assert entry.trailers["Signed-off-by"] == ["Ada"]
    assert entry.trailers["Replay-Scale"] == ["0.5"]
    assert author_of("HEAD") == "Ada 1700000000 +0530"
    verified = tell("verify", "--rerun")
    assert (verified["method"], verified["tensors"]) == ("cherry-pick", 3)
    assert tell("status")["changes"] == []


def test_a_pick_without_scale_takes_what_one_side_changed(models: Repository, tell: Tell) -> None:
    tell("cherry-pick", "main..skill")
    assert values() == {"a": 3.5, "b": 1.25, "c": 2.0}
    assert [entry.subject for entry in models.log(["HEAD"], limit=3)] == ["tune b", "tune a", "newer base"]
    taken = models.version("HEAD").manifests["model.safetensors"].entry("b")
    assert taken == models.version("skill").manifests["model.safetensors"].entry("b")
    tell("verify", "--rerun", "HEAD")
    tell("verify", "--rerun", "HEAD~1")


def test_a_pick_agrees_with_plain_git(models: Repository, tell: Tell) -> None:
    subprocess.run(["git", "switch", "-q", "-c", "by-git"], check=True)
    subprocess.run(["git", "cherry-pick", "skill~1", "skill"], check=True, capture_output=True)
    tell("switch", "newer")
    tell("cherry-pick", "main..skill")
    assert models.version("by-git").manifests == models.version("newer").manifests


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_pick_is_rounded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell, dtype: str) -> None:
    rng = np.random.default_rng(3)
    three = [rng.normal(size=(64, 33)).astype(dtype) for _ in range(3)]
    repo = modelgit.Repository.init(tmp_path / "models")
    monkeypatch.chdir(repo.path)
    for branch, values_, parents in (
        ("main", three[0], []),
        ("skill", three[1], ["main"]),
        ("newer", three[2], ["main"]),
    ):
        repo.commit({"w": values_}, message=branch, branch=branch, parents=parents)
    tell("switch", "newer")
    assert tell("cherry-pick", "skill", "--scale", "0.3")["steps"][0]["recipes"] == 1
    base, theirs, ours = (tensor.astype(np.float64) for tensor in three)
    got = load_file("model.safetensors")["w"]
    np.testing.assert_array_equal(got, (ours + 0.3 * theirs - 0.3 * base).astype(dtype))


def test_a_merge_is_picked_from_the_parent_that_is_named(models: Repository, tell: Tell) -> None:
    tell("switch", "-c", "both", "main")
    tell("merge", "skill", "newer", "-m", "both")  # a 2.25, b 1.125, c 1.5
    tell("switch", "newer")
    error = tell("cherry-pick", "both", code=2)
    assert "is a merge" in error["message"]
    assert "--mainline N (1 is " in error["hint"]
    first = models.version("both").entry.parents.index(models.resolve("skill")) + 1
    tell("cherry-pick", "both", "--mainline", str(first))  # + (0.75, -0.125, 0.5)
    assert values() == {"a": 3.75, "b": 0.875, "c": 2.5}
    assert "Merge-Method" not in models.version("HEAD").entry.trailers
    tell("verify", "--rerun")


def test_without_a_commit_only_the_files_change(models: Repository, tell: Tell) -> None:
    head = models.head()
    assert tell("cherry-pick", "skill~1", "--no-commit")["commit"] is None
    assert values()["a"] == 3.5
    assert models.head() == head
    assert {change["path"] for change in tell("status")["changes"]} - {RECORD_PATH} == {"model.safetensors"}
    tell("commit", "-m", "by hand")
    assert values()["a"] == 3.5


def test_ordinary_files_merge_line_by_line(models: Repository, tell: Tell) -> None:
    text = "".join(f"{i}\n" for i in range(9))
    tell("switch", "main")
    Path("notes.txt").write_text(text)
    tell("add", "notes.txt")
    tell("commit", "-m", "notes")
    tell("switch", "-c", "other")
    Path("notes.txt").write_text(text.replace("8", "eight"))
    save_file(state(a=1, b=2, c=1), "model.safetensors")
    tell("commit", "-m", "end of notes")
    tell("switch", "main")
    Path("notes.txt").write_text(text.replace("0", "nought"))
    tell("commit", "-m", "start of notes")
    assert tell("cherry-pick", "other")["steps"][0]["files"] == ["notes.txt"]
    assert Path("notes.txt").read_text() == text.replace("8", "eight").replace("0", "nought")
    subprocess.run(["git", "reset", "-q", "--hard", "HEAD~1"], check=True)
    Path("notes.txt").write_text(text.replace("8", "VIII"))
    tell("commit", "-m", "the same place")
    before = picture(models)
    error = tell("cherry-pick", "other", code=1)
    assert [(c["kind"], c["where"]) for c in error["conflicts"]] == [("file", "notes.txt")]
    assert picture(models) == before
    tell("cherry-pick", "other", "--files", "ours")
    assert Path("notes.txt").read_text() == text.replace("8", "VIII")
    assert values()["b"] == 2.0


def test_records_follow_the_change(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    Path(".modelgit").mkdir(exist_ok=True)
    Path(RECORD_PATH).write_bytes(write_record(Record("train", "tiny", ("cat", "dog"), ("b",))))
    tell("add", RECORD_PATH)
    tell("commit", "-m", "what it is")
    tell("switch", "newer")
    skill = models.resolve("skill")
    tell("cherry-pick", "skill")
    details = {"verb": "cherry-pick", "commit": skill, "scale": 1.0}
    assert read_record(models, "HEAD") == Record("commit", "tiny", ("cat", "dog"), ("b",), details)
    assert values() == {"a": 3.0, "b": 1.0, "c": 2.0}


# --------------------------------------------------------------------------------------------------------- revert


def test_a_revert_undoes_a_change_in_the_history(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    tell("revert", "skill~1")
    assert values() == {"a": 1.0, "b": 1.25, "c": 1.0}
    entry = models.version("HEAD").entry
    assert entry.message.startswith('Revert "tune a"\n\nThis reverts commit ')
    assert author_of("HEAD").partition(" ")[0] != "Ada"
    assert tell("verify", "--rerun")["method"] == "revert"
    error = tell("revert", "skill~2", code=2)  # once more: nothing is left to undo
    assert "HEAD is without the change" in error["message"]
    assert "--again" in tell("revert", "skill~2", "--scale", "1", code=2)["hint"]
    tell("revert", "skill~2", "--again")
    assert values()["a"] == 0.5


def test_a_revert_of_what_was_never_there_is_negation(models: Repository, tell: Tell) -> None:
    tell("switch", "main")
    tell("revert", "skill", "skill~1")  # main lacks both: 1 - 0.25, 1 - 0.5
    assert values() == {"a": 0.5, "b": 0.75, "c": 1.0}
    tell("verify", "--rerun")
    tell("verify", "--rerun", "HEAD~1")


def test_a_pick_and_its_revert_lead_back(models: Repository, tell: Tell) -> None:
    before = models.version("HEAD").manifests
    tell("cherry-pick", "skill~1")
    picked = models.resolve("HEAD")
    for words in (("skill~1",), ("skill~1", "--scale", "0.5")):
        error = tell("cherry-pick", *words, code=2)
        assert "HEAD is with the change of" in error["message"] and f"see {picked[:10]} (tune a)" in error["message"]
    tell("revert", "HEAD")
    assert models.version("HEAD").manifests == before
    tell("cherry-pick", "skill~1")
    tell("cherry-pick", "skill~1", "--again")
    assert values()["a"] == 4.0
    done = tell("cherry-pick", "main..skill")
    assert ([step["subject"] for step in done["steps"]], len(done["skipped"])) == (["tune b"], 1)
    assert [len(tell("rebase", "newer", "skill", "--dry-run")[key]) for key in ("steps", "skipped")] == [0, 2]


def test_a_range_is_reverted_newest_first(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    done = tell("revert", "main..skill", "--scale", "0.5")
    assert [step["source"] for step in done["steps"]] == [models.resolve("skill~2"), models.resolve("skill~3")]
    assert values() == {"a": 1.25, "b": 1.125, "c": 1.0}


# --------------------------------------------------------------------------------------------------------- rebase


def test_a_rebase_replays_each_commit(models: Repository, tell: Tell) -> None:
    old, onto = models.resolve("skill"), models.resolve("newer")
    done = tell("rebase", "newer", "skill")
    assert (done["kind"], done["branch"], done["onto"], done["old"]) == ("rebase", "skill", onto, old)
    assert values() == {"a": 3.5, "b": 1.25, "c": 2.0}
    assert [entry.subject for entry in models.log(["skill"], limit=3)] == ["tune b", "tune a", "newer base"]
    assert author_of("skill~1") == "Ada 1700000000 +0530"
    for rev in ("skill", "skill~1"):
        assert tell("verify", "--rerun", rev)["method"] == "rebase"
    assert models.resolve("ORIG_HEAD") == old
    assert main(["reset", "--hard", "-q", "ORIG_HEAD"]) == 0
    assert (models.resolve("skill"), values()["a"]) == (old, 1.5)
    assert tell("status")["changes"] == []


def test_a_rebase_again_changes_nothing_and_forward_is_forward(models: Repository, tell: Tell) -> None:
    tell("rebase", "newer", "skill")
    tip = models.resolve("skill")
    assert tell("rebase", "newer")["kind"] == "up-to-date"
    assert models.resolve("skill") == tip
    tell("switch", "main")
    assert tell("rebase", "skill")["kind"] == "fast-forward"
    assert models.resolve("main") == tip
    tell("cherry-pick", "skill", "--scale", "1")
    replayed = models.version("main").entry.trailers
    assert len(replayed["Replay-Of"]) == 1  # those of the rebase made way


def test_a_rebase_skips_what_is_there_already(models: Repository, tell: Tell) -> None:
    skill = models.resolve("skill")
    tell("cherry-pick", "skill")
    assert tell("rebase", "newer", "skill")["skipped"] == [skill]
    assert values() == {"a": 3.5, "b": 1.25, "c": 2.0}


def test_a_rebase_with_a_scale(models: Repository, tell: Tell) -> None:
    tell("rebase", "newer", "skill", "--scale", "0.5")
    assert values() == {"a": 3.25, "b": 1.125, "c": 2.0}
    tell("verify", "--rerun")


def test_a_conflict_halfway_leaves_the_branch(models: Repository, tell: Tell) -> None:
    tell("switch", "skill")
    save_file({**state(a=1.5, c=1), "b": full(1, 7)}, "model.safetensors")
    tell("commit", "-m", "another shape")
    tell("switch", "newer")
    save_file(state(a=3, b=5, c=2), "model.safetensors")
    tell("commit", "-m", "b moved")
    tell("switch", "skill")
    before, packs = picture(models), sorted((models.git_dir / "modelgit" / "packs").iterdir())
    error = tell("rebase", "newer", code=1)
    assert "another shape" in error["message"]
    assert [(c["kind"], c["where"]) for c in error["conflicts"]] == [("shape", "b")]
    assert picture(models) == before
    assert sorted((models.git_dir / "modelgit" / "packs").iterdir()) == packs
    assert not (models.git_dir / "ORIG_HEAD").exists()
    done = tell("rebase", "newer", "--tensors", "ours")
    assert done["skipped"] == [models.resolve("ORIG_HEAD")]
    assert values() == {"a": 3.5, "b": 5.25, "c": 2.0}


def test_git_keeps_its_own_options(models: Repository, tell: Tell, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rebase", "--onto", "newer", "main", "skill"]) == 0
    assert values() == {"a": 3.5, "b": 1.25, "c": 2.0}
    assert main(["cherry-pick", "--abort"]) != 0  # git says that none is under way
    assert "no cherry-pick or revert in progress" in capfd.readouterr().err
    assert main(["cherry-pick", "-x", "newer~1"]) != 2
