"""`modelgit`, and `python -m modelgit`: the command line, which an interruption ends quietly also while it loads."""

import gc
import os
import signal
import sys

INTERRUPTED = 130
SELDOM = (50_000, 20, 50)  # looked for cycles: a model's many tensors are no garbage


def main() -> int:
    """Runs one command and returns its exit code."""
    gc.set_threshold(*SELDOM)
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where a shell has it ignored, for a job in the background
        signal.signal(signal.SIGINT, leave)
    from modelgit.cli.app import main as run

    signal.signal(signal.SIGINT, before)
    return run()


def leave(_number: int, _frame: object) -> None:
    """Ends the process at once: nothing has begun yet."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
