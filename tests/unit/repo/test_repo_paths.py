"""What a path in a version may be, what git's complaints become, what ids blobs get."""

import pytest

from modelgit.errors import FormatError, RepositoryError, StorageFull, UsageError
from modelgit.repo.gitdir import check_path, failure
from modelgit.repo.repository import blob_id, log_entry, signature
from modelgit.repo.transport import HEAD_LINE
from modelgit.repo.values import trailers_of, with_trailers


@pytest.mark.parametrize("path", ["model.safetensors", "a/b/c.json", ".gitattributes", ".gitignore", "ü/名.txt", "a b"])
def test_ordinary_paths_pass(path: str) -> None:
    assert check_path(path, "x") == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../x", "a/../x", "a//b", "a/./b", ".git/config", "a/.git/hooks/x", ".GIT/config",
        ".Git", ".git./x", ".git /x", "git~1/config", ".ｇｉｔ/config", "a\\..\\b", "a\nb", "a\x1b[31m", ".g\u200cit/x",
        "\u202egnp.exe", ".git:x", ".git::$INDEX_ALLOCATION/config", "a/GIT~1:x/y", "a/\0", "x" * 5000,
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(FormatError, match=r"may not be in a version|control characters"):
        check_path(path, "commit 1234")


def test_a_full_disk_is_told_from_other_failures() -> None:
    full = failure(["hash-object", "-w"], 128, "error: unable to write file: No space left on device")
    assert isinstance(full, StorageFull)
    other = failure(["-c", "a=b", "update-ref"], 128, "warning: x\nfatal: cannot lock ref 'refs/heads/main'\nmore")
    assert isinstance(other, RepositoryError)
    assert other.message == "git update-ref failed (128): fatal: cannot lock ref 'refs/heads/main'"
    assert other.hint == "another git command is running here; wait for it and try again"


def test_blob_ids_are_gits() -> None:
    assert blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_trailers_go_in_and_come_out() -> None:
    text = with_trailers("Merge two models\n\nBecause.\n", (("Merge-Method", "linear"), ("Merge-Input", "a\nb")))
    assert text == "Merge two models\n\nBecause.\n\nMerge-Method: linear\nMerge-Input: a b\n"
    assert trailers_of(text) == {"Merge-Method": ["linear"], "Merge-Input": ["a b"]}
    assert trailers_of("Subject: only\n") == {}
    assert trailers_of("Subject\n\nnot a trailer\nKey: value\n") == {}
    assert with_trailers("x\n\n", ()) == "x\n"


def test_an_author_is_a_name_and_an_address() -> None:
    assert signature("Ann B <a@b.c>", 7) == {
        "GIT_AUTHOR_NAME": "Ann B",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_AUTHOR_DATE": "@7 +0000",
        "GIT_COMMITTER_DATE": "@7 +0000",
    }
    assert signature(None, None) == {}
    with pytest.raises(UsageError, match="expected 'Name <address>'"):
        signature("Ann", None)


def test_a_log_row_becomes_an_entry() -> None:
    row = [
        "c" * 40,
        f"{'a' * 40} {'b' * 40}",
        "A <a@b>",
        "12",
        "HEAD -> main, tag: v1, origin/main",
        "Subject\n\nBody\n",
    ]
    entry = log_entry(row)
    assert entry.parents == ("a" * 40, "b" * 40)
    assert entry.refs == ("main", "tag: v1", "origin/main")
    assert (entry.subject, entry.message, entry.date) == ("Subject", "Subject\n\nBody", 12)


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("ref: refs/heads/main\n", "main"),
        ("ref: refs/heads/a/b-c.d\n", "a/b-c.d"),
        ("c" * 40, None),
        ("ref: refs/heads/--upload-pack=x\n", None),
        ("ref: refs/heads/a b\n", None),
        ("", None),
    ],
)
def test_only_a_plain_branch_name_is_taken_from_a_strangers_head(text: str, branch: str | None) -> None:
    match = HEAD_LINE.fullmatch(text)
    assert (match[1] if match else None) == branch
