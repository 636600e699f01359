"""What changed tensors are stored as differences to, beyond HEAD; and what a commit says that it stored."""

import json
from pathlib import Path

import pytest
from plain_git import MODEL, SHAPE, Tensors, git, modelgit, moved, save, tensors

from modelgit.porcelain import work
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import MAX_EARLIER

BASE = tensors()
WITHOUT = {name: value for name, value in BASE.items() if name != "b.weight"}
AGAIN = moved(BASE, {"b.weight": 0.001})
RAW = 4 * SHAPE[0] * SHAPE[1]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = Repository.init(tmp_path / "models")
    save(tmp_path / "models", BASE)
    work.commit(made, "First")
    return made


def top(repo: Repository) -> Path:
    assert repo.worktree is not None
    return repo.worktree


def changed(repo: Repository, values: Tensors, path: str = MODEL) -> None:
    save(top(repo), values, path)
    work.commit(repo, "Changed")


def parents(repo: Repository, name: str = "b.weight") -> tuple[str, ...]:
    """Returns what a tensor of HEAD is stored as a difference to."""
    found = Repository.open(top(repo))
    return found.store.info(found.version("HEAD").manifests[MODEL].entry(name).oid).parents


@pytest.mark.parametrize("by", ["modelgit", "git", "import"])
def test_a_tensor_that_head_lacks_is_a_difference_to_the_nearest_version_that_has_it(repo: Repository, by: str) -> None:
    changed(repo, moved(BASE, {"b.weight": 0.002}))
    nearest = repo.version("HEAD").manifests[MODEL].entry("b.weight").oid
    changed(repo, WITHOUT)
    changed(repo, moved(WITHOUT, {"a.weight": 0.001}))
    if by == "import":
        save(top(repo).parent, AGAIN, "again.safetensors")
        modelgit(top(repo), "import", "../again.safetensors")
    elif by == "git":
        save(top(repo), AGAIN)
        git(top(repo), "commit", "--quiet", "--all", "-m", "Again")
    else:
        changed(repo, AGAIN)
    assert parents(repo) == (nearest,)
    assert repo.store.info(nearest).stored_bytes < 0.9 * RAW, "a difference itself"


def test_so_is_one_of_a_file_that_was_away(repo: Repository) -> None:
    first = repo.version("HEAD").manifests[MODEL].entry("b.weight").oid
    changed(repo, {"other": BASE["a.weight"]}, "other.safetensors")
    (top(repo) / MODEL).unlink()
    work.commit(repo, "Gone")
    changed(repo, AGAIN)
    assert parents(repo) == (first,)


def test_only_so_many_versions_are_looked_at(repo: Repository) -> None:
    for number in range(MAX_EARLIER + 1):
        changed(repo, moved(WITHOUT, {"a.weight": 0.001 * number}))
        (top(repo) / "notes.txt").write_text(str(number))
        work.add(repo, ["notes.txt"], top(repo))
        work.commit(repo, "Weights stay: a version that does not count")
    before = repo.version("HEAD").commit
    changed(repo, AGAIN)
    assert parents(repo) == ()
    git(top(repo), "reset", "--quiet", "--hard", f"{before}~2")
    changed(repo, moved(BASE, {"b.weight": 0.003}))
    assert parents(repo) == (repo.version("HEAD~17").manifests[MODEL].entry("b.weight").oid,)


def test_what_was_added_before_is_told_of_by_the_commit(repo: Repository) -> None:
    values = moved(BASE, {"b.weight": 0.5})
    before = repo.packed_bytes()
    save(top(repo), values)
    work.add(repo, [MODEL], top(repo))
    added = repo.packed_bytes() - before
    told = json.loads(modelgit(top(repo), "commit", "-m", "Second", "--json"))
    assert repo.packed_bytes() - before == added
    assert 0.9 * added < told["stored_bytes"] <= added
    (top(repo) / "notes.txt").write_text("x")
    work.add(repo, ["notes.txt"], top(repo))
    assert work.commit(repo, "Notes").stored_bytes == 0
