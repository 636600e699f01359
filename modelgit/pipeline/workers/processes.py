"""Workers as processes of this machine, which speak the lines of `messages` through pipes.

A process handles one request at a time, and is kept for the next. When the coordinator goes away, for whatever reason,
the workers' input ends and they stop.
"""

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from modelgit.errors import ModelgitError
from modelgit.pipeline.messages import Answer, Reply, Request, decode, encode
from modelgit.pipeline.workers.pool import Died, Hear, told_of

GPUS = "CUDA_VISIBLE_DEVICES"
HINT = "not enough memory? try fewer workers: --workers 1"


@dataclass(slots=True)
class Worker:
    """One process, the GPU that is its own, and the request it is at."""

    process: subprocess.Popen[str]
    gpu: str | None
    request: Request | None = None


class Processes:
    """Processes of one command, started when they are needed; with `gpus`, each of them sees one GPU."""

    def __init__(self, command: Sequence[str], gpus: Sequence[str] = ()) -> None:
        self._command = list(command)
        self._gpus = tuple(gpus)
        self._workers: list[Worker] = []
        self._lock = threading.Lock()  # a process may die at the moment when it is given something

    def launch(self, request: Request, hear: Hear) -> None:
        """Hands the request to an idle process, starting one if need be."""
        with self._lock:
            idle = next((worker for worker in self._workers if worker.request is None), None)
            worker = idle or self._start(hear)
            worker.request = request
        try:
            assert worker.process.stdin is not None  # it was asked for in _start
            worker.process.stdin.write(encode(request))
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has died: its listener says so

    def close(self) -> None:
        """Ends all processes."""
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.request = None
            worker.process.kill()
            worker.process.wait()

    def _start(self, hear: Hear) -> Worker:
        gpu = freest(self._gpus, [worker.gpu for worker in self._workers])
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            bufsize=1,
            env=os.environ | ({GPUS: gpu} if gpu is not None else {}),
        )
        worker = Worker(process, gpu)
        self._workers.append(worker)
        assert process.stdout is not None  # it was asked for above
        threading.Thread(target=self._listen, args=(worker, process.stdout, hear), daemon=True).start()
        return worker

    def _listen(self, worker: Worker, lines: IO[str], hear: Hear) -> None:
        try:
            for line in lines:
                reply = decode(line)
                if not isinstance(reply, Reply):
                    raise ValueError(line)
                if isinstance(reply, Answer):
                    worker.request = None
                hear(reply)
        except (ModelgitError, ValueError, KeyError, TypeError):
            worker.process.kill()  # it speaks another language: as good as dead
        code = worker.process.wait()
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
            request = worker.request
        if request is not None:
            hear(Died(request, *told_of(code, "", HINT)))


def freest(gpus: Sequence[str], used: Sequence[str | None]) -> str | None:
    """Returns the GPU that the fewest processes are on, None if there is none to give."""
    counts = Counter(used)
    return min(gpus, key=lambda gpu: counts[gpu], default=None)


def gpu_names(count: int, visible: str | None) -> tuple[str, ...]:
    """Returns what each of `count` GPUs is called, where only those in `visible` may be seen; none for one alone.

    `visible` is the value of CUDA_VISIBLE_DEVICES: numbers, or ids such as GPU-8f1a….
    """
    names = tuple(name.strip() for name in visible.split(",")) if visible else tuple(map(str, range(count)))
    return names[:count] if count > 1 else ()
