"""A pool of worker processes that speak the lines of `messages`.

Each worker handles one request at a time. A worker that dies is replaced and its request is tried once more.
When the coordinator goes away, for whatever reason, the workers' input ends and they stop.
"""

import queue
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from modelgit.errors import ModelgitError, TrainingError
from modelgit.pipeline.messages import Done, Failed, Reply, Request, decode, encode


@dataclass(slots=True)
class Worker:
    """One process, and the request it is at."""

    process: subprocess.Popen[str]
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The output of a worker has ended."""


class Pool:
    """At most `size` worker processes, started when they are first needed."""

    def __init__(self, command: Sequence[str], size: int) -> None:
        self._command = list(command)
        self._size = size
        self._workers: list[Worker] = []
        self._replies: queue.Queue[tuple[Worker, Reply | Died]] = queue.Queue()
        self._retried: set[str] = set()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return sum(worker.request is not None for worker in self._workers)

    @property
    def free(self) -> int:
        """How many more requests can be taken now."""
        return self._size - self.busy

    def submit(self, request: Request) -> None:
        """Hands the request to an idle worker, starting one if need be."""
        idle = next((worker for worker in self._workers if worker.request is None), None)
        worker = idle or self._start()
        worker.request = request
        self._send(worker, request)

    def next_reply(self) -> Reply:
        """Waits for the next thing that any worker says.

        Raises:
            TrainingError: a worker died twice at the same request.
        """
        while True:
            worker, reply = self._replies.get()
            if isinstance(reply, Died):
                self._replace(worker)
                continue
            if isinstance(reply, Done | Failed):
                worker.request = None
            return reply

    def close(self) -> None:
        """Ends all workers; what they had committed stays."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        self._workers.clear()

    def _start(self) -> Worker:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", bufsize=1
        )
        worker = Worker(process)
        self._workers.append(worker)
        assert process.stdout is not None  # it was asked for above
        threading.Thread(target=self._listen, args=(worker, process.stdout), daemon=True).start()
        return worker

    def _listen(self, worker: Worker, lines: IO[str]) -> None:
        try:
            for line in lines:
                reply = decode(line)
                assert not isinstance(reply, Request)  # workers only reply
                self._replies.put((worker, reply))
        except (ModelgitError, ValueError, KeyError, TypeError):
            worker.process.kill()  # it speaks another language: as good as dead
        self._replies.put((worker, Died()))

    def _send(self, worker: Worker, request: Request) -> None:
        try:
            assert worker.process.stdin is not None  # it was asked for in _start
            worker.process.stdin.write(encode(request))
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has died: its listener says so, and the request is tried again

    def _replace(self, worker: Worker) -> None:
        if worker not in self._workers:
            return  # closed on purpose
        self._workers.remove(worker)
        code, request = worker.process.wait(), worker.request
        if request is None:
            return
        if request.step in self._retried:
            raise TrainingError(
                f"step '{request.step}': its worker died twice, last with exit code {code}",
                hint="not enough memory? try fewer workers: --workers 1",
            )
        self._retried.add(request.step)
        self.submit(request)
