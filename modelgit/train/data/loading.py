"""One way in: a data set by what its configuration names, and what that looks like."""

from collections.abc import Callable
from pathlib import Path

from modelgit.errors import DataError
from modelgit.train.config import DataConfig, Source
from modelgit.train.data.arrays import load_arrays
from modelgit.train.data.arrow import load_parquet, load_saved
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.digits import load_coloured, load_rotated
from modelgit.train.data.images import load_images
from modelgit.train.data.tables import load_table
from modelgit.train.memory import DATA, memory_for

Load = Callable[[DataConfig], Dataset]
TABLES: dict[str, Load] = {".csv": load_table, ".tsv": load_table, ".jsonl": load_table, ".ndjson": load_table,
                           ".parquet": load_parquet}  # fmt: skip
ARRAYS: dict[str, Load] = {".npz": load_arrays, ".safetensors": load_arrays}
MARKS = ("state.json", "dataset_dict.json")
KINDS: dict[Source, Load] = {
    "images": load_images,
    "saved": load_saved,
    "colored-mnist": load_coloured,
    "rotated-mnist": load_rotated,
}


def load_dataset(config: DataConfig) -> Dataset:
    """Returns the data set that `config` names: of the kind it says, or that its path looks like.

    Raises:
        DataError: it is missing, empty, malformed, or no domain is the one held out.
        DependencyMissing: an optional package that reads it. OutOfMemory.
    """
    path = Path(config.path)
    if not path.exists():
        raise DataError(f"{path}: no such data set", hint=f"expected a folder, or a file: .zip, {', '.join(ENDINGS)}")
    with memory_for(f"reading {path}", DATA):
        dataset = loader(config.kind, path)(config)
    if config.held_out is not None and config.held_out not in dataset.domains:
        hint = f"domains: {', '.join(dataset.domains)}"
        raise DataError(f"{dataset.path}: no domain is called '{config.held_out}'", hint=hint)
    return dataset


def loader(kind: Source, path: Path) -> Load:
    """Returns what reads a data set: as `kind` says, else by its ending or what lies in its folder."""
    ending = path.suffix.lower()
    if kind in KINDS:
        return KINDS[kind]
    if kind != "auto":
        known = TABLES if kind == "table" else ARRAYS
        if ending not in known:
            raise DataError(f"{path}: no {kind} by its name", hint=f"expected one of {', '.join(known)}")
        return known[ending]
    if path.is_dir():
        return load_saved if any((path / mark).is_file() for mark in MARKS) else load_images
    return {**TABLES, **ARRAYS}.get(ending, load_images)


def has_pixels(config: DataConfig) -> bool:
    """Tells whether what `config` names is read as pictures of its size, as far as its name and kind say."""
    return loader(config.kind, Path(config.path)) in (load_images, load_parquet, load_saved)


ENDINGS = (*TABLES, *ARRAYS)
