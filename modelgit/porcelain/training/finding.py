"""Finding the data that a commit was trained on: by its digest, among the places that there are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelgit.errors import DataError, DependencyMissing, UsageError
from modelgit.events import Listener, Noted
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig
from modelgit.train.data.loading import load_dataset

MAX_PLACES = 200  # a folder of data sets is looked through, not a disk


def find_data(
    repo: Repository, asked: DataConfig, recorded: Mapping[str, Any], places: Sequence[str], listener: Listener
) -> str:
    """Returns where the data lies whose digest is recorded: in one of `places`, else where the record says.

    A place is a data set, or a folder of some. What lies outside the work tree is recorded by its name alone; it is
    looked for where recipes have it, beside the work tree and in the folders there.

    Raises:
        UsageError: no place was named, and it is not where the record says. DataError: it is at none of them.
    """
    name, digest = Path(str(asked.path)).name, str(recorded.get("digest"))
    roots = [repo.worktree or repo.git_dir, Path.cwd()]
    usual = [root / part for root in roots for part in dict.fromkeys((str(asked.path), name))]
    others: list[str] = []
    seen = set[Path]()
    for place in [*candidates(places, name), *(path for path in [*usual, *beside(roots[0], name)] if path.exists())]:
        if (same := place.resolve()) in seen:
            continue
        seen.add(same)
        found = digest_at(place, asked)
        if found == digest:
            listener(Noted(f"data: {place}"))
            return str(place)
        others += [f"{place} ({found[:16]}…)"] if found else []
    hint = f"--data PATH/TO/{name}, or a folder that it is in"
    if not others and not places:
        raise UsageError(f"trained on {name}, digest {digest[:16]}…: say where that is", hint=hint)
    told = ", ".join(others[:5]) or f"no data set at {', '.join(places)}"
    raise DataError(
        f"the data that it was trained on, {name}, is not here: expected digest {digest[:16]}…, got {told}", hint=hint
    )


def beside(root: Path, name: str) -> Iterator[Path]:
    """Yields where something of that name may lie beside a work tree, and in the folders there."""
    above = root.absolute().parent
    yield above / name
    try:
        folders = sorted(folder for folder in above.iterdir() if folder.is_dir() and not folder.is_symlink())
    except OSError:
        return
    yield from (folder / name for folder in folders[:MAX_PLACES])


def candidates(places: Sequence[str], name: str) -> Iterator[Path]:
    """Yields the places, and in folders what is called so, then all else."""
    for place in map(Path, places):
        if not place.exists():
            raise UsageError(f"--data {place}: no such file or folder")
        yield place
        if place.is_dir():
            inside = sorted(place.iterdir(), key=lambda path: (path.name != name, path.name))
            yield from inside[:MAX_PLACES]


def digest_at(place: Path, asked: DataConfig) -> str | None:
    """Returns the digest of a data set read as is asked, None if there is none."""
    try:
        return load_dataset(replace(asked, path=str(place))).digest
    except (DataError, DependencyMissing):
        return None
