"""Memory that ran out, told in one way: at what, of which kind, how much more was asked for, and what to turn down.

Main memory shows as MemoryError (Python, numpy), as ENOMEM (a file that cannot be mapped) or as a plain RuntimeError
of PyTorch's, a GPU's as errors of CUDA and its libraries; none of them says what a person can do. PyTorch is not
imported here: its errors are known by what they are called and say.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from modelgit.errors import OutOfMemory
from modelgit.train.config import FineTune

SIGNS = re.compile(r"can(?:'t|not) allocate|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|failed to map", re.I)
AMOUNT = re.compile(
    r"(?:tried|unable) to (?:allocate|mmap) (\d{1,20}(?:\.\d{1,3})?) ?(bytes|[KMGTPE]iB)", re.IGNORECASE
)
GPU = re.compile(r"CUDA|CUBLAS|CUDNN|\bHIP\b")
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

# What to turn down, by what was being done: keys of a recipe that exist, and that help there.
DATA = "leave out of the file what is not used: it is read whole"
NETWORK = "a smaller network, or another device: --device; for fewer networks at a time, --workers 1, --together 1"
FEATURES = "turn down image_size or limit_per_class in [data], or views in [train]"
PROBE = "turn down limit_per_class in [data], or begin with a random head: new_head = 'random' in [train]"
SCORING = "turn down image_size or limit_per_class of the data (a recipe has them: --on RECIPE.toml), or --device cpu"
VALIDATING = "raise frozen_stages in [train] (less is computed at a time), or turn down image_size in [data]"
TOGETHER = "fewer at a time, --together 1; or turn down batch, views or image_size, or raise frozen_stages"
STATISTICS = "turn down --stats-images, or give statistics as files: --stats"
ANYTHING = "end what else runs on this machine, or do less at a time: of `modelgit run`, --workers 1"
KILLED = (
    "most likely memory ran out (the system's log says so): --workers 1, --together 1; or, in the recipe, turn down "
    "batch, image_size or limit_per_class, raise frozen_stages, or set checkpoint = true"
)


def step_keys(config: FineTune, *, texts: bool = False) -> str:
    """Returns what can be turned down so that a step takes less memory: what is not there already."""
    batch = "batch_per_domain" if config.batch_per_domain is not None else "batch"
    pictures = "" if texts else ", views or image_size"
    smaller = f"turn down {batch} (accumulate makes up for it){pictures}, raise frozen_stages"
    more = [] if config.checkpoint else ["checkpoint = true"]
    more += [] if config.precision == "bfloat16" else ["precision = 'bfloat16'"]
    return f"{smaller}, or set {' and '.join(more)}" if more else smaller


@contextmanager
def memory_for(doing: str, remedy: str) -> Iterator[None]:
    """Says what was being done when memory ran out inside the block, and what helps; the innermost block says it.

    Raises:
        OutOfMemory: in place of whatever error that showed as.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not ran_out(error):
            raise
        raise out_of_memory(doing, error, remedy) from error


def out_of_memory(doing: str, error: BaseException, remedy: str) -> OutOfMemory:
    """Returns what is told of memory that ran out."""
    return OutOfMemory(f"{doing}: {shortage(error)}", hint=remedy)


def ran_out(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):  # a library too large to be loaded
        return bool(SIGNS.search(str(error)))
    return isinstance(error, MemoryError)


def shortage(error: BaseException) -> str:
    """Returns which memory ran out, and how much more was asked for, where the error says so."""
    kind = "GPU" if isinstance(error, RuntimeError) and GPU.search(str(error)) else "main"
    found = AMOUNT.search(str(error))
    asked = f", {readable(float(found[1]), found[2])} more were asked for" if found else ""
    return f"out of {kind} memory{asked}"


def readable(amount: float, unit: str) -> str:
    """Returns an amount of memory in the unit that leaves it few digits."""
    place = next((number for number, name in enumerate(UNITS) if name.lower() == unit.lower()), 0)
    while amount >= 1024 and place < len(UNITS) - 1:
        amount, place = amount / 1024, place + 1
    return f"{amount:.3g} {UNITS[place]}"
