"""Networks that a function of somebody's own makes, by its importable name: `factory:package.module:function`.

The function takes the number of classes and returns a `torch.nn.Module` with two parts: `featurizer`, from examples
(n, …) to features (n, d), and `head`, a linear layer from the features to the classes. If the featurizer is a
`torch.nn.Sequential`, each of its parts is a stage. Nothing is imported that the user has not named: see `trust`.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from blake3 import blake3
from torch import Tensor, nn

from modelgit.errors import DependencyMissing, ModelgitError, RecipeError, UsageError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.network import Design, Inputs, Network, Stages, Takes, numbers_of, tried
from modelgit.train.trust import FORM, TRUSTED

NAME = "factory"
RULE = "expected a torch.nn.Module of a `featurizer` and a `head`, and nothing besides"
Factory = Callable[[int], object]


class Made(nn.Module):
    """A network in the two parts that a factory has made it of; they keep their names."""

    head_name = "head"
    takes: Takes = "numbers"
    carries = False
    example: tuple[int, ...] = ()

    def __init__(self, featurizer: nn.Module, head: nn.Linear, identity: str) -> None:
        super().__init__()
        self.featurizer, self.head = featurizer, head
        self.feature_size, self.identity = head.in_features, identity
        self._tried = False

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns images, and arrays of bytes, as numbers from 0 to 1; arrays of floats as they lie."""
        x = numbers_of(inputs, f"network of {self.identity}")
        x = x.float() if kind == "arrays" and x.is_floating_point() else x.float() / 255
        if not self._tried:
            tried(self.featurizer, x[:1].to(self.head.weight.device), self.identity, self.feature_size)
            self._tried = True
        return x

    def stages(self) -> Stages:
        """Returns the featurizer's parts if it is a Sequential, else the featurizer as one stage."""
        parts = list(self.featurizer) if isinstance(self.featurizer, nn.Sequential) else []
        return [(part, [part]) for part in parts or [self.featurizer]]


def build_made(design: Design, detail: str, classes: int) -> Network:
    """Returns the network that a trusted factory makes.

    Raises:
        UsageError: it is not trusted. DependencyMissing, RecipeError: it is not there, or makes something else.
    """
    factory, where = factory_at(detail), design.architecture
    try:
        module = factory(classes)
    except ModelgitError:
        raise
    except Exception as error:  # whatever somebody's own code raises
        raise RecipeError(f"{detail}({classes}) raised {type(error).__name__}: {str(error)[:200]}") from error
    return cast(Network, Made(*parts_of(module, f"{detail}({classes})", classes), f"{where} {source_digest(where)}"))


def parts_of(module: object, call: str, classes: int) -> tuple[nn.Module, nn.Linear]:
    """Returns the featurizer and the head of what a call has made. Raises RecipeError unless it is made of these."""
    featurizer, head = (getattr(module, part, None) for part in ("featurizer", "head"))
    if not isinstance(module, nn.Module) or not isinstance(featurizer, nn.Module):
        raise RecipeError(f"{call}: {RULE}, got {'none' if module is None else type(module).__name__}")
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise RecipeError(f"{call}: expected a `head` that is a torch.nn.Linear with a bias, got {head}")
    if head.out_features != classes:
        what = f"{call}: expected a head of {classes} outputs, one a class, got {head.out_features}"
        raise RecipeError(what, hint="the function is called with the number of classes")
    besides = [name for name in module.state_dict() if not name.startswith(("featurizer.", "head."))]
    if besides:
        raise RecipeError(f"{call}: {RULE}, got '{besides[0]}'", hint="move it into the featurizer")
    return featurizer, head


def is_made(architecture: str | None) -> bool:
    """Tells whether a network is made by a function of somebody's own."""
    return architecture is not None and architecture.partition(":")[0] == NAME


def factory_at(name: str) -> Factory:
    """Returns the function `package.module:function`; imports its module, which executes it.

    Raises:
        UsageError: the user has not named it. DependencyMissing: no such module. RecipeError: no such function.
    """
    if not FORM.fullmatch(name):
        raise RecipeError(f"architecture '{NAME}:{name[:80]}': expected {NAME}:package.module:function")
    if name not in TRUSTED:
        what = f"the network is made by {name}, code outside modelgit; it is not imported unless you name it"
        raise UsageError(what, hint=f"if you trust it: --trust-factory {name}")
    place, _, function = name.partition(":")
    module = imported(place)
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        hint = f"it has {', '.join(sorted(own)[:10]) or 'no functions'}"
        raise RecipeError(f"{place} has no function '{function}'", hint=hint)
    return cast(Factory, found)


def imported(place: str) -> ModuleType:
    """Returns a module. Raises DependencyMissing if there is none, RecipeError if it cannot be imported."""
    try:
        return import_module(place)
    except Exception as error:  # whatever somebody's own code raises
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{place}.".startswith(f"{absent}."):
            hint = "install the package that has it, or add its folder to PYTHONPATH"
            raise DependencyMissing(f"no module '{place}' can be imported", hint=hint) from error
        raise RecipeError(f"importing {place} raised {type(error).__name__}: {str(error)[:200]}") from error


def source_digest(architecture: str) -> str | None:
    """Returns the digest of the file that a trusted factory's module is in; None where there is none."""
    place = architecture.partition(":")[2].partition(":")[0]
    file = getattr(sys.modules.get(place), "__file__", None)
    if not is_made(architecture) or not file or not Path(file).is_file():
        return None
    return blake3(Path(file).read_bytes()).hexdigest()
