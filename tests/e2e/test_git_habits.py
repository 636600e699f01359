"""What somebody who knows git expects: nothing goes silently, and what has changed can be seen before a commit."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.cli.app import main
from modelgit.errors import FormatError, RemoteError, RepositoryError, RevisionError, UsageError
from modelgit.events import Event, Noted
from modelgit.porcelain import comparing, sharing, work
from modelgit.porcelain.importing import import_model
from modelgit.repo.repository import Repository
from modelgit.repo.transport import upstream_of

MODEL = "model.safetensors"


def git(folder: Path, *words: str, code: int = 0) -> str:
    """Runs git as its user would, and returns what it prints."""
    who = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **who}
    )
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def write_model(place: Path, shift: float = 0.0, heads: int = 2) -> None:
    """Writes a model of two tensors, the first of them moved by `shift`."""
    body = np.arange(12, dtype=np.float32).reshape(3, 4) + 1 + np.float32(shift)
    save_file({"body": body, "head": np.ones((heads, 4), np.float32)}, place)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository.init(tmp_path / "models")
    write_model(tmp_path / "models" / MODEL)
    work.commit(made, "First")
    return made


@pytest.fixture
def top(repo: Repository) -> Path:
    assert repo.worktree is not None
    return repo.worktree


# ------------------------------------------------------------------------------------------------ looking


def test_diff_of_the_work_tree_is_that_of_the_commit_made_of_it(
    repo: Repository, top: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(top / MODEL, 1.0)
    write_model(top / "new.safetensors")
    (top / "train.py").write_text("1")
    work.add(repo, ["train.py"], top)
    found = comparing.diff_worktree(repo)
    assert [(c.path, c.name, c.kind) for c in found.tensors] == [
        (MODEL, "body", "changed"),
        ("new.safetensors", "body", "added"),
        ("new.safetensors", "head", "added"),
    ]
    assert (found.new, found.same, found.files) == (None, 1, ("train.py",))
    work.commit(repo, "Second")
    made = comparing.diff(repo, "HEAD~1")
    assert (made.tensors, made.same) == (found.tensors, found.same)
    assert comparing.diff_worktree(repo).tensors == ()
    assert comparing.diff_worktree(repo, "HEAD~1") == replace(made, new=None)
    (top / "train.py").write_text("2")
    for words, new, files in ((["HEAD~1"], None, ["train.py"]), (["HEAD~1", "HEAD"], made.new, list(made.files))):
        assert main(["-C", str(top), "diff", "--json", *words]) == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["new"], told["files"]) == (new, files)


def test_diff_of_the_work_tree_sees_deleted_files_and_refuses_broken_ones(repo: Repository, top: Path) -> None:
    (top / MODEL).unlink()
    assert {c.kind for c in comparing.diff_worktree(repo).tensors} == {"removed"}
    (top / MODEL).write_text("broken, and long enough")
    with pytest.raises(FormatError, match="not a safetensors file"):
        comparing.diff_worktree(repo)


def test_diff_before_the_first_commit_says_so(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="no commits yet"):
        comparing.diff_worktree(Repository.init(tmp_path))


def test_a_range_names_both_versions(repo: Repository, top: Path) -> None:
    write_model(top / MODEL, 1.0)
    work.commit(repo, "Second")
    whole = comparing.diff(repo, "HEAD~1", "HEAD")
    assert comparing.diff(repo, "HEAD~1..HEAD") == comparing.diff(repo, "HEAD~1..") == whole
    assert comparing.diff(repo, "..HEAD~1") == comparing.diff(repo, "HEAD", "HEAD~1")
    assert comparing.diff(repo, "HEAD~1...HEAD") == whole
    assert comparing.diff(repo, "HEAD...HEAD~1").tensors == ()  # what both come from is HEAD~1
    assert main(["-C", str(top), "diff", "HEAD~1..HEAD", "HEAD"]) == 2
    with pytest.raises(RevisionError, match="unknown revision"):
        comparing.diff(repo, "../model")


def test_a_file_that_only_changed_its_name_is_told_as_such(repo: Repository, top: Path) -> None:
    git(top, "mv", MODEL, "other.safetensors")
    work.commit(repo, "Another name")
    found = comparing.diff(repo, "HEAD~1")
    assert (found.renamed, found.tensors, found.same) == (((MODEL, "other.safetensors"),), (), 2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("diff", MODEL), f"git diff -- {MODEL}"),
        (("diff", "HEAD", MODEL), f"git diff -- {MODEL}"),
        (("log", "main..HEAD"), "git log main..HEAD"),
        (("log", "--", MODEL), f"git log -- {MODEL}"),
        (("show", f"HEAD:{MODEL}"), f"git show HEAD:{MODEL}"),
    ],
)
def test_what_git_takes_beside_versions_is_sent_to_git(
    top: Path, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(top)
    assert main([*words]) == 11
    assert f"git takes more: {told}\n" in capfd.readouterr().err
    assert main([words[0], "nothing"]) == 11
    assert "branches: main" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- taking in


def test_an_import_names_what_came_and_what_went(repo: Repository, top: Path, tmp_path: Path) -> None:
    (top / "train.py").write_text("1")
    work.add(repo, ["train.py"], top)
    made = work.commit(repo, "Script")
    assert (made.files, made.deleted) == (("train.py",), ())
    write_model(tmp_path / "one.safetensors", 2.0)
    made = import_model(repo, tmp_path / "one.safetensors", path="named.safetensors")
    assert (made.files, made.deleted) == (("named.safetensors",), ())
    folder = tmp_path / "hf"
    folder.mkdir()
    write_model(folder / "model-00001-of-00001.safetensors")
    (folder / "config.json").write_text("{}")
    made = import_model(repo, folder)
    assert made.files == ("config.json", "model-00001-of-00001.safetensors")
    assert made.deleted == (MODEL,)


def test_a_name_that_may_not_be_stops_nothing_but_its_commit(repo: Repository, top: Path) -> None:
    write_model(top / "two\nlines.safetensors")
    with pytest.raises(FormatError, match="control characters"):
        work.commit(repo, "Never")
    assert [change.path for change in work.status(repo).changes] == ["two\nlines.safetensors"]
    (top / "two\nlines.safetensors").rename(top / "lines.safetensors")
    assert work.commit(repo, "Renamed").files == ("lines.safetensors",)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("name", ["two\nit's lines.safetensors", "zero\u200bwidth.txt", "back\\slash.txt"])
def test_a_name_that_git_has_already_can_be_got_rid_of(repo: Repository, top: Path, name: str, committed: bool) -> None:
    (top / name).write_bytes(b"")
    off = ("-c", "filter.modelgit.process=", "-c", "filter.modelgit.clean=", "-c", "filter.modelgit.required=false")
    git(top, *off, "add", "--", name)
    if committed:
        git(top, "commit", "--quiet", "-m", "By plain git")
    with pytest.raises(FormatError) as caught:
        work.status(repo)
    command = str(caught.value.hint).partition(": ")[2].partition(";")[0]
    assert command.startswith("git rm --cached -- ") and command.isprintable()
    subprocess.run(["bash", "-c", command], cwd=top, check=True, capture_output=True)
    if committed:
        git(top, "commit", "--quiet", "-m", "Taken out")
    (top / name).unlink()
    assert work.status(repo).changes == ()


def test_a_checkpoint_that_is_added_whole_is_remarked_upon(repo: Repository, top: Path) -> None:
    heard: list[Event] = []
    (top / "model.pt").write_bytes(b"x")
    (top / "notes.txt").write_bytes(b"x")
    work.add(repo, ["model.pt", "notes.txt"], top, heard.append)
    assert [e.message for e in heard if isinstance(e, Noted)] == [
        "model.pt: git will keep every version whole; modelgit import takes in the tensors"
    ]
    with pytest.raises(UsageError, match="no such file") as caught:
        work.add(repo, ["nothing"], top)
    assert str(top) in str(caught.value.hint)


def test_an_author_that_nobody_named_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Repository.init(tmp_path)
    write_model(tmp_path / MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        for key in ("NAME", "EMAIL"):
            patch.delenv(f"GIT_AUTHOR_{key}", raising=False)
        assert main(["commit", "-m", "First"]) == 0
        assert "git config --global user.name" in capfd.readouterr().err
        for key, shift, told in (("name", 1.0, True), ("email", 2.0, False)):
            git(tmp_path, "config", f"user.{key}", "Ada")
            write_model(tmp_path / MODEL, shift)
            assert main(["commit", "-m", "Again"]) == 0
            assert ("git config --global" in capfd.readouterr().err) == told


# ---------------------------------------------------------------------------------------- going elsewhere


def test_local_changes_that_come_along_are_named(repo: Repository, top: Path) -> None:
    write_model(top / MODEL, 1.0)
    write_model(top / "new.safetensors")
    for gone in (work.create_branch(repo, "b", None), work.switch(repo, "main")):
        assert [(c.path, c.kind) for c in gone.kept] == [(MODEL, "modified")]
    assert work.switch(repo, "b", force=True).kept == ()


def test_commits_on_no_branch_are_not_left_silently(repo: Repository, top: Path) -> None:
    git(top, "checkout", "--quiet", "--detach")
    write_model(top / MODEL, 1.0)
    lost = work.commit(repo, "On no branch").commit
    assert work.create_branch(repo, "kept", None).left is None
    git(top, "checkout", "--quiet", "--detach")
    assert work.switch(repo, "main").left is None  # the branch still leads to it
    git(top, "branch", "--quiet", "--delete", "--force", "kept")
    git(top, "checkout", "--quiet", lost)
    assert work.switch(repo, "main").left == lost


@pytest.mark.parametrize("go", [work.switch, work.checkout])
def test_a_branch_is_in_one_work_tree_at_a_time(
    repo: Repository, top: Path, go: Callable[[Repository, str], work.CheckedOut]
) -> None:
    git(top, "worktree", "add", "--quiet", "-b", "beside", "../beside")
    with pytest.raises(RepositoryError, match="'beside' is checked out in another work tree") as caught:
        go(repo, "beside")
    assert str(top.parent / "beside") in caught.value.message
    assert repo.branch() == "main"
    git(top, "worktree", "remove", "../beside")
    assert go(repo, "beside").branch == "beside"


@pytest.mark.parametrize("step", ["checkout", "switch"])
def test_a_clone_by_plain_git_keeps_weights_out_of_git(repo: Repository, top: Path, tmp_path: Path, step: str) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    work.create_branch(repo, "other", None)
    write_model(top / MODEL, 1.0)
    work.commit(repo, "Other")
    sharing.push(repo, "origin", ["main", "other"])
    git(tmp_path, "clone", "--quiet", "shared.git", "clone")
    clone, heard = tmp_path / "clone", list[Event]()
    assert (clone / MODEL).read_bytes().startswith(b"modelgit manifest")
    copy = Repository.open(clone)
    if step == "checkout":
        work.checkout(copy, "HEAD", listener=heard.append)
    else:
        work.switch(copy, "other", listener=heard.append)  # brings the objects, too
        assert (clone / MODEL).read_bytes() == (top / MODEL).read_bytes()
    assert any(isinstance(e, Noted) and "set up this repository for weights" in e.message for e in heard)
    write_model(clone / MODEL, 3.0)
    git(clone, "commit", "--quiet", "--all", "--message", "By plain git")
    assert git(clone, "show", f"HEAD:{MODEL}").startswith("modelgit manifest")


@pytest.mark.parametrize("ours", ["switch", "checkout"])
def test_the_way_back_is_known_to_git_and_to_us(
    repo: Repository, top: Path, ours: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work.create_branch(repo, "other", None)
    first = git(top, "log", "-g", "-1", "--format=%gs", "HEAD").strip()
    assert first == "checkout: moving from main to other"
    git(top, "switch", "--quiet", "-")
    assert repo.branch() == "main"
    monkeypatch.chdir(top)
    assert main([ours, "-"]) == main([ours, "-"]) == main([ours, "@{-1}"]) == 0
    assert repo.branch() == "other"
    head = repo.resolve("HEAD")
    git(top, "commit", "--quiet", "--allow-empty", "-m", "Second")
    assert main(["checkout", head]) == main(["switch", "main"]) == 0
    assert git(top, "log", "-g", "-1", "--format=%gs", "HEAD").strip() == f"checkout: moving from {head} to main"
    capfd.readouterr()
    if ours == "checkout":
        assert main([ours, "-"]) == 0
        assert (repo.branch(), repo.head()) == (None, head)
    else:
        assert main([ours, "-"]) == 11
        assert f"modelgit checkout {head}" in capfd.readouterr().err


def test_there_is_no_way_back_before_the_first_step(repo: Repository) -> None:
    for go in (work.switch, work.checkout):
        with pytest.raises(RevisionError, match="nothing was checked out before"):
            go(repo, "-")


def test_a_clone_on_a_branch_that_is_not_there_names_one_that_is(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True, branch="master")
    git(top, "remote", "add", "origin", "../shared.git")
    work.create_branch(repo, "another", None)
    sharing.push(repo, "origin", ["main", "another"])
    git(tmp_path, "clone", "--quiet", "shared.git", "clone")
    copy = Repository.open(tmp_path / "clone")
    found = work.status(copy)
    assert (found.branch, found.head, found.elsewhere) == ("master", None, ("main", "another"))
    with pytest.raises(RevisionError) as caught:
        copy.resolve("HEAD")
    assert caught.value.hint == "go to a branch: modelgit switch main"
    work.switch(copy, "main")
    assert (tmp_path / "clone" / MODEL).read_bytes() == (top / MODEL).read_bytes()
    assert work.status(copy).elsewhere == ()


def test_init_in_a_bare_repository_sets_up_that_one(repo: Repository, top: Path, tmp_path: Path) -> None:
    bare = tmp_path / "shared.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=trunk", "shared.git")
    for again in (False, True):
        made = sharing.init(bare, bare=again)
        assert (made.bare, made.branch, made.git_dir) == (True, "trunk", str(bare))
    assert not (bare / ".git").exists()
    assert git(bare, "config", "modelgit.version") == "1\n"
    for inside, place in ((bare / "refs", bare), (top / ".git", top), (top / ".git" / "objects", top)):
        with pytest.raises(RepositoryError, match="lies inside of a git directory") as caught:
            sharing.init(inside)
        assert caught.value.hint == f"modelgit init {place}"
        assert not (inside / ".git").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("commit", "--amend", "-m", "it is"), "git commit --all --amend -m 'it is'"),
        (("push", "--tags", "origin"), "git push --tags origin"),
        (("log", "--oneline"), "git log --oneline"),
        (("pull", "origin", "main", "other"), "git pull origin main other"),
        (("export", "--zip"), None),
    ],
)
def test_what_our_parser_does_not_know_git_may(
    top: Path,
    words: tuple[str, ...],
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(top)
    assert main([*words]) == 2
    said = capfd.readouterr().err
    assert f"see modelgit {words[0]} --help" in said
    assert (f"; git takes more: {told}\n" in said) if told else ("git takes more" not in said)


def test_an_amended_commit_holds_the_changed_weights(repo: Repository, top: Path) -> None:
    write_model(top / MODEL, 1.0)
    git(top, "commit", "--all", "--amend", "--quiet", "-m", "Better")
    assert [entry.subject for entry in repo.log()] == ["Better"]
    assert repo.store.missing(repo.version("HEAD").manifests[MODEL].oids()) == set()
    assert work.status(repo).changes == ()


def test_a_log_is_cut_by_a_number(
    repo: Repository, top: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(top / MODEL, 1.0)
    work.commit(repo, "Second")
    monkeypatch.chdir(top)
    assert main(["log", "-1", "--quiet"]) == 0
    assert capfd.readouterr().out.split() == [repo.head()]


def test_a_branch_follows_where_it_is_pushed_to_when_asked(repo: Repository, top: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        sharing.init(tmp_path / f"{name}.git", bare=True)
        git(top, "remote", "add", name, f"../{name}.git")
    with pytest.raises(UsageError, match="none is called origin"):
        sharing.push(repo, None, [])
    sharing.push(repo, "two", [])
    assert upstream_of(repo, "main") is None
    sharing.push(repo, "two", [], set_upstream=True)
    assert git(top, "rev-parse", "--abbrev-ref", "@{upstream}") == "two/main\n"
    assert sharing.fetch(repo).remote == sharing.pull(repo).remote == sharing.push(repo, None, []).remote == "two"
    git(top, "config", "push.autoSetupRemote", "true")
    sharing.push(repo, "one", [])
    assert upstream_of(repo, "main") == ("two", "main")  # that stays
    work.create_branch(repo, "other", None)
    sharing.push(repo, "one", [])
    assert upstream_of(repo, "other") == ("one", "other")


def test_a_clone_of_nothing_says_what_comes_first(tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    top, heard = tmp_path / "copy", list[Event]()
    sharing.clone(str(tmp_path / "shared.git"), top)
    copy = Repository.open(top)
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: sharing.push(copy, None, []), "nothing to push: main has no commit yet"),
        (lambda: sharing.pull(copy), "origin is empty: no branch yet"),
    ]
    for step, told in steps:
        with pytest.raises((UsageError, RemoteError), match=told) as caught:
            step()
        assert "then modelgit push -u origin" in str(caught.value.hint)
    write_model(top / MODEL)
    work.commit(copy, "First")
    sharing.push(copy, None, [], heard.append)
    assert upstream_of(copy, "main") == ("origin", "main")  # as git clones
    assert not any(isinstance(event, Noted) for event in heard)
    work.create_branch(copy, "side", None)
    sharing.push(copy, None, [], heard.append)
    assert [event.message for event in heard if isinstance(event, Noted)] == [
        "side follows no branch of a remote yet; modelgit push -u origin makes it follow origin/side: "
        "status and pull go by that"
    ]


def test_another_branch_can_be_pulled(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    sharing.push(repo, None, [])
    work.create_branch(repo, "other", None)
    write_model(top / MODEL, 1.0)
    made = work.commit(repo, "Other").commit
    sharing.push(repo, None, [])
    work.switch(repo, "main")
    sharing.pull(repo)
    assert repo.head() != made
    sharing.pull(repo, "origin", "other")
    assert (repo.branch(), repo.head()) == ("main", made)
    work.create_branch(repo, "mine", "HEAD~1")
    git(top, "branch", "--quiet", "--set-upstream-to=origin/other")
    sharing.pull(repo)
    assert repo.head() == made
    with pytest.raises(RemoteError, match="origin has no branch 'nothing'"):
        sharing.pull(repo, "origin", "nothing")


# ------------------------------------------------------------------------------------ what git does with ours


def test_git_blames_the_work_tree(repo: Repository, top: Path) -> None:
    write_model(top / MODEL, 1.0)
    second = work.commit(repo, "Second").commit
    rows = git(top, "blame", "-l", "-s", MODEL).splitlines()
    assert rows == git(top, "blame", "-l", "-s", "HEAD", "--", MODEL).splitlines()
    assert [row.split()[0] == second for row in rows] == [
        False,
        False,
        True,
        False,
    ]  # mark, header, body, head
    write_model(top / MODEL, 2.0)
    rows = git(top, "blame", "-l", "-s", MODEL).splitlines()
    assert [set(row.split()[0]) == {"0"} for row in rows] == [False, False, True, False]  # not committed yet
    (top / MODEL).write_text("broken, and long enough")
    assert "cannot be read" in git(top, "blame", "-s", MODEL)


def test_the_text_of_weights_is_never_taken_for_weights(repo: Repository, top: Path) -> None:
    text = git(top, "log", "-p", "-1", "--format=", "--", MODEL)
    rows = [row[1:] for row in text.splitlines() if row.startswith("+") and not row.startswith("+++")]
    assert rows[0].startswith("modelgit text") and rows[2].startswith("body F32 [3,4] ")
    before = git(top, "rev-parse", f":{MODEL}")
    (top / MODEL).write_text("\n".join(rows) + "\n")
    for words in (("add", MODEL), ("commit", "-am", "Never"), ("stash",)):
        done = subprocess.run(["git", *words], cwd=top, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "the text of a weight file, not the file itself" in done.stderr
    assert git(top, "rev-parse", f":{MODEL}") == before
    with pytest.raises(FormatError):
        work.commit(repo, "Never")
