"""What modelgit's own commit and switch leave of git's index, and that plain git goes on from it."""

import sys
from pathlib import Path

import pytest
from plain_git import MODEL, clean, copied, git, leftovers, modelgit, moved, run, save, tensors

BASE = tensors()
OTHER = moved(BASE, {"b.weight": 0.5})
PROBE = """
import sys
from modelgit.cli.app import main
code = main(sys.argv[1:])
print("GitPython" if "git" in sys.modules else "alone")
sys.exit(code)
"""
KINDS = {
    "plain": (),
    "version 4": ("--index-version", "4"),
    "untracked cache": ("--force-untracked-cache",),
    "split": ("--split-index",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, notes, and a branch beside."""
    place = tmp_path_factory.mktemp("made") / "models"
    modelgit(place.parent, "init", place.name)
    save(place, BASE)
    for name in ("notes.txt", "sub/more.txt"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("1\n")
    modelgit(place, "add", "notes.txt", "sub/more.txt")
    modelgit(place, "commit", "-m", "First")
    git(place, "branch", "other")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return copied(made, tmp_path / "models")


def writer(place: Path, *arguments: str) -> str:
    """Runs modelgit, and tells whether GitPython was loaded for it."""
    return run(place, sys.executable, "-c", PROBE, *arguments).stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_git_goes_on_from_every_kind_of_index(place: Path, kind: str) -> None:
    git(place, "update-index", "--assume-unchanged", "notes.txt")
    if KINDS[kind]:
        git(place, "update-index", *KINDS[kind])
    expected = "GitPython" if kind == "split" else "alone"
    save(place, OTHER)
    assert writer(place, "commit", "-m", "Fine-tune") == expected
    version = (place / ".git/index").read_bytes()[:8]
    assert version == b"DIRC\0\0\0" + (b"\x04" if kind == "version 4" else b"\x02")
    for branch in ("other", "main"):
        assert writer(place, "switch", branch) == "alone"
        assert clean(place) and leftovers(place) == []
        assert git(place, "ls-files", "-v").splitlines()[2] == "h notes.txt"
    assert git(place, "diff", "--cached", "--name-only") == git(place, "diff", "--name-only") == ""
    assert git(place, "fsck", "--strict") == ""
    (place / "notes.txt").write_text("2\n")
    git(place, "update-index", "--no-assume-unchanged", "notes.txt")
    git(place, "commit", "--quiet", "--all", "-m", "By plain git")
    assert git(place, "diff", "--name-only", "HEAD~1", "HEAD") == "notes.txt\n"


def test_gitpython_writes_the_index_where_paths_come_or_go(place: Path) -> None:
    git(place, "update-index", "--assume-unchanged", "notes.txt")
    save(place, OTHER, "another.safetensors")
    assert writer(place, "commit", "-m", "Another") == "GitPython"
    assert clean(place)
    (place / "another.safetensors").unlink()
    assert writer(place, "commit", "-m", "Gone") == "GitPython"
    assert clean(place)
    assert git(place, "ls-files", "-v").split() == [
        "H",
        ".gitattributes",
        "H",
        MODEL,
        "h",
        "notes.txt",
        "H",
        "sub/more.txt",
    ]
    assert git(place, "fsck", "--strict") == ""
    assert writer(place, "status") == "alone"


def test_an_intention_to_add_is_kept_by_add_and_carried_out_by_commit(place: Path) -> None:
    (place / "later.txt").write_text("x")
    git(place, "add", "--intent-to-add", "later.txt")
    save(place, OTHER)
    assert writer(place, "add", MODEL) == "alone"
    assert git(place, "status", "--porcelain").splitlines() == [" A later.txt", f"M  {MODEL}"]
    assert writer(place, "commit", "-m", "Both") == "alone"
    assert git(place, "show", "HEAD:later.txt") == "x"
    assert clean(place)
