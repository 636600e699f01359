"""What a command costs: wall time, CPU time, memory of all its processes; and what this machine can do at best.

A virtual machine may give its free memory back to its host; the first touch of a fresh page is then many times dearer
than on bare metal (0.3 GB/s instead of 2 GB/s for a write into the page cache), and a figure says more about the host
than about the program. `prime` touches and frees memory just before a step: for about two seconds the kernel then has
pages at hand as an ordinary machine does. Every tool gets the same treatment. Linux only.
"""

import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

GIB = 1 << 30
SAMPLE_S = 0.02
YARDSTICK_BYTES = 256 << 20
PIECE_BYTES = 4 << 20
COOL_S = 6.0  # longer than the kernel keeps free pages before it gives them back
TAIL_BYTES = 2000
ARGUMENTS = 45  # where /proc/PID/stat says at which address a program's arguments lie, after its name


@dataclass(frozen=True)
class Measured:
    """The cost of some commands, one after another: seconds, bytes of anonymous memory at the peak, exit code."""

    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    peak_bytes: int = 0
    code: int = 0
    tail: str = ""  # the end of what a failed command said

    @property
    def cpu_s(self) -> float:
        """User and system time, children included."""
        return self.user_s + self.system_s

    def then(self, after: "Measured") -> "Measured":
        """Return the cost of both."""
        return Measured(
            self.wall_s + after.wall_s,
            self.user_s + after.user_s,
            self.system_s + after.system_s,
            max(self.peak_bytes, after.peak_bytes),
            after.code,
            after.tail,
        )


# ---------------------------------------------------------------------- one command


def descendants(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208
                found.extend(int(word) for word in read(f"/proc/{parent}/task/{thread}/children").split())
    return found


def read(path: str) -> str:
    """Return a small file of /proc; empty once its process is gone."""
    with suppress(OSError), open(path) as file:  # noqa: PTH123  a hundred times a second: as cheap as can be
        return file.read()
    return ""


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and all below it; mapped files are left out.

    A child that has not started its program yet shares its parent's memory, and its addresses: both count once.
    """
    found: dict[str, int] = {}
    for each in descendants(pid):
        stat, amount = read(f"/proc/{each}/stat"), read(f"/proc/{each}/status").partition("RssAnon:")[2]
        if stat and amount:
            memory = stat.rpartition(")")[2].split()[ARGUMENTS]
            found[memory] = max(found.get(memory, 0), 1024 * int(amount.split()[0]))
    return sum(found.values())


PRIME = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory[::4096] = bytes(size // 4096)
"""


def prime(gibibytes: float) -> None:
    """Touch and free memory in a child, so that the kernel has pages at hand for the next two seconds.

    In huge pages: small ones do not come back to the kernel in pieces that it prefers for its page cache.
    """
    if gibibytes > 0:
        subprocess.run([sys.executable, "-Sc", PRIME, str(int(gibibytes * GIB) // 4096 * 4096)], check=True)


def measure(command: Sequence[str], folder: Path, env: Mapping[str, str], *, prime_gib: float) -> Measured:
    """Run a command and return what it cost, its children included."""
    prime(prime_gib)
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        peak, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(SAMPLE_S):
                peak[0] = max(peak[0], anonymous_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
        tail = log.read().decode(errors="replace")
    return Measured(wall, used.ru_utime, used.ru_stime, peak[0], process.returncode, tail)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return an environment with a home of its own; compiled Python modules are kept, as an installation does."""
    left_out = ("GIT_", "PYTHONDONTWRITEBYTECODE", "DVC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    home.mkdir(parents=True, exist_ok=True)
    identity = "[user]\n\tname = Bench\n\temail = bench@example.org\n[init]\n\tdefaultBranch = main\n"
    (home / ".gitconfig").write_text(f"{identity}[safe]\n\tdirectory = *\n[gc]\n\tauto = 0\n")
    return {**env, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home), **extra}


def tree_bytes(*paths: Path) -> int:
    """Return the bytes of all files below; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path in paths:
        for folder, _, names in os.walk(path):
            for name in names:
                found = (Path(folder) / name).lstat()
                seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


# ---------------------------------------------------------------------- the machine


def first_line(*command: str) -> str:
    """Return the first line a command prints; empty if there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), "?"),
        "memory_gib": round(memory / GIB, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "git": first_line("git", "version"),
        "load": os.getloadavg()[0],
    }


def speed(work: Callable[[], object]) -> dict[str, float]:
    """Return GB a second of the wall clock and of CPU time, for work on `YARDSTICK_BYTES`."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall": round(YARDSTICK_BYTES / wall / 1e9, 2), "cpu": round(YARDSTICK_BYTES / max(cpu, 1e-9) / 1e9, 2)}


def yardsticks(folder: Path, prime_gib: float) -> dict[str, dict[str, float]]:
    """Return the speeds that bound every tool here: hashes, copies, the page cache, the disk."""
    import hashlib

    import numpy as np
    from blake3 import blake3
    from xxhash import xxh3_64_intdigest

    array = np.random.default_rng(0).integers(0, 256, YARDSTICK_BYTES, np.uint8)
    copy, data = np.ones_like(array), array.data
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = File(Path(scratch), data)
        time.sleep(COOL_S)
        cold = speed(files.write)
        prime(prime_gib)
        return {
            "page-cache write, not primed": cold,
            "page-cache write, primed": speed(files.write),
            "fsync after that write": speed(files.sync),
            "page-cache read": speed(files.read),
            "memcpy": speed(lambda: np.copyto(copy, array)),
            "sha256": speed(lambda: hashlib.sha256(data).digest()),
            "blake3": speed(lambda: blake3(data).digest()),
            "xxh3": speed(lambda: xxh3_64_intdigest(data)),
        }


class File:
    """A file that is written and read in pieces, a new one at each write."""

    def __init__(self, folder: Path, data: memoryview) -> None:
        self._folder, self._data, self._count, self._path = folder, data, 0, folder
        self._buffer = mmap.mmap(-1, PIECE_BYTES)

    def write(self) -> None:
        """Write all of it."""
        self._count += 1
        self._path = self._folder / str(self._count)
        with self._path.open("wb", buffering=0) as file:
            for start in range(0, len(self._data), PIECE_BYTES):
                file.write(self._data[start : start + PIECE_BYTES])

    def sync(self) -> None:
        """Wait until it is on disk."""
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def read(self) -> None:
        """Read all of it into one buffer."""
        with self._path.open("rb", buffering=0) as file:
            while file.readinto(self._buffer):
                pass


def facts(folder: Path, prime_gib: float) -> dict[str, object]:
    """Return machine and yardsticks, measured in a process of their own."""
    script = "import json, sys, pathlib; from benchmarks.vcs.measuring import yardsticks; "
    script += "json.dump(yardsticks(pathlib.Path(sys.argv[1]), float(sys.argv[2])), sys.stdout)"
    root = Path(__file__).parents[2]
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder.resolve()), str(prime_gib)],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {**machine(), "prime_gib": prime_gib, "yardsticks_gb_per_s": json.loads(done.stdout)}


def facts_table(found: Mapping[str, object]) -> str:
    """Return machine and yardsticks as Markdown."""
    speeds = found.get("yardsticks_gb_per_s", {})
    assert isinstance(speeds, dict)
    words = [f"{name} {value}" for name, value in found.items() if name != "yardsticks_gb_per_s"]
    rows = [f"| {name} | {row['wall']} | {row['cpu']} |" for name, row in speeds.items()]
    head = "| yardstick, GB/s | wall | per CPU second |\n|---|---|---|"
    return "\n".join([", ".join(words), "", head, *rows])


def as_json(measured: Measured) -> dict[str, object]:
    """Return a measurement for a report; what a command said only if it failed."""
    found: dict[str, object] = {
        name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(measured).items()
    }
    if not measured.code:
        del found["tail"]
    return found
