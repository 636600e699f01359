"""Plain git sends and brings weights: objects go before a push, a clone is filled in, nothing in it is executed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_git import (
    MODEL,
    clean,
    commit,
    copied,
    environment,
    git,
    leftovers,
    load,
    modelgit,
    moved,
    run,
    save,
    tensors,
)

from modelgit.errors import DamageFound, MissingObject
from modelgit.formats.manifest import is_manifest
from modelgit.porcelain.python import Repository as Models
from modelgit.porcelain.sharing import export
from modelgit.porcelain.upkeep.damage import fsck
from modelgit.repo import transport
from modelgit.repo.drivers import HOOK_MARK
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import checkout

BASE = tensors()
OTHER = moved(BASE, {"a.weight": 0.5})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, `base`."""
    work = tmp_path_factory.mktemp("made") / "work"
    modelgit(work.parent, "init", str(work))
    commit(work, BASE, "base")
    return work


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, with an empty bare repository as its origin."""
    work = copied(made, tmp_path / "work")
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(work, "remote", "add", "origin", "../origin.git")
    yield work
    assert leftovers(work) == []


def same_bytes(one: Path, other: Path) -> bool:
    return (one / MODEL).read_bytes() == (other / MODEL).read_bytes()


def test_a_push_sends_objects_first_and_a_plain_clone_is_filled_in(place: Path) -> None:
    git(place, "push", "--quiet", "origin", "main")
    origin = place.parent / "origin.git"
    assert modelgit(origin, "fsck", "--full").startswith("ok 1 version")
    clone = place.parent / "clone"
    git(place.parent, "clone", "--quiet", str(origin), "clone")
    assert is_manifest((clone / MODEL).read_bytes()[:64]), "no filter yet: git leaves manifests"
    assert git(clone, "status", "--porcelain") == ""
    modelgit(clone, "init", ".")
    assert "fill them in: modelgit checkout" in modelgit(clone, "status")
    modelgit(clone, "checkout")
    assert same_bytes(clone, place) and clean(clone)
    commit(clone, OTHER, "other")
    git(clone, "push", "--quiet")
    git(place, "pull", "--quiet", "--ff-only", "origin", "main")
    assert same_bytes(clone, place) and clean(place), "a pull by plain git brings the objects it needs"


@pytest.mark.parametrize("step", ["commit", "add", "pull", "merge", "python"])
def test_a_plain_clone_that_gets_weights_sends_their_objects(place: Path, step: str) -> None:
    """Whichever of modelgit's commands brings the first weights, plain git's next commit and push are safe."""
    git(place, "push", "--quiet", "origin", "main")
    git(place.parent, "clone", "--quiet", "origin.git", "clone")
    clone = place.parent / "clone"
    if step in ("pull", "merge"):
        commit(place, OTHER, "other")
        git(place, "push", "--quiet", "origin", "main")
        modelgit(clone, "fetch")
        modelgit(clone, *(["pull"] if step == "pull" else ["merge", "origin/main"]))
    elif step == "python":
        Models(clone).commit(OTHER, "other", branch="beside")  # the work tree is left alone
    else:
        save(clone, OTHER)
        modelgit(clone, *(["commit", "-m", "other"] if step == "commit" else ["add", MODEL]))
    save(clone, moved(OTHER, {"a.weight": 0.25}))
    git(clone, "commit", "--quiet", "--all", "--message", "by plain git")
    assert git(clone, "show", f"HEAD:{MODEL}").startswith("modelgit manifest")
    git(clone, "push", "--quiet", "origin", "--all")
    assert modelgit(place.parent / "origin.git", "fsck", "--full").startswith("ok ")


def test_a_fetch_brings_what_a_plain_clone_lacks_of_earlier_versions(place: Path) -> None:
    commit(place, tensors(seed=1), "another")
    git(place, "push", "--quiet", "origin", "main")
    clone = place.parent / "clone"
    git(place.parent, "clone", "--quiet", str(place.parent / "origin.git"), "clone")
    modelgit(clone, "checkout")
    repo = Repository.open(clone)
    with pytest.raises(DamageFound, match="missing object") as found:
        fsck(repo)
    assert "modelgit fetch brings what plain git has left" in str(found.value.hint)
    with pytest.raises(MissingObject) as missing:
        export(repo, "HEAD~1", clone / "out")
    assert "modelgit fetch" in str(missing.value.hint) and not (clone / "out").exists()
    transport.fetch(repo, "origin")
    assert fsck(repo).versions == 2
    assert not (clone / ".git" / "modelgit" / "partly").exists()


def test_what_the_remote_lacks_of_earlier_versions_stops_no_fetch(place: Path) -> None:
    commit(place, {"alone": tensors(seed=1)["a.weight"][:100]}, "another")
    git(place, "push", "--quiet", "--no-verify", "origin", "main")
    origin = place.parent / "origin.git"
    shutil.copytree(place / ".git" / "modelgit" / "packs", origin / "modelgit" / "packs")
    oldest = min((origin / "modelgit" / "packs").iterdir(), key=lambda pack: pack.stat().st_mtime_ns)
    oldest.unlink()
    git(place.parent, "clone", "--quiet", str(origin), "clone")
    modelgit(place.parent / "clone", "checkout")
    commit(place, {"alone": tensors(seed=2)["a.weight"][:100]}, "a third")
    git(place, "push", "--quiet", "origin", "main")
    transport.pull(Repository.open(place.parent / "clone"), "origin")
    assert same_bytes(place.parent / "clone", place)


def test_a_push_without_its_objects_is_refused(place: Path) -> None:
    packs = place / ".git" / "modelgit" / "packs"
    kept = shutil.copytree(packs, place.parent / "kept")
    shutil.rmtree(packs)
    done = run(place, "git", "push", "origin", "main", code=1)
    assert "is not in the store" in done.stderr and "Traceback" not in done.stderr
    assert git(place.parent / "origin.git", "for-each-ref") == ""
    shutil.copytree(kept, packs)
    git(place, "push", "--quiet", "origin", "main", "main:copy")
    shutil.rmtree(packs)
    git(place, "push", "--quiet", "origin", "main:again", ":copy")
    assert git(place.parent / "origin.git", "for-each-ref", "--format=%(refname:short)").split() == ["again", "main"]


def test_what_became_an_ordinary_file_is_sent_for_the_versions_before(place: Path) -> None:
    """One blob of git's, two names: a list of objects would tell of the newer one alone."""
    git(place, "mv", MODEL, "kept.bin")
    git(place, "commit", "--quiet", "-m", "set aside")
    git(place, "push", "--quiet", "origin", "main")
    origin = place.parent / "origin.git"
    assert fsck(Repository.open(origin), full=True).objects == 4
    checkout(transport.clone(str(origin), place.parent / "clone"), "HEAD~1")
    assert (place.parent / "clone" / MODEL).read_bytes() == (place / "kept.bin").read_bytes()


def test_a_remote_that_is_no_folder_gets_a_warning(place: Path) -> None:
    url = "ssh://git@localhost:1/nothing.git"
    hook = [str(place / ".git" / "hooks" / "pre-push"), "far", url]
    tip = git(place, "rev-parse", "main").strip()
    told = subprocess.run(
        hook,
        cwd=place,
        input=f"refs/heads/main {tip} refs/heads/main {'0' * 40}\n",
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert "warning: the weights stay here, far gets their manifests only" in told.stderr
    git(place, "update-ref", "refs/remotes/far/main", tip)
    lines = f"refs/heads/main {tip} refs/heads/main {'0' * 40}\n(delete) {'0' * 40} refs/heads/x {tip}\n"
    told = subprocess.run(hook, cwd=place, input=lines, capture_output=True, text=True, env=environment(), check=True)
    assert told.stderr == ""


def test_hooks_of_others_are_left_alone_and_told_of(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", ".")
    hook = tmp_path / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert "another pre-push hook" in run(tmp_path, sys.executable, "-m", "modelgit", "init").stderr
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"
    hook.unlink()
    git(tmp_path, "config", "core.hooksPath", "elsewhere")
    assert not Repository.init(tmp_path).hooked
    git(tmp_path, "config", "--unset", "core.hooksPath")
    assert Repository.init(tmp_path).hooked
    assert HOOK_MARK in hook.read_text() and hook.stat().st_mode & 0o111


def test_nothing_that_a_clone_brings_is_executed(place: Path) -> None:
    sign = place.parent / "executed"
    planted = f"import pathlib; pathlib.Path({str(sign)!r}).write_text(__name__)\n"
    for name in ("modelgit.py", "modelgit/__init__.py", "numpy.py", "sitecustomize.py", "json.py", "re.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(planted)
    (place / ".gitattributes").write_text("*.safetensors filter=evil diff=evil merge=evil\n*.txt filter=modelgit\n")
    (place / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = touch {sign}\n')
    (place / "hooks").mkdir()
    (place / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {sign}\n")
    (place / "hooks" / "post-checkout").chmod(0o755)
    (place / "any.txt").write_text("filter=modelgit is for weight files alone")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "planted")
    git(place, "push", "--quiet", "origin", "main")
    clone = place.parent / "clone"
    modelgit(place.parent, "clone", "origin.git", "clone")
    assert same_bytes(clone, place)
    git(clone, "switch", "--quiet", "-c", "mine", "main~1")
    commit(clone, OTHER, "mine")
    git(clone, "merge", "--quiet", "--no-edit", "main")
    git(clone, "diff", "HEAD~1", "HEAD")
    git(clone, "log", "-p")
    git(clone, "push", "--quiet", "origin", "mine")
    assert (clone / "any.txt").read_text() == "filter=modelgit is for weight files alone"
    assert not sign.exists()


def test_a_filter_that_is_killed_leaves_manifests_or_weights_and_nothing_else(place: Path) -> None:
    git(place, "switch", "--quiet", "-c", "other")
    commit(place, OTHER, "other")
    for delay in (0.02, 0.1, 0.15, 0.2, 0.25, 0.3):
        command = ["git", "checkout", "--quiet", "--detach", "main" if delay % 0.1 else "other"]
        running = subprocess.Popen(command, cwd=place, env=environment(), start_new_session=True)
        time.sleep(delay)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
        running.wait()
        time.sleep(0.05)
        (place / ".git" / "index.lock").unlink(missing_ok=True)
    modelgit(place, "checkout", "--force", "other")
    assert (load(place)["a.weight"] == OTHER["a.weight"]).all() and clean(place)
