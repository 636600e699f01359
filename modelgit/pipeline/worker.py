"""A worker: reads requests, trains and scores, commits, replies.

It stops by itself, at once, when its input ends: the coordinator is gone, and whatever was not committed yet will be
asked for again.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import IO

from modelgit.errors import ModelgitError
from modelgit.events import Event
from modelgit.pipeline.messages import Answer, Failed, Reply, Request, decode, encode
from modelgit.train.memory import ANYTHING, memory_for

Execute = Callable[[Request, Callable[[Event], None]], Answer]


def serve(requests: IO[str], replies: IO[str], execute: Execute) -> None:
    """Carries out the requests that arrive, one after another, until the input ends."""
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=watch, args=(requests, inbox), daemon=True).start()

    def say(reply: Reply) -> None:
        replies.write(encode(reply))
        replies.flush()

    while True:
        request = decode(inbox.get())
        assert isinstance(request, Request)  # coordinators only ask
        say(answer(request, execute, say))


def watch(requests: IO[str], inbox: "queue.SimpleQueue[str]") -> None:
    """Passes lines on; at the end of input ends the process, whatever it is at."""
    for line in requests:
        inbox.put(line)
    os._exit(0)


def answer(request: Request, execute: Execute, say: Callable[[Reply], None]) -> Answer:
    """Returns what came of the request; errors a person can act on travel as values."""
    try:
        with memory_for("its worker", ANYTHING):
            return execute(request, say)
    except ModelgitError as error:
        return Failed(request.step, type(error).__name__, error.message, error.hint)
