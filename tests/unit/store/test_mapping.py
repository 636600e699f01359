"""Mapped files: right bytes, and an error instead of an end when a file is cut short."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from modelgit.store import mapping
from modelgit.store.codec.arithmetic import sums
from modelgit.store.mapping import LARGE_BYTES, MappedFile


@pytest.fixture(params=["mapped", "read"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel's copy is to be used; without it files are read."""
    if request.param == "mapped" and mapping.guarded_copy() is None:
        pytest.skip("the kernel is not built")
    if request.param == "read":
        monkeypatch.setattr(mapping, "guarded_copy", lambda: None)
    return bool(request.param == "mapped")


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 3 * LARGE_BYTES + 5])
def test_every_stretch_of_a_file_is_read(tmp_path: Path, mapped: bool, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "f").write_bytes(data)
    file = MappedFile(tmp_path / "f")
    for start, length in ((0, size), (size // 2, size - size // 2), (size, 0), (0, min(1, size))):
        into = bytearray(length)
        assert file.read_into(start, memoryview(into))
        assert into == data[start : start + length]
    assert not file.read_into(size, memoryview(bytearray(1)))
    assert not file.read_into(max(0, size - 3), memoryview(bytearray(4)))


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(1 << 20))
    file = MappedFile(path)
    os.truncate(path, 1 << 16)
    into = bytearray(1 << 20)
    assert not file.read_into(0, memoryview(into))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: file.read_into(k << 15, memoryview(bytearray(1 << 15))), range(32)))
    assert found == [True] * 2 + [False] * 30


def test_sums_of_a_file_that_is_cut_short_end_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(np.ones(1 << 18, np.float32).tobytes())
    data, into = MappedFile(path).view(0, 1 << 20), np.zeros(1 << 20, np.uint8)
    if data is None:
        pytest.skip("the kernel is not built")
    assert sums().combine([data, data], np.array([1.0, 2.0]), 1.0, "F32", into)
    assert (into.view(np.float32) == 3).all()
    os.truncate(path, 1 << 16)
    with ThreadPoolExecutor(4) as pool:
        work = lambda: sums().combine([data], np.ones(1), 1.0, "F32", np.zeros(1 << 20, np.uint8))  # noqa: E731
        assert [future.result() for future in [pool.submit(work) for _ in range(20)]] == [False] * 20
    assert sums().combine([data[: 1 << 16]], np.ones(1), 1.0, "F32", into[: 1 << 16])


def test_there_is_no_view_beyond_the_end(tmp_path: Path, mapped: bool) -> None:
    (tmp_path / "f").write_bytes(bytes(LARGE_BYTES))
    file = MappedFile(tmp_path / "f")
    assert (file.view(5, LARGE_BYTES - 5) is not None) is mapped
    assert file.view(5, LARGE_BYTES - 4) is None and file.view(-1, 5) is None


def test_a_file_is_closed_when_nobody_holds_it(tmp_path: Path, mapped: bool) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    files = [MappedFile(tmp_path / "f") for _ in range(20)]
    assert all(file.read_into(0, memoryview(bytearray(10))) for file in files)
    files.clear()
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    assert after <= before


def test_a_handler_that_came_later_does_not_undo_it(tmp_path: Path) -> None:
    """Anything in the process may take the signal over: pytest, a debugger, a library that reports crashes."""
    code = """
import faulthandler, os, sys
from pathlib import Path
from modelgit.store.mapping import MappedFile
path = Path(sys.argv[1])
faulthandler.enable()
for take_over in (lambda: None, faulthandler.disable, faulthandler.enable):
    path.write_bytes(bytes(1 << 20))
    file = MappedFile(path)
    assert file.read_into(0, memoryview(bytearray(1 << 20)))
    take_over()
    os.truncate(path, 100)
    assert not file.read_into(0, memoryview(bytearray(1 << 20)))
print("alive")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
