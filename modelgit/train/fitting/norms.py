"""Batch normalisation along a run: which layers follow the data, and how their statistics are found anew.

Running statistics belong to the weights that they were measured under. An average of weights has none yet, and those
of its parts, averaged, are not its own: they are measured again, on the training examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelgit.errors import RecipeError
from modelgit.train.config import FineTune, seed_hash
from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features, frozen_modules, run_stages
from modelgit.train.networks.network import Network

CHUNK = 256  # examples whose statistics are measured together


def norms_of(network: Network, config: FineTune) -> list[_BatchNorm]:
    """Returns the layers whose statistics a run may change: none where they are frozen.

    Raises:
        RecipeError: they are to change, and there are none behind the frozen stages.
    """
    if config.batch_norm == "frozen":
        return []
    frozen = {part for module in frozen_modules(network, config.frozen_stages) for part in module.modules()}
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module not in frozen]
    found = [layer for layer in layers if layer.track_running_stats]
    if not found:
        what = f"batch_norm = '{config.batch_norm}': no batch normalisation with statistics is trained here"
        raise RecipeError(what, hint="leave batch_norm out, or freeze fewer stages")
    return found


def statistics_of(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    """Returns the buffers of the layers: means, variances, counts of batches."""
    return [buffer for norm in norms for buffer in norm.buffers()]


@contextmanager
def adapting(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Lets layers normalise by the batch, and note its statistics, for as long as the block runs."""
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()


def estimate(
    network: Network, norms: Sequence[_BatchNorm], data: tuple[Features, Mapping[str, Integers]], config: FineTune
) -> None:
    """Gives the layers the statistics of all training examples as they are, not augmented: means over batches.

    `data` are features and the training examples of each domain. These are shuffled, the same way every time: a batch
    of one domain would not show how far the domains are apart.
    """
    features, train = data
    indices = np.concatenate(list(train.values()))
    order = np.random.default_rng(seed_hash("norms", config.seed)).permutation(len(indices))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count alike
    try:
        with torch.no_grad(), adapting(norms):
            for part in np.array_split(indices[order], max(1, len(indices) // CHUNK)):
                run_stages(network, features.of(part), config.frozen_stages, None)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
