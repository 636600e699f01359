"""What models answer, example by example, and what their heads are given: the material of comparisons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modelgit.train.config import Augment, DataConfig
from modelgit.train.data.dataset import Dataset, Integers
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import Split
from modelgit.train.feature_cache import features
from modelgit.train.features import NOTHING, Features, Place, Wanted, in_chunks, run_stages
from modelgit.train.fitting.passes import apply_head
from modelgit.train.memory import SCORING, memory_for
from modelgit.train.task import Model, Workbench, check_classes, evaluated, loaded

Floats = npt.NDArray[np.float32]
SEED = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples (n,) that models are asked about; `held_out` marks those of the domain never trained on.

    `things` tells which of them show the same thing, where the data says so.
    """

    classes: tuple[str, ...]
    labels: Integers
    domains: tuple[str, ...]
    things: tuple[str, ...]
    held_out: npt.NDArray[np.bool_]
    digest: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits (n, classes), and what the head made them of (n, d)."""

    logits: Floats
    features: Floats


Asker = Callable[[Mapping[str, Tensor]], Answers]


def asker(
    bench: Workbench,
    model: Model,
    data: DataConfig,
    stages: int,
    *,
    splits: bool,
    most: tuple[int, int] | None = None,
) -> tuple[Examples, Asker]:
    """Returns examples, and what a state answers to them; they are read once, at the first state.

    Without splits these are all examples, with splits those that scores are measured on: the validation splits of the
    training domains, and the held-out domain; of both at most so many, drawn once for all (`drawn`). What the first
    `stages` stages make of those is taken from the cache.

    Raises:
        DataError: the data is missing, or its classes are not the model's.
    """
    dataset = bench.dataset(data)[0] if splits else load_dataset(data)
    check_classes(model, dataset)
    indices = evaluated(bench.dataset(data)[1]) if splits else np.arange(len(dataset.labels))
    if splits and most is not None:
        indices = drawn(bench.dataset(data)[1], *most)
    kept: list[Features] = []

    @memory_for(f"scoring on {Path(data.path).name}", SCORING)
    def answers(state: Mapping[str, Tensor]) -> Answers:
        network = loaded(bench, model.design, state, len(dataset.classes))
        if splits:
            found = bench.prepare_scoring(network, data, stages).features
        else:  # nothing runs before the first stage, so one network's are every other's
            place = Place(0, bench.device, None, bench.listener)
            kept[:] = kept or [features(network, dataset, Wanted(indices, NOTHING, 0, Augment()), place)]
            found = kept[0]
        rows = list[tuple[Integers, Floats, Floats]]()
        with torch.no_grad():
            for places, x in in_chunks(found, indices):
                z = run_stages(network, x, stages if splits else 0, None)
                logits, inner = (part.float().cpu().numpy() for part in (apply_head(network, z), z.flatten(1)))
                rows.append((places, logits, inner))
        back = np.argsort(np.concatenate([places for places, _, _ in rows]))
        return Answers(*(np.concatenate([row[part] for row in rows])[back] for part in (1, 2)))

    return examples_of(dataset, indices, data), answers


def drawn(parts: Split, held_out: int, validation: int) -> Integers:
    """Returns at most so many examples of the held-out domain, and of all validation splits together, sorted."""
    stream = np.random.default_rng(SEED)
    inside = np.unique(np.concatenate([*parts.validation.values()]))
    chosen = [stream.permutation(all_)[:most] for all_, most in ((parts.test, held_out), (inside, validation))]
    return np.sort(np.concatenate(chosen))


def examples_of(dataset: Dataset, indices: Integers, data: DataConfig) -> Examples:
    """Returns what is known of the examples at `indices`."""
    domains = tuple(dataset.domains[i] for i in dataset.domain_ids[indices])
    things = tuple(dataset.names[int(i)] if data.group == "name" else str(i) for i in indices)
    apart = np.array([domain == data.held_out for domain in domains], bool)
    return Examples(dataset.classes, dataset.labels[indices], domains, things, apart, dataset.digest)
