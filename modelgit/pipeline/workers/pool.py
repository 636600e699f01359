"""A pool of workers, wherever they run: who is at what, and one retry for a worker that dies.

A *launcher* knows how a worker is started (see `processes` and `cluster`); the pool hears what becomes of requests.
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass, replace
from signal import SIGKILL
from typing import Protocol

from modelgit.errors import ModelgitError, TrainingError
from modelgit.events import Noted
from modelgit.pipeline.messages import Answer, Reply, Request, StackRequest
from modelgit.train.memory import KILLED


@dataclass(frozen=True, slots=True)
class Died:
    """The worker of a request ended before it was done; `how` says what is known of it, `hint` what may help."""

    request: Request
    how: str
    hint: str


def told_of(code: int, where: str, otherwise: str) -> tuple[str, str]:
    """Returns how a process with that exit code ended, and what may help: SIGKILL is what the kernel sends for memory.

    A shell says 128 and the signal, Python the negative signal.
    """
    if code in (-SIGKILL, 128 + SIGKILL):
        return f"with exit code {code}{where}: killed, as it is when memory runs out", KILLED
    return f"with exit code {code}{where}", otherwise


Heard = Reply | Died | ModelgitError
Hear = Callable[[Heard], None]


class Launcher(Protocol):
    """Where workers run."""

    def launch(self, request: Request, hear: Hear) -> None:
        """Has a worker carry the request out.

        `hear` is called, from any thread, with all that it says: an Answer at last, or Died if it ends without; an
        error if nothing more can be heard of any.

        Raises:
            ModelgitError: no worker can be started.
        """

    def close(self) -> None:
        """Ends all workers; what they had committed stays."""


class Pool:
    """At most `size` requests under way at a time."""

    def __init__(self, launcher: Launcher, size: int) -> None:
        self._launcher = launcher
        self._size = size
        self._under_way: set[str] = set()
        self._retried: set[str] = set()
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._launcher.close()

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return len(self._under_way)

    @property
    def free(self) -> int:
        """How many more requests can be taken now."""
        return self._size - self.busy

    def submit(self, request: Request) -> None:
        """Hands the request to a worker."""
        self._under_way.add(request.step)
        self._launcher.launch(request, self._heard.put)

    def next_reply(self) -> Reply:
        """Waits for the next thing that any worker says.

        Raises:
            TrainingError: a worker died twice at the same request. ModelgitError: workers are out of reach.
        """
        heard = self._heard.get()
        if isinstance(heard, ModelgitError):
            raise heard
        if isinstance(heard, Died):
            return self._again(heard)
        if isinstance(heard, Answer):
            self._under_way.remove(heard.step)
        return heard

    def _again(self, died: Died) -> Noted:
        request, step = died.request, died.request.step
        if step in self._retried:
            raise TrainingError(f"step '{step}': its worker died twice, last {died.how}", hint=died.hint)
        self._retried.add(step)
        again, how = request, ""
        if isinstance(request, StackRequest):  # a stack wants the memory of all, and that may be what it died of
            again, how = replace(request, apart=True), ", one by one"
        self._launcher.launch(again, self._heard.put)
        return Noted(f"{step}: its worker died {died.how}; it is tried once more{how}")
