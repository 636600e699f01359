"""The batches of a run: drawn on the CPU, the same ones on every device, and never waited for.

On a GPU nothing here stops the queue of kernels: which examples a batch has travels as one small pinned tensor.
Features that lie on the GPU are gathered there. Those that do not fit stay in the memory of the host; while the GPU
works at one step the host gathers the next batch, pins it, and sends it on a stream of its own.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features
from modelgit.train.fitting.objectives import Domain

Source = Sequence[Tensor]  # of every domain (2, n): rows of the features' views, and labels; on the CPU


def source_of(features: Features, labels: Tensor, train: Mapping[str, Integers]) -> Source:
    """Returns where the examples of every domain stand among the views, and their labels."""
    known = labels.cpu()
    rows = [torch.tensor([features.viewed[int(i)] for i in ids]) for ids in train.values()]
    return [torch.stack([found, known[ids]]) for found, ids in zip(rows, train.values(), strict=True)]


def drawn(features: Features, source: Source, share: int, draws: torch.Generator) -> Domain:
    """Returns `share` examples of every domain, one after another, drawn with replacement, each in a random view."""
    chosen = [torch.randint(pairs.shape[1], (share,), generator=draws) for pairs in source]
    view = torch.randint(features.views.shape[0], (share * len(chosen),), generator=draws)
    picked = [pairs.index_select(1, which) for pairs, which in zip(source, chosen, strict=True)]
    rows, labels = torch.cat(picked, 1).unbind(0)
    device = features.device
    if features.views.device == device:
        view, rows, labels = sent(torch.stack([view, rows, labels]), device).unbind(0)
    else:
        labels = sent(labels, device)
    return features.augmented(rows, view, lambda found: sent(found, device)), labels


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Returns values on the device; a copy from host to GPU is queued beside its kernels, and not waited for."""
    if values.device == device or device.type != "cuda":
        return values.to(device)
    beside, now = side_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        arriving = values.pin_memory().to(device, non_blocking=True)
    now.wait_stream(beside)
    arriving.record_stream(now)
    return arriving


@lru_cache(maxsize=16)
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of copies to a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
