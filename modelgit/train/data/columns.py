"""Columns by their roles, whatever they are kept in: the input, its label, its domain, and a name to group by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from modelgit.errors import DataError
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data.dataset import Inputs, Kind
from modelgit.train.data.rows import MAX_EXAMPLES, Rows, check_amount, listed, word

USUAL = {"label": ("label", "labels", "y"), "domain": ("domain",), "name": ("name", "group")}
Values = Sequence[object]


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` by name, and what yields the rows' values in some of them, each with where it stands.

    `classes` and `domains` are names, in order, that numbers in those columns stand for, where there are such.
    """

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[tuple[str, Values]]]
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What a table tells of each example beside its input; `inputs` are there where they were asked for.

    `where` tells where an example stands, by index: it reads the table again up to there.
    """

    inputs: list[object]
    labels: list[str]
    domains: list[str]
    names: list[str]
    named: bool
    where: Callable[[int], str]

    def rows(
        self,
        table: Table,
        kind: Kind,
        shape: tuple[int, ...],
        read: Callable[[Sequence[int]], Inputs],
        content: Callable[[int], bytes],
    ) -> Rows:
        """Returns the examples, with what gives their inputs."""
        return Rows(
            kind=kind,
            shape=shape,
            labels=self.labels,
            domains=self.domains,
            names=self.names,
            read=read,
            content=content,
            classes=table.classes,
            domain_names=table.domains,
            named=self.named,
            where=self.where,
        )


def choose(asked: Columns, known: Sequence[str], inputs: Sequence[str], path: str) -> Columns:
    """Returns the columns to read: those asked for, else the usual ones that are there.

    Raises:
        DataError: one that was asked for, or the input's or label's, is not there.
    """
    chosen: dict[str, str | None] = {}
    for role, usual in {"input": inputs, **USUAL}.items():
        asked_for: str | None = getattr(asked, role)
        found = next((name for name in usual if name in known), None) if asked_for is None else asked_for
        if found is None and role in ("domain", "name"):
            chosen[role] = None
            continue
        if found is None or found not in known:
            wanted = f"'{found}'" if found is not None else " or ".join(f"'{name}'" for name in usual)
            read = f"columns.{role} of [data] in a recipe, --on RECIPE.toml"
            hint = f"columns: {listed(known)}; say which to read: {read}"
            raise DataError(f"{path}: no column {wanted}", hint=hint)
        chosen[role] = found
    return Columns(**chosen)


def gather(table: Table, chosen: Columns, config: DataConfig, *, inputs: bool) -> Told:
    """Returns what the rows tell; without a column of domains they are all of one, called as the file is.

    Raises:
        DataError: a label, domain or name that is no word, or too many rows.
    """
    roles = {"input": chosen.input if inputs else None, **{role: getattr(chosen, role) for role in USUAL}}
    read = {role: column for role, column in roles.items() if column is not None}
    found: dict[str, list[object]] = {role: [] for role in read}
    words: dict[str, list[str]] = {role: [] for role in USUAL}
    meanings = {"label": table.classes, "domain": table.domains, "name": ()}
    for where, values in islice(table.rows(list(read.values())), MAX_EXAMPLES + 1):
        for (role, column), value in zip(read.items(), values, strict=True):
            if role == "input":
                found[role].append(value)
            else:
                words[role].append(word(meaning(value, meanings[role]), f"{where}: column '{column}'"))
    count = len(words["label"])
    check_amount(count, config.path)
    return Told(
        inputs=found.get("input", []),
        labels=words["label"],
        domains=words["domain"] or [Path(config.path).stem] * count,
        names=words["name"] or [str(number) for number in range(count)],
        named="name" in read,
        where=lambda index: next(islice(table.rows([read["label"]]), index, None))[0],
    )


def meaning(value: object, names: Sequence[str]) -> object:
    """Returns what a number stands for, where numbers have names; any other value as it is."""
    numbered = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
    return names[value] if isinstance(value, int) and numbered else value


def texts(table: Table, config: DataConfig) -> Rows:
    """Returns a table's rows as texts. Raises DataError for a row that holds none."""
    chosen = choose(config.columns, table.columns, ("text",), config.path)
    told = gather(table, chosen, config, inputs=True)
    found = [plain_text(value, number, chosen.input, told.where) for number, value in enumerate(told.inputs)]
    return told.rows(table, "text", (), lambda indices: [found[i] for i in indices], lambda i: found[i].encode())


def plain_text(value: object, number: int, column: str | None, where: Callable[[int], str]) -> str:
    """Returns a text that can be written. Raises DataError for anything else."""
    if not isinstance(value, str) or not (value.isascii() or value.encode("utf-8", "replace").decode() == value):
        got = repr(value)[:60]
        raise DataError(f"{where(number)}: column '{column}': expected a text, got {got}")
    return value
