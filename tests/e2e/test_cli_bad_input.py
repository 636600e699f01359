"""What can go wrong ends in a line that says what, one that says what next, an exit code; nothing has changed."""

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import modelgit
from modelgit.cli.app import main
from modelgit.repo.repository import Repository

Said = tuple[int, str, str]
Command = Callable[..., Said]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(Path.cwd())  # -C moves; the test after this one begins where this one did

    def run(*words: str) -> Said:
        capfd.readouterr()
        code = main(words)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a version on main, another on `tune`, and one of other shapes on `wide`."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    for branch, value, width in (("main", 1.0, 4), ("tune", 2.0, 4), ("wide", 3.0, 5)):
        repo.commit(tensors(value, width), message=branch, branch=branch, parents=[] if branch == "main" else ["main"])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template to work in."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def write(folder: Path, value: float, width: int = 4) -> None:
    """Writes a model into the work tree."""
    save_file(tensors(value, width), folder / "model.safetensors")


def tensors(value: float, width: int) -> dict[str, np.ndarray[Any, Any]]:
    """Returns a model of one tensor and a bias."""
    return {"head.weight": np.full((3, width), value, np.float32), "head.bias": np.zeros(3, np.float32)}


def state(folder: Path) -> dict[str, object]:
    """Returns all that a failed command must leave alone: refs and files."""
    repo = Repository.open(folder)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    return {"refs": repo.refs(), "head": repo.head(), "branch": repo.branch(), "files": files}


def git(folder: Path, *words: str) -> str:
    """Runs plain git and returns what it says."""
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def check(said: Said, code: int, message: str, hint: str) -> None:
    """Checks an error: exit code, one line, one hint, nothing on stdout, no traceback."""
    got, out, err = said
    rows = err.splitlines()
    assert got == code, err
    assert out == ""
    assert rows[0].startswith("error: ")
    assert message in rows[0]
    assert rows[-1].startswith("hint: ")
    assert hint in rows[-1]
    assert "Traceback" not in err


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["status"], ["log"], ["merge", "x"], ["push"], ["fsck"], ["show"]):
        check(command(*words), 10, "is not in a repository", "modelgit init")


def test_an_empty_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init", ".")[0] == 0
    check(command("log"), 11, "no commits yet", "modelgit import FILE")
    check(command("commit", "-m", "x"), 10, "nothing to commit", "modelgit status")
    assert command("fsck", "--full")[:2] == (0, "ok 0 versions, 0 objects (every byte recomputed)\n")
    code, told, _ = command("status")
    assert (code, told.splitlines()[:2]) == (0, ["On main, no commits yet", "No files yet"])
    assert "modelgit import FILE" in told
    check(command("push"), 2, "no remote named", "modelgit remote add origin PATH")


@pytest.mark.parametrize("words", [["show", "tnue"], ["merge", "tnue"], ["checkout", "tnue"], ["diff", "tnue"]])
def test_an_unknown_revision(models: Path, command: Command, words: list[str]) -> None:
    before = state(models)
    check(command(*words), 11, "unknown revision 'tnue'", "did you mean tune?")
    assert state(models) == before


def test_a_revision_that_looks_like_an_option(models: Path, command: Command) -> None:
    check(command("show", "--", "--all"), 11, "unknown revision '--all'", "main")
    check(command("diff", "--", "-C", "--output=x"), 11, "unknown revision", "main")
    assert not (models / "x").exists()


def test_a_dirty_work_tree(models: Path, command: Command) -> None:
    write(models, 9.0)
    before = state(models)
    check(command("merge", "tune"), 10, "model.safetensors", "modelgit commit")
    check(command("checkout", "tune"), 10, "model.safetensors", "--force")
    check(command("switch", "wide"), 10, "model.safetensors", "--force")
    check(command("import", "model.safetensors"), 10, "model.safetensors", "modelgit commit")
    assert state(models) == before
    assert command("checkout", "--force", "HEAD")[0] == 0
    assert command("status", "--json")[1].count('"changes": []') == 1


def test_what_is_no_model(models: Path, command: Command, tmp_path: Path) -> None:
    good = (models / "model.safetensors").read_bytes()
    cases = {
        "text.safetensors": (b"hello, world, this is text", "not a safetensors file"),
        "short.safetensors": (good[:-5], "truncated"),
        "header.safetensors": (good[:40], "truncated"),
        "empty.safetensors": (b"", "not a safetensors file"),
        "more.safetensors": (good + b"\0", "after the last tensor"),
        "pickle.pt": (b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", "neither a PyTorch checkpoint"),
    }
    before = state(models)
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        check(command("import", str(tmp_path / name)), 12, message, "")
    check(command("import", str(tmp_path / "absent")), 2, "No such file", "name a file or a folder")
    (tmp_path / "folder").mkdir()
    check(command("import", str(tmp_path / "folder")), 12, "no weights in this folder", "safetensors")
    (tmp_path / "folder" / "link.safetensors").symlink_to(models / "model.safetensors")
    check(command("import", str(tmp_path / "folder")), 12, "a link", "cp -rL")
    assert state(models) == before


def test_a_truncated_file_in_the_work_tree(models: Path, command: Command) -> None:
    (models / "model.safetensors").write_bytes((models / "model.safetensors").read_bytes()[:-1])
    before = state(models)
    check(command("commit", "-m", "broken"), 12, "truncated", "complete")
    assert state(models) == before
    assert "cannot be read" in command("status")[1]


def test_an_empty_file_in_the_place_of_weights(models: Path, command: Command) -> None:
    file = models / "model.safetensors"
    whole, before = file.read_bytes(), git(models, "rev-parse", "HEAD")
    file.write_bytes(b"")
    check(command("commit", "-m", "died"), 12, "0 bytes, expected a header of at least 8", "modelgit restore FILE")
    check(command("add", "model.safetensors"), 12, "0 bytes", "modelgit restore FILE")
    said = subprocess.run(["git", "commit", "-qam", "died"], cwd=models, check=False, capture_output=True, text=True)
    assert said.returncode and "0 bytes, expected a header" in said.stderr and "modelgit restore" in said.stderr
    assert git(models, "rev-parse", "HEAD") == before
    assert "modelgit restore model.safetensors" in command("status")[1]
    assert command("restore", "model.safetensors")[0] == 0
    assert file.read_bytes() == whole
    file.unlink()
    assert "modelgit restore model.safetensors" in command("status")[1]
    assert command("restore", "model.safetensors")[0] == 0
    (models / "new.safetensors").write_bytes(b"")
    check(command("commit", "-m", "died"), 12, "new.safetensors: not a safetensors file: 0 bytes", "remove it")


def test_an_empty_file_of_a_version_before_is_left_alone(models: Path, command: Command) -> None:
    off = ("-c", "filter.modelgit.clean=cat", "-c", "filter.modelgit.process=", "-c", "filter.modelgit.required=false")
    git(models, "switch", "-q", "-c", "old")
    (models / "model.safetensors").write_bytes(b"")
    git(models, *off, "commit", "-qam", "an empty one")
    for verb in (("switch", "tune"), ("switch", "old"), ("commit", "-m", "x", "--json")):
        code, _, said = command(*verb)
        assert code == (10 if verb[0] == "commit" else 0), said
    git(models, "switch", "-q", "tune")
    git(models, "switch", "-q", "old")
    (models / "model.safetensors").touch()
    git(models, "add", "model.safetensors")
    assert git(models, "status", "--porcelain", "--untracked-files=no") == ""
    assert command("status", "--json")[1].count('"changes": []') == 1


def test_a_weight_file_that_git_ignores_is_named(
    models: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "ignoring"
    assert command("init", str(top))[0] == 0
    (top / "model.safetensors").write_bytes((models / "model.safetensors").read_bytes())
    (top / ".gitignore").write_text("*.safetensors\n")
    monkeypatch.chdir(top)
    check(command("commit", "-m", "x"), 10, "model.safetensors is ignored", "modelgit add model.safetensors")
    assert "modelgit add model.safetensors" in command("status")[1]
    assert command("add", "model.safetensors")[0] == command("commit", "-m", "x")[0] == 0
    assert json.loads(command("status", "--json")[1])["ignored"] == []
    git(top, "tag", "v1")
    git(top, "checkout", "-q", "--detach")
    assert command("status")[1].startswith("Detached at v1 ")


def test_two_models_of_different_shapes(models: Path, command: Command) -> None:
    assert command("switch", "tune")[0] == 0
    before = state(models)
    code, out, err = command("merge", "wide")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == (
        "error: models cannot be merged: head.weight: expected [3, 4] as in tune, got [3, 5] in wide."
    )
    assert "--heads" in err.splitlines()[-1]
    table = json.loads(command("merge", "wide", "--json")[1])["error"]
    assert table["conflicts"] == [
        {"kind": "shape", "where": "head.weight", "expected": "[3, 4] as in tune", "got": "[3, 5] in wide"}
    ]
    assert table["exit_code"] == 1
    assert state(models) == before


def test_arguments_that_make_no_sense(models: Path, command: Command) -> None:
    before = state(models)
    check(command("mrege", "tune"), 2, "'mrege' is not a modelgit command", "did you mean merge?")
    check(command("merge"), 2, "nothing to merge", "modelgit merge BRANCH")
    check(command("merge", "tune", "--method", "tise"), 2, "no merge method 'tise'", "ties")
    check(command("merge", "wide", "tune", "--weights", "1,2,3"), 2, "3 weights for 2 models", "wide, tune")
    check(command("merge", "tune", "--gate", "accuracy>=0.5"), 2, "belong together", "--on")
    check(command("merge", "tune", "--gate", "accuracy", "--on", "x"), 2, "expected METRIC", "accuracy>=0.75")
    check(command("verify", "HEAD"), 2, "needs to be told", "--rerun")
    check(command("verify", "--rerun", "HEAD"), 2, "no merge of models", "modelgit merge")
    check(command("push", "nowhere"), 15, "no remote is called 'nowhere'", "modelgit remote add")
    check(command("clone", "https://example.com/x.git"), 15, "only directories", "known kinds")
    check(command("clone", "no/such/folder", "y"), 15, "no such folder", "check the path")
    check(command("export", "main", "."), 10, "not an empty folder", "another folder")
    check(command("-C", "no/such", "log"), 2, "No such file", "--help")
    check(command("switch", "-c", "bad..name"), 2, "may not be a branch's name", "letters")
    check(command("switch", "-c", "--", "--force"), 2, "may not be a branch's name", "letters")
    check(command("switch", "-c", "tune"), 10, "there is a branch 'tune' already", "modelgit switch tune")
    check(command("switch", "HEAD"), 11, "'HEAD' is no branch", "modelgit checkout HEAD")
    check(command("add", "no-such-file"), 2, "no such file", "")
    check(command("add", "../outside"), 2, "lies outside the work tree", str(models))
    check(command("switch", "main", "tune"), 2, "a start is for a new branch", "-c")
    assert state(models) == before


def test_a_missing_object(models: Path, command: Command, tmp_path: Path) -> None:
    for pack in (models / ".git" / "modelgit").rglob("*.pack"):
        pack.unlink()
    before = state(models)
    check(command("checkout", "tune"), 13, "not in the store", "modelgit fetch")
    check(command("export", "tune", str(tmp_path / "out")), 13, "", "")
    check(command("fsck"), 1, "missing object", "modelgit fsck --repair")
    assert state(models) == before
    for branch in ("main", "tune", "wide"):  # what only a pipeline's ref keeps is needed too
        Repository.open(models).git.run("update-ref", f"refs/modelgit/steps/{branch}", branch)
        Repository.open(models).git.run("update-ref", "-d", f"refs/heads/{branch}")
    check(command("fsck"), 1, "missing object", "modelgit fsck --repair")


def test_a_damaged_object(models: Path, command: Command) -> None:
    for pack in (models / ".git" / "modelgit").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        data[16] ^= 0xFF
        pack.chmod(0o644)
        pack.write_bytes(data)
    before = state(models)
    code, _, err = command("fsck", "--full")
    assert code == 1
    assert err.startswith("error: ")
    assert command("checkout", "tune")[0] == 13
    assert state(models) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; only root may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield place
    gc.collect()  # files that a store keeps open go with it
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command("init", str(small_disk))[0] == 0
    monkeypatch.chdir(small_disk)
    write(small_disk, 1.0)
    assert command("commit", "-m", "first")[0] == 0
    large = tmp_path / "large.safetensors"
    save_file({"head.weight": np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)}, large)
    before = state(small_disk)
    check(command("import", str(large)), 14, "No space left", "free some space")
    assert state(small_disk) == before
    assert command("fsck", "--full")[0] == 0
    assert [p.name for p in small_disk.rglob("*tmp*")] == []


def test_a_disk_that_is_full_for_files_only(small_disk: Path, command: Command, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    assert command("init", str(place))[0] == 0
    save_file({"head.weight": np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)}, tmp_path / "m")
    assert command("-C", str(place), "import", str(tmp_path / "m"))[0] == 0
    check(command("-C", str(place), "export", "main", str(small_disk)), 14, "No space left", "free some space")
    check(command("clone", str(place), str(small_disk / "copy")), 14, "No space left", "free some space")
    assert not (small_disk / "copy").exists()


def limited(folder: Path, size_bytes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that can write no file beyond `size_bytes`: a full disk, as the command sees it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    program = [
        sys.executable,
        "-c",
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + STARTED,
        *words,
    ]
    return subprocess.run(program, cwd=folder, preexec_fn=limit, capture_output=True, text=True, check=False)


STARTED = "from modelgit.cli.app import main; sys.exit(main(sys.argv[1:]))"


def test_a_limit_on_files(models: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    save_file({"head.weight": noise}, models / "model.safetensors")
    before = state(models)
    done = limited(models, 500_000, "commit", "-m", "large")
    assert done.returncode in (13, 14), done.stderr
    assert done.stderr.startswith("error: ")
    assert "File too large" in done.stderr
    assert state(models) == before
    assert subprocess.run([sys.executable, "-m", "modelgit", "fsck", "--full"], cwd=models, check=False).returncode == 0


def test_an_unexpected_error_is_one_line(models: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelgit.porcelain.versions.show", lambda *_: 1 / 0)
    check(command("show"), 70, "internal error: ZeroDivisionError", "--debug")
    assert "Traceback" in command("--debug", "show")[2]


def test_an_interruption(models: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelgit.porcelain.versions.show", interrupted)
    assert command("show") == (130, "", "interrupted\n")
    monkeypatch.setattr("modelgit.pipeline.start.run_pipelines", interrupted)
    assert command("run", "p.toml") == (130, "", "interrupted; the same command goes on from here\n")


@pytest.mark.parametrize("words", [("log",), ("du", "--json")])
def test_nobody_reads_the_output(models: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "modelgit", *words]
    done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, cwd=models)
    os.close(writer)
    assert (done.returncode, b"rror" in done.stderr) == (141, False)
