"""Git's lock files when their makers were killed: found by the next command, and removed, so that it just works.

Whoever is about to take git's locks first takes a shared lock of the system on `modelgit/alive`, which git's processes
inherit, and leaves a mark there until all is done. A mark that nobody holds is of a command that was killed: the lock
files it may have left are removed, unless a git command is at work here. So are those from before the machine started.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from modelgit.store.handles import make_folder, open_lock

MARK = b"at work\n"
FIXED = ("HEAD.lock", "index.lock", "config.lock", "packed-refs.lock", "shallow.lock", "ORIG_HEAD.lock")


class Alive:
    """Says that this process takes git's locks; what was left by one that was killed is cleared away first."""

    def __init__(self, git_dir: Path) -> None:
        self._git_dir = git_dir
        self._place = git_dir / "modelgit" / "alive"
        self._turn = Lock()
        self._holders, self._handle = 0, -1
        self.struck = False  # a git process was killed, and may have left a lock

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold it; gives what git's processes are to inherit, -1 where it cannot be made, and git will say why."""
        with self._turn:
            if not self._holders:
                self._enter()
            self._holders += 1
        try:
            yield self._handle
        finally:
            with self._turn:
                self._holders -= 1
                if not self._holders:
                    self._leave()

    def _enter(self) -> None:
        with suppress(OSError):
            make_folder(self._place.parent)
            self._handle = open_lock(self._place)
            with suppress(BlockingIOError):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_stale(self._git_dir, killed=os.fstat(self._handle).st_size > 0)
            fcntl.flock(self._handle, fcntl.LOCK_SH)
            os.pwrite(self._handle, MARK, 0)

    def _leave(self) -> None:
        if self._handle < 0:
            return
        with suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self.struck:
                os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle, self.struck = -1, False


def remove_stale(git_dir: Path, *, killed: bool) -> None:
    """Remove the lock files of a command that was `killed`, and those older than the running system."""
    since = float("inf") if killed else started_at()
    stale = [lock for lock in lock_files(git_dir, refs=killed) if changed_at(lock) < since]
    if stale and not git_is_at_work(places_of(git_dir)):
        for lock in stale:
            lock.unlink(missing_ok=True)


def lock_files(git_dir: Path, *, refs: bool) -> Iterator[Path]:
    """Yield the lock files of git, in linked work trees too; those of `refs` only if asked: there may be many."""
    for folder in (git_dir, *git_dir.glob("worktrees/*")):
        yield from (folder / name for name in FIXED if (folder / name).exists())
    if refs:
        yield from git_dir.glob("refs/**/*.lock")


def places_of(git_dir: Path) -> list[Path]:
    """Return the folders in which a git process of this repository may stand."""
    linked = [Path(place.read_text(errors="replace").strip()).parent for place in git_dir.glob("worktrees/*/gitdir")]
    own = [git_dir.parent] if git_dir.name == ".git" else []
    return [git_dir, *own, *linked]


def git_is_at_work(places: Sequence[Path]) -> bool:
    """Tell whether a git process stands in one of the folders or below; yes where that cannot be told."""
    if not Path("/proc/self/comm").exists():
        return True
    real = [os.path.realpath(place) for place in places]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if not (process / "comm").read_text(errors="replace").startswith("git"):
                continue
            folder = os.path.realpath(process / "cwd")
            if any(folder == place or folder.startswith(f"{place}/") for place in real):
                return True
    return False


def changed_at(place: Path) -> float:
    """Return when a file was written; never, if it is gone."""
    try:
        return place.stat().st_mtime
    except OSError:
        return float("inf")


def started_at() -> float:
    """Return when the system started, seconds since 1970; 0 where that cannot be told."""
    with suppress(OSError, ValueError, StopIteration):
        rows = Path("/proc/stat").read_text().splitlines()
        return float(next(row for row in rows if row.startswith("btime ")).split()[1])
    return 0.0


@contextmanager
def taking_turns(place: Path) -> Iterator[None]:
    """Holds a lock of the system on a file of that name: of several processes one goes on, the others wait for it."""
    handle = open_lock(place)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
