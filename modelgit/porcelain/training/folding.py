"""An adapter folded into its base, as the next version: whole weights in the base's files, and nothing to load beside.

The base is a version (that the adapter names, or the user), or whole weights that lie beside the adapter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch

from modelgit.errors import DataError, DifferencesFound, FormatError, RepositoryError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.merge.adapters.folding import Change, changes_of, folded
from modelgit.merge.adapters.naming import is_adapter
from modelgit.porcelain.checking import Verified, refuse_differences
from modelgit.porcelain.records import RECORD_PATH, Record, read_record, write_record
from modelgit.porcelain.tensors import Tensor, load_state, load_tensor, raw_tensors
from modelgit.porcelain.training.adapting import COMMIT, CONFIG, base_of, configuration, known
from modelgit.porcelain.training.committing import arrive, refuse_weights
from modelgit.porcelain.work import Committed, committed
from modelgit.repo.repository import Repository
from modelgit.repo.values import CommitDraft, Version
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors, stored_header
from modelgit.store.writing import PackWriter

BASE, ADAPTER = "Fold-Base", "Fold-Adapter"


@dataclass(frozen=True, slots=True)
class Parts:
    """A version that holds an adapter, taken apart: its factors, and the weight files that they change, by path."""

    adapter: Version
    own: Mapping[str, Manifest]
    base: Version
    files: Mapping[str, Manifest]


def fold(
    repo: Repository, base: str | None = None, message: str | None = None, listener: Listener = ignore
) -> Committed:
    """Folds the adapter that is checked out into its base, and commits the whole weights to the branch.

    `base` is the version that it belongs to, if it names none itself.

    Raises:
        DirtyWorktree: changed weights. UsageError: there is no adapter, or one of another kind.
        DataError: a tensor of the adapter has no place in the base.
    """
    refuse_weights(repo)
    head = repo.head()
    if head is None:
        raise RepositoryError("there is no version yet", hint="begin with weights: modelgit import FILE")
    before = repo.packed_bytes()
    parts = taken_apart(repo, repo.version(head), base)
    with repo.store.begin() as pack:
        manifests = whole_files(repo, parts, pack, listener)
        pack.commit()
    made = repo.commit(draft_of(repo, parts, manifests, message))
    arrive(repo, made, head, listener, reason="fold")
    return committed(repo, made, repo.branch(), repo.packed_bytes() - before)


def taken_apart(repo: Repository, version: Version, base: str | None) -> Parts:
    """Returns a version's adapter and what it belongs to: `base`, else weights beside it, else what it names."""
    own = {path: m for path, m in version.manifests.items() if is_adapter(entry.name for entry in m.tensors)}
    if not own:
        hint = "go to the branch of one: modelgit switch BRANCH"
        raise UsageError(f"{version.commit[:10]} holds no adapter that could be folded into its base", hint=hint)
    beside = {path: m for path, m in version.manifests.items() if path not in own}
    if base is None and beside:
        return Parts(version, own, version, beside)
    below = repo.version(repo.resolve(base) if base is not None else base_of(repo, version))
    if not below.manifests or any(is_adapter(e.name for e in m.tensors) for m in below.manifests.values()):
        raise UsageError(f"the base, {below.commit[:10]}, holds no whole weights", hint="name another: --base REV")
    return Parts(version, own, below, below.manifests)


# -------------------------------------------------------------------------------------------------- the weights


def whole_files(repo: Repository, parts: Parts, pack: PackWriter, listener: Listener) -> dict[str, Manifest]:
    """Returns the base's weight files with the adapter in them, one tensor after another.

    Raises:
        DataError: they do not fit. UsageError: a sharded base would get tensors that its index knows nothing of.
    """
    source = StoredTensors(repo.store, in_one(parts.own))
    shapes = {entry.name: entry.shape for m in parts.files.values() for entry in m.tensors}
    told = configuration(repo, parts.adapter)
    changes = changes_of({name: source.entry(name).shape for name in source.names()}, shapes, told)
    own = load_state(source)
    new = {name: folded(None, change, own) for name, change in changes.items() if name not in shapes}
    if new and len(parts.files) > 1:
        what = f"'{min(new)}' is new, and the base is in {len(parts.files)} files, whose index would have to name it"
        raise UsageError(f"the adapter does not fit its base: {what}", hint="take a base in one file")
    made = {}
    for path, manifest in sorted(parts.files.items()):
        metadata = stored_header(repo.store, manifest).metadata
        tensors = chain(folded_file(StoredTensors(repo.store, manifest), changes, own), raw_tensors(new))
        made[path] = store_tensors(pack, tensors, metadata, manifest, listener=listener)
    return made


def in_one(parts: Mapping[str, Manifest]) -> Manifest:
    """Returns the files of an adapter as one. Raises FormatError where several hold tensors of one name."""
    tensors = sorted((e for m in parts.values() for e in m.tensors), key=lambda entry: entry.name.encode())
    if len({entry.name for entry in tensors}) != len(tensors):
        raise FormatError("two files of the adapter hold tensors of one name", hint="git rm the older, and commit")
    return Manifest("", 0, 0, tuple(tensors))


def folded_file(
    source: StoredTensors, changes: Mapping[str, Change], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Yields the tensors of one of the base's files as they become (name, dtype, shape, bytes).

    Raises:
        DataError: a value is beyond the range of its type, or none.
    """
    for name in source.names():
        if name not in changes:
            entry = source.entry(name)
            yield name, entry.dtype, entry.shape, memoryview(source.read(name))
            continue
        tensor = folded(load_tensor(source, name), changes[name], own)
        if not bool(torch.isfinite(tensor.float()).all()):
            told = f"values that are finite in {source.entry(name).dtype}"
            raise DataError(f"'{name}': expected {told} after folding, got others")
        yield from raw_tensors({name: tensor})


# --------------------------------------------------------------------------------------------------- the commit


def draft_of(repo: Repository, parts: Parts, manifests: Mapping[str, Manifest], message: str | None) -> CommitDraft:
    """Returns the commit to be made: the other files are the adapter's, and those that only the base has."""
    head, base = parts.adapter, parts.base
    records = [read_record(repo, head.commit), read_record(repo, base.commit)]
    first = next((record for record in records if record is not None), Record("fold"))
    details = {"adapter": head.commit, "base": base.commit}
    record = Record("fold", first.architecture, first.classes, first.head, details)
    files = {path: blob for path, blob in {**base.files, **head.files}.items() if path != CONFIG}
    parents = (head.commit,) if repo.is_ancestor(base.commit, head.commit) else (head.commit, base.commit)
    return CommitDraft(
        parents=parents,
        files={**files, **manifests, RECORD_PATH: write_record(record)},
        message=message or f"Fold {', '.join(sorted(parts.own))} into its base",
        trailers=((BASE, base.commit), (ADAPTER, head.commit)),
    )


def verify_fold(repo: Repository, rev: str, listener: Listener = ignore) -> Verified:
    """Folds again what a commit says was folded, and compares every id. Stores nothing.

    Raises:
        UsageError, FormatError: it says nothing, or what it says is malformed.
        DifferencesFound: it names commits that it does not descend from, or the weights are others.
    """
    version = repo.version(rev)
    if not {BASE, ADAPTER} <= version.entry.trailers.keys():
        raise UsageError(f"{version.commit[:10]} does not say what was folded", hint="it takes what modelgit fold made")
    ends = [version.entry.trailers[key][0] for key in (BASE, ADAPTER)]
    for end in ends:
        if not COMMIT.fullmatch(end):
            raise FormatError(f"{version.commit[:10]}: malformed trailers: '{end[:60]}' is no commit")
        if not known(repo, end, version.commit):
            raise DifferencesFound(
                f"{version.commit[:10]} does not descend from {end[:10]}, which it says it was made of"
            )
    base, adapter = ends
    parts = taken_apart(repo, repo.version(adapter), None if base == adapter else base)
    with repo.store.begin() as pack:
        again = whole_files(repo, parts, pack, listener)
    refuse_differences(version, again)
    inputs = tuple(dict.fromkeys(ends))
    return Verified(version.commit, "fold", inputs, len(again), sum(len(m.tensors) for m in again.values()))
