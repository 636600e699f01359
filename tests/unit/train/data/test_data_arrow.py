"""Parquet, and folders that Hugging Face's `datasets` saved: read with PyArrow alone, nothing in them run."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from modelgit.errors import DataError, DependencyMissing
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data.dataset import Dataset, arrays_of
from modelgit.train.data.loading import load_dataset


@pytest.fixture
def saved() -> Path:
    """Returns the folder of what Hugging Face's `datasets` wrote."""
    return Path(__file__).parents[3] / "data" / "saved"


def load(path: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig(str(path), **settings))  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("ending", ["", ".parquet"])
def test_texts_with_names_for_their_labels(ending: str, saved: Path) -> None:
    found = load(saved / f"texts{ending}")
    assert found.kind == "text" and found.classes == ("bad", "apt") and found.domains == ("mail", "web")
    assert found.inputs([0, 3, 11]) == ["text mail 0 0", "text mail 1 0", "text web 1 2"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert found.names[:4] == ("0-0", "0-1", "0-2", "1-0")


@pytest.mark.parametrize("ending", ["", ".parquet"])
def test_arrays_of_several_dimensions_and_names_for_their_domains(ending: str, saved: Path) -> None:
    found = load(saved / f"arrays{ending}")
    assert (found.kind, found.shape) == ("arrays", (2, 3))
    assert found.classes == ("0", "1") and found.domains == ("ink", "rose")
    expected = np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * np.array([7, 2])[:, None, None]
    assert np.array_equal(arrays_of(found, [7, 2]), expected)


@pytest.mark.parametrize("ending", ["", ".parquet"])
def test_pictures(ending: str, saved: Path) -> None:
    found = load(saved / f"pictures{ending}", image_size=16)
    assert (found.kind, found.shape) == ("images", (3, 16, 16))
    assert found.classes == ("red", "blue") and found.domains == ("pictures",)
    assert arrays_of(found, [0, 3]).mean((2, 3)).tolist() == [[200, 0, 0], [0, 0, 201]]


def test_a_folder_and_a_parquet_file_are_one_data_set(saved: Path) -> None:
    for name in ("texts", "arrays", "pictures"):
        assert load(saved / name).digest == load(saved / f"{name}.parquet").digest


def test_a_parquet_file_and_a_csv_are_one_data_set(saved: Path, tmp_path: Path) -> None:
    columns = pyarrow.parquet.read_table(saved / "texts.parquet").to_pydict()
    rows = [f"{t},{('bad', 'apt')[y]},{d},{n}" for t, y, d, n in zip(*columns.values(), strict=True)]
    (tmp_path / "texts.csv").write_text("\n".join([",".join(columns), *rows]))
    assert load(tmp_path / "texts.csv", classes=("bad", "apt")).digest == load(saved / "texts.parquet").digest


def test_of_several_data_sets_in_one_folder_one_is_to_be_named(saved: Path) -> None:
    with pytest.raises(DataError, match="several data sets in one folder") as caught:
        load(saved / "both")
    assert caught.value.hint is not None and str(saved / "both" / "train") in caught.value.hint
    assert len(load(saved / "both" / "train").labels) == 4


@pytest.mark.parametrize("name", ["../arrays/data-00000-of-00001.arrow", "/etc/passwd", "..", "", 3, None])
def test_data_files_are_names_never_paths(name: object, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "texts", tmp_path / "texts")
    (tmp_path / "texts" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="expected a file in the folder"):
        load(tmp_path / "texts")


def test_links_are_not_followed(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "arrays", tmp_path / "arrays")
    file = tmp_path / "arrays" / "data-00000-of-00001.arrow"
    file.unlink()
    file.symlink_to(saved / "arrays" / file.name)
    with pytest.raises(DataError, match="expected a file in the folder"):
        load(tmp_path / "arrays")


def test_a_picture_that_lies_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": None}]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["a", "b"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="example 1: no picture's bytes, a path is not followed"):
        load(tmp_path / "p.parquet")


def test_every_cut_and_turned_byte_of_a_stream_is_an_error_or_the_same_data_set(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "texts", tmp_path / "texts")
    file = tmp_path / "texts" / "data-00000-of-00002.arrow"
    whole, draws = file.read_bytes(), np.random.default_rng(0)
    for place in [*range(0, len(whole), 97), *draws.integers(0, len(whole), 100).tolist()]:
        turned = bytearray(whole)
        turned[place] ^= 0xFF
        for data in (bytes(turned), whole[:place]):
            file.write_bytes(data)
            try:
                found = load(tmp_path / "texts")
            except DataError:
                continue
            assert all(isinstance(text, str) for text in found.inputs(range(len(found.labels))))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [[1.0, 2.0], [3.0]], "y": [0, 1]}, "column 'x': lists of different lengths"),
        ({"x": [[1.0, 2.0], [3.0, None]], "y": [0, 1]}, "column 'x': a value is missing"),
        ({"x": [[1.0, 2.0], [3.0, float("nan")]], "y": [0, 1]}, "example 2: a number that is not finite"),
        ({"x": [1.0, 2.0], "y": [0, 1]}, r"inputs of shape \(2,\)"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "expected texts, lists of numbers, or pictures as bytes"),
        ({"x": [{"a": 1}, {"a": 2}], "y": [0, 1]}, "expected texts, lists of numbers, or pictures as bytes"),
        ({"text": ["a", None], "y": [0, 1]}, "example 2: column 'text': expected a text, got None"),
        ({"text": ["a", "b"], "y": [0, None]}, "example 2: column 'y': expected a word"),
        ({"text": ["a", "b"]}, "no column 'label' or 'labels' or 'y'"),
    ],
)
def test_tables_that_are_wrong_say_where(columns: dict[str, list[object]], said: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=said):
        load(tmp_path / "t.parquet")


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"t\.parquet: not a Parquet file"):
        load(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"state\.json: cannot be read"):
        load(tmp_path, kind="saved")


def test_dictionaries_and_other_columns(tmp_path: Path) -> None:
    table = pyarrow.table({"t": pyarrow.array(["a", "b", "a", "b"]).dictionary_encode(), "k": ["x", "y", "y", "x"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    found = load(tmp_path / "t.parquet", columns=Columns("t", "k"))
    assert found.inputs(range(4)) == ["a", "b", "a", "b"] and found.labels.tolist() == [0, 1, 1, 0]


def test_without_pyarrow_the_package_to_install_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("texts", "texts.parquet"):
        with pytest.raises(DependencyMissing) as caught:
            load(saved / name)
        assert caught.value.hint == "pip install 'modelgit[tables]'"
