"""One modelgit command, and where its time goes: the system calls, libraries and kernel functions it spends it in.

    python -m benchmarks.storage_profile parts|calls REPORT.json COMMAND [ARGUMENT ...]

`parts` times every call across a border (reads, writes, fsync, hashes, checksums, zstd, the compiled kernel, imports),
in all threads; what is left is Python itself. `calls` is cProfile of the main thread. Runs in the work folder, with the
project's root on PYTHONPATH. Linux only: user and system time of a single call are estimates of the kernel.
"""

import builtins
import cProfile
import ctypes
import json
import os
import pstats
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYSTEM_CALLS = {
    "read": ("read", "pread", "preadv", "readv"),
    "write": ("write", "pwrite", "pwritev", "writev"),
    "sync": ("fsync", "fdatasync"),
    "other files": ("posix_fallocate", "ftruncate", "open", "stat", "lstat", "rename", "replace", "unlink"),
    "copy in the kernel": ("copy_file_range", "sendfile"),
}
LIBRARIES = (
    ("blake3", "blake3", "blake3"),
    *(("xxhash", "xxh3", f"xxh3_{name}") for name in ("64", "64_intdigest", "64_digest", "128", "128_digest")),
    ("zstandard", "zstd, coding", "ZstdCompressor"),
    ("zstandard", "zstd, decoding", "ZstdDecompressor"),
)
SHOWN = 25


class Clock:
    """Adds up calls, CPU seconds, system seconds and wall seconds of each part; the outermost part counts."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self._lock, self._inside = threading.Lock(), threading.local()

    @contextmanager
    def of(self, part: str) -> Any:
        """Count what happens inside, unless another part is being timed in this thread."""
        if getattr(self._inside, "part", None):
            yield
            return
        self._inside.part = part
        wall, cpu = time.perf_counter(), time.thread_time()
        system = resource.getrusage(resource.RUSAGE_THREAD).ru_stime
        try:
            yield
        finally:
            self._inside.part = None
            spent = [1.0, time.thread_time() - cpu, 0.0, time.perf_counter() - wall]
            spent[2] = min(spent[1], resource.getrusage(resource.RUSAGE_THREAD).ru_stime - system)
            with self._lock:
                total = self.parts.setdefault(part, [0.0, 0.0, 0.0, 0.0])
                total[:] = [a + b for a, b in zip(total, spent, strict=True)]

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls count for a part; objects it gives are watched too."""

        def call(*args: Any, **named: Any) -> Any:
            with self.of(part):
                result = work(*args, **named)
            return Watched(self, part, result) if is_object(result) else result

        return call


def is_object(value: Any) -> bool:
    """Tell whether a result does work of its own when its methods are called."""
    return type(value).__module__.split(".")[0] in {"blake3", "_xxhash", "xxhash", "zstandard"}


class Watched:
    """Stands for an object or a function: calls of it and of its methods count for a part."""

    def __init__(self, clock: Clock, part: str, behind: Any) -> None:
        self.__dict__.update(_clock=clock, _part=part, _behind=behind)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._clock.timed(self._part, self._behind)(*args, **named)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        return self._clock.timed(self._part, found) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._behind, name, value)

    def __or__(self, other: Any) -> Any:
        """Return the union of two classes, as annotations name it."""
        return self._behind | getattr(other, "_behind", other)

    def __enter__(self) -> Any:
        return Watched(self._clock, self._part, self._behind.__enter__())

    def __exit__(self, *error: Any) -> Any:
        return self._behind.__exit__(*error)


def watch(clock: Clock) -> None:
    """Put the clock between modelgit and everything it calls; before modelgit is imported."""
    with clock.of("imports"):
        import blake3
        import xxhash
        import zstandard

    for part, names in SYSTEM_CALLS.items():
        for name in names:
            setattr(os, name, clock.timed(part, getattr(os, name)))
    for module, part, name in LIBRARIES:
        library = {"blake3": blake3, "xxhash": xxhash, "zstandard": zstandard}[module]
        setattr(library, name, Watched(clock, part, getattr(library, name)))
    watch_kernel(clock)
    imported = builtins.__import__
    builtins.__import__ = clock.timed("imports", imported)


def watch_kernel(clock: Clock) -> None:
    """Time the functions of the compiled kernel, each by its name."""
    plain = ctypes.CDLL

    class Library(plain):  # type: ignore[misc, valid-type]
        """A shared library whose functions named modelgit_ are watched."""

        def __getitem__(self, name: Any) -> Any:
            found = super().__getitem__(name)
            own = isinstance(name, str) and name.startswith("modelgit_")
            return Watched(clock, f"kernel, {name.removeprefix('modelgit_')}", found) if own else found

    ctypes.CDLL = Library  # type: ignore[misc]


def seconds(who: int) -> tuple[float, float]:
    """Return user and system seconds so far."""
    used = resource.getrusage(who)
    return used.ru_utime, used.ru_stime


def in_parts(words: list[str]) -> dict[str, object]:
    """Run the command and return the cost of each part, the rest and the whole."""
    clock, began = Clock(), time.perf_counter()
    watch(clock)
    with clock.of("imports"):
        from modelgit.cli.app import main
    code = main(words)
    wall = time.perf_counter() - began
    (user, system), children = seconds(resource.RUSAGE_SELF), sum(seconds(resource.RUSAGE_CHILDREN))
    known = [sum(row[i] for row in clock.parts.values()) for i in (1, 2)]
    rest = user + system - known[0]
    rows = [[part, *row] for part, row in sorted(clock.parts.items(), key=lambda item: -item[1][1])]
    rows += [
        ["Python and the rest", 0, rest, max(0.0, system - known[1]), 0],
        ["git (other processes)", 0, children, 0, 0],
    ]
    return {"code": code, "wall_s": wall, "user_s": user, "system_s": system, "parts": rows}


def in_calls(words: list[str]) -> dict[str, object]:
    """Run the command and return the functions in which the main thread spent most time of its own."""
    profile = cProfile.Profile()
    profile.enable()
    from modelgit.cli.app import main

    code = main(words)
    profile.disable()
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    rows = sorted(
        ((row.tottime, row.cumtime, row.ncalls, row.file_name, name) for name, row in found.items()), reverse=True
    )
    shown = [[name, calls, own, total, place] for own, total, calls, place, name in rows[:SHOWN]]
    return {"code": code, "calls": shown}


def main() -> None:
    """Run, and leave the report where it was asked for; what the command prints goes where it always goes."""
    kind, report, *words = sys.argv[1:]
    found = in_parts(words) if kind == "parts" else in_calls(words)
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
