"""Models from elsewhere: a safetensors file, a PyTorch checkpoint (never unpickled), a Hugging Face folder."""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from shlex import quote

from modelgit.errors import FormatError, UsageError
from modelgit.events import Listener, Noted, ignore
from modelgit.formats.manifest import Manifest, relatives
from modelgit.formats.torch_pickle import HINT as TORCH_HINT
from modelgit.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from modelgit.formats.torch_zip import TorchFile, is_torch_file
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.porcelain.work import MAX_NAMED, Committed, committed, land, require_clean, some
from modelgit.repo.drivers import ATTRIBUTES, ATTRIBUTES_PATH
from modelgit.repo.gitdir import check_path
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import Blob, CommitDraft, Version
from modelgit.repo.worktree import Earlier
from modelgit.store.files.intake import store_file, store_tensors
from modelgit.store.writing import PackWriter

MAX_ORDINARY_BYTES = 100 * 1024 * 1024
LEFT_OUT = (".git", ".cache")
PYTORCH_MODEL, INDEX_SUFFIX = "pytorch_model", ".index.json"
SHARD = re.compile(r"-\d+-of-\d+(?=\.safetensors$)")
READERS = {"preprocessor_config.json", "tokenizer.json"}  # what models of transformers read with
GIT_SETTINGS = (ATTRIBUTES_PATH, ".gitignore")  # how a repository is kept, which is no part of a model
Files = dict[str, Manifest | Blob | bytes]


@dataclass(frozen=True, slots=True)
class Import:
    """An import under way: where it reads, what the parent version holds, where objects go.

    `part` is the part of a checkpoint that is wanted; `left_out` gathers what of the source is not taken in.
    """

    source: Path
    parent: Mapping[str, Manifest]
    earlier: Earlier
    pack: PackWriter
    listener: Listener
    part: str | None = None
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, what: str, why: str) -> None:
        """Takes note of something in the source that is not taken in, and says so."""
        self.left_out.append(what)
        self.listener(Noted(f"left out {what}: {why}"))


def import_model(
    repo: Repository,
    source: Path,
    message: str | None = None,
    *,
    path: str = DEFAULT_PATH,
    part: str | None = None,
    listener: Listener = ignore,
) -> Committed:
    """Commits the model in `source` to the branch checked out: a file as `path`, a folder with all its files.

    Other files stay as they are; shards and indexes of a model that a folder replaces go. `part` is what to take of a
    PyTorch checkpoint that holds several state dicts.

    Raises:
        FormatError: what is there is no model, or not plain files. DirtyWorktree: local changes lie in the way.
        UsageError: a part of what has none.
    """
    if part is not None and source.is_dir():
        raise UsageError("--part is for a checkpoint, not for a folder", hint="name the file in it, and --path")
    require_clean(repo, added=True)
    head = repo.head()
    old = repo.version(head) if head else None
    before = repo.store.size_on_disk()
    with repo.store.begin() as pack:
        work = Import(source, old.manifests if old else {}, Earlier(repo, head), pack, listener, part)
        files = folder_files(work) if source.is_dir() else single_file(work, path)
        pack.commit()
    record = files.get(RECORD_PATH) or write_record(imported_record(source, files, part))
    rest: Files = dict(old.tree()) if old else {}
    if source.is_dir():
        rest = dict(kept(old, files))
        files.update(own_settings(repo, old, files, work))
    tree = {**rest, **files, RECORD_PATH: record}
    draft = CommitDraft((head,) if head else (), tree, message or f"Import {source.name}")
    made = repo.commit(draft)
    branch = land(repo, made, listener, expected=head, reason=f"import: {source.name}")
    told = committed(repo, made, branch, repo.store.size_on_disk() - before)
    return replace(told, left_out=tuple(work.left_out))


def kept(old: Version | None, files: Files) -> dict[str, Blob]:
    """Returns the files of the version before that stay: all but shards and indexes of a model that is replaced."""
    models = {model_of(path) for path in files if path.endswith((WEIGHTS_SUFFIX, WEIGHTS_SUFFIX + INDEX_SUFFIX))}
    return {path: blob for path, blob in (old.tree() if old else {}).items() if model_of(path) not in models}


def model_of(path: str) -> str:
    """Returns the name that a weight file would have were it not one shard of several, or an index of them."""
    index = path.endswith(WEIGHTS_SUFFIX + INDEX_SUFFIX)
    return SHARD.sub("", path.removesuffix(INDEX_SUFFIX) if index else path)


def own_settings(repo: Repository, old: Version | None, files: Files, work: Import) -> dict[str, Blob]:
    """Returns what the version before says to git in files that an import has too: the repository's own stays."""
    found = {path: old.files[path] for path in GIT_SETTINGS if old and path in files and path in old.files}
    texts = {path: repo.read_blob(blob) for path, blob in found.items()}
    stays = {path: blob for path, blob in found.items() if texts[path] not in (files[path], ATTRIBUTES.encode())}
    for path in stays:
        work.leave_out(path, "the repository has its own")
    return stays


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
    parent, older = relatives(work.parent, path), work.earlier.like(path)
    if not is_torch_file(file):
        if work.part is not None:
            raise UsageError(f"--part {work.part}: {file} is no PyTorch checkpoint, and has no parts")
        try:
            return store_file(work.pack, file, parent, work.listener, older)
        except FormatError as error:
            if file.suffix not in TORCH_SUFFIXES:
                raise
            what = "neither a PyTorch checkpoint, of either form that torch.save writes, nor a safetensors file"
            raise FormatError(f"{file}: {what}", hint=TORCH_HINT) from error
    with TorchFile(file, work.part) as checkpoint:
        tell_of_parts(work, file, checkpoint.left_out)
        return store_tensors(work.pack, checkpoint.items(), {"format": "pt"}, parent, older, work.listener)


def tell_of_parts(work: Import, file: Path, left_out: Mapping[str, bool]) -> None:
    """Takes note of the parts of a checkpoint that are not taken in, and says how to get one of them instead."""
    place = file.relative_to(work.source) if work.source.is_dir() else Path(file.name)
    work.left_out.extend(f"{place}: {part}" for part in left_out)
    others = [part for part, is_state in left_out.items() if is_state and not work.source.is_dir()]
    way = f"; for another state dict: --part {' or '.join(map(quote, others[:MAX_NAMED]))}" if others else ""
    if left_out:
        work.listener(Noted(f"left out of {place}: {some(list(left_out))}{way}"))


# -------------------------------------------------------------------------------------------------------- folders


def folder_files(work: Import) -> Files:
    """Returns every file of a folder. PyTorch checkpoints become safetensors, or are left out beside the model's own.

    Raises:
        FormatError: two checkpoints of one name, or no weights at all.
    """
    found = sorted(plain_files(work.source, work.source))
    names = converted_names(found)
    files: Files = {}
    for path, file in found:
        name = names.get(path, path)
        if name.endswith(WEIGHTS_SUFFIX):
            files[name] = store_weights(work, file, name)
        elif is_checkpoint(file):
            work.leave_out(path, "a checkpoint beside the model's own files")
        elif path.endswith(INDEX_SUFFIX) and path.removesuffix(INDEX_SUFFIX).endswith(TORCH_SUFFIXES) and names:
            files[converted_name(path.removesuffix(INDEX_SUFFIX)) + INDEX_SUFFIX] = converted_index(file, path, names)
        else:
            files[path] = ordinary(file, path)
    if not any(isinstance(content, Manifest) for content in files.values()):
        hint = "expected .safetensors files, or PyTorch checkpoints"
        raise FormatError(f"{work.source}: no weights in this folder", hint=hint)
    return files


def is_checkpoint(file: Path) -> bool:
    """Tells whether a file is a PyTorch checkpoint."""
    return file.suffix in TORCH_SUFFIXES and is_torch_file(file)


def converted_names(found: Sequence[tuple[str, Path]]) -> Mapping[str, str]:
    """Returns what the checkpoints of a folder that hold its model are called as safetensors files.

    None where there are safetensors files; else those that Hugging Face's libraries would load, else all.

    Raises:
        FormatError: two would have one name.
    """
    if any(path.endswith(WEIGHTS_SUFFIX) for path, _ in found):
        return {}
    checkpoints = [path for path, file in found if is_checkpoint(file)]
    own = [path for path in checkpoints if PurePosixPath(path).name.startswith(PYTORCH_MODEL)]
    names: dict[str, str] = {}
    for path in own or checkpoints:
        twin = next((other for other, name in names.items() if name == converted_name(path)), None)
        if twin is not None:
            raise FormatError(f"{twin} and {path} would both become {names[twin]}", hint="leave one out of the folder")
        names[path] = converted_name(path)
    return names


def converted_name(path: str) -> str:
    """Returns the name of a checkpoint as a safetensors file: the one that Hugging Face's libraries look for."""
    place = PurePosixPath(path)
    stem = place.stem.removeprefix("pytorch_") if place.name.startswith(PYTORCH_MODEL) else place.stem
    return str(place.with_name(stem + WEIGHTS_SUFFIX))


def converted_index(file: Path, path: str, names: Mapping[str, str]) -> bytes:
    """Returns the index of a sharded checkpoint with the new names of its shards. Raises FormatError if it is none."""
    folder = PurePosixPath(path).parent
    try:
        index = json.loads(ordinary(file, path))
        places = {name: names.get(str(folder / shard), shard) for name, shard in index["weight_map"].items()}
        index["weight_map"] = {name: PurePosixPath(place).name for name, place in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = 'expected {"weight_map": {TENSOR: FILE, …}}; leave it out of the folder'
        raise FormatError(f"{path}: no index of a sharded checkpoint", hint=hint) from error
    return json.dumps(index, indent=2).encode() + b"\n"


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


def imported_record(source: Path, files: Files, part: str | None = None) -> Record:
    """Returns the record of an import; classes are those that a Hugging Face config names.

    The architecture is `transformers` for a folder of that library with what reads texts or pictures, `timm` for one of
    timm's.
    """
    config = files.get("config.json")
    known = word_in(config, "model_type") and (files.keys() & READERS or word_in(config, "image_size"))
    pictured = not known and word_in(config, "architecture") and word_in(config, "pretrained_cfg")
    details = {"source": source.name} | ({"part": part} if part is not None else {})
    architecture = "transformers" if known else "timm" if pictured else None
    return Record("import", architecture, config_classes(config), details=details)


def word_in(config: Manifest | Blob | bytes | None, key: str) -> str:
    """Returns what a config.json says under a key, "" where it does not say."""
    try:
        return str(json.loads(config)[key]) if isinstance(config, bytes) else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def config_classes(config: Manifest | Blob | bytes | None) -> tuple[str, ...]:
    """Returns the labels that a config.json gives to the outputs, in order; none if it gives none."""
    if not isinstance(config, bytes):
        return ()
    try:
        labels = json.loads(config)["id2label"]
        return tuple(str(labels[str(i)]) for i in range(len(labels)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
