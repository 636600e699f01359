"""Files that hold no weights: merged line by line, by git and as its attributes say."""

from dataclasses import replace
from pathlib import Path

import pytest

from modelgit.repo.merging.texts import merge_blobs, merge_texts
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob

BASE = b"1\n2\n3\n4\n5\n"


@pytest.mark.parametrize(
    ("attribute", "ours", "theirs", "merged"),
    [
        ("", b"I\n2\n3\n4\n5\n", b"1\n2\n3\n4\nV\n", b"I\n2\n3\n4\nV\n"),
        ("", b"I\n2\n3\n4\n5\n", b"one\n2\n3\n4\n5\n", 1),
        ("", b"I\n2\n3\n4\n5\n", b"1\n2\n3\n4\n\0\n", 0),
        ("x merge=union", b"1\n2\n3\n4\n5\n6\n", b"1\n2\n3\n4\n5\n7\n", b"1\n2\n3\n4\n5\n6\n7\n"),
        ("x -merge", b"I\n2\n3\n4\n5\n", b"1\n2\n3\n4\nV\n", 0),
        ("x merge=own", b"I\n2\n3\n4\n5\n", b"1\n2\n3\n4\nV\n", 0),
    ],
)
def test_texts_are_merged_by_git_as_attributes_say(
    tmp_path: Path, attribute: str, ours: bytes, theirs: bytes, merged: bytes | int
) -> None:
    repo = Repository.init(tmp_path)
    (tmp_path / ".gitattributes").write_text(attribute)
    assert merge_texts(repo, "x", BASE, ours, theirs) == merged


def test_a_merged_file_keeps_its_mode_and_the_side_that_is_the_result(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    ours, theirs = (repo.write_blob(text) for text in (b"0\n" + BASE, BASE + b"6\n"))
    base, runs = repo.write_blob(BASE), replace(theirs, mode="100755")
    both = merge_blobs(repo, "x", base, ours, runs)
    assert isinstance(both, Blob)
    assert (both.mode, repo.read_blob(both)) == ("100755", b"0\n" + BASE + b"6\n")
    assert merge_blobs(repo, "x", base, both, runs) == both
    assert merge_blobs(repo, "x", base, ours, replace(theirs, mode="120000")) == 0
