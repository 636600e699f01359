"""Which images are trained on, validated on, tested on.

Without groups exactly DomainBed's split: per domain, keys shuffled by RandomState(seed_hash(trial, domain)), the first
fifth held back. With groups whole names are held back, in every domain at once.
"""

from dataclasses import dataclass

import numpy as np

from modelgit.errors import DataError
from modelgit.train.config import DataConfig, seed_hash
from modelgit.train.data.dataset import Dataset, Integers

PLACES = 10_000
FINE = 1000


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into the data set: `train` and `validation` by training domain, `test` of the held-out one."""

    train: dict[str, Integers]
    validation: dict[str, Integers]
    test: Integers


def split(dataset: Dataset, config: DataConfig) -> Split:
    """Returns the split of `dataset` that `config` describes.

    Raises:
        DataError: a part is empty: too few images for the split.
    """
    parts = named_split(dataset, config) if config.group == "name" else domainbed_split(dataset, config)
    for kind, domains in (("training", parts.train), ("validation", parts.validation)):
        for domain, indices in domains.items():
            if not len(indices):
                raise DataError(f"{dataset.path}: too few images in domain '{domain}' for a {kind} split")
    if config.held_out is not None and not len(parts.test):
        raise DataError(f"{dataset.path}: too few images in domain '{config.held_out}' for a test split")
    return parts


def domainbed_split(dataset: Dataset, config: DataConfig) -> Split:
    """Returns DomainBed's split; the held-out domain is tested on whole."""
    train: dict[str, Integers] = {}
    validation: dict[str, Integers] = {}
    test = np.empty(0, np.int64)
    for number, domain in enumerate(dataset.domains):
        members = np.flatnonzero(dataset.domain_ids == number)
        if domain == config.held_out:
            test = members
            continue
        keys = shuffled_keys(len(members), config.trial, number)
        count = int(len(members) * config.validation_fraction)
        validation[domain], train[domain] = members[keys[:count]], members[keys[count:]]
    return Split(train, validation, test)


def shuffled_keys(count: int, trial: int, domain: int) -> list[int]:
    """Returns 0 … count-1 in the order that trial and domain give."""
    keys = list(range(count))
    np.random.RandomState(seed_hash(trial, domain)).shuffle(keys)
    return keys


def named_split(dataset: Dataset, config: DataConfig) -> Split:
    """Returns a split in which no name stands on two sides: a test image shows an unseen thing in an unseen style."""
    tested = np.array([is_test_name(name, config) for name in dataset.names], bool)
    if config.held_out is None:
        tested[:] = False
    validated = np.array([is_validation_name(name, config) for name in dataset.names], bool)
    train: dict[str, Integers] = {}
    validation: dict[str, Integers] = {}
    test = np.empty(0, np.int64)
    for number, domain in enumerate(dataset.domains):
        member = dataset.domain_ids == number
        if domain == config.held_out:
            test = np.flatnonzero(member & tested)
            continue
        validation[domain] = np.flatnonzero(member & ~tested & validated)
        train[domain] = np.flatnonzero(member & ~tested & ~validated)
    return Split(train, validation, test)


def is_test_name(name: str, config: DataConfig) -> bool:
    """Tells whether a name is kept for testing.

    Every name has a place on a circle; the test names of fold 0 are its first `test_fraction`, those of the next fold
    begin where they end.
    """
    hashed = seed_hash("identity", name)
    place = hashed % 10 * (PLACES // 10) + hashed // 10 % (PLACES // 10)
    share = max(1, round(PLACES * config.test_fraction))
    return (place - config.fold * share) % PLACES < share


def is_validation_name(name: str, config: DataConfig) -> bool:
    """Tells whether a name is kept for validation in this trial."""
    return seed_hash("validation", config.trial, name) % FINE < config.validation_fraction * FINE
