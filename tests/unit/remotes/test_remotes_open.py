"""URLs of remotes: which folder they name, which kinds are known."""

from pathlib import Path

import pytest

from modelgit.errors import RemoteError
from modelgit.remotes.open import directory_of, git_directory_of, open_remote


def git_folder(place: Path) -> Path:
    (place / "objects").mkdir(parents=True)
    (place / "HEAD").write_text("ref: refs/heads/main\n")
    return place


def test_paths_and_file_urls_name_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    assert directory_of(str(folder)) == folder.resolve()
    assert directory_of(f"file://{tmp_path}/a%20b") == folder.resolve()
    assert directory_of(f"file://localhost{tmp_path}/a%20b") == folder.resolve()


def test_bare_or_not_the_git_directory_is_found(tmp_path: Path) -> None:
    bare = git_folder(tmp_path / "bare.git")
    inside = git_folder(tmp_path / "whole" / ".git")
    assert git_directory_of(str(bare)) == bare.resolve()
    assert git_directory_of(str(tmp_path / "whole")) == inside.resolve()


def test_a_linked_work_tree_and_a_submodule_name_theirs(tmp_path: Path) -> None:
    shared = git_folder(tmp_path / "whole" / ".git")
    private = shared / "worktrees" / "linked"
    private.mkdir(parents=True)
    (private / "commondir").write_text("../..\n")
    for name, text in (("linked", f"gitdir: {private}\n"), ("module", "gitdir: ../whole/.git\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".git").write_text(text)
        assert git_directory_of(str(tmp_path / name)) == shared.resolve()
    for text in ("", "gitdir: nowhere\0", "gitdir: " + "x" * 9000, "\xff"):
        (tmp_path / "module" / ".git").write_text(text)
        with pytest.raises(RemoteError, match="the folder holds none"):
            git_directory_of(str(tmp_path / "module"))


def test_the_store_of_a_plain_git_repository_is_empty(tmp_path: Path) -> None:
    bare = git_folder(tmp_path / "bare.git")
    assert list(open_remote(str(bare)).oids()) == []
    assert not (bare / "modelgit").exists()


@pytest.mark.parametrize(
    "url", ["https://example.org/x", "ssh://h/x", "git@host:x.git", "s3://b/k", "ext::sh -c id", "file://host/x"]
)
def test_other_kinds_are_refused_naming_those_known(url: str) -> None:
    with pytest.raises(RemoteError, match="only directories can be remotes") as caught:
        directory_of(url)
    assert caught.value.hint == "known kinds: a path, file://"
    assert caught.value.exit_code == 15


def test_an_absent_folder_and_one_without_a_repository(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="there is no such folder"):
        directory_of(str(tmp_path / "none"))
    with pytest.raises(RemoteError, match="the folder holds none"):
        git_directory_of(str(tmp_path))
