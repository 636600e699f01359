"""The tutorial, run as it is written: a reader gets what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorial" / "first-merge.md"
TASK_VECTORS = DOCS / "howto" / "task-vectors.md"
PYTHON = sys.executable  # itself: each command in a process of its own, as a reader's are


def commands(page: Path) -> str:
    """Returns all shell blocks of a page, one after another."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))


def run_page(page: Path, tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Runs all shell blocks of a page, with the tests' own modelgit and this Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("modelgit", f'"{python}" -m modelgit'), ("python", f'"{python}"')):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(page)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    done = run_page(TUTORIAL, tmp_path, PYTHON)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"layer.weight" F32 [64,32] ' in done.stdout
    assert "every id the same" in done.stdout
    assert "Average of both [linear of 2]" in done.stdout
    merged = (tmp_path / "models" / "model.safetensors").read_bytes()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == merged


@pytest.mark.slow
def test_the_page_on_task_vectors_does_what_it_says(tmp_path: Path) -> None:
    done = run_page(TASK_VECTORS, tmp_path, sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every id the same") == 2
    assert "Replayed 2 commits of skills on " in done.stdout
    assert 'Revert "Speak rudely", times 0.5' in done.stdout
