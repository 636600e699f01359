"""History over real git: commits, refs moved by compare-and-swap, names, notes; and what plain git makes of it."""

import multiprocessing
import subprocess
import time
from pathlib import Path

import pytest

from modelgit.errors import FormatError, RepositoryError, RevisionError, UsageError
from modelgit.formats.manifest import Manifest, write
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, CommitDraft
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors

MAIN = "refs/heads/main"


def git(place: Path, *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(["git", "-C", str(place), *arguments], input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


def stored(repo: Repository, value: int) -> Manifest:
    with repo.store.begin() as pack:
        data = bytes([value]) * 64
        manifest = store_tensors(pack, [("w", "F32", (16,), memoryview(data))], {"format": "pt"})
        pack.commit()
    return manifest


def committed(repo: Repository, value: int, *parents: str, ref: str | None = MAIN, expected: str | None = None) -> str:
    files: dict[str, Manifest | Blob | bytes] = {"model.safetensors": stored(repo, value), "a/config.json": b"{}"}
    return repo.commit(CommitDraft(parents, files, f"version {value}", (("Step", str(value)),), ref, expected))


def test_init_sets_up_git_and_is_repeatable(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "new" / "deep")
    Repository.init(tmp_path / "new" / "deep")
    assert repo.head() is None
    assert repo.branch() == "main"
    assert git(repo.git_dir, "config", "core.fsync") == "all"
    assert git(repo.git_dir, "config", "modelgit.version") == "1"
    assert git(repo.git_dir, "config", "filter.modelgit.required") == "true"
    assert (repo.git_dir / "info" / "attributes").read_text().count("filter=modelgit") == 1
    assert (repo.git_dir / "info" / "exclude").read_text().count(".modelgit-tmp") == 1


def test_opening_finds_the_repository_above_and_says_where_there_is_none(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "r")
    (tmp_path / "r" / "deep" / "er").mkdir(parents=True)
    assert Repository.open(tmp_path / "r" / "deep" / "er").worktree == repo.worktree
    bare = Repository.init(tmp_path / "b.git", bare=True)
    assert bare.worktree is None
    assert bare.git_dir == tmp_path / "b.git"
    with pytest.raises(RepositoryError, match="is not in a repository") as caught:
        Repository.open(tmp_path)
    assert caught.value.hint == "start one with: modelgit init"
    with pytest.raises(RepositoryError, match="no such folder"):
        Repository.open(tmp_path / "none")


def test_a_repository_of_a_later_format_is_refused(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    git(tmp_path, "config", "modelgit.version", "2")
    with pytest.raises(RepositoryError, match="repository format '2', expected 1"):
        Repository.open(repo.git_dir)


def test_a_commit_is_what_was_drafted_and_plain_git_reads_it(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    manifest = stored(repo, 1)
    draft = CommitDraft(
        (),
        {"model.safetensors": manifest, "config.json": b"{}", "deep/er/README": b"hi"},
        "First\n\nBody",
        (("Merge-Method", "linear"), ("Merge-Input", "x")),
        MAIN,
        None,
        "Ann B <a@b.c>",
        1_700_000_000,
    )
    commit = repo.commit(draft)
    version = repo.version("main")
    assert version.commit == commit == repo.head() == repo.resolve("HEAD") == git(tmp_path, "rev-parse", "main")
    assert version.manifests == {"model.safetensors": manifest}
    assert set(version.files) == {".gitattributes", "config.json", "deep/er/README"}
    assert version.entry.trailers == {"Merge-Method": ["linear"], "Merge-Input": ["x"]}
    assert (version.entry.author, version.entry.date) == ("Ann B <a@b.c>", 1_700_000_000)
    assert repo.read_file("main", "deep/er/README") == b"hi"
    assert repo.read_file("main", "nothing") is None
    assert bytes(StoredTensors(repo.store, manifest).read("w")) == b"\1" * 64
    assert git(tmp_path, "show", "main:model.safetensors") + "\n" == write(manifest)
    assert git(tmp_path, "fsck", "--strict") == ""
    assert "commit: First" in git(tmp_path, "reflog", "show", "main")


def test_the_same_draft_gives_the_same_commit(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    manifest = stored(repo, 1)
    draft = CommitDraft((), {"m.safetensors": manifest}, "x", author="A <a@b>", date=5)
    assert repo.commit(draft) == repo.commit(draft)
    assert repo.head() is None


def test_a_ref_moves_only_from_where_it_was_expected(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    one = committed(repo, 1)
    two = committed(repo, 2, one, expected=one)
    with pytest.raises(RepositoryError, match=f"cannot move {MAIN}: expected {one}, got {two}"):
        committed(repo, 3, one, expected=one)
    with pytest.raises(RepositoryError, match=f"expected none, got {two}"):
        committed(repo, 3, one, expected=None)
    with pytest.raises(RepositoryError, match=f"expected {one}, got none"):
        repo.set_ref("refs/modelgit/steps/x", two, expected=one)
    assert repo.head() == two
    repo.set_ref("refs/modelgit/steps/x", two, expected=None)
    assert repo.refs("refs/modelgit/") == {"refs/modelgit/steps/x": two}
    with pytest.raises(RepositoryError, match=f"expected {one}, got {two}"):
        repo.delete_ref("refs/modelgit/steps/x", expected=one)
    repo.delete_ref("refs/modelgit/steps/x", expected=two)
    assert repo.refs("refs/modelgit/") == {}


def test_drafts_that_may_not_be_are_refused(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    with pytest.raises(UsageError, match="empty commit message"):
        repo.commit(CommitDraft((), {}, " \n"))
    for path in ("../x", ".git/config", "a/.GIT/x", "/x", "a\nb"):
        with pytest.raises(FormatError, match="commit: path"):
            repo.commit(CommitDraft((), {path: b""}, "x"))
    assert git(tmp_path, "count-objects").startswith("0 objects")


def test_unknown_names_bring_near_ones(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    with pytest.raises(RevisionError, match="no commits yet"):
        repo.resolve("HEAD")
    one = committed(repo, 1)
    git(tmp_path, "branch", "flowers")
    git(tmp_path, "tag", "v1.0")
    with pytest.raises(RevisionError, match="unknown revision 'flower'") as caught:
        repo.resolve("flower")
    assert caught.value.hint == "did you mean flowers?"
    with pytest.raises(RevisionError) as other:
        repo.resolve("zzzzzz")
    assert other.value.hint == "branches: flowers, main"
    for hostile in ("--output=/etc/x", "-h", "", "main\n", "a..b", "@{"):
        with pytest.raises(RevisionError):
            repo.resolve(hostile)
    assert repo.resolve("v1.0") == repo.resolve(one[:8]) == one


def test_ancestry(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    root = committed(repo, 1)
    left = committed(repo, 2, root, ref="refs/heads/left")
    right = committed(repo, 3, root, ref="refs/heads/right")
    merge = committed(repo, 4, left, right, expected=root)
    stranger = committed(repo, 5, ref="refs/heads/stranger")
    assert repo.merge_base([left, right]) == [root]
    assert repo.merge_base([left, stranger]) == []
    assert repo.independent([root, left, right]) == [left, right]
    assert repo.independent([left, merge, right]) == [merge]
    assert repo.is_ancestor(root, merge)
    assert repo.is_ancestor(merge, merge)
    assert not repo.is_ancestor(merge, root)
    assert repo.branches() == {"left": left, "main": merge, "right": right, "stranger": stranger}
    assert [entry.commit for entry in repo.log(["main"])][0::3] == [merge, root]
    assert next(repo.log(limit=1)).parents == (left, right)
    assert {e.commit for e in repo.log([], everything=True)} == {root, left, right, merge, stranger}


def test_messages_that_look_like_our_own_separators_are_read_whole(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    one = repo.commit(CommitDraft((), {}, "odd \x01 one\n\nüñ \x01\n\x01", ref=MAIN))
    two = repo.commit(CommitDraft((one,), {}, "plain", ref=MAIN, expected=one))
    assert [(e.commit, e.message) for e in repo.log()] == [(two, "plain"), (one, "odd \x01 one\n\nüñ \x01\n\x01")]


def test_notes_are_set_read_and_replaced(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    commit = committed(repo, 1)
    assert repo.read_note("refs/notes/modelgit-x", commit) is None
    repo.write_note("refs/notes/modelgit-x", commit, "one\n")
    repo.write_note("refs/notes/modelgit-x", commit, "two\nlines\n")
    assert repo.read_note("refs/notes/modelgit-x", commit) == "two\nlines\n"


def note_all(place: Path, commits: list[str], text: str) -> None:
    repo = Repository.open(place)
    for commit in commits:
        repo.write_note("refs/notes/modelgit-x", commit, text)


def test_notes_of_two_writers_at_once_are_all_kept(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    commits = [committed(repo, i, ref=f"refs/heads/b{i}") for i in range(8)]
    processes = [
        multiprocessing.get_context("spawn").Process(target=note_all, args=(tmp_path, commits[i::2], f"by {i}"))
        for i in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [repo.read_note("refs/notes/modelgit-x", c) for c in commits] == ["by 0\n", "by 1\n"] * 4


def commit_many(place: Path, number: int, results: "multiprocessing.Queue[int]") -> None:
    """Commits to a branch of its own five times, and tries five times to move a branch that all want."""
    repo = Repository.open(place)
    own, moved = None, 0
    for i in range(5):
        value = 10 * number + i
        own = committed(repo, value, *([own] if own else []), ref=f"refs/heads/own{number}", expected=own)
        shared = repo.branches()["shared"]
        try:
            committed(repo, value + 100, shared, ref="refs/heads/shared", expected=shared)
            moved += 1
        except RepositoryError as error:
            assert "expected" in error.message
    results.put(moved)


def test_processes_commit_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    start = committed(repo, 0, ref="refs/heads/shared")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=commit_many, args=(tmp_path, i, results)) for i in range(3)]
    for process in processes:
        process.start()
    moved = sum(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    history = list(repo.log(["shared"]))
    assert len(history) == moved + 1
    assert history[-1].commit == start
    assert [len(list(repo.log([f"own{i}"]))) for i in range(3)] == [5, 5, 5]
    versions = [repo.version(e.commit) for e in repo.log([], everything=True)]
    oids = {oid for version in versions for m in version.manifests.values() for oid in m.oids()}
    assert repo.store.missing(oids) == set()
    assert repo.store.fsck(full=True).problems == ()
    assert [p.name for p in repo.git_dir.glob("modelgit-index-*")] == []


def test_a_hostile_tree_is_refused_when_read(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    blob = git(tmp_path, "hash-object", "-w", "--stdin", stdin=b"x")
    for row, message in (
        (f"100644 blob {blob}\t.giT\0", "may not be in a version"),
        (f"100644 blob {blob}\ta\x1b[31m\0", "control characters"),
        (f"100644 blob {blob}\ta\\b\0", "may not be in a version"),
    ):
        tree = git(tmp_path, "mktree", "-z", "--missing", stdin=row.encode())
        commit = git(tmp_path, "-c", "user.name=x", "-c", "user.email=x", "commit-tree", tree, "-m", "x")
        with pytest.raises(FormatError, match=message):
            repo.version(commit)


def test_links_and_submodules_are_carried_along_and_never_read(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    blob, sub = git(tmp_path, "hash-object", "-w", "--stdin", stdin=b"../x"), "a" * 40
    rows = f"120000 blob {blob}\tmodel.safetensors\0" + f"160000 commit {sub}\tsub\0"
    tree = git(tmp_path, "mktree", "-z", "--missing", stdin=rows.encode())
    commit = git(tmp_path, "-c", "user.name=x", "-c", "user.email=x", "commit-tree", tree, "-m", "x")
    found = repo.version(commit)
    links = {"model.safetensors": Blob(blob, "120000"), "sub": Blob(sub, "160000")}
    assert (found.manifests, found.files) == ({}, links)
    for path, link in links.items():
        assert (found.file(path), repo.read_file(commit, path)) == (None, None)
        with pytest.raises(FormatError, match="a link or a submodule"):
            repo.read_blob(link)
    made = repo.version(repo.commit(CommitDraft((commit,), found.tree(), "same")))
    assert {path: made.files[path] for path in links} == links


def test_a_malformed_manifest_is_named_by_path_and_commit(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    commit = repo.commit(CommitDraft((), {"m.safetensors": b"modelgit manifest 1\nsize 1\n"}, "x"))
    with pytest.raises(FormatError, match=f"m.safetensors in {commit[:12]}: manifest is cut short"):
        repo.version(commit)


def test_a_commit_takes_little_time(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path)
    manifest, tip = stored(repo, 1), committed(repo, 1)
    files: dict[str, Manifest | Blob | bytes] = {**repo.version(tip).files, "model.safetensors": manifest}
    times = []
    for i in range(5):
        start = time.perf_counter()
        tip = repo.commit(CommitDraft((tip,), {**files, "n": b"%d" % i}, "x", ref=MAIN, expected=tip))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
    assert len(list(repo.log())) == 6
