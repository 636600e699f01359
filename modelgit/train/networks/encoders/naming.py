"""Tensors of a model of the library by the names of their checkpoint.

The library calls its modules otherwise than many checkpoints do, and renames what it loads. Here the trainer sees a
tree of modules that is named as the checkpoint is, and holds the very layers of the model: what a version is committed
with is called as what it came with.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from torch import nn

from modelgit.errors import FormatError
from modelgit.train.networks.network import Direct, share

Names = Mapping[str, str]  # by the model's name of a tensor, its checkpoint's


def names_of(base: nn.Module, prefix: str, tensors: Collection[str]) -> Names:
    """Returns what each tensor of a model is called in a checkpoint of the names `tensors`.

    Where that has none for it, or is not known (no names), it is the model's with a prefix.

    Raises:
        FormatError: a tensor that the library would put together from several, or take apart.
    """
    own = base.state_dict()
    usual = {key: f"{prefix}.{key}" if prefix else key for key in own}
    if not tensors or not hasattr(base, "base_model_prefix"):
        return usual
    found, to_model = dict[str, str](), renamed(base, own)
    for name in sorted(tensors):
        key = to_model(name)
        if key in own and found.setdefault(key, name) != name:
            raise FormatError(f"'{found[key]}' and '{name}' are one tensor of {type(base).__name__}", hint="keep one")
    return {**usual, **found}


def renamed(base: Any, own: Mapping[str, Any]) -> Callable[[str], str]:
    """Returns what gives a checkpoint's name as the model's, by the library's own table."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    table = get_model_conversion_mapping(base)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]

    def to_model(name: str) -> str:
        key, converted = rename_source_key(name, renamings, converters, base.base_model_prefix, dict(own))
        if converted is not None and key in own:
            what = f"tensor '{name}': transformers takes it apart, or puts it together with others, to make '{key}'"
            raise FormatError(what, hint="no network whose checkpoints hold other matrices than it works with")
        return str(key)

    return to_model


def adopt(network: nn.Module, base: nn.Module, names: Names) -> None:
    """Puts the layers of a model into a network, each where the checkpoint's names of its tensors say.

    Raises:
        FormatError: the names of one layer's tensors are not those of one layer.
    """
    for path, module in base.named_modules():
        own = [*module._parameters, *module._buffers]
        said = {leaf: names[key] for leaf in own if (key := f"{path}.{leaf}".lstrip(".")) in names}
        places = {name.rpartition(".")[0] for name in said.values()}
        if len(places) > 1 or any(name.rpartition(".")[2] != leaf for leaf, name in said.items()):
            told = min(name for leaf, name in said.items() if len(places) > 1 or name.rpartition(".")[2] != leaf)
            raise FormatError(f"tensor '{told}': {type(base).__name__} has no layer that holds it under that name")
        if own:
            put(network, places.pop() if places else f"unsaved.{path}", module)


def put(network: nn.Module, place: str, module: nn.Module) -> None:
    """Puts a module at a place in a tree: itself where it has no parts, else one that holds what it does itself."""
    node = network
    *above, last = place.split(".")
    for part in above:
        node = opened(node, part)
    if last and last not in node._modules:
        node._modules[last] = Direct(module) if any(module.children()) else module  # whatever else is called so
        return
    taken = opened(node, last) if last else node
    if taken._parameters or taken._buffers:
        raise FormatError(f"two layers of a {type(module).__name__} are called '{place}'")
    share(taken, module)


def opened(node: nn.Module, part: str) -> nn.Module:
    """Returns a part of a tree that others can be put under: never one of the model's own."""
    found = node._modules.get(part)
    if type(found) not in (nn.Module, Direct):
        found = nn.Module() if found is None else Direct(found)
        node._modules[part] = found
    return cast(nn.Module, found)
