"""Running a user's own program and committing what it wrote, with all that tells how it came about."""

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelgit.errors import DataError, RepositoryError, UsageError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.work import require_clean
from modelgit.repo import worktree
from modelgit.repo.merging.underway import refuse_conflicts
from modelgit.repo.repository import Repository
from modelgit.version import VERSION

PACKAGES = ("torch", "numpy", "safetensors", "transformers", "datasets", "timm", "lightning", "peft", "jax")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: the program and its arguments, where, what the commit is to say, the data it reads."""

    command: tuple[str, ...]
    folder: Path
    message: str | None = None
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Executed:
    """What a program did: its exit code, how long it took, the commit of what it wrote (None if there is none)."""

    command: tuple[str, ...]
    code: int
    seconds: float
    commit: str | None
    branch: str | None
    paths: tuple[str, ...]
    data: Mapping[str, str]


def execute(repo: Repository, order: Order, *, stdout: int | None = None, listener: Listener = ignore) -> Executed:
    """Runs a program in the work tree and commits what it wrote: changed files, and new ones that git does not ignore.

    Nothing is committed if it fails. `stdout` is a descriptor that its output goes to, ours if None.

    Raises:
        DirtyWorktree: changes from before would get into the commit. RepositoryError: the branch was moved meanwhile.
        UsageError: no command, or none that can be run. DataError: data that cannot be read.
    """
    if not order.command:
        raise UsageError("no command to run", hint="modelgit exec -- python train.py")
    if repo.worktree is None:
        raise RepositoryError("a bare repository has no work tree", hint="clone it: modelgit clone")
    refuse_conflicts(repo)
    require_clean(repo)
    digests = {name: digest_of(order.folder / name, listener) for name in order.data}
    head, there = repo.head(), set(worktree.Look(repo).new_files())
    began = time.monotonic()
    code = run(order, stdout)
    seconds = time.monotonic() - began
    if repo.head() != head:
        hint = "what it wrote is still there: modelgit status"
        raise RepositoryError("the program moved the branch itself", hint=hint)
    if code:
        return Executed(order.command, code, seconds, None, repo.branch(), (), digests)
    look = worktree.Look(repo)
    paths = sorted({*look.tracked, *(set(look.new_files()) - there)})
    record = record_of(repo, head, order, digests, seconds)
    made = worktree.commit_worktree(
        repo,
        order.message or f"exec: {shlex.join(order.command)}",
        paths=paths,
        files=lambda: {RECORD_PATH: record},
        trailers=(("Exec-Command", shlex.join(order.command)), *(("Data-Digest", d) for d in digests.values())),
        listener=listener,
    )
    written = tuple(changed_paths(repo, head, made)) if made else ()
    return Executed(order.command, 0, seconds, made, repo.branch(), written, digests)


def run(order: Order, stdout: int | None) -> int:
    """Returns the exit code of the program. Raises UsageError if it cannot be started."""
    try:
        with subprocess.Popen(order.command, cwd=order.folder, stdout=stdout) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the program was told too; it may want to tidy up
                process.wait()
                raise
    except FileNotFoundError as error:
        raise UsageError(f"{order.command[0]}: no such program", hint="is it installed, and on the PATH?") from error
    except OSError as error:
        raise UsageError(f"{order.command[0]} cannot be run: {error.strerror}") from error


def changed_paths(repo: Repository, before: str | None, after: str) -> list[str]:
    """Returns the files that differ between two commits, the record left out."""
    old, new = repo.tree(before) if before else {}, repo.tree(after)
    return sorted(p for p in {*old, *new} if old.get(p) != new.get(p) and p != RECORD_PATH)


def record_of(repo: Repository, head: str | None, order: Order, digests: Mapping[str, str], seconds: float) -> bytes:
    """Returns the record: what the model was still holds, and how this version came to be."""
    old = read_record(repo, head) if head else None
    known = (old.architecture, old.classes, old.head) if old is not None else (None, (), ())
    root = repo.worktree or order.folder
    details: dict[str, Any] = {
        "command": list(order.command),
        "folder": os.path.relpath(order.folder.resolve(), root.resolve()),
        "code": head,
        "data": digests,
        "seconds": round(seconds, 2),
        "environment": environment(),
    }
    return write_record(Record("exec", *known, details))


def environment() -> dict[str, Any]:
    """Returns versions and variables that decide what a program computes; no other variable is looked at."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "modelgit": VERSION,
        "packages": {name: found for name in PACKAGES if (found := version_of(name)) is not None},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def digest_of(path: Path, listener: Listener) -> str:
    """Returns the BLAKE3 of a file, or of the names and contents of all files below a folder.

    Raises:
        DataError: it cannot be read.
    """
    files: Sequence[Path] = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file())
    listener(Started(f"digest {path.name}", len(files), "objects"))
    total = blake3()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        total.update(f"{name}\0{digest_of_file(file)}\n".encode())
        listener(Advanced(f"digest {path.name}", 1))
    listener(Finished(f"digest {path.name}"))
    return total.hexdigest()


def digest_of_file(path: Path) -> str:
    """Returns the BLAKE3 of a file. Raises DataError if it cannot be read."""
    total = blake3()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                total.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="--data PATH: a file or a folder") from error
    return total.hexdigest()
