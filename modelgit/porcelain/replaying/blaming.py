"""Blame: which commit last changed each tensor. Manifests are compared line by line; no tensor is read.

From the version asked for, each tensor goes back to a parent that has it as it is, the first one if several have; a
merge that took a tensor over is passed through, one that computed it is the answer. What differs between commits and
their parents comes from git, for some commits at a time, and only manifests that differ are read: the walk ends where
the last tensor is found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from math import prod

from modelgit.errors import RevisionError, UsageError
from modelgit.events import Advanced, Finished, Listener, Started, ignore
from modelgit.formats.manifest import Manifest, TensorEntry, lines
from modelgit.porcelain.versions import DEFAULT_PATH
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository

LOOK = "--format=%H%x00%P%x00%an <%ae>%x00%at%x00%s"
BATCH = 64
HEADER_LINES = 3
ABSENT = "0" * 40
GLOB = "*?["


@dataclass(frozen=True, slots=True)
class BlamedTensor:
    """A tensor and the commit that last changed it; `date` is the author's, in seconds since 1970.

    `relative_norm` is ||new - old|| / ||old|| against that commit's first parent; None where it was not asked for, or
    says nothing (a new tensor, another shape, zeros, values that are not finite).
    """

    path: str
    name: str
    parameters: int
    commit: str
    author: str
    date: int
    subject: str
    merge: bool
    relative_norm: float | None = None


@dataclass(frozen=True, slots=True)
class BlamedLayer:
    """The tensors below one prefix of their names that one commit changed last."""

    layer: str
    tensors: int
    parameters: int
    commit: str
    author: str
    date: int
    subject: str
    merge: bool
    largest_relative_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Blamed:
    """Which commits last changed the tensors of `commit`; `layers` is filled instead of `tensors` with a depth."""

    commit: str
    tensors: tuple[BlamedTensor, ...]
    layers: tuple[BlamedLayer, ...]
    commits: int
    stat: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit as the walk sees it."""

    name: str
    parents: tuple[str, ...]
    author: str
    date: int
    subject: str


@dataclass(frozen=True, slots=True)
class Traced:
    """A tensor on its way back: what it is in the version asked for, the file it is in here, its line."""

    path: str
    entry: TensorEntry
    here: str
    line: bytes


Blobs = Mapping[str, tuple[str, str]]  # old and new blob of each weight file that differs, by path
Answers = list[tuple[Commit, Traced]]


def blame(
    repo: Repository,
    rev: str | None = None,
    pattern: str | None = None,
    *,
    depth: int = 0,
    stat: bool = False,
    listener: Listener = ignore,
) -> Blamed:
    """Returns which commit last changed each tensor of a version, of those whose names match the pattern.

    A pattern is a name, a module (`encoder.layer.0`), or has wildcards. One word alone may be either.

    Raises:
        UsageError: no tensor matches. RevisionError. With `stat` also MissingObject, CorruptObject.
    """
    rev, pattern = told_apart(repo, rev, pattern)
    version = repo.version(rev)
    wanted = list(matching(version.manifests, pattern))
    if not wanted:
        what = f"no tensor of {rev} matches '{pattern}'" if pattern else f"{rev} holds no weights"
        raise UsageError(what, hint=f"modelgit blame {rev} lists all tensors" if pattern else "modelgit log")
    answers = walk(repo, version.commit, wanted, listener)
    tensors = [blamed_tensor(commit, traced) for commit, traced in answers]
    if stat:
        tensors = measured(repo, tensors, listener)
    tensors.sort(key=lambda tensor: (tensor.path, tensor.name))
    layers = tuple(layers_of(tensors, depth)) if depth else ()
    commits = len({tensor.commit for tensor in tensors})
    return Blamed(version.commit, () if depth else tuple(tensors), layers, commits, stat)


def told_apart(repo: Repository, rev: str | None, pattern: str | None) -> tuple[str, str | None]:
    """Returns revision and pattern; of one word alone, what no commit answers to is a pattern if tensors match it."""
    if rev is None or pattern is not None:
        return rev or "HEAD", pattern
    try:
        repo.resolve(rev)
    except RevisionError as error:
        if any(char in rev for char in GLOB) or any(matching(repo.version("HEAD").manifests, rev)):
            return "HEAD", rev
        hint = f"{error.hint or ''}; of an ordinary file: modelgit blame HEAD -- FILE".removeprefix("; ")
        raise RevisionError(f"'{rev}' is no revision, and no tensor of HEAD has that name", hint=hint) from error
    return rev, None


def matching(manifests: Mapping[str, Manifest], pattern: str | None) -> Iterator[Traced]:
    """Yields the tensors whose names match."""
    for path, manifest in sorted(manifests.items()):
        rows = list(lines(manifest))[HEADER_LINES:]
        for entry, row in zip(manifest.tensors, rows, strict=True):
            if pattern is None or matches(entry.name, pattern):
                yield Traced(path, entry, path, row.encode())


def matches(name: str, pattern: str) -> bool:
    """Tells whether a tensor's name is the pattern, below it, or like it."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


# ------------------------------------------------------------------------------------------------------ walking


def walk(repo: Repository, start: str, wanted: Sequence[Traced], listener: Listener) -> Answers:
    """Returns the commit that last changed each tensor."""
    history = commits_of(repo, start)
    pending: dict[str, list[Traced]] = {start: list(wanted)}
    answers: Answers = []
    listener(Started("blame", len(wanted), "tensors"))
    for first in range(0, len(history), BATCH):
        if not pending:
            break
        batch = history[first : first + BATCH]
        changes = differences(repo, batch)
        shas = [sha for blobs in changes.values() for pair in blobs.values() for sha in pair if sha != ABSENT]
        texts = {sha: frozenset(text.split(b"\n")) for sha, text in repo.read_blobs(shas).items()}
        for commit in batch:
            found = step(commit, pending, changes, texts)
            answers += [(commit, traced) for traced in found]
            listener(Advanced("blame", len(found)))
    listener(Finished("blame"))
    return answers


def commits_of(repo: Repository, start: str) -> list[Commit]:
    """Returns the commits that lead to a version, children before parents."""
    text = repo.git.run_bytes("log", "-z", "--topo-order", "--no-show-signature", LOOK, start)
    words = text.decode("utf-8", "replace").rstrip("\0").split("\0")
    rows = [words[i : i + 5] for i in range(0, len(words) - 4, 5)]
    return [
        Commit(name, tuple(parents.split()), author, int(date), subject)
        for name, parents, author, date, subject in rows
    ]


def differences(repo: Repository, commits: Iterable[Commit]) -> dict[tuple[str, str], dict[str, tuple[str, str]]]:
    """Returns for each commit and parent the weight files that differ: the blobs of both, by path."""
    pairs = [(commit.name, parent) for commit in commits for parent in commit.parents]
    if not pairs:
        return {}
    stdin = "".join(f"{commit} {parent}\n" for commit, parent in pairs).encode()
    look = ("diff-tree", "--stdin", "--always", "-r", "-z", "--raw", "--no-abbrev", "--no-renames")
    words = repo.git.run_bytes(*look, "--", f"*{WEIGHTS_SUFFIX}", stdin=stdin).split(b"\0")
    found: list[dict[str, tuple[str, str]]] = []
    facts = b""
    for word in words[:-1]:
        if facts:
            old, new = facts.decode().split()[2:4]
            found[-1][word.decode("utf-8", "surrogateescape")] = (old, new)
            facts = b""
        elif word.startswith(b":"):
            facts = word
        else:
            found.append({})
    return dict(zip(pairs, found, strict=True))


def step(
    commit: Commit,
    pending: dict[str, list[Traced]],
    changes: Mapping[tuple[str, str], Blobs],
    texts: Mapping[str, frozenset[bytes]],
) -> list[Traced]:
    """Returns the tensors that a commit changed, and hands the others on to the parents that have them."""
    left = pending.pop(commit.name, [])
    for parent in commit.parents:
        blobs, rest = changes[commit.name, parent], list[Traced]()
        for traced in left:
            place = place_in(traced, blobs, texts)
            if place is None:
                rest.append(traced)
            else:
                moved = traced if place == traced.here else replace(traced, here=place)
                pending.setdefault(parent, []).append(moved)
        left = rest
    return left


def place_in(traced: Traced, blobs: Blobs, texts: Mapping[str, frozenset[bytes]]) -> str | None:
    """Returns the file in which a parent has the very tensor, None if it has none; `blobs` are files that differ."""
    if traced.here not in blobs:
        return traced.here
    old = blobs[traced.here][0]
    if old != ABSENT and traced.line in texts[old]:
        return traced.here
    others = (path for path, (sha, _) in sorted(blobs.items()) if sha != ABSENT and traced.line in texts[sha])
    return next(others, None)


# ---------------------------------------------------------------------------------------------------- reporting


def blamed_tensor(commit: Commit, traced: Traced) -> BlamedTensor:
    """Returns a tensor with the commit that last changed it."""
    facts = (commit.name, commit.author, commit.date, commit.subject, len(commit.parents) > 1)
    return BlamedTensor(traced.path, traced.entry.name, prod(traced.entry.shape), *facts)


def measured(repo: Repository, tensors: Sequence[BlamedTensor], listener: Listener) -> list[BlamedTensor]:
    """Returns the tensors with the size of their last change, against the first parent's of that name."""
    from modelgit.merge.compare import compare  # brings numpy
    from modelgit.porcelain.plumbing.combining import only
    from modelgit.porcelain.versions import together
    from modelgit.store.files.tensors import StoredTensors

    found: list[BlamedTensor] = []
    listener(Started("measure", len(tensors), "tensors"))
    for commit, group in groupby(sorted(tensors, key=lambda tensor: tensor.commit), key=lambda tensor: tensor.commit):
        those = list(group)
        names = [tensor.name for tensor in those]
        version = repo.version(commit)
        ends = [*version.entry.parents[:1], commit]
        sides = [StoredTensors(repo.store, only(together(repo.version(end)), names)) for end in ends]
        norms = {c.name: c.relative_norm for c in compare(*sides)} if len(sides) > 1 else {}
        found += [replace(tensor, relative_norm=norms.get(tensor.name)) for tensor in those]
        listener(Advanced("measure", len(those)))
    listener(Finished("measure"))
    return found


def layers_of(tensors: Sequence[BlamedTensor], depth: int) -> Iterator[BlamedLayer]:
    """Yields a line for each prefix of `depth` parts and each commit that changed tensors below it, in that order."""

    def key(tensor: BlamedTensor) -> tuple[str, str]:
        prefix = ".".join(tensor.name.split(".")[:depth])
        return (prefix if tensor.path == DEFAULT_PATH else f"{tensor.path}: {prefix}"), tensor.commit

    for (layer, _), group in groupby(sorted(tensors, key=key), key=key):
        those = list(group)
        norms = [tensor.relative_norm for tensor in those if tensor.relative_norm is not None]
        one, size = those[0], sum(tensor.parameters for tensor in those)
        facts = (one.commit, one.author, one.date, one.subject, one.merge)
        yield BlamedLayer(layer, len(those), size, *facts, max(norms, default=None))
