"""A repository with weights, worked on by plain git: what the tests of it share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

MODEL = "model.safetensors"
NAMES = ("a.weight", "b.weight", "c.weight")
SHAPE = (150, 200)  # of each: large enough that a merge of them is stored as a recipe
WITHOUT_FILTER = ("-c", "filter.modelgit.process=false", "-c", "filter.modelgit.required=true")
Tensors = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]


def environment() -> dict[str, str]:
    """Returns an environment in which git is nobody's in particular."""
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_MERGE_AUTOEDIT": "no", "LC_ALL": "C.UTF-8"}
    for role in ("AUTHOR", "COMMITTER"):
        own |= {f"GIT_{role}_NAME": "A", f"GIT_{role}_EMAIL": "a@example.org"}
    return {**{k: v for k, v in os.environ.items() if not k.startswith("GIT_")}, **own}


def run(place: Path, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command, checks its exit code (None: any), and returns it done."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment(), check=False)
    assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def git(place: Path, *arguments: str, code: int | None = 0) -> str:
    """Returns what git prints."""
    return run(place, "git", *arguments, code=code).stdout


def modelgit(place: Path, *arguments: str, code: int = 0) -> str:
    """Returns what modelgit prints."""
    return run(place, sys.executable, "-m", "modelgit", *arguments, code=code).stdout


def tensors(seed: int = 0) -> Tensors:
    """Returns a small model."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(SHAPE).astype(np.float32) for name in NAMES}


def moved(old: Tensors, by: Mapping[str, float]) -> Tensors:
    """Returns a model some of whose tensors are moved."""
    return {name: (value + np.float32(by.get(name, 0))).astype(np.float32) for name, value in old.items()}


def save(place: Path, values: Tensors, path: str = MODEL) -> bytes:
    """Writes a weight file and returns its bytes."""
    (place / path).parent.mkdir(parents=True, exist_ok=True)
    save_file(values, place / path)
    return (place / path).read_bytes()


def load(place: Path, path: str = MODEL) -> Tensors:
    """Returns the tensors of a weight file."""
    return load_file(place / path)


def commit(place: Path, values: Tensors, message: str) -> bytes:
    """Commits a weight file by plain git, and returns its bytes."""
    data = save(place, values)
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", message)
    return data


def copied(made: Path, work: Path) -> Path:
    """Returns a copy of a repository, as git left it but for the files' numbers."""
    shutil.copytree(made, work)
    git(work, "update-index", "-q", "--refresh")
    return work


def clean(place: Path) -> bool:
    """Tells whether git sees nothing changed, without asking the filter about any file, a moment later.

    Within the tick of the clock in which the index was written, git asks about whatever was written in that tick too.
    """
    index = place / git(place, "rev-parse", "--git-path", "index").strip()
    os.utime(index, ns=(index.stat().st_atime_ns, index.stat().st_mtime_ns + 10**9))
    return git(place, *WITHOUT_FILTER, "status", "--porcelain") == ""


def leftovers(place: Path) -> list[str]:
    """Returns what an interrupted write would leave."""
    inside = [path for path in place.rglob("*") if ".git" not in path.relative_to(place).parts]
    found = [str(path.relative_to(place)) for path in inside if path.name.endswith(".tmp")]
    return [*found, *(path.name for path in (place / ".git").glob("*.lock"))]
