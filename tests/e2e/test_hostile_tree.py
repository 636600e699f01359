"""Histories that a stranger made with git alone: refused with our own error, and nothing is written outside."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import FormatError, ModelgitError
from modelgit.porcelain import comparing, sharing, versions, work
from modelgit.porcelain.python import Repository as PythonRepository
from modelgit.repo import worktree
from modelgit.repo.repository import Repository

OID = "0123456789abcdef" * 4


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    found = Repository.init(tmp_path / "in" / "models")
    assert found.worktree is not None
    save_file({"w": np.zeros(4, np.float32)}, found.worktree / "model.safetensors")
    worktree.commit_worktree(found, "honest")
    return found


def git(repo: Repository, *words: str, stdin: bytes = b"") -> str:
    environment = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *words], cwd=repo.worktree, input=stdin, capture_output=True, check=True, env=environment
    )
    return done.stdout.decode().strip()


def raw_tree(repo: Repository, rows: list[tuple[str, bytes, str]]) -> str:
    """Return a tree with whatever names, which git's own commands would not write."""
    data = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(sha) for mode, name, sha in rows)
    return git(repo, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=data)


def commit(repo: Repository, tree: str) -> str:
    made = git(repo, "commit-tree", tree, "-p", "HEAD", "-m", "hostile")
    git(repo, "update-ref", "refs/heads/hostile", made)
    return made


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git/objects" not in str(path) and "/logs/" not in str(path)
    }


def refused_everywhere(repo: Repository, rev: str, out: Path) -> None:
    """Assert that reading, checking out and exporting end in our own error, the files as they were."""
    before = everything_below(out)
    assert repo.worktree is not None
    path = repo.worktree
    for step in (
        lambda: worktree.checkout(Repository.open(path), rev),
        lambda: work.checkout(Repository.open(path), "hostile"),
        lambda: sharing.export(Repository.open(path), rev, out / "exported"),
        lambda: dict(PythonRepository(path).load(rev)),
    ):
        with pytest.raises(ModelgitError):
            step()
    after = everything_below(out)
    assert {name for name in after if not name.startswith("exported/")} == set(before)
    assert {name: data for name, data in after.items() if name in before} == before


NAMES = [b".git", b".GIT", b".git ", b".git.", b"git~1", b".git:x", b"..", b".", b".g\xe2\x80\x8cit", b"a\\b", b"a\nb",
         b"\xff\xfe", b"..\\x", b"x/../../../y", b"/etc", b"\x1b[2J"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_lead_elsewhere(repo: Repository, tmp_path: Path, name: bytes) -> None:
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"[core]\n\tfsmonitor = touch ran\n")
    inner = raw_tree(repo, [("100644", b"config", blob)])
    for mode, sha in (("100644", blob), ("40000", inner)):
        refused_everywhere(repo, commit(repo, raw_tree(repo, [(mode, name, sha)])), tmp_path)


def test_a_link_in_the_place_of_weights_is_never_made_or_followed(repo: Repository, tmp_path: Path) -> None:
    link = git(repo, "hash-object", "-w", "--stdin", stdin=b"../../outside")
    made = commit(repo, raw_tree(repo, [("120000", b"model.safetensors", link)]))
    (tmp_path / "outside").write_bytes(b"theirs")
    before = everything_below(tmp_path)
    assert repo.worktree is not None
    with pytest.raises(FormatError, match=r"model\.safetensors in .*: expected a weight file, got a link"):
        work.checkout(repo, "hostile", force=True)
    with pytest.raises(ModelgitError):
        dict(PythonRepository(repo.worktree).load(made))
    sharing.export(repo, made, tmp_path / "exported")
    assert everything_below(tmp_path) == before
    git(repo, "reset", "-q", "--hard", "hostile")  # git makes the link; nobody here takes it for weights
    assert {change.kind for change in comparing.diff_worktree(repo, "HEAD~1").tensors} == {"removed"}
    assert worktree.status(repo).changes == ()


def test_links_are_made_as_links_and_nothing_is_written_through_them(repo: Repository, tmp_path: Path) -> None:
    """`there` is a link out of the work tree, then a folder with a file, then a link again; `sub` is a submodule."""
    top, outside = repo.worktree, tmp_path / "outside"
    assert top is not None
    outside.mkdir()
    (outside / "config.json").write_bytes(b"theirs")
    link, data = (git(repo, "hash-object", "-w", "--stdin", stdin=text) for text in (b"../../outside/", b"ours"))
    folder = raw_tree(repo, [("100644", b"config.json", data)])
    linked = commit(repo, raw_tree(repo, [("160000", b"sub", repo.resolve("HEAD")), ("120000", b"there", link)]))
    filled = commit(repo, raw_tree(repo, [("40000", b"there", folder)]))
    for rev, names in ((linked, ["sub", "there"]), (filled, ["sub", "there"]), (linked, ["sub", "there"])):
        worktree.checkout(repo, rev)
        assert sorted(path.name for path in top.iterdir() if path.name != ".git") == names[rev == filled :]
        assert (top / "there").is_symlink() == (rev == linked)
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"config.json": b"theirs"}
        assert git(repo, "status", "--porcelain") == ""
    assert os.readlink(top / "there") == "../../outside/"  # noqa: PTH115  as it was, with its last character
    assert [(file.path, file.kind) for file in versions.show(repo).files] == [("sub", "submodule"), ("there", "link")]
    (top / "there").unlink()
    (top / "there").symlink_to("elsewhere")
    assert [(change.path, change.kind) for change in worktree.status(repo).changes] == [("there", "modified")]
    made = worktree.commit_worktree(repo, "elsewhere")
    assert made is not None and repo.read_link(repo.version(made).files["there"]) == b"elsewhere"
    assert {path: blob.mode for path, blob in repo.version(made).files.items() if not blob.ordinary} == {
        "sub": "160000",
        "there": "120000",
    }


@pytest.mark.parametrize(
    "text",
    [
        f'modelgit manifest 1\nsize {2**62}\nheader {OID} 10\n"w" U8 [{2**62 - 10}] {OID}\n',
        f'modelgit manifest 1\nsize 14\nheader {OID} 10\n"w" F32 [1] {OID}\n',
        f"modelgit manifest 1\nsize 10\nheader {'../' * 21}x 10\n",
        f'modelgit manifest 1\nsize 14\nheader {OID} 10\n"../../w" F32 [1] {OID}\n',
        "modelgit manifest 2\n",
        "modelgit manifest 1\n" + "\n" * 100_000,
        "modelgit manifest 1\nsize 10\nheader \0 10\n",
    ],
    ids=["huge", "absent", "not an id", "a path for a name", "later", "long", "NUL"],
)
def test_manifests_that_lie(repo: Repository, tmp_path: Path, text: str) -> None:
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=text.encode())
    refused_everywhere(repo, commit(repo, raw_tree(repo, [("100644", b"model.safetensors", blob)])), tmp_path)


def test_a_manifest_over_the_objects_of_another_header(repo: Repository, tmp_path: Path) -> None:
    honest = repo.version("HEAD").manifests["model.safetensors"]
    oid, header = honest.tensors[0].oid, f"{honest.header} {honest.header_bytes}"
    for row in (f'"w" I32 [4] {oid}', f'"v" F32 [4] {oid}', f'"w" F32 [2,2] {oid}', f'"w" F32 [4] {honest.header}'):
        text = f"modelgit manifest 1\nsize {honest.size_bytes}\nheader {header}\n{row}\n"
        blob = git(repo, "hash-object", "-w", "--stdin", stdin=text.encode())
        attributes = repo.tree("HEAD")[".gitattributes"].sha
        rows = [("100644", b".gitattributes", attributes), ("100644", b"model.safetensors", blob)]
        made = commit(repo, raw_tree(repo, rows))
        before = everything_below(tmp_path)
        with pytest.raises(ModelgitError):
            worktree.checkout(repo, made)
        assert everything_below(tmp_path) == before


def test_a_message_that_looks_like_a_merge_is_none(repo: Repository) -> None:
    git(repo, "commit", "--allow-empty", "-q", "-m", "By hand\n\nMerge-Method: ties\nMerge-Input: x y")
    (entry,) = versions.log(repo, ["HEAD"], limit=1).entries
    assert (entry.method, entry.inputs) == (None, 0)
