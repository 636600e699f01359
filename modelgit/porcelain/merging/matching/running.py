"""Versions as networks that can be run: what their record says they are, on data or on pictures drawn at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from modelgit.errors import DataError
from modelgit.porcelain.records import Record
from modelgit.porcelain.scores import DataName, parse_data_name
from modelgit.train.data.dataset import arrays_of
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import split
from modelgit.train.fitting.passes import apply_head
from modelgit.train.networks.network import Network, head_tensors
from modelgit.train.networks.registry import build_network, is_ours

IMAGES, BATCH = 2048, 256  # of a data set that are looked at, and at once
DRAWN = 4  # pictures drawn at random
SEED = 0


class Whole(nn.Module):
    """A network with its head, from prepared images to class scores."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the class scores of images as the network's `prepare` gives them."""
        for stage, _ in self.network.stages():
            x = stage(x)
        return apply_head(self.network, x)


@dataclass(frozen=True, slots=True)
class Running:
    """A network that takes its weights with every call."""

    whole: Whole

    def __call__(self, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Returns the class scores that a model gives."""
        named = {f"network.{name}": tensor for name, tensor in state.items()}
        found: Tensor = functional_call(self.whole, named, (x,))
        return found

    def drawn(self) -> Tensor:
        """Returns a few pictures drawn at random, prepared: always the same."""
        draws = torch.Generator().manual_seed(SEED)
        network = self.whole.network
        return network.prepare(torch.randint(0, 256, (DRAWN, *network.example), generator=draws))


def running(records: Sequence[Record | None], state: Mapping[str, Tensor]) -> Running | None:
    """Returns the network that all versions are weights of; None where a record does not say, or says another.

    Networks that need more than their name, or code of others, are not run here either.
    """
    architectures = {record.architecture if record is not None else None for record in records}
    architecture = architectures.pop() if len(architectures) == 1 else None
    if architecture is None or not is_ours(architecture):
        return None
    weight = head_tensors(build_network(architecture, 2))[0]
    network = build_network(architecture, state[weight].shape[0] if weight in state else 2)
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        return None
    return Running(Whole(network))


@dataclass(frozen=True, slots=True)
class Sample:
    """Images of a data set, prepared, in batches of one size, with labels; `digest` is of the whole data set."""

    batches: tuple[Tensor, ...]
    images: int
    label: str
    digest: str
    labels: tuple[Tensor, ...]
    classes: tuple[str, ...]


def sample(network: Running, name: DataName, most: int = IMAGES) -> Sample:
    """Returns up to `most` images in an order drawn once for all: of a pipeline's data set, training images alone.

    Raises:
        DataError: no such data, or fewer than two images.
    """
    dataset = load_dataset(name.config)
    chosen = np.arange(len(dataset.labels))
    if name.has_splits:
        chosen = np.unique(np.concatenate(list(split(dataset, name.config).train.values())))
    chosen = np.random.default_rng(SEED).permutation(chosen)[:most]
    whole = len(chosen) // BATCH * BATCH or len(chosen)  # a smaller last batch would count as much as the others
    if whole < 2:
        raise DataError(f"{name.config.path}: {whole} images, expected at least 2")
    prepare = network.whole.network.prepare
    parts = [chosen[start : start + BATCH] for start in range(0, whole, BATCH)]
    batches = tuple(prepare(torch.from_numpy(arrays_of(dataset, part.tolist())), dataset.kind) for part in parts)
    labels = tuple(torch.from_numpy(dataset.labels[part]) for part in parts)
    return Sample(batches, whole, name.label, dataset.digest, labels, dataset.classes)


def digest_of(data: str) -> str:
    """Returns what identifies a data set, at whatever size its pictures are read. Raises DataError."""
    return load_dataset(parse_data_name(data).config).digest
