"""Versions whose tokenizers differ: told before anything is averaged, and lined up by the strings of their tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from modelgit.errors import Conflict, FormatError, UsageError
from modelgit.formats.source import TensorSource
from modelgit.merge.vocabulary.rows import Layout, Model, TokenTensors, row_index, token_tensors
from modelgit.merge.vocabulary.tokens import (
    MAX_BYTES,
    MAX_TOKENS,
    TOKENIZER_FILES,
    Vocabulary,
    extended,
    read_vocabulary,
    united,
)
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, Version

CONFIG, ROWS = "config.json", "vocab_size"
Contents = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of one version: its folder, its files, what they say."""

    folder: str
    files: Contents
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class Tokens:
    """How tokens are lined up: a view of each version's tensors, by commit, and the files that go with the result."""

    layout: Layout
    files: Mapping[str, Blob | bytes]

    def view(self, commit: str, source: TensorSource) -> TensorSource:
        """Returns a version's tensors with its rows in the result's order."""
        if commit not in self.layout.models or self.layout.still(commit):
            return source
        return TokenTensors(source, self.layout, commit)


def vocabulary_conflicts(repo: Repository, named: Sequence[tuple[str, Version]]) -> list[Conflict]:
    """Returns a conflict for each version whose tokens have other numbers than the first's. Reads no tensor."""
    names, versions = [name for name, _ in named], [version for _, version in named]
    found = tokenizers(repo, versions) if differ(versions) else []
    if not found or found[0] is None:
        return []
    conflicts, first = [], found[0]
    for name, other in zip(names[1:], found[1:], strict=True):
        if other is not None and other.vocabulary.ids != first.vocabulary.ids:
            conflicts.append(told(first, other, names[0], name))
    return conflicts


def told(first: Tokenizer, other: Tokenizer, ours: str, theirs: str) -> Conflict:
    """Returns the conflict of two vocabularies: their first difference."""
    mine, its = first.vocabulary.ids, other.vocabulary.ids
    token = min((t for t in mine.keys() | its.keys() if mine.get(t) != its.get(t)), key=lambda t: (mine.get(t, -1), t))
    expected = f"token {token!r} is {mine.get(token, 'unknown')} as in {ours}"
    return Conflict("vocabulary", f"{first.folder}tokenizer", expected, f"{its.get(token, 'unknown')} in {theirs}")


def differ(versions: Sequence[Version]) -> bool:
    """Returns whether any file of a tokenizer is another one in some version."""
    rows = [{path: blob.sha for path, blob in v.files.items() if name_of(path) in TOKENIZER_FILES} for v in versions]
    return any(row != rows[0] for row in rows[1:])


def name_of(path: str) -> str:
    """Returns the last part of a path."""
    return PurePosixPath(path).name


def tokenizers(repo: Repository, versions: Sequence[Version]) -> list[Tokenizer | None]:
    """Returns each version's tokenizer, beside its weights; None where it has none. Raises FormatError."""
    return [tokenizer(repo, version) for version in versions]


def tokenizer(repo: Repository, version: Version) -> Tokenizer | None:
    """Returns a version's tokenizer, None where it has none that can be read.

    Raises:
        FormatError: a malformed one. UsageError: several, beside several models.
    """
    folders = sorted({path[: len(path) - len(name_of(path))] for path in version.manifests})
    found = []
    for folder in folders:
        files = {name: blob for name in TOKENIZER_FILES if (blob := version.file(folder + name)) is not None}
        contents = {name: repo.read_blob(blob, MAX_BYTES) for name, blob in files.items()}
        vocabulary = read_vocabulary(contents, f"{folder or 'tokenizer'} in {version.commit[:10]}")
        if vocabulary is not None:
            found.append(Tokenizer(folder, contents, vocabulary))
    if len(found) > 1:
        names = ", ".join(one.folder or "the top" for one in found)
        raise UsageError(f"{version.commit[:10]} has tokenizers in {names}: only one can be lined up")
    return found[0] if found else None


def line_up_tokens(repo: Repository, versions: Sequence[Version], bases: Sequence[Version], how: str) -> Tokens | None:
    """Returns how the rows of tokens are lined up with those of the first version; None where all agree.

    `how` is "ours" (the first version's tokens) or "union" (those of all).

    Raises:
        UsageError: some version has no tokenizer that can be read. FormatError: a malformed one.
    """
    every = [*versions, *bases]
    if not differ(every):
        return None
    found = tokenizers(repo, every)
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        name = next(version.commit[:10] for version, one in zip(every, found, strict=True) if one is None)
        expected = "tokenizer.json, vocab.txt or vocab.json beside the weights"
        raise UsageError(f"--vocabulary {how}: {name} has no vocabulary that can be read: expected {expected}")
    ours, heads = known[0], known[1 : len(versions)]
    wanted = united(ours.vocabulary, [one.vocabulary for one in heads]) if how == "union" else ours.vocabulary
    models = {version.commit: model_of(repo, version, one) for version, one in zip(every, known, strict=True)}
    rows = max(models[every[0].commit].rows, wanted.size)
    index = {commit: row_index(model, wanted, rows) for commit, model in models.items()}
    layout = Layout(
        frozenset(token_tensors(list(models.values()))), rows, models, index, frozenset(v.commit for v in versions)
    )
    files: dict[str, Blob | bytes] = {
        path: b for path, b in versions[0].files.items() if name_of(path) in TOKENIZER_FILES
    }
    where = f"tokenizer in {every[0].commit[:10]}"
    new = extended(ours.files, ours.vocabulary, wanted, where)
    files.update({ours.folder + name: content for name, content in new.items()})
    files.update(settled_config(repo, versions, ours.folder, rows))
    return Tokens(layout, files)


def model_of(repo: Repository, version: Version, own: Tokenizer) -> Model:
    """Returns a version as its rows are to be read. Raises FormatError."""
    rows = config_of(repo, version, own.folder).get(ROWS, own.vocabulary.size)
    if type(rows) is not int or not own.vocabulary.size <= rows <= MAX_TOKENS:
        where = f"{own.folder}{CONFIG} in {version.commit[:10]}"
        raise FormatError(
            f"{where}: {ROWS}: expected at least {own.vocabulary.size}, the tokens there are, got {rows!r}"
        )
    return Model(weights_of(repo, version.commit), own.vocabulary, rows)


def config_of(repo: Repository, version: Version, folder: str) -> dict[str, Any]:
    """Returns a version's config.json, empty where it has none or none that is a table."""
    blob = version.file(folder + CONFIG)
    try:
        table = json.loads(repo.read_blob(blob, MAX_BYTES)) if blob is not None else {}
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def settled_config(repo: Repository, versions: Sequence[Version], folder: str, rows: int) -> dict[str, Blob | bytes]:
    """Returns the result's config.json where the versions' differ in the number of rows at most."""
    tables = [config_of(repo, version, folder) for version in versions]
    blob = versions[0].file(folder + CONFIG)
    if blob is None or ROWS not in tables[0] or any({**t, ROWS: 0} != {**tables[0], ROWS: 0} for t in tables[1:]):
        return {}
    if tables[0][ROWS] == rows:
        return {folder + CONFIG: blob}
    return {folder + CONFIG: (json.dumps({**tables[0], ROWS: rows}, indent=2, ensure_ascii=False) + "\n").encode()}
