"""What stands for Python in these tests does as Python does."""

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from warm_python import missing

from modelgit.repo.repository import Repository

PYTHON = sys.executable  # itself


@pytest.fixture(autouse=True)
def there(tmp_path_factory: pytest.TempPathFactory) -> None:
    absent = missing(tmp_path_factory.getbasetemp() / "warm0")
    if absent:
        pytest.skip(absent)


def done(python: str, place: Path, *words: str) -> tuple[int, str, str]:
    ran = subprocess.run([python, *words], cwd=place, capture_output=True, text=True, check=False, input="hello")
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-P", "-m", "modelgit", "status"], 0),
        (["-m", "modelgit", "commit", "-m", ""], 2),
        (["-m", "modelgit", "log", "--json", "nothing"], 11),
        (["-P", "-m", "modelgit.cli.plumbing", "clean", "a"], 0),
        (["-c", "import sys; print(sys.stdin.read(), sys.argv); sys.exit(3)", "a"], 3),
    ],
)
def test_it_ends_and_says_as_python_does(words: list[str], code: int, tmp_path: Path) -> None:
    Repository.init(tmp_path)
    assert sys.executable != PYTHON
    told = done(sys.executable, tmp_path, *words)
    assert told == done(PYTHON, tmp_path, *words)
    assert told[0] == code, told


def test_who_is_killed_takes_the_work_along(tmp_path: Path) -> None:
    Repository.init(tmp_path)
    command = [sys.executable, "-m", "modelgit", "plumbing-worker", "--device", "cpu"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=PIPE, stdout=PIPE) as worker:
        assert worker.poll() is None
        worker.kill()
        assert worker.communicate(timeout=60)[0] == b""  # the work has closed it too
    assert worker.returncode == -9
