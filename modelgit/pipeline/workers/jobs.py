"""A job's folder: how a coordinator and a worker on another machine speak, through a file system that they share.

    roll              a counter, then the jobs that are still wanted: written anew every few seconds
    NAME/request      what to do, one line of `messages`
    NAME/job.sh       what the cluster runs
    NAME/replies      what the worker says; the script adds when it began and ended
    NAME/log          whatever else was written

Every look opens the file anew, for that is when a network file system asks what others have written.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from modelgit.errors import StorageFull
from modelgit.pipeline.messages import Answer, Message, Reply, Request, decode, encode
from modelgit.pipeline.worker import Execute, answer

ROLL, REQUEST, SCRIPT, REPLIES, LOG = "roll", "request", "job.sh", "replies", "log"
LOOK_S = 1.0
PATIENCE_S = 120.0  # how long a worker goes on when nothing is heard of its coordinator
UNWANTED = 3
SHELL = """#!/bin/sh
cd {place} || exit 1
printf '{{"type": "began", "node": "%s"}}\\n' "${{SLURMD_NODENAME:-$(uname -n)}}" >> {replies} || exit 1
{command}
code=$?
printf '\\n{{"type": "ended", "code": %d}}\\n' "$code" >> {replies}
exit "$code"
"""


# ------------------------------------------------------------------------------------------- the coordinator's


def write_job(folder: Path, request: Request, command: Sequence[str]) -> None:
    """Makes the folder of a job, whose script runs the command with `--job FOLDER`.

    Raises:
        StorageFull: it cannot be written.
    """
    place, replies = shlex.quote(str(folder)), shlex.quote(str(folder / REPLIES))
    script = SHELL.format(place=place, replies=replies, command=shlex.join([*command, "--job", str(folder)]))
    try:
        folder.mkdir(parents=True)
        for name, text in ((REQUEST, encode(request)), (SCRIPT, script), (REPLIES, "")):
            (folder / name).write_text(text)
    except OSError as error:
        raise StorageFull(f"cannot write the job {folder}: {error.strerror}") from error


class Roll:
    """The list of the jobs that are wanted, and a counter that shows that somebody still wants them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ROLL
        self._beats = 0
        self._lock = threading.Lock()

    def write(self, names: Iterable[str]) -> None:
        """Writes the list anew, whole. Raises StorageFull."""
        with self._lock:
            self._beats += 1
            scratch = self._path.with_suffix(".new")
            try:
                scratch.write_text("\n".join([str(self._beats), *sorted(names)]) + "\n")
                scratch.replace(self._path)
            except OSError as error:
                raise StorageFull(f"cannot write the roll of jobs {self._path}: {error.strerror}") from error


class Letters:
    """The lines of a file that others add to, each read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[Message]:
        """Yields what was added since the last look, as far as lines are whole.

        Raises:
            OSError: nothing can be read now. ModelgitError, ValueError, KeyError, TypeError: it is no message.
        """
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        yield from (decode(line) for line in whole.decode().splitlines() if line.strip())


# ------------------------------------------------------------------------------------------------ the worker's


class Post:
    """What a worker says: gathered, and written at every look; that it is done, at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, reply: Reply) -> None:
        """Takes one thing to say."""
        with self._lock:
            self._lines.append(encode(reply))
        if isinstance(reply, Answer):
            self.send()

    def send(self) -> None:
        """Writes what was gathered, and closes the file, for that is when others see it."""
        with self._lock:
            if self._lines:
                with self._path.open("a") as file:
                    file.write("".join(self._lines))
                self._lines.clear()


def attend(folder: Path, execute: Execute, patience_s: float = PATIENCE_S) -> None:
    """Carries out the request of a job; ends the process as soon as nobody wants it any more."""
    if deserted(folder, patience_s):
        os._exit(UNWANTED)
    request = decode((folder / REQUEST).read_text())
    assert isinstance(request, Request)  # coordinators only ask
    post = Post(folder / REPLIES)
    threading.Thread(target=watch, args=(folder, post, patience_s), daemon=True).start()
    post(answer(request, execute, post))


def deserted(folder: Path, patience_s: float) -> bool:
    """Tells whether the coordinator had been silent for long when the job began: both times are the file server's."""
    try:
        return (folder / REPLIES).stat().st_mtime - (folder.parent / ROLL).stat().st_mtime > patience_s
    except OSError:
        return True


def watch(folder: Path, post: Post, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Sends what is to be sent, and ends the process, whatever it is at, when its job is wanted no more."""
    last, heard = "", clock()
    while True:
        time.sleep(LOOK_S)
        beat, wanted = look(folder)
        if beat != last:
            last, heard = beat, clock()
        if not wanted or clock() - heard > patience_s:
            os._exit(UNWANTED)
        with suppress(OSError):  # tried again at the next look
            post.send()


def look(folder: Path) -> tuple[str, bool]:
    """Returns the counter of the roll, and whether the job is on it; one that cannot be read now says nothing."""
    try:
        beat, *names = (folder.parent / ROLL).read_text().splitlines()
    except (OSError, ValueError):
        return "", (folder / REQUEST).exists()
    return beat, folder.name in names
