"""Which examples are trained on, validated on, tested on.

Without groups exactly DomainBed's split: per domain, keys shuffled by RandomState(seed_hash(trial, domain)), the first
fifth held back. With groups whole names are held back, in every domain at once.
"""

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from modelgit.errors import DataError
from modelgit.train.config import DataConfig, seed_hash, shard_of
from modelgit.train.data.dataset import Dataset, Integers
from modelgit.train.data.doubts import doubts

PLACES = 10_000
FINE = 1000
NAMED = 5  # how many gaps an error lists


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into the data set: `train` and `validation` by training domain, `test` of the held-out one."""

    train: dict[str, Integers]
    validation: dict[str, Integers]
    test: Integers


def split(dataset: Dataset, config: DataConfig) -> Split:
    """Returns the split of `dataset` that `config` describes.

    Raises:
        DataError: a part is empty: too few examples for the split; a domain lacks a class, or the data the domain.
    """
    for domain in (*config.domains, *([config.validate_on] if config.validate_on is not None else [])):
        if domain not in dataset.domains:
            hint = f"domains: {', '.join(dataset.domains)}"
            raise DataError(f"{dataset.path}: no domain is called '{domain}'", hint=hint)
    refuse_different_classes(dataset)
    parts = named_split(dataset, config) if config.group == "name" else domainbed_split(dataset, config)
    parts = sharded(narrowed(parts, dataset, config), dataset, config)
    test = {config.held_out: parts.test} if config.held_out is not None else {}
    for kind, domains in (("training", parts.train), ("validation", parts.validation), ("test", test)):
        for domain, indices in domains.items():
            if not len(indices):
                raise too_few(dataset, config, domain, kind)
    return parts


def refuse_different_classes(dataset: Dataset) -> None:
    """Raises DataError if a domain lacks a class that another has: it cannot be learned or tested there."""
    classes, domains = dataset.classes, dataset.domains
    found = set(np.unique(dataset.domain_ids * len(classes) + dataset.labels).tolist())
    pairs = ((d, c) for d in range(len(domains)) for c in range(len(classes)))
    missing = list(islice((f"{domains[d]}/{classes[c]}" for d, c in pairs if d * len(classes) + c not in found), NAMED))
    if missing:
        odd = doubts(dataset.labels, classes)
        hint = f"mistyped? class {odd}" if odd else "classes that a domain lacks cannot be learned or tested there"
        told = f"domains have different classes: no examples in {', '.join(missing)}"
        raise DataError(f"{dataset.path}: {told}", hint=hint)


def refuse_untrained_class(dataset: Dataset, parts: Split, config: DataConfig) -> None:
    """Raises DataError if a split leaves no example of a class to train on; a shard alone may lack one."""
    if config.shard is not None:
        return
    train, validation = (np.concatenate([*part.values()]) for part in (parts.train, parts.validation))
    left = np.bincount(dataset.labels[train], minlength=len(dataset.classes))
    if left.all():
        return
    number = int(np.flatnonzero(left == 0)[0])
    told = f"no example of class '{dataset.classes[number]}' is left to train on"
    count = int((dataset.labels[validation] == number).sum())
    keys = "validation_fraction, test_fraction" if config.group == "name" else "validation_fraction"
    hint = f"{count} validate; more examples of it, another trial, or a smaller share: {keys}"
    raise DataError(f"{dataset.path}: {told}", hint=hint)


def narrowed(parts: Split, dataset: Dataset, config: DataConfig) -> Split:
    """Returns the split with training on the domains that are asked for, and validation where it is."""
    chosen = [d for d in parts.train if d != config.validate_on and (not config.domains or d in config.domains)]
    train = {domain: parts.train[domain] for domain in chosen}
    if not train:
        raise DataError(f"{dataset.path}: no domain is left to train on", hint="held_out, validate_on, domains")
    if config.validate_on is None:
        return Split(train, {domain: parts.validation[domain] for domain in chosen}, parts.test)
    if config.validate_on != config.held_out:  # another domain, whole
        both = parts.train[config.validate_on], parts.validation[config.validate_on]
        return Split(train, {config.validate_on: np.sort(np.concatenate(both))}, parts.test)
    number = dataset.domains.index(config.validate_on)
    looked_at = np.array([is_validation_name(dataset.names[i], config) for i in parts.test], bool)
    if config.group != "name":
        count = int(len(parts.test) * config.validation_fraction)
        looked_at = np.zeros(len(parts.test), bool)
        looked_at[shuffled_keys(len(parts.test), config.trial, number)[:count]] = True
    return Split(train, {config.validate_on: parts.test[looked_at]}, parts.test[~looked_at])


def sharded(parts: Split, dataset: Dataset, config: DataConfig) -> Split:
    """Returns the split with one part of the training images: images of one name go to one part if they are grouped."""
    if config.shard is None:
        return parts
    part, count = shard_of(config.shard)

    def kept(domain: str, indices: Integers) -> Integers:
        if config.group == "name":
            return indices[[seed_hash("shard", dataset.names[i]) % count == part - 1 for i in indices]]
        order = np.random.RandomState(seed_hash("shard", domain)).permutation(len(indices))
        return indices[np.sort(order[part - 1 :: count])]

    return Split(
        {domain: kept(domain, indices) for domain, indices in parts.train.items()}, parts.validation, parts.test
    )


def too_few(dataset: Dataset, config: DataConfig, domain: str, kind: str) -> DataError:
    """Returns the error for a part that nothing falls into: how many examples there are, how many are needed."""
    members = np.flatnonzero(dataset.domain_ids == dataset.domains.index(domain))
    where = f"{dataset.path}: too few examples in domain '{domain}' for a {kind} split"
    if config.group == "name":
        names = len({dataset.names[i] for i in members})
        fraction = "test_fraction" if kind == "test" else "validation_fraction"
        return DataError(f"{where}: none of its {names} names falls into it", hint=f"another {fraction}, or more names")
    shards = shard_of(config.shard)[1] if config.shard is not None else 1
    share = config.validation_fraction if kind == "validation" else (1 - config.validation_fraction) / shards
    hint = f"validation_fraction = {config.validation_fraction}" + (f", shard = {config.shard}" if shards > 1 else "")
    return DataError(f"{where}: {len(members)}, needed at least {max(2, math.ceil(1 / share))}", hint=hint)


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
