"""Networks of the `timm` library, by the config.json of a version or by their name: `timm`, `timm:resnet18`.

The library gives the layers and the names; nothing is fetched, and no other file is read. A network is the library's
own with a new classifier: what comes before it (`forward_features`, `forward_head` up to the classifier) is one stage.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from blake3 import blake3
from torch import Tensor, nn

from modelgit.errors import DataError, DependencyMissing, FormatError, RecipeError
from modelgit.train.data.dataset import Kind
from modelgit.train.networks.encoders.texts import Table, table_in
from modelgit.train.networks.network import Design, Direct, Inputs, Network, Stages, Takes, pictures_of, share, tried
from modelgit.train.networks.sizes import check_numbers, numbers_in

NAME = "timm"
FORM = re.compile(r"[a-z0-9_]{1,100}", re.ASCII)
# Arguments that have the library read, fetch or script something; the classes are the data's.
REFUSED = ("cache_dir", "checkpoint_path", "exportable", "features_only", "no_jit", "num_classes", "scriptable")
MOST = 1 << 16  # what a config.json may ask for
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictured(nn.Module):
    """A network of the library as the trainer sees it: a view that shares its parameters, buffers and parts."""

    takes: Takes = "numbers"
    carries = False

    def __init__(self, base: nn.Module, head_name: str, said: Table, identity: str) -> None:
        super().__init__()
        share(self, base)
        self.__dict__["_modules"] = base.__dict__["_modules"]
        self._base = [base]  # in a list: it is no part of itself
        self.head_name, self.identity = head_name, identity
        self.feature_size = int(cast(nn.Linear, self.get_submodule(head_name)).in_features)
        self.example = triple(said.get("input_size"), (3, 224, 224))
        self._mean, self._std = (
            torch.tensor(triple(said.get(key), usual))[:, None, None]
            for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
        )
        self._tried = False

    def prepare(self, inputs: Inputs, kind: Kind = "images") -> Tensor:
        """Returns pictures with the mean and the deviation that the network was made for."""
        x = pictures_of(inputs, kind, self.identity.partition(" ")[0], self.example[0])
        x = ((x / 255 - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        if not self._tried:
            self._try(x[:1])
            self._tried = True
        return x

    def _try(self, x: Tensor) -> None:
        """Runs one example. Raises DataError unless it is taken, and the classifier is all that is behind features."""
        x = x.to(next(self.parameters()).device)
        z = tried(self._features, x, self.identity, self.feature_size)
        with torch.no_grad():
            alike = torch.allclose(self.get_submodule(self.head_name)(z), self._base[0](x), rtol=1e-3, atol=1e-4)
        if not alike:
            raise DataError(f"{self.identity}: its classifier is not the last of its layers", hint="another network")

    def stages(self) -> Stages:
        """Returns everything before the classifier, as one stage."""
        return [(self._features, list(parts_before(self._base[0], self.get_submodule(self.head_name))))]

    def _features(self, x: Tensor) -> Tensor:
        base: Any = self._base[0]
        found: Tensor = base.forward_head(base.forward_features(x), pre_logits=True)
        return found


def parts_before(module: nn.Module, head: nn.Module) -> Iterator[nn.Module]:
    """Yields modules that together hold all of a module's parameters and buffers but the head's."""
    yield Direct(module)
    for part in module.children():
        if part is head:
            continue
        if any(inner is head for inner in part.modules()):
            yield from parts_before(part, head)
        else:
            yield part


def build_timm(design: Design, detail: str, classes: int) -> Network:
    """Returns the network of that name, or the one that the version's config.json describes.

    Raises:
        DependencyMissing: no `timm`. RecipeError: no network is called so. FormatError: files that describe none.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the second: torchvision's operators are for another build of PyTorch
        hint = "pip install 'modelgit[timm]', and the torchvision that was built for this PyTorch"
        raise DependencyMissing(f"this network needs timm: {str(error)[:200]}", hint=hint) from error
    table = table_in(design.files, "config.json") if not detail else {"architecture": detail}
    name = table.get("architecture")
    if not table or not isinstance(name, str):
        hint = "import the whole folder of the model, or name the network: 'timm:resnet18'"
        raise FormatError(f"'{design.architecture}': the version has no config.json of timm's", hint=hint)
    if not FORM.fullmatch(name) or not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(), 5)
        what = f"timm has no network '{name[:80]}'"
        hint = f"near it: {', '.join(near)}" if near else "timm.list_models() lists them"
        raise RecipeError(what, hint=hint) if detail else FormatError(f"config.json: {what}", hint=hint)
    given = arguments(table)
    if design.room is not None:
        check_room(name, given, design.room)
    base = make(name, given, classes)
    said = {**base.pretrained_cfg, **mapping(table.get("pretrained_cfg"))}  # type: ignore[dict-item]  # the library's
    identity = f"{NAME}:{name} {blake3(repr(sorted(given.items())).encode()).hexdigest()[:16]}"
    return cast(Network, Pictured(base, head_of(base, name), said, identity))


def mapping(value: object) -> Table:
    """Returns a table, empty for anything else."""
    return value if isinstance(value, dict) else {}


def arguments(table: Table) -> dict[str, object]:
    """Returns what the configuration gives to the library's function. Raises FormatError for what it must not."""
    found = {**mapping(table.get("model_args"))}
    if isinstance(table.get("global_pool"), str):
        found.setdefault("global_pool", table["global_pool"])
    for key, value in found.items():
        if key in REFUSED or key.startswith("pretrained") or isinstance(value, dict):
            raise FormatError(f"config.json: model_args: {key[:40]!r} is not for a version to say", hint="leave it out")
    check_numbers(numbers_in(found), "config.json: model_args", MOST)
    return found


def make(name: str, given: Mapping[str, object], classes: int) -> nn.Module:
    """Returns the library's network, untrained. Raises FormatError for arguments that it cannot take."""
    import timm

    try:
        made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **given)
    except Exception as error:  # whatever the library raises for values that it cannot use
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise FormatError(f"config.json: no network '{name}' with {sorted(given)}: {told}") from error
    return made.eval()


def check_room(name: str, given: Mapping[str, object], room: int) -> None:
    """Raises FormatError for a network of more numbers than its version holds, before any is allocated."""
    with torch.device("meta"):
        outline = make(name, given, 1)
    head = set(outline.get_submodule(head_of(outline, name)).parameters())
    count = sum(parameter.numel() for parameter in outline.parameters() if parameter not in head)
    if count > room:
        hint = "the configuration is not of these weights"
        raise FormatError(f"config.json: a network of {count} numbers, and the version holds {room}", hint=hint)


def head_of(base: nn.Module, name: str) -> str:
    """Returns what the classifier is called. Raises RecipeError unless it is one linear layer with a bias."""
    head = base.get_classifier() if hasattr(base, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.bias is None or not hasattr(base, "forward_head"):
        what = f"timm's '{name}': expected one linear layer behind the features, got {type(head).__name__}"
        raise RecipeError(what, hint="another network, or one of your own making: factory:package.module:function")
    found: str = next(place for place, module in base.named_modules() if module is head)
    return found


def triple(value: object, usual: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns three numbers that a configuration says, else the usual."""
    plain = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)
    return tuple(cast(Any, value)) if plain else usual
