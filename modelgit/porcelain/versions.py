"""Versions: what a commit holds as a model, and the list of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from blake3 import blake3

from modelgit.errors import CorruptObject, FormatError, MissingObject, UsageError
from modelgit.formats.manifest import Manifest, TensorEntry, write
from modelgit.porcelain.plumbing.headers import (
    DtypeChange,
    HeaderChanges,
    MetadataChange,
    dtype_changes,
    header_changes,
    tensor_pairs,
)
from modelgit.porcelain.records import RECORD_PATH, Record, read_record
from modelgit.porcelain.scorebook import Score, all_scores, known_scores
from modelgit.repo.repository import Repository
from modelgit.repo.values import LINK, SUBMODULE, LogEntry, Version

if TYPE_CHECKING:
    from modelgit.store.files.tensors import StoredTensors

DEFAULT_PATH = "model.safetensors"
KINDS: Mapping[str, str] = {LINK: "link", SUBMODULE: "submodule"}


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file of a version; `tensors` and `parameters` are 0 for ordinary files, whose size is not looked up.

    `kind` is file, link or submodule.
    """

    path: str
    weights: bool
    size_bytes: int | None
    tensors: int
    parameters: int
    kind: str = "file"


@dataclass(frozen=True, slots=True)
class VersionReport:
    """What a version holds and where it comes from; `date` in seconds since 1970, `contents` identifies the weights.

    `inherited` tells that the record is a parent's, byte for byte: plain git carries it along as it does any file.
    `dtypes`, `metadata` and `rewritten` say as in a `Difference` how the weight files differ from the first parent's;
    `metadata` is None where its objects are not here.
    """

    commit: str
    parents: tuple[str, ...]
    refs: tuple[str, ...]
    author: str
    date: int
    message: str
    trailers: Mapping[str, list[str]]
    contents: str
    files: tuple[FileReport, ...]
    tensors: int
    parameters: int
    size_bytes: int
    record: Record | None
    scores: tuple[Score, ...]
    inherited: bool = False
    dtypes: tuple[DtypeChange, ...] = ()
    metadata: tuple[MetadataChange, ...] | None = ()
    rewritten: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A version as the log shows it; a merge has its `method` and the number of its `inputs`."""

    commit: str
    parents: tuple[str, ...]
    refs: tuple[str, ...]
    author: str
    date: int
    subject: str
    method: str | None
    inputs: int
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class History:
    """Versions, newest first, children before their parents; `graph` tells whether lines between them are wanted."""

    entries: tuple[HistoryEntry, ...]
    graph: bool = False


def show(repo: Repository, rev: str = "HEAD") -> VersionReport:
    """Returns what the version that `rev` names holds."""
    version = repo.version(rev)
    entry = version.entry
    files = tuple(file_report(version, path) for path in sorted(version.tree()))
    before = repo.version(entry.parents[0]).manifests if entry.parents else {}
    headers = headers_against(repo, before, version.manifests)
    return VersionReport(
        commit=version.commit,
        parents=entry.parents,
        refs=entry.refs,
        author=entry.author,
        date=entry.date,
        message=entry.message,
        trailers=entry.trailers,
        contents=contents_id(version),
        files=files,
        tensors=sum(file.tensors for file in files),
        parameters=sum(file.parameters for file in files),
        size_bytes=sum(file.size_bytes or 0 for file in files),
        record=read_record(repo, version.commit),
        scores=known_scores(repo, version.commit),
        inherited=is_inherited(repo, version),
        dtypes=dtype_changes(tensor_pairs(before, version.manifests)),
        metadata=headers.metadata if headers else None,
        rewritten=headers.rewritten if headers else (),
    )


def headers_against(
    repo: Repository, before: Mapping[str, Manifest], after: Mapping[str, Manifest]
) -> HeaderChanges | None:
    """Returns how headers differ, None if one is not here, or damaged: telling of damage is for fsck."""
    try:
        return header_changes(repo, before, after)
    except (MissingObject, CorruptObject):
        return None


def is_inherited(repo: Repository, version: Version) -> bool:
    """Tells whether a version has its record from a parent."""
    record = version.files.get(RECORD_PATH)
    places = (f"{parent}:{RECORD_PATH}" for parent in version.entry.parents if record is not None)
    theirs = (repo.git.attempt("rev-parse", "--verify", "--quiet", place)[1].decode().strip() for place in places)
    return record is not None and record.sha in theirs


def file_report(version: Version, path: str) -> FileReport:
    """Returns what is known of one file."""
    manifest = version.manifests.get(path)
    if manifest is None:
        return FileReport(path, False, None, 0, 0, KINDS.get(version.files[path].mode, "file"))
    return FileReport(path, True, manifest.size_bytes, len(manifest.tensors), parameters(manifest))


def parameters(manifest: Manifest) -> int:
    """Returns how many numbers a weight file holds."""
    return sum(prod(entry.shape) for entry in manifest.tensors)


def log(
    repo: Repository,
    revs: Sequence[str] = ("HEAD",),
    *,
    limit: int | None = None,
    everything: bool = False,
    graph: bool = False,
) -> History:
    """Returns the versions that can be reached from `revs`, or from every branch and tag."""
    begun = everything and repo.refs("refs/heads/", "refs/tags/", "refs/remotes/")
    commits = [repo.resolve(rev) for rev in revs if not (begun and rev == "HEAD")]
    entries = repo.log(commits, limit=limit, everything=everything)
    scores = all_scores(repo)
    return History(tuple(history_entry(entry, scores.get(entry.commit, ())) for entry in entries), graph)


def history_entry(entry: LogEntry, scores: tuple[Score, ...]) -> HistoryEntry:
    """Returns what the log shows of a commit."""
    trailers = entry.trailers if len(entry.parents) > 1 else {}  # what anybody may write makes no merge
    return HistoryEntry(
        commit=entry.commit,
        parents=entry.parents,
        refs=entry.refs,
        author=entry.author,
        date=entry.date,
        subject=entry.subject,
        method=next(iter(trailers.get("Merge-Method", ())), None),
        inputs=len(trailers.get("Merge-Input", ())),
        scores=scores,
    )


def contents_id(version: Version) -> str:
    """Returns the id of a version's weights: equal exactly when the weight files are, path for path."""
    state = blake3()
    for path, manifest in sorted(version.manifests.items()):
        state.update(f"{path}\0{write(manifest)}\0".encode())
    return state.hexdigest()


def weights_of(repo: Repository, rev: str, path: str | None = None) -> "StoredTensors":
    """Returns the tensors of a version: of one weight file, or of all together, as a sharded model's.

    Raises:
        UsageError: the version has no weights, or none at `path`.
        FormatError: two of its files hold tensors of one name.
    """
    from modelgit.store.files.tensors import StoredTensors  # brings numpy, which the log can do without

    version = repo.version(rev)
    if path is not None and path not in version.manifests:
        raise UsageError(
            f"{rev} has no weights at '{path}'", hint=f"it has: {', '.join(sorted(version.manifests)) or 'none'}"
        )
    if not version.manifests:
        raise UsageError(f"{rev} holds no weights", hint="add a .safetensors file: modelgit import FILE")
    return StoredTensors(repo.store, version.manifests[path] if path is not None else together(version))


def together(version: Version) -> Manifest:
    """Returns all weight files of a version as one; with several, it has tensors but no header."""
    if len(version.manifests) == 1:
        return next(iter(version.manifests.values()))
    found: dict[str, TensorEntry] = {}
    for path, manifest in sorted(version.manifests.items()):
        for entry in manifest.tensors:
            if entry.name in found:
                told = f"tensor '{entry.name}' is in several weight files of {version.commit[:10]}, also in {path}"
                raise FormatError(told, hint="git rm those that are not the model's, and commit")
            found[entry.name] = entry
    tensors = tuple(sorted(found.values(), key=lambda entry: entry.name.encode()))
    return Manifest("", 0, sum(m.size_bytes for m in version.manifests.values()), tensors)
