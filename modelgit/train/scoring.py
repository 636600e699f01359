"""Scoring many states on one data set: its images are decoded once."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modelgit.train.config import Augment, DataConfig
from modelgit.train.data.loading import load_dataset
from modelgit.train.evaluate import Accuracy, accuracy, made_of
from modelgit.train.feature_cache import features
from modelgit.train.features import NOTHING, Place, Wanted
from modelgit.train.fitting.passes import scored_by
from modelgit.train.memory import SCORING, memory_for
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Model, Workbench, check_classes, loaded

Scorer = Callable[[Mapping[str, Tensor]], dict[str, Accuracy]]


def domain_scorer(bench: Workbench, model: Model, data: DataConfig) -> Scorer:
    """Returns what gives a state's accuracy on every image of each domain, without any split.

    Raises:
        DataError: the data set's classes are not the model's.
    """
    dataset = load_dataset(data)
    check_classes(model, dataset)
    classes, everything = len(dataset.classes), np.arange(len(dataset.labels))
    network = build_network(model.design, classes).to(bench.device)
    wanted, place = Wanted(everything, NOTHING, 0, Augment()), Place(0, bench.device, None, bench.listener)
    found = features(network, dataset, wanted, place)
    labels = torch.from_numpy(dataset.labels).to(bench.device)
    members = {domain: np.flatnonzero(dataset.domain_ids == i) for i, domain in enumerate(dataset.domains)}

    def score(state: Mapping[str, Tensor]) -> dict[str, Accuracy]:
        network = loaded(bench, model.design, state, classes)
        scored = scored_by(network, 0)
        with memory_for(f"scoring on {Path(data.path).name}", SCORING):
            return {d: accuracy(made_of(scored, found, rows), labels[rows]) for d, rows in members.items()}

    return score
