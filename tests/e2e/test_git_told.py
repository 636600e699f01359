"""What git tells without being asked, and modelgit has to tell as well."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from plain_git import MODEL, git, modelgit, moved, save, tensors

from modelgit.cli.app import main
from modelgit.errors import DamageFound, DirtyWorktree, RepositoryError
from modelgit.porcelain import comparing, sharing, work
from modelgit.porcelain.merging.merge import merge
from modelgit.porcelain.merging.values import Choices, Request
from modelgit.porcelain.upkeep.damage import fsck
from modelgit.porcelain.versions import show
from modelgit.repo.repository import Repository
from modelgit.repo.values import Upstream

BASE = tensors()


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository.init(tmp_path / "models")
    save(tmp_path / "models", BASE)
    work.commit(made, "First")
    return made


@pytest.fixture
def top(repo: Repository) -> Path:
    assert repo.worktree is not None
    return repo.worktree


def mode(top: Path, rev: str = "HEAD") -> str:
    """Returns the mode of the model in a version."""
    return git(top, "ls-tree", rev, MODEL).split()[0]


def told(repo: Repository) -> Mapping[str, str | None]:
    """Returns the paths that status tells of, and their new modes."""
    return {change.path: change.mode for change in work.status(repo).changes}


def test_an_executable_bit_is_a_change(repo: Repository, top: Path) -> None:
    (top / "run.sh").write_text("1")
    work.add(repo, ["run.sh"], top)
    work.commit(repo, "Script")
    for path in (MODEL, "run.sh"):
        (top / path).chmod(0o755)
    assert told(repo) == told(repo) == {MODEL: "100755", "run.sh": "100755"}
    assert comparing.diff_worktree(repo).tensors == ()
    assert git(top, "status", "--porcelain").split() == ["M", MODEL, "M", "run.sh"]
    work.commit(repo, "Executable")
    assert mode(top) == "100755"
    assert git(top, "status", "--porcelain") == "" and told(repo) == {}
    (top / MODEL).chmod(0o644)
    assert told(repo) == {MODEL: "100644"}
    git(top, "checkout", "--quiet", MODEL)
    work.checkout(repo, "HEAD~1")
    assert (top / MODEL).stat().st_mode & 0o111 == 0
    work.switch(repo, "main")
    assert (top / MODEL).stat().st_mode & 0o100 == 0o100
    assert git(top, "status", "--porcelain") == "" and told(repo) == {}
    save(top, moved(BASE, {"a.weight": 1.0}))
    (top / MODEL).chmod(0o755)
    work.commit(repo, "Moved")
    assert mode(top) == "100755"


def test_a_file_system_without_executable_bits_changes_none(repo: Repository, top: Path) -> None:
    git(top, "config", "core.fileMode", "false")
    (top / MODEL).chmod(0o755)
    repo = Repository.open(top)
    assert told(repo) == {}
    save(top, moved(BASE, {"a.weight": 1.0}))
    (top / MODEL).chmod(0o755)
    assert told(repo) == {MODEL: None}
    work.commit(repo, "Moved")
    assert mode(top) == "100644"


def test_status_tells_how_far_the_upstream_is(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    sharing.push(repo, None, [])
    assert work.status(repo).upstream is None  # as in git: a push makes none unless told to
    sharing.push(repo, None, [], set_upstream=True)
    assert work.status(repo).upstream == Upstream("origin/main", 0, 0)
    work.create_branch(repo, "beside", None)
    assert work.status(repo).upstream is None
    for shift in (1.0, 2.0):
        save(top, moved(BASE, {"a.weight": shift}))
        work.commit(repo, "Beside")
    sharing.push(repo, "origin", ["beside"])
    git(top, "push", "--quiet", "origin", "beside:main")
    work.switch(repo, "main")
    assert work.status(repo).upstream == Upstream("origin/main", 0, 2)
    save(top, moved(BASE, {"b.weight": 1.0}))
    work.commit(repo, "Ours")
    assert work.status(repo).upstream == Upstream("origin/main", 1, 2)
    git(top, "checkout", "--quiet", "--detach")
    assert work.status(repo).upstream is None
    git(top, "switch", "--quiet", "main")
    git(top, "update-ref", "-d", "refs/remotes/origin/main")
    assert work.status(repo).upstream is None


def test_a_record_that_was_carried_along_is_not_this_versions(repo: Repository, top: Path) -> None:
    work.create_branch(repo, "other", None)
    for branch, name in (("other", "a.weight"), ("main", "b.weight")):
        work.switch(repo, branch)
        save(top, moved(BASE, {name: 1.0}))
        work.commit(repo, branch)
    merge(repo, Request(("other",), Choices(), "Merged"))
    assert "record  merge" in modelgit(top, "show").splitlines()
    save(top, moved(BASE, {"c.weight": 1.0}))
    git(top, "commit", "--quiet", "--all", "-m", "By plain git")
    found = show(repo)
    assert found.record is not None and (found.record.kind, found.inherited) == ("merge", True)
    assert "record  merge (its parent has the same)" in modelgit(top, "show").splitlines()
    save(top, moved(BASE, {"a.weight": 2.0}))
    work.commit(repo, "By modelgit")
    assert show(repo).inherited is False


@pytest.mark.parametrize("done", [False, True])
def test_an_interruption_says_what_was_done_by_then(
    repo: Repository, top: Path, done: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(top, moved(BASE, {"a.weight": 1.0}))
    before, move = repo.head(), Repository.set_ref

    def interrupted(self: Repository, ref: str, commit: str, *, expected: str | None, reason: str = "") -> None:
        if done:
            move(self, ref, commit, expected=expected, reason=reason)
        raise KeyboardInterrupt

    monkeypatch.setattr(Repository, "set_ref", interrupted)
    monkeypatch.chdir(top)
    assert main(["commit", "-m", "Second"]) == 130
    said = capfd.readouterr().err
    assert (repo.head() != before) is done
    new = f", but main is at {str(repo.head())[:10]} now: modelgit status tells what is left"
    assert said.endswith(f"interrupted{new if done else ''}\n")


def test_fsck_names_a_pack_once_and_the_version_that_suffers(repo: Repository, top: Path) -> None:
    head = str(repo.head())
    for place, told in ((60, f"needed by {MODEL} of version {head[:10]}"), (-6, "not a pack of this version")):
        pack = next((top / ".git" / "modelgit" / "packs").iterdir())
        data = bytearray(pack.read_bytes())
        data[place : place + 4 if place > 0 else None] = b"XXXX" if place > 0 else b"XXXXXX"
        pack.chmod(0o644)
        pack.write_bytes(data)
        with pytest.raises(DamageFound) as caught:
            fsck(Repository.open(top))
        first = caught.value.message.split("; ")[0]
        assert told in first and first.count(pack.name) == 1


def test_a_pull_into_local_changes_names_a_way_that_pull_knows(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    first = repo.resolve("HEAD")
    save(top, moved(BASE, {"a.weight": 1.0}))
    work.commit(repo, "Second")
    sharing.push(repo, None, [])
    git(top, "reset", "--quiet", "--hard", first)
    save(top, moved(BASE, {"a.weight": 2.0}))
    with pytest.raises(DirtyWorktree, match="local changes would be overwritten") as pulled:
        sharing.pull(repo)
    assert "modelgit stash" in str(pulled.value.hint) and "--force" not in str(pulled.value.hint)
    with pytest.raises(DirtyWorktree) as switched:
        work.checkout(repo, "origin/main")
    assert "--force" in str(switched.value.hint)


def test_a_switch_that_is_refused_leaves_no_branch(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    sharing.push(repo, None, [])
    git(top, "push", "--quiet", "origin", "HEAD:theirs")
    save(top, moved(BASE, {"a.weight": 1.0}))
    work.commit(repo, "Second")
    sharing.fetch(repo)
    save(top, moved(BASE, {"a.weight": 2.0}))
    with pytest.raises(DirtyWorktree, match="local changes would be overwritten"):
        work.create_branch(repo, "new", "HEAD~")
    with pytest.raises(DirtyWorktree, match="local changes would be overwritten"):
        work.switch(repo, "theirs")
    assert list(repo.branches()) == ["main"] == [repo.branch()]
    assert "branch.theirs." not in git(top, "config", "--list")
    assert work.create_branch(repo, "new", None).kept
    work.create_branch(repo, "old", "HEAD~", force=True)
    assert (repo.branch(), repo.head(), git(top, "status", "--porcelain")) == ("old", repo.resolve("new~"), "")


def test_a_branch_in_the_way_of_another_is_named(repo: Repository) -> None:
    repo.git.run("branch", "good/v1")
    for wanted, other in (("good", "good/v1"), ("good/v1/late", "good/v1")):
        told = f"cannot make branch {wanted}: a branch {other} is in the way: git keeps branches as files"
        with pytest.raises(RepositoryError, match=f"^{told}$") as refused:
            work.create_branch(repo, wanted, None)
        assert refused.value.hint == "choose another name"
    work.create_branch(repo, "good-too", None)


def test_a_pull_says_where_the_branch_went(repo: Repository, top: Path, tmp_path: Path) -> None:
    sharing.init(tmp_path / "shared.git", bare=True)
    git(top, "remote", "add", "origin", "../shared.git")
    first = repo.resolve("HEAD")
    save(top, moved(BASE, {"a.weight": 1.0}))
    second = work.commit(repo, "Second").commit
    sharing.push(repo, None, [])
    assert sharing.pull(repo).forwarded is None
    for known in (second, first):  # fetched before, or by the pull itself
        git(top, "reset", "--quiet", "--hard", first)
        git(top, "update-ref", "refs/remotes/origin/main", known)
        pulled = sharing.pull(repo)
        assert pulled.forwarded == ("main", second) and bool(pulled.refs) == (known == first)


def test_a_difference_counts_the_weight_files_that_do_not_differ(repo: Repository, top: Path) -> None:
    assert comparing.diff_worktree(repo).weight_files == 1
    (top / "other.safetensors").write_bytes((top / MODEL).read_bytes())
    work.add(repo, ["other.safetensors"], top)
    work.commit(repo, "Two files")
    save(top, moved(BASE, {"a.weight": 1.0}))
    changed = comparing.diff_worktree(repo)
    assert {change.path for change in changed.tensors} == {MODEL} and changed.weight_files == 2
