"""Models from elsewhere: a safetensors file, a PyTorch checkpoint (never unpickled), a Hugging Face folder."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import FormatError, UsageError
from modelgit.events import Listener, Noted, ignore
from modelgit.formats.manifest import Manifest, relatives
from modelgit.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from modelgit.formats.torch_zip import TorchFile, is_torch_file
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.porcelain.work import Committed, committed, land, require_clean
from modelgit.repo.gitdir import check_path
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob, CommitDraft
from modelgit.store.files.intake import store_file, store_tensors
from modelgit.store.writing import PackWriter

MAX_ORDINARY_BYTES = 100 * 1024 * 1024
LEFT_OUT = (".git", ".cache")
Files = dict[str, Manifest | Blob | bytes]


@dataclass(frozen=True, slots=True)
class Import:
    """An import under way: where it reads, what the parent version holds, where objects go."""

    source: Path
    parent: Mapping[str, Manifest]
    pack: PackWriter
    listener: Listener


def import_model(
    repo: Repository, source: Path, message: str | None = None, *, path: str = DEFAULT_PATH, listener: Listener = ignore
) -> Committed:
    """Commits the model in `source` to the branch checked out: a file as `path`, a folder in the place of all files.

    Raises:
        FormatError: what is there is no model, or not plain files. DirtyWorktree: local changes lie in the way.
    """
    require_clean(repo)
    head = repo.head()
    old = repo.version(head) if head else None
    before = repo.store.size_on_disk()
    with repo.store.begin() as pack:
        work = Import(source, old.manifests if old else {}, pack, listener)
        files = folder_files(work) if source.is_dir() else single_file(work, path)
        pack.commit()
    kept: Files = {} if source.is_dir() or old is None else dict(old.tree())
    record = files.get(RECORD_PATH) or write_record(imported_record(source, files))
    draft = CommitDraft(
        (head,) if head else (), {**kept, **files, RECORD_PATH: record}, message or f"Import {source.name}"
    )
    made = repo.commit(draft)
    branch = land(repo, made, listener)
    return committed(repo, made, branch, repo.store.size_on_disk() - before)


def single_file(work: Import, path: str) -> Files:
    """Returns the one weight file of an import, under `path`."""
    if not path.endswith(WEIGHTS_SUFFIX):
        hint = f"--path {Path(path).stem}{WEIGHTS_SUFFIX}"
        raise UsageError(f"--path {path}: expected a name that ends with {WEIGHTS_SUFFIX}", hint=hint)
    check_path(path, "--path")
    try:
        mode = work.source.stat().st_mode
    except OSError as error:
        raise UsageError(f"{work.source}: {error.strerror}", hint="name a file or a folder") from error
    if not stat.S_ISREG(mode):
        raise FormatError(f"{work.source}: expected a file or a folder", hint="name a weight file or a folder with one")
    return {path: store_weights(work, work.source, path)}


def store_weights(work: Import, file: Path, path: str) -> Manifest:
    """Returns the manifest of a safetensors file or a PyTorch checkpoint, its tensors stored."""
    if not is_torch_file(file):
        return store_file(work.pack, file, relatives(work.parent, path), work.listener)
    with TorchFile(file) as checkpoint:
        return store_tensors(work.pack, checkpoint.items(), {"format": "pt"}, relatives(work.parent, path))


# -------------------------------------------------------------------------------------------------------- folders


def folder_files(work: Import) -> Files:
    """Returns every file of a folder. PyTorch checkpoints become safetensors, or are left out beside safetensors."""
    found = sorted(plain_files(work.source, work.source))
    converted = not any(path.endswith(WEIGHTS_SUFFIX) for path, _ in found)
    files: Files = {}
    for path, file in found:
        checkpoint = file.suffix in TORCH_SUFFIXES and is_torch_file(file)
        if checkpoint and not converted:
            work.listener(Noted(f"left out {path}: a checkpoint beside safetensors files"))
        elif checkpoint or path.endswith(WEIGHTS_SUFFIX):
            name = path.removesuffix(file.suffix) + WEIGHTS_SUFFIX
            files[name] = store_weights(work, file, name)
        else:
            files[path] = ordinary(file, path)
    if not any(isinstance(content, Manifest) for content in files.values()):
        hint = "expected .safetensors files, or PyTorch checkpoints"
        raise FormatError(f"{work.source}: no weights in this folder", hint=hint)
    return files


def plain_files(folder: Path, top: Path) -> Iterator[tuple[str, Path]]:
    """Yields path and place of every file below `folder`.

    Links are followed into the blobs of a Hugging Face cache, whose snapshots are made of nothing else.

    Raises:
        FormatError: another link (it may lead anywhere), or something that is no file.
    """
    for entry in os.scandir(folder):
        place = Path(entry.path)
        path = place.relative_to(top).as_posix()
        if entry.name in LEFT_OUT:
            continue
        if entry.is_symlink() and not in_cache(place, top):
            raise FormatError(f"{place}: a link, expected plain files", hint=f"copy it first: cp -rL {top} COPY")
        if entry.is_dir():
            yield from plain_files(place, top)
        elif entry.is_file():
            yield check_path(path, str(top)), place
        else:
            raise FormatError(f"{place}: expected a file or a folder, found a device or a socket", hint="leave it out")


def in_cache(link: Path, top: Path) -> bool:
    """Tells whether a link of the folder CACHE/snapshots/ID leads to a file in CACHE/blobs."""
    snapshot = top.resolve()
    return snapshot.parent.name == "snapshots" and link.resolve().parent == snapshot.parent.parent / "blobs"


def ordinary(file: Path, path: str) -> bytes:
    """Returns the content of a file that git keeps itself."""
    size = file.stat().st_size
    if size > MAX_ORDINARY_BYTES:
        raise FormatError(
            f"{path}: {size} bytes, expected at most {MAX_ORDINARY_BYTES} for a file that holds no weights",
            hint="weights belong into .safetensors files; leave other large files out of the folder",
        )
    return file.read_bytes()


def imported_record(source: Path, files: Files) -> Record:
    """Returns the record of an import; classes are those that a Hugging Face config names."""
    return Record("import", classes=config_classes(files.get("config.json")), details={"source": source.name})


def config_classes(config: Manifest | Blob | bytes | None) -> tuple[str, ...]:
    """Returns the labels that a config.json gives to the outputs, in order; none if it gives none."""
    if not isinstance(config, bytes):
        return ()
    try:
        labels = json.loads(config)["id2label"]
        return tuple(str(labels[str(i)]) for i in range(len(labels)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
