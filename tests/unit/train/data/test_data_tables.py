"""Text tables: one data set whatever the format, and every way in which a table can be wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelgit.errors import DataError
from modelgit.events import Event, Noted
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data import rows, tables
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import split
from modelgit.train.task import Workbench

HEAD = ("text", "label", "domain", "name")
ROWS = [(f"{d}, {w} {i}", w, d, f"{w}-{i}") for d in ("web", "mail") for w in ("good", "bad") for i in range(6)]


def csv_of(path: Path, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = HEAD) -> Path:
    path.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [head, *rows]) + "\n")
    return path


def load(path: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig(str(path), **settings))  # type: ignore[arg-type]  # by name


def test_texts_labels_domains_and_names(tmp_path: Path) -> None:
    found = load(csv_of(tmp_path / "mood.csv", ROWS))
    assert (found.kind, found.shape) == ("text", ())
    assert found.classes == ("bad", "good") and found.domains == ("mail", "web")
    assert found.inputs([0, 23]) == ["web, good 0", "mail, bad 5"]
    assert found.labels.tolist() == [1] * 6 + [0] * 6 + [1] * 6 + [0] * 6
    assert found.domain_ids.tolist() == [1] * 12 + [0] * 12
    assert found.names[:2] == ("good-0", "good-1")


def test_csv_tsv_and_json_lines_are_one_data_set(tmp_path: Path) -> None:
    digest = load(csv_of(tmp_path / "a.csv", ROWS)).digest
    (tmp_path / "b.tsv").write_text("\n".join("\t".join(row) for row in [HEAD, *ROWS]))
    lines = [json.dumps(dict(zip(HEAD, row, strict=True))) for row in ROWS]
    (tmp_path / "c.jsonl").write_text(
        "\ufeff" + "\n\n".join(lines)
    )  # as Windows begins files; empty lines do not count
    assert load(tmp_path / "b.tsv").digest == load(tmp_path / "c.jsonl").digest == digest


def test_the_digest_follows_texts_labels_domains_names_order_and_classes(tmp_path: Path) -> None:
    first = dict(zip(HEAD, ROWS[0], strict=True))
    others = [{"text": "other"}, {"label": "bad"}, {"domain": "mail"}, {"name": "other"}]
    changed = [[tuple({**first, **other}.values()), *ROWS[1:]] for other in others]
    tables: list[list[tuple[str, ...]]] = [[*ROWS], [*reversed(ROWS)], *changed]
    digests = [load(csv_of(tmp_path / f"{n}.csv", table)).digest for n, table in enumerate(tables)]
    digests.append(load(tmp_path / "0.csv", classes=("good", "bad")).digest)
    assert len(set(digests)) == 7
    assert digests[0] == load(csv_of(tmp_path / "again.csv", ROWS)).digest


def test_columns_of_other_names_and_quoted_lines(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text('review,stars,site\r\n"two\nlines, and ""quotes""",5,a\r\nplain,10,a\r\n')
    found = load(path, columns=Columns("review", "stars", "site"))
    assert found.inputs([0, 1]) == ['two\nlines, and "quotes"', "plain"]
    assert found.classes == ("5", "10")  # whole numbers stand by value


def test_without_a_column_of_domains_all_are_of_one(tmp_path: Path) -> None:
    found = load(csv_of(tmp_path / "spam.csv", [r[:2] for r in ROWS], HEAD[:2]))
    assert found.domains == ("spam",)
    assert found.names == tuple(map(str, range(24)))


def test_groups_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    table = [
        (f"{t} {i}", w, d, f"doc-{t}") for t in range(40) for i, w in enumerate(("bad", "good")) for d in ("a", "b")
    ]
    config = DataConfig(str(csv_of(tmp_path / "t.csv", table)), group="name", held_out="b")
    found = load_dataset(config)
    parts = split(found, config)
    sides = [{found.names[i] for i in part} for part in (parts.train["a"], parts.validation["a"], parts.test)]
    assert sum(len(side) for side in sides) == len(set.union(*sides)) == 40
    assert all(len(side) > 2 for side in sides)


def test_a_limit_holds_for_each_domain_and_class(tmp_path: Path) -> None:
    found = load(csv_of(tmp_path / "t.csv", ROWS), limit_per_class=2)
    assert found.labels.tolist() == [1, 1, 0, 0] * 2
    assert found.names[:4] == found.names[4:]
    texts = found.inputs(range(8))
    assert [str(text).split()[-1] for text in texts] == [name[-1] for name in found.names]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\na,x\nb\n", r"t\.csv: line 3: 1 columns, expected 2"),
        ("text,kind\na,x\n", r"no column 'label' or 'labels' or 'y'"),
        ("text,label,text\na,x,b\n", r"'text' twice"),
        ("", "expected a first line that names"),
        ("text,label\n", r"t\.csv: no text: expected at least one example"),
        ("text,label\na,\nb,y\n", r"line 2: column 'label': expected a word or a whole number of at most 200 .*got ''"),
        ("text,label\na,x\x1b[2J\nb,y\n", r"line 2: column 'label': expected a word"),
        ("text,label\na,x\nb,x\n", r"one class only \(x\), expected at least two"),
        ('text,label\na,x\n"b,y\n', r"line \d: unexpected end of data"),
        ("text,label,domain\na,x,p\nb,y,\n", r"line 3: column 'domain': expected a word"),
    ],
)
def test_tables_that_are_wrong_say_where(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "line 2: no 'label', which the first line has"),
        ('{"text": "a", "label": 0.5}\n', r"line 1: column 'label': expected a word .*got 0\.5"),
        ('{"text": "a", "label": NaN}\n', "line 1: column 'label': expected a word .*got nan"),
        ('{"text": 3, "label": "x"}\n', "line 1: column 'text': expected a text, got 3"),
        ('{"text": null, "label": "x"}\n', "line 1: column 'text': expected a text, got None"),
        ('{"text": "\\ud800", "label": "x"}\n', "line 1: column 'text': expected a text"),
        ("[1]\n", "line 1: expected an object"),
        ("{\n", "line 1: not JSON"),
        ("[" * 100_000 + "\n", "line 1: not JSON"),
        ("", "no column 'text'"),
    ],
)
def test_json_lines_that_are_wrong_say_where(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        load(tmp_path / "t.jsonl")


def test_an_unknown_column_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'site'") as caught:
        load(csv_of(tmp_path / "t.csv", ROWS), columns=Columns(domain="site"))
    read = "say which to read: columns.domain of [data] in a recipe, --on RECIPE.toml"
    assert caught.value.hint == f"columns: text, label, domain, name; {read}"


def test_a_label_outside_the_classes_lists_the_classes(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", [*ROWS, ("odd", "fair", "web", "x")])
    with pytest.raises(DataError, match="line 26: label 'fair' is none of the classes") as caught:
        load(path, classes=("good", "bad"))
    assert caught.value.hint == "classes: good, bad"
    assert load(csv_of(path, ROWS), classes=("good", "bad")).labels.tolist()[:12] == [0] * 6 + [1] * 6


def test_a_mistyped_label_says_what_it_may_stand_for(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", [*ROWS, ("odd", "godo", "web", "x")])
    with pytest.raises(DataError, match="line 26: label 'godo' is none of the classes, did you mean 'good'"):
        load(path, classes=("good", "bad"))
    with pytest.raises(DataError, match="different classes: no examples in mail/godo") as caught:
        split(load(path), DataConfig(str(path)))
    assert caught.value.hint == "mistyped? class 'godo' (1) looks like 'good' (12)"


def test_where_one_domain_alone_would_show_it_a_mistyped_label_is_noted(tmp_path: Path) -> None:
    rows = [(f"text {i}", ("good", "bad", "godo")[2 if i == 7 else i % 2]) for i in range(24)]
    path = csv_of(tmp_path / "t.csv", rows, HEAD[:2])
    told = "mistyped? class 'godo' (1) looks like 'good' (12); classes = […] in [data] refuses all others"
    found = load(path)
    assert (found.classes, found.notes) == (("bad", "godo", "good"), (f"{path}: {told}",))
    events: list[Event] = []
    bench = Workbench("cpu", listener=events.append)
    for trial in range(2):
        bench.dataset(DataConfig(str(path), trial=trial))
    assert events == [Noted(f"{path}: {told}")]  # once
    assert load(csv_of(path, [row for row in rows if row[1] != "godo"], HEAD[:2])).notes == ()


def test_a_value_that_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n{"text": 3, "label": "y"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl: line 3: column 'text': expected a text, got 3"):
        load(path)


def test_names_to_split_by_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no names to split by") as caught:
        load(csv_of(tmp_path / "t.csv", [r[:3] for r in ROWS], HEAD[:3]), group="name")
    assert caught.value.hint is not None and "columns.name" in caught.value.hint


def test_amounts_and_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_of(tmp_path / "t.csv", ROWS)
    for module, limit, said in (
        (rows, "MAX_EXAMPLES", "24 examples, expected at most 5"),
        (tables, "MAX_LINE", "line 1: more than 5 characters"),
        (tables, "MAX_FILE", "bytes, expected at most 5"),
    ):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=said):
            patch.setattr(module, limit, 5)
            load(path)
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,x\n")
    with pytest.raises(DataError, match=r"latin\.csv: line \d or after: not UTF-8"):
        load(tmp_path / "latin.csv")


def test_a_text_may_be_longer_than_python_reads_by_itself(tmp_path: Path) -> None:
    long = "so long " * 50_000
    found = load(csv_of(tmp_path / "t.csv", [(long, "a", "d", "n"), ("short", "b", "d", "n")]))
    assert found.inputs([0]) == [long]
