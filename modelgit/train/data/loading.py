"""One way in: a data set by what its configuration names."""

from modelgit.errors import DataError
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.images import load_images


def load_dataset(config: DataConfig) -> Dataset:
    """Returns the data set that `config` names.

    Raises:
        DataError: it is missing, empty, not in the layout, or its domains have different classes.
    """
    dataset = load_images(config)
    if config.held_out is not None and config.held_out not in dataset.domains:
        hint = f"domains: {', '.join(dataset.domains)}"
        raise DataError(f"{dataset.path}: no domain is called '{config.held_out}'", hint=hint)
    return dataset
