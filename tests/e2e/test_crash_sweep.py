"""Killed, or refused by the disk, at the k-th mutating system call: nothing acknowledged is lost, and life goes on.

Each command is killed at its own k-th call and, apart, each git process that it starts at its k-th. A test takes some
of all the k; with MODELGIT_SWEEP=all every one, until a run ends unharmed.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

CALLS = (
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,fallocate,"
    "fsync,fdatasync,utimensat,chmod,fchmod,write,writev,pwrite64,symlink,symlinkat"
)
MODEL = "model.safetensors"
MODELGIT = (sys.executable, "-P", "-m", "modelgit")  # in a process of its own, as what is struck must be
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}
WRAPPER = """#!/bin/sh
echo . >> "$SWEEP/calls"
if [ "$(wc -l < "$SWEEP/calls")" -eq "$SWEEP_TURN" ]; then
    exec strace -f -qq -o /dev/null -e trace="$SWEEP_CALLS" -e inject="$SWEEP_EFFECT" "$SWEEP_GIT" "$@"
fi
exec "$SWEEP_GIT" "$@"
"""
EVERY = os.environ.get("MODELGIT_SWEEP") == "all"
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def modelgit(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Looks at what is left, or goes on: in a process that may be forked from a warm one."""
    return run(place, sys.executable, *MODELGIT[1:], *words)


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)


def save(place: Path, value: int) -> bytes:
    rng = np.random.default_rng(value)
    base = np.random.default_rng(0).normal(0, 0.02, 40_000)
    tensors = {"a": (base + rng.normal(0, 1e-4 * value, 40_000)).astype(np.float32), "b": np.full(9, value, np.float32)}
    save_file(tensors, place / MODEL)
    return (place / MODEL).read_bytes()


@dataclass(frozen=True)
class Scene:
    """A repository before a command: where it is, the command, and the model that each branch has before and after."""

    template: Path
    words: tuple[str, ...]
    work_before: bytes
    work_after: bytes
    versions: tuple[str, ...]
    branch_before: str
    branch_after: str


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """A commit of changes, a switch between branches, a garbage collection with packs to bring together."""
    root = tmp_path_factory.mktemp("sweep")
    place = root / "commit"
    place.mkdir()
    assert run(place, *MODELGIT, "init", ".").returncode == 0  # git is to call Python itself
    one = save(place, 1)
    assert modelgit(place, "commit", "-m", "one").returncode == 0
    assert modelgit(place, "switch", "-c", "side").returncode == 0
    two = save(place, 2)
    assert modelgit(place, "commit", "-m", "two").returncode == 0
    versions = tuple(subprocess.check_output(["git", "rev-list", "--all"], cwd=place, text=True).split())
    shutil.copytree(place, root / "switch")
    shutil.copytree(place, root / "gc")
    three = save(place, 3)
    return {
        "commit": Scene(place, ("commit", "-m", "three"), three, three, versions, "side", "side"),
        "switch": Scene(root / "switch", ("switch", "main"), two, one, versions, "side", "main"),
        "gc": Scene(root / "gc", ("gc", "--grace", "0"), two, two, versions, "side", "side"),
    }


def struck(place: Path, words: tuple[str, ...], effect: str, git_turn: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command, itself struck or (from 1) the git process it starts at that turn.

    A signal strikes whichever of its threads and processes comes to that call, an error only the command itself.
    """
    if not git_turn:
        follow = ["-f"] if "signal" in effect else []
        strace = ["strace", *follow, "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", f"inject={effect}"]
        return run(place, *strace, *MODELGIT, *words)
    tools = place.parent / f"{place.name}-tools"
    tools.mkdir(exist_ok=True)
    (tools / "git").write_text(WRAPPER)
    (tools / "git").chmod(0o755)
    names = {"SWEEP": tools, "SWEEP_TURN": git_turn, "SWEEP_CALLS": CALLS, "SWEEP_EFFECT": effect}
    told = {**{key: str(value) for key, value in names.items()}, "SWEEP_GIT": str(shutil.which("git"))}
    environment = {**ENVIRONMENT, **told, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(
        [*MODELGIT, *words], cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def calls_made(scene: Scene, place: Path, *, own: bool = False) -> int:
    """Returns how many mutating calls one of a command's threads and processes makes at most, left alone.

    `own` are those of the command's first thread.
    """
    shutil.copytree(scene.template, place)
    log = place.parent / f"{place.name}.log"
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}", *MODELGIT, *scene.words]
    subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, check=True, timeout=120)
    callers = [
        row.split(maxsplit=1)[0] for row in log.read_text().splitlines() if "(" in row and " resumed>" not in row
    ]
    if own:  # whoever comes first starts the others
        return Counter(callers)[min(callers, key=int)]
    return max(Counter(callers).values())


def gits_started(scene: Scene, place: Path) -> int:
    """Returns how many git processes a command starts."""
    shutil.copytree(scene.template, place)
    struck(place, scene.words, "rmdir:signal=SIGKILL:when=9999", git_turn=10_000)
    return len((place.parent / f"{place.name}-tools" / "calls").read_text().splitlines())


def some(last: int, count: int) -> list[int]:
    """Returns the numbers to try: all of them, or a few spread from the first to the last."""
    return (
        list(range(1, last + 1)) if EVERY else sorted({round(1 + i * (last - 1) / (count - 1)) for i in range(count)})
    )


def check_sound(place: Path, scene: Scene, full: bool) -> None:
    """Asserts that all versions are there and sound."""
    done = modelgit(place, "fsck", *(["--full"] if full else []))
    assert done.returncode == 0, done.stderr
    told = modelgit(place, "log", "--json", "--all") if full else None
    there = subprocess.check_output(["git", "rev-list", "--all"], cwd=place, text=True).split()
    assert set(scene.versions) <= set(there)
    assert told is None or told.returncode == 0
    git = subprocess.run(["git", "fsck", "--strict"], cwd=place, capture_output=True, text=True, check=False)
    assert git.returncode == 0, git.stderr


def check_goes_on(place: Path, scene: Scene) -> None:
    """Asserts that the same command just works now, and leaves what it should."""
    again = modelgit(place, *scene.words)
    nothing_left = scene.words[0] == "commit" and "nothing to commit" in again.stderr
    assert again.returncode == 0 or nothing_left, again.stderr
    assert (place / MODEL).read_bytes() == scene.work_after
    branch = subprocess.check_output(["git", "symbolic-ref", "--short", "HEAD"], cwd=place, text=True).strip()
    assert branch == scene.branch_after
    status = json.loads(modelgit(place, "status", "--json").stdout)
    assert status["changes"] == []
    assert subprocess.check_output(["git", "status", "--porcelain", "-uno"], cwd=place, text=True) == ""
    check_sound(place, scene, full=True)


def check_work_file(place: Path, scene: Scene) -> None:
    """Asserts that the work file is one of the two that it may be, never a mixture."""
    assert (place / MODEL).read_bytes() in (scene.work_before, scene.work_after)


@pytest.mark.parametrize("verb", ["commit", "switch", "gc"])
def test_killed_at_any_call(scenes: dict[str, Scene], verb: str, tmp_path: Path) -> None:
    scene = scenes[verb]
    last = calls_made(scene, tmp_path / "count")
    assert last > 10
    ended_well = []
    for k in [*some(last, 5), last + 1]:
        place = tmp_path / str(k)
        shutil.copytree(scene.template, place)
        done = struck(place, scene.words, f"{CALLS}:signal=SIGKILL:when={k}")
        assert "internal error" not in done.stderr, (k, done.stderr)
        check_work_file(place, scene)
        check_sound(place, scene, full=False)
        check_goes_on(place, scene)
        ended_well.append(done.returncode == 0)
        shutil.rmtree(place)
    assert ended_well[-1]
    assert not ended_well[0]


@pytest.mark.parametrize("verb", ["commit", "switch", "gc"])
def test_a_git_process_killed_at_any_call(scenes: dict[str, Scene], verb: str, tmp_path: Path) -> None:
    scene = scenes[verb]
    last = gits_started(scene, tmp_path / "count")
    assert last > 4
    for turn in some(last, 3):
        for k in range(1, 60) if EVERY else (1, 3):
            place = tmp_path / f"{turn}-{k}"
            shutil.copytree(scene.template, place)
            done = struck(place, scene.words, f"{CALLS}:signal=SIGKILL:when={k}", git_turn=turn)
            assert "internal error" not in done.stderr, (turn, k, done.stderr)
            check_work_file(place, scene)
            check_goes_on(place, scene)
            shutil.rmtree(place)
            if done.returncode == 0 and EVERY:
                break


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("verb", ["commit", "switch", "gc"])
def test_refused_by_the_disk_at_any_call(scenes: dict[str, Scene], verb: str, error: str, tmp_path: Path) -> None:
    scene, refused = scenes[verb], 0
    last = calls_made(scene, tmp_path / "count", own=True)
    for k in some(last, 4):
        place = tmp_path / str(k)
        shutil.copytree(scene.template, place)
        done = struck(place, scene.words, f"{CALLS}:error={error}:when={k}")
        assert "internal error" not in done.stderr and "Traceback" not in done.stderr, (k, done.stderr)
        assert done.returncode == 0 or done.stderr.count("error:") <= 1, (k, done.stderr)
        refused += done.returncode != 0
        check_work_file(place, scene)
        check_sound(place, scene, full=False)
        check_goes_on(place, scene)
        shutil.rmtree(place)
    assert refused > 0
