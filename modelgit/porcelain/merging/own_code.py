"""Methods and metrics of the user's own: `FILE.py:NAME`, a file that is named on the command line.

Running it is what naming it asks for. Nothing that a commit or a repository says leads here: a merge made by such a
method records the file's name and digest, and is recomputed only if the user names the file again.
"""

import dataclasses
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from blake3 import blake3

from modelgit.errors import DataError, ModelgitError, UsageError
from modelgit.merge.blocks.sums import Array
from modelgit.merge.blocks.tensors import Inputs
from modelgit.merge.methods.registry import METHODS, make

CALLED = ("linear_terms", "fitted_terms", "facts", "block", "combine", "__call__")
CONTRACT = "it gets a tensor of all models (heads, base, weights) and returns values of its shape: docs/howto/merge.md"
KINDS = "linear_terms, fitted_terms, facts and block, or combine"


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """What `FILE.py:NAME` names, read once: what is digested is what is run, never bytecode that lies beside it."""

    text: str
    place: Path
    name: str
    code: bytes

    @property
    def digest(self) -> str:
        """Returns the digest of the file."""
        return blake3(self.code).hexdigest()[:32]


def loaded(text: str, what: str, option: str) -> Any:
    """Returns what `FILE.py:NAME` names. Raises UsageError: no such file or name, or the file cannot be run."""
    return run(read_source(text, what, option), what)


def read_source(text: str, what: str, option: str) -> Source:
    """Returns the file of `FILE.py:NAME`. Raises UsageError if there is none."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier() or not path.isprintable():
        raise UsageError(f"{what} '{text}': expected FILE.py:NAME", hint=f"{option} path/to/file.py:name")
    try:
        return Source(text, Path(path), name, Path(path).read_bytes())
    except OSError as error:
        what = f"{what} '{text}': no file {path}: {error.strerror}"
        raise UsageError(what, hint=f"{option} path/to/file.py:name") from error


def run(source: Source, what: str) -> Any:
    """Runs a file and returns what is named in it. Raises UsageError: no such name, or the file cannot be run."""
    module = ModuleType(f"modelgit_{what}_{source.place.stem}")
    module.__file__ = str(source.place)
    sys.modules[module.__name__] = module  # where dataclasses look their annotations up
    try:
        exec(compile(source.code, source.place, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # whatever somebody's file raises
        told = f"the file cannot be run: {type(error).__name__}: {error}"
        raise UsageError(f"{what} '{source.text}': {told}") from error
    found = getattr(module, source.name, None)
    if not callable(found):
        own = sorted(key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
        told = f"{what} '{source.text}': no '{source.name}' there to call"
        raise UsageError(told, hint=f"it has: {', '.join(own) or 'none'}")
    return found


def is_own(name: str) -> bool:
    """Returns whether a method's name says that it is somebody's own."""
    return ".py:" in name


def enter_method(text: str, recorded: tuple[str, str] | None = None) -> str:
    """Enters the method that `FILE.py:NAME` names into the registry; returns its name there, as commits record it.

    NAME is a frozen dataclass as those of `modelgit.merge.methods`, or a function of one argument, the `Inputs` of a
    tensor, that returns the merged values. `recorded` are the name and digest that a commit says the method had: then
    the file is run only if it is that one, and is entered by that name, whatever it is called now.

    Raises:
        UsageError: it is neither. DataError: it is another file than the recorded one; nothing of it was run.
    """
    source = read_source(text, "method", "--method")
    known = f"{source.place.name}:{source.name}"
    if recorded is not None:
        wanted, digest = recorded
        if source.digest != digest or wanted.rpartition(":")[2] != source.name:
            same = wanted.rpartition(":")[2] == source.name
            what = "the file has changed since the merge" if same else f"another method than {wanted}"
            raise DataError(f"{text}: {what}", hint=f"expected a file of digest {digest}, got {source.digest}")
        known = wanted
    found = run(source, "method")
    cls = found if isinstance(found, type) else from_function(found)
    check_method(cls, text)
    guarded = type(cls.__name__, (cls,), {key: guard(getattr(cls, key), known) for key in CALLED if key in vars(cls)})
    guarded.__doc__ = cls.__doc__
    guarded.name = known  # type: ignore[attr-defined]
    guarded.source = str(getattr(cls, "source", source.place))  # type: ignore[attr-defined]
    guarded.digest = source.digest  # type: ignore[attr-defined]
    METHODS[known] = guarded
    make(known, {})
    return known


def digest_of(name: str) -> str | None:
    """Returns the digest of the file that a method came from, None if it is no own one or was not entered."""
    return getattr(METHODS.get(name), "digest", None)


def check_method(cls: type, text: str) -> None:
    """Raises UsageError unless a class is a method that could be in the registry."""
    if not dataclasses.is_dataclass(cls):
        raise UsageError(f"method '{text}': expected a function of Inputs or a frozen dataclass, got a plain class")
    for needed in ("heads", "weighted", "needs_base"):
        if not hasattr(cls, needed):
            raise UsageError(f"method '{text}': expected a class variable '{needed}'", hint="see docs/howto/merge.md")
    kinds = (("linear_terms",), ("fitted_terms",), ("facts", "block"), ("combine",))
    if not any(all(hasattr(cls, key) for key in kind) for kind in kinds) or not any(
        "__call__" in vars(c) for c in cls.__mro__
    ):
        raise UsageError(f"method '{text}': expected {KINDS}, and __call__", hint="see docs/howto/merge.md")


def guard(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns a function that names the method where it fails."""

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except ModelgitError:
            raise
        except (Exception, SystemExit) as error:  # whatever somebody's method raises
            raise UsageError(f"method '{name}' failed: {raised(error)}", hint=CONTRACT) from error

    return call


def raised(error: BaseException) -> str:
    """Returns what was raised, and in which line of the user's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[0]})" if lines else "")


def from_function(function: Callable[[Inputs], Any]) -> type:
    """Returns a method that calls a function, which sees one tensor of all models and returns the merged values."""

    @dataclasses.dataclass(frozen=True)
    class Own:
        heads: ClassVar[tuple[int, int | None]] = (1, None)
        weighted: ClassVar[bool] = True
        needs_base: ClassVar[bool] = bool(getattr(function, "needs_base", False))

        def combine(self, inputs: Inputs) -> Array:
            """Returns what the function makes of a tensor."""
            merged = np.asarray(function(inputs), np.float64)
            shape = inputs.heads[0].shape
            if merged.shape != shape:
                what = f"tensor {inputs.name!r}: expected values of shape {list(shape)}, got {list(merged.shape)}"
                raise UsageError(f"method '{getattr(self, 'name', function.__name__)}': {what}", hint=CONTRACT)
            return merged

        def __call__(self, inputs: Inputs) -> Array:
            return self.combine(inputs)

    Own.__doc__ = function.__doc__
    return Own
