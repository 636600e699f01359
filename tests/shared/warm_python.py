"""What starts modelgit from a warm process, where that can be: it stands for Python in tests (see `warm_server`)."""

import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PATH_BYTES = 100  # of a socket's path, at most


def missing(place: Path) -> str:
    """Returns why processes cannot be started warm from `place` here, "" if they can."""
    if os.environ.get("MODELGIT_COLD"):
        return "MODELGIT_COLD is set"
    if len(str(place / "light")) > PATH_BYTES:
        return f"{place} is too long for a socket"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return "needs Linux 5.3"
    return "" if shutil.which("cc") else "needs a C compiler"


@contextmanager
def warm_python(place: Path) -> Iterator[str]:
    """Makes a program in `place` that stands for this Python, and has its servers run meanwhile; returns its path."""
    program = place / "python"
    compiler = ["cc", "-O1", "-Wall", "-Werror", f'-DPYTHON="{sys.executable}"', "-o", str(program)]
    subprocess.run([*compiler, str(HERE / "warm_python.c")], check=True)
    (place / "modelgit").write_text(f'#!/bin/sh\nexec "{program}" -m modelgit "$@"\n')
    (place / "modelgit").chmod(0o755)
    with ExitStack() as stack:
        for kind in ("light", "heavy"):
            stack.enter_context(served(place / kind, kind, program))
        yield str(program)


@contextmanager
def served(place: Path, kind: str, program: Path) -> Iterator[None]:
    """Has a server run that is asked at `place`; it loads when it is asked for the first time.

    Where it fails, commands start as they do without it: no test depends on it, so that is a warning.
    """
    log = place.with_name(f"{kind}.log")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(64)  # whoever comes early waits
        command = [sys.executable, "-P", str(HERE / "warm_server.py"), str(listener.fileno()), kind, str(program)]
        with log.open("wb") as told:
            server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=told,
                stderr=told,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                text=True,
            )
    try:
        yield
    finally:
        place.unlink()
        server.communicate()
        if server.returncode:
            words = f"the {kind} server ended with {server.returncode}: {log.read_text(errors='replace')[-2000:]}"
            warnings.warn(words, stacklevel=2)
