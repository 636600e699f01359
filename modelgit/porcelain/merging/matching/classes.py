"""Classifiers whose classes differ, lined up by the classes' names: a class is a row, as a token is in an embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import FormatError, UsageError
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.plan import Policy
from modelgit.merge.vocabulary.rows import Layout, Model, TokenTensors, row_index
from modelgit.merge.vocabulary.tokens import Vocabulary, united
from modelgit.porcelain.records import Record, read_record
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of the result, in order, and where each version's rows for them are."""

    names: tuple[str, ...]
    layout: Layout

    def view(self, commit: str, source: TensorSource) -> TensorSource:
        """Returns a version's tensors, the rows of its classifier in the result's order."""
        if commit not in self.layout.models or self.layout.still(commit):
            return source
        return TokenTensors(source, self.layout, commit)


def line_up_classes(
    repo: Repository,
    versions: Sequence[Version],
    records: Sequence[Record | None],
    bases: Sequence[Version],
    policy: Policy,
) -> Classes:
    """Returns how classifiers are lined up: our classes, then those that only others have, in their order.

    Raises:
        UsageError: a version whose classes nobody knows, or a classifier with another number of rows. FormatError: a
        record that names a class twice.
    """
    known: dict[str, Vocabulary] = {}
    for version, record in zip(versions, records, strict=True):
        if record is None or not record.classes:
            hint = "records are made by training; take one model's classifier: --heads ours"
            raise UsageError(f"--heads mean: nobody knows the classes of {version.commit[:10]}", hint=hint)
        known[version.commit] = classes_of(record, version.commit)
    for base in bases:
        record = read_record(repo, base.commit)
        if record is None or not record.classes:
            hint = "a method that uses no base needs no classes of it; or keep one model's classifier: --heads ours"
            raise UsageError(f"--heads mean: nobody knows the classes of the merge base {base.commit[:10]}", hint=hint)
        known.setdefault(base.commit, classes_of(record, base.commit))
    first, *others = (known[version.commit] for version in versions)
    wanted = united(first, others)
    models = {c: Model(weights_of(repo, c), vocabulary, vocabulary.size) for c, vocabulary in known.items()}
    tensors = frozenset(name for model in models.values() for name in model.source.names() if policy.is_head(name))
    check_rows(models, tensors)
    index = {commit: row_index(model, wanted, wanted.size) for commit, model in models.items()}
    layout = Layout(tensors, wanted.size, models, index, frozenset(version.commit for version in versions))
    return Classes(tuple(wanted.names()[i] for i in range(wanted.size)), layout)


def classes_of(record: Record, commit: str) -> Vocabulary:
    """Returns a record's classes by their rows. Raises FormatError if one is there twice."""
    ids = {name: row for row, name in enumerate(record.classes)}
    if len(ids) < len(record.classes):
        raise FormatError(
            f"record of {commit[:10]}: expected each class once, got {len(record.classes) - len(ids)} again"
        )
    return Vocabulary(ids, {})


def check_rows(models: Mapping[str, Model], tensors: frozenset[str]) -> None:
    """Raises UsageError unless each model's classifier has a row for each of its classes."""
    for commit, model in models.items():
        for name in sorted(tensors.intersection(model.source.names())):
            shape = model.source.entry(name).shape
            if not shape or shape[0] != model.rows:
                told = f"expected a row for each of its {model.rows} classes, got shape {list(shape)}"
                hint = "--head-name names the classifier's tensors"
                raise UsageError(f"--heads mean: {name} in {commit[:10]}: {told}", hint=hint)
