"""The batches of a run: drawn on the CPU, the same ones on every device, and never waited for.

On a GPU nothing here stops the queue of kernels: which examples a batch has travels as one small pinned tensor.
Features that lie on the GPU are gathered there. Those that do not fit stay in the memory of the host; while the GPU
works at one step the host gathers the next batch, pins it, and sends it on a stream of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features
from modelgit.train.fitting.objectives import Domain


@dataclass(frozen=True, slots=True)
class Source:
    """Where all training examples stand in a view, and their labels, (2, n), on the CPU; one domain after another."""

    examples: Tensor
    bounds: tuple[tuple[int, int], ...]  # of every domain: its first example, and the first of the next


def source_of(features: Features, labels: Tensor, train: Mapping[str, Integers]) -> Source:
    """Returns what batches are drawn from: the training examples of every domain."""
    known = labels.cpu()
    rows = [torch.tensor([features.viewed[int(i)] for i in ids]) for ids in train.values()]
    parts = [torch.stack([found, known[ids]]) for found, ids in zip(rows, train.values(), strict=True)]
    bounds = pairwise(accumulate((part.shape[1] for part in parts), initial=0))
    return Source(torch.cat(parts, 1), tuple(bounds))


def drawn(features: Features, source: Source, share: int, draws: torch.Generator) -> Domain:
    """Returns `share` examples of every domain, one after another, drawn with replacement, each in a random view."""
    chosen = torch.empty(len(source.bounds), share, dtype=torch.int64)
    for which, (first, end) in zip(chosen.unbind(0), source.bounds, strict=True):
        which.random_(first, end, generator=draws)
    views, each = features.views.shape[:2]
    view = torch.empty(chosen.numel(), dtype=torch.int64).random_(0, views, generator=draws)
    picked = source.examples.index_select(1, chosen.flatten())
    picked[0].add_(view, alpha=each)
    device = features.device
    if is_there(features.views.device, device):
        rows, labels = sent(picked, device).unbind(0)
    else:
        rows, labels = picked[0], sent(picked[1], device)
    return features.augmented(rows, lambda found: sent(found, device)), labels


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Returns values on the device; a copy from host to GPU is queued beside its kernels, and not waited for."""
    if is_there(values.device, device) or device.type != "cuda":
        return values.to(device)
    beside, now = side_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        arriving = values.pin_memory().to(device, non_blocking=True)
    now.wait_stream(beside)
    arriving.record_stream(now)
    return arriving


def is_there(place: torch.device, wanted: torch.device) -> bool:
    """Tells whether what lies at a place is where it is wanted: `cuda` is the GPU in use, whose tensors have one."""
    return place.type == wanted.type and wanted.index in (None, place.index)


@lru_cache(maxsize=16)
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of copies to a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
