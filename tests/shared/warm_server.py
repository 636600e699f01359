"""A Python that has loaded all that modelgit may need, and forks for each command: the other end of `warm_python.c`.

    python -P warm_server.py SOCKET light|heavy PYTHON

SOCKET is the number of a listening socket that it inherits, PYTHON what stands for Python; `heavy` is with torch. It
ends when its standard input ends.

A command gets the arguments, environment, directory and streams of who asks, runs `-m modelgit` as Python does, and is
killed when who asks is gone. What Python or a library reads while it loads must be as it was here, else it is refused.
"""

import array
import atexit
import gc
import importlib
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LIGHT = ("blake3", "git", "numpy", "rich.progress", "rich.table", "safetensors.numpy", "typer", "yaml", "zstandard")
HEAVY = ("PIL.Image", "safetensors.torch", "scipy.optimize", "torch", "torch.optim")
LEFT_OUT = ("modelgit.__main__", "modelgit.integrations", "modelgit.pipeline.workers.ray")
# Read once, by Python or by libraries, when they are loaded; where these are not given, they are as if they were.
AT_START = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_")
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # read again here
GIVEN = {"OPENBLAS_NUM_THREADS": "1"}  # by modelgit.cli
LANGUAGES = ("", "C", "C.UTF-8", "POSIX")
INT, PLACES = struct.Struct("i"), 4


@dataclass(frozen=True, slots=True)
class Request:
    """A command that is asked for: its words, its environment, its streams and directory (open files)."""

    words: list[str]
    environment: dict[str, str]
    places: list[int]


@dataclass(slots=True)
class Running:
    """A child, who asked for it, and the file that tells its end."""

    pid: int
    line: socket.socket
    ending: int


@dataclass(slots=True)
class Server:
    """What has a file open, so that children can close it, and the environment it was started in."""

    listener: socket.socket
    started: dict[str, str]
    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    running: list[Running] = field(default_factory=list)


def load(*, heavy: bool) -> None:
    """Imports everything, or everything that does without torch."""
    import modelgit.cli  # first: it says how many threads numpy has

    for name in (*LIGHT, *HEAVY) if heavy else LIGHT:
        importlib.import_module(name)
    if not heavy:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what imports it cannot be loaded
    for module in pkgutil.walk_packages(modelgit.__path__, "modelgit.", onerror=lambda _: None):
        if not module.name.startswith(LEFT_OUT) and not module.name.endswith("._kernel"):  # of C, no modules
            with suppress(ImportError):
                importlib.import_module(module.name)
    if not heavy:
        del sys.modules["torch"]
    gc.collect()
    gc.freeze()


def read_request(line: socket.socket) -> Request | None:
    """Returns what is asked for; None where who asks has gone."""
    places = array.array("i")
    head, more, _, _ = line.recvmsg(INT.size, socket.CMSG_SPACE(PLACES * places.itemsize))
    for _, kind, data in more:
        if kind == socket.SCM_RIGHTS:
            places.frombytes(data)
    length = INT.unpack(head)[0] if len(head) == INT.size and len(places) == PLACES else 0
    text = line.recv(length, socket.MSG_WAITALL)
    if not length or len(text) < length:
        return None
    count, *texts = (os.fsdecode(piece) for piece in text.split(b"\0")[:-1])
    pairs = (row.partition("=") for row in texts[int(count) :])
    return Request(texts[: int(count)], {key: value for key, _, value in pairs}, list(places))


def at_start(environment: dict[str, str]) -> dict[str, str]:
    """Returns what is read of an environment only when a process starts."""
    found = {key: value for key, value in environment.items() if key.startswith(AT_START) and key != NO_BYTECODE}
    language = next((environment[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(key)), "")
    return {**GIVEN, **found, "language": "" if language in LANGUAGES else language}


def serve(server: Server) -> Request | None:
    """Forks for who asks. Returns in each child, with what it is to do; in the server, None at the end."""
    server.selector.register(server.listener, selectors.EVENT_READ)
    server.selector.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in server.selector.select():
            if key.fileobj == 0:
                return None
            if isinstance(key.data, Running):
                end(server, key.data, gone=key.fileobj == key.data.line)
            elif key.fileobj is server.listener:
                request = accept(server)
                if request is not None:
                    return request


def accept(server: Server) -> Request | None:
    """Forks for one who asks; returns the request in the child."""
    line, _ = server.listener.accept()
    request = read_request(line)
    if request is None or at_start(request.environment) != at_start(server.started):
        tell(line, 0)
        line.close()
    else:
        pid = os.fork()
        if not pid:
            line.close()
            close(server)
            return request
        running = Running(pid, line, os.pidfd_open(pid))
        server.running.append(running)
        server.selector.register(line, selectors.EVENT_READ, running)
        server.selector.register(running.ending, selectors.EVENT_READ, running)
        tell(line, pid)
    for place in request.places if request else ():
        os.close(place)
    return None


def tell(line: socket.socket, number: int) -> None:
    """Sends a number to one who may be gone: that is found out when the line ends."""
    with suppress(OSError):
        line.sendall(INT.pack(number))


def close(server: Server) -> None:
    """Closes in a child what is the server's."""
    server.selector.close()
    server.listener.close()
    for running in server.running:
        running.line.close()
        os.close(running.ending)


def end(server: Server, running: Running, *, gone: bool) -> None:
    """Tells who asked how the child ended; where nobody is there, kills it."""
    if running not in server.running:
        return
    if gone:
        os.kill(running.pid, signal.SIGKILL)
    _, status = os.waitpid(running.pid, 0)
    server.running.remove(running)
    server.selector.unregister(running.line)
    server.selector.unregister(running.ending)
    if not gone:
        tell(running.line, os.waitstatus_to_exitcode(status))
    running.line.close()
    os.close(running.ending)


def become(request: Request, executable: str) -> None:
    """Makes this process the one that is asked for."""
    *streams, directory = request.places
    os.fchdir(directory)
    os.close(directory)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update({**GIVEN, **request.environment})
    sys.dont_write_bytecode = bool(os.environ.get(NO_BYTECODE))
    tempfile.tempdir = None
    renew_streams()
    sys.executable = executable


def renew_streams() -> None:
    """Opens the standard streams anew, as Python does when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        new = open(  # noqa: SIM115
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,
            encoding=old.encoding,
            errors=old.errors,
            closefd=False,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def run(*words: str) -> int:
    """Runs `[-P] -m MODULE …` as Python does, and returns its exit code."""
    safe = words[0] == "-P"
    _, module, *arguments = words[safe:]
    if not safe:
        sys.path.insert(0, str(Path.cwd()))
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # as if it had not been imported
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001  an interruption too
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def leave(code: int) -> None:
    """Ends as Python does, but for tearing down what this process has loaded, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def main(number: str, kind: str, executable: str) -> None:
    """Loads when somebody has come, serves, and in a child runs what is asked for."""
    started = dict(os.environ)  # libraries add to it
    listener = socket.socket(fileno=int(number))
    select.select([listener.fileno(), 0], [], [])
    load(heavy=kind == "heavy")
    request = serve(Server(listener, started))
    if request is not None:
        become(request, executable)
        leave(run(*request.words))


if __name__ == "__main__":
    main(*sys.argv[1:])
