"""What a network does on data, weight by weight and layer by layer: what merging by Fisher and RegMean asks for.

All is computed on the CPU in one thread: images in single precision, sums in double, so that it can be had again.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from modelgit.events import Advanced, Listener, ignore
from modelgit.train.memory import STATISTICS, memory_for

EXACT = 64  # classes up to which the expectation over labels is a sum over all of them
ROOM = 1 << 25  # numbers that the gradients of the images looked at together may take
AT_ONCE = 32  # images looked at together, at most
SEED = 0


@memory_for("statistics", STATISTICS)
def diagonal_fisher(
    model: nn.Module, batches: Sequence[Tensor], labels: Sequence[Tensor] | None = None, listener: Listener = ignore
) -> dict[str, Tensor]:
    """Returns the mean over images of (d log p(label) / d w)^2, single precision, by the parameters' names.

    `model` gives class scores of prepared images, `batches` of (n, …). Without `labels` it is the expectation over the
    labels that the model itself expects: exact for up to EXACT classes, else one label drawn for each image. With
    `labels` (n,) it is the so-called empirical one. Images count one by one: squares are never taken of sums.

    Source: Matena & Raffel 2022, arXiv:2111.09832, equation 3.
    """
    model.eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    totals = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
    draws, count = torch.Generator().manual_seed(SEED), 0
    for number, batch in enumerate(batches):
        with torch.no_grad():
            shares = model(batch).float().softmax(1)  # (n, classes)
        chosen = labels[number] if labels is not None else None
        if chosen is None and shares.shape[1] > EXACT:
            chosen = torch.multinomial(shares, 1, generator=draws).squeeze(1)
        size = room(weights, shares.shape[1] if chosen is None and fits(weights, shares.shape[1]) else 1)
        for start in range(0, len(batch), size):
            part = slice(start, start + size)
            found = squares(model, weights, batch[part], shares[part] if chosen is None else chosen[part])
            for name, values in found.items():
                totals[name] += values.double().sum(0)
            listener(Advanced("statistics", len(batch[part])))
        count += len(batch)
    return {name: (total / count).float() for name, total in totals.items()}


def room(weights: Mapping[str, Tensor], labels: int) -> int:
    """Returns how many images can be looked at together, with so many gradients for each."""
    return max(1, min(AT_ONCE, ROOM // max(1, labels * count_of(weights))))


def fits(weights: Mapping[str, Tensor], labels: int) -> bool:
    """Returns whether the gradients of all labels of an image fit into memory at once; else it is label by label."""
    return labels * count_of(weights) <= ROOM


def count_of(weights: Mapping[str, Tensor]) -> int:
    """Returns how many numbers a network has."""
    return sum(weight.numel() for weight in weights.values())


def squares(model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Returns each image's squared gradients (n, *shape): of a label (n,), or the mean by shares (n, c)."""

    def told(values: Mapping[str, Tensor], image: Tensor) -> Tensor:
        scores: Tensor = functional_call(model, dict(values), (image.unsqueeze(0),))
        return scores.squeeze(0).log_softmax(0)

    def of_label(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        found = grad(lambda values: told(values, image).gather(0, label.unsqueeze(0)).squeeze(0))(dict(weights))
        return {name: value**2 for name, value in found.items()}

    def of_all(image: Tensor, shares: Tensor) -> dict[str, Tensor]:
        found = jacrev(lambda values: told(values, image))(dict(weights))
        return {name: torch.tensordot(shares, value**2, 1) for name, value in found.items()}

    if labels.dim() == 2 and not fits(weights, labels.shape[1]):
        total = {name: torch.zeros(len(images), *weight.shape) for name, weight in weights.items()}
        for label, shares in enumerate(labels.T):
            for name, values in vmap(of_label)(images, torch.full((len(images),), label)).items():
                total[name] += values * shares.reshape(-1, *[1] * weights[name].dim())
        return total
    found: dict[str, Tensor] = vmap(of_all if labels.dim() == 2 else of_label)(images, labels)
    return found


@memory_for("statistics", STATISTICS)
def input_products(model: nn.Module, batches: Sequence[Tensor], listener: Listener = ignore) -> dict[str, Tensor]:
    """Returns X^T X / n of the n inputs X (n, in) of every linear layer, single precision, by its weight's name.

    Source: Jin et al. 2023, arXiv:2212.09849, section 3.
    """
    model.eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    totals = {name: torch.zeros(layer.in_features, layer.in_features).double() for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def look(name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        totals[name] += rows.T @ rows
        counts[name] += len(rows)

    def looking(name: str) -> torch.utils.hooks.RemovableHandle:
        return layers[name].register_forward_pre_hook(lambda _module, given: look(name, given[0]))

    handles = [looking(name) for name in layers]
    try:
        for batch in batches:
            with torch.no_grad():
                model(batch)
            listener(Advanced("statistics", len(batch)))
    finally:
        for handle in handles:
            handle.remove()
    return {f"{name}.weight": (total / counts[name]).float() for name, total in totals.items() if counts[name]}
