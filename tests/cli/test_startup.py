"""What the command line loads before it knows what to do. The set of modules is tested, never seconds."""

import subprocess
import sys

import pytest

from modelgit.cli.app import main

HEAVY = ("torch", "numpy", "git", "rich", "zstandard")
PROBE = """
import sys
from modelgit.cli.app import main
code = main(sys.argv[1:])
sys.stderr.write(",".join(name for name in {heavy!r} if name in sys.modules))
sys.exit(code)
"""


def loaded(*arguments: str) -> tuple[int, str]:
    """Returns the exit code of a command line, and the heavy modules it had loaded at its end."""
    probe = PROBE.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["merge", "--help"], ["status", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(*arguments) == (0, "")


def test_import_loads_nothing_heavy() -> None:
    probe = f"import sys, modelgit; print([name for name in {HEAVY!r} if name in sys.modules], modelgit.__version__)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] 0.")


def test_python_dash_m_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "modelgit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("modelgit 0.")


def test_the_public_names_are_there() -> None:
    import modelgit

    assert modelgit.ModelgitError.__name__ == "ModelgitError"
    assert modelgit.Repository.__module__ == "modelgit.porcelain.python"
    assert "Repository" in dir(modelgit)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = modelgit.Nothing


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_help_is_found_wherever_it_is_looked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Usage: modelgit") or "Usage: modelgit [OPTIONS] COMMAND" in told.out
    assert told.err == ""


def test_help_of_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "merge"]) == 0
    assert "Average versions into the branch you are on." in capsys.readouterr().out


@pytest.mark.parametrize("during", ["modelgit.cli.app", "modelgit.cli.history"])
def test_an_interruption_while_it_loads_is_quiet(during: str) -> None:
    probe = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {during!r}:
            os.kill(os.getpid(), signal.SIGINT)
            import time; time.sleep(5)
sys.meta_path.insert(0, Interrupting())
from modelgit.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", probe, "log"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
