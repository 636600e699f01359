"""Networks by name.

`NAME` or `NAME:DETAIL`; what the detail means is the architecture's: input channels, inputs, a way of pooling, the
function that makes it.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from modelgit.errors import RecipeError
from modelgit.train.config import seed_hash
from modelgit.train.networks.efficientnet import EfficientNetLite0
from modelgit.train.networks.encoders.encoder import build_encoder
from modelgit.train.networks.factory import build_made, factory_at, is_made
from modelgit.train.networks.network import Design, Network, check_stages, head_tensors
from modelgit.train.networks.resnet import resnet18, resnet50
from modelgit.train.networks.small import Convolutional, MnistCnn, Perceptron
from modelgit.train.networks.timm_network import build_timm

Build = Callable[[Design, str, int], Network]  # what it is built from, the detail ("" for none), the number of classes


def plain(make: Callable[[int], object]) -> Build:
    """Returns how a network without details is built."""

    def build(design: Design, detail: str, classes: int) -> Network:
        if detail:
            name = design.architecture.partition(":")[0]
            raise RecipeError(f"architecture '{design.architecture}': '{name}' takes no detail", hint=f"say '{name}'")
        return cast(Network, make(classes))

    return build


def counted(make: Callable[..., object], most: int, what: str) -> Build:
    """Returns how a network is built whose detail is a number."""

    def build(design: Design, detail: str, classes: int) -> Network:
        if not detail:
            return cast(Network, make(classes))
        if not detail.isascii() or not detail.isdigit() or not 1 <= int(detail[:9]) <= most:
            hint = f"expected the number of {what}, from 1 to {most}"
            raise RecipeError(f"architecture '{design.architecture[:80]}': {detail[:40]!r} is no number", hint=hint)
        return cast(Network, make(classes, int(detail)))

    return build


ARCHITECTURES: Mapping[str, Build] = {
    "all-minilm-l6-v2": build_encoder,
    "cnn": counted(Convolutional, 1024, "input channels"),
    "efficientnet-lite0": plain(EfficientNetLite0),
    "factory": build_made,
    "mlp": counted(Perceptron, 1 << 20, "inputs"),
    "mnist-cnn": counted(MnistCnn, 1024, "input channels"),
    "resnet18": plain(resnet18),
    "resnet50": plain(resnet50),
    "timm": build_timm,
    "transformers": build_encoder,
}
FOREIGN = ("factory", "timm")  # code of others, which is run but not looked into


def needs_nothing(architecture: str) -> bool:
    """Tells whether a network is built from its name alone."""
    name, _, detail = architecture.partition(":")
    return name in ARCHITECTURES and ARCHITECTURES[name] is not build_encoder and (name not in FOREIGN or bool(detail))


def is_ours(architecture: str) -> bool:
    """Tells whether a network is built from its name alone, by code of modelgit."""
    return needs_nothing(architecture) and architecture.partition(":")[0] not in FOREIGN


def check_architecture(architecture: str) -> None:
    """Raises RecipeError for a name that no network has, listing the known; of a factory what `factory_at` raises."""
    name, _, detail = architecture.partition(":")
    if name not in ARCHITECTURES:
        hint = f"known architectures: {', '.join(sorted(ARCHITECTURES))}"
        raise RecipeError(f"unknown architecture '{architecture[:80]}'", hint=hint)
    if is_made(architecture):
        factory_at(detail)


def build_network(design: Design | str, classes: int) -> Network:
    """Returns an untrained network, ready to run, with a head of `classes` outputs.

    Raises:
        RecipeError: an unknown name, listing the known.
    """
    design = Design(design) if isinstance(design, str) else design
    check_architecture(design.architecture)
    name, _, detail = design.architecture.partition(":")
    return ARCHITECTURES[name](design, detail, classes).eval()


def check_untrained(architecture: str) -> None:
    """Raises RecipeError unless a network can be begun from its name alone."""
    check_architecture(architecture)
    if not needs_nothing(architecture):
        hint = f"of their own accord begin {', '.join(sorted(filter(needs_nothing, ARCHITECTURES)))}"
        raise RecipeError(f"weights = 'random': '{architecture}' is built from the files of its version", hint=hint)


def untrained(architecture: str, seed: int) -> dict[str, Tensor]:
    """Returns the weights that PyTorch begins a network with, drawn by a seed of their own; without a head.

    Raises:
        RecipeError: an unknown network, or one that is built from the files of its version.
    """
    check_untrained(architecture)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed_hash("weights", seed))
        network = build_network(architecture, 2)
    head = head_tensors(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in head}


def check_frozen(architecture: str, frozen: int) -> None:
    """Raises RecipeError if a network has fewer stages; of one that its version describes that is not known here."""
    if frozen and needs_nothing(architecture):
        check_stages(outlined(architecture), frozen)


def weights_bytes(architecture: str) -> int:
    """Returns how large a network's weights are, without making them where the code is ours."""
    return sum(tensor.nbytes for tensor in outlined(architecture).state_dict().values())


def outlined(architecture: str) -> Network:
    """Returns a network of two classes, without its weights where the code is ours."""
    with torch.device("cpu" if is_made(architecture) else "meta"):
        return build_network(architecture, 2)
