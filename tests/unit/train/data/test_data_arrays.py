"""Arrays: npz and safetensors alike, what numbers stand for, and files that would harm whoever believed them."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from modelgit.errors import DataError
from modelgit.train.config import Columns, DataConfig
from modelgit.train.data.dataset import Dataset, arrays_of
from modelgit.train.data.loading import load_dataset

Array = npt.NDArray[Any]
X = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
Y = np.array([0, 1] * 4)
DOMAIN = np.array([0] * 4 + [1] * 4)


def load(path: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig(str(path), **settings))  # type: ignore[arg-type]  # by name


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **{"x": X, "y": Y, "domain": DOMAIN, **arrays})  # type: ignore[arg-type]  # arrays by name
    return path


def test_an_npz_and_a_safetensors_file_are_one_data_set(tmp_path: Path) -> None:
    words = {"classes": ["standing", "lying"], "domains": ["ink", "rose"]}
    first = load(npz(tmp_path / "a.npz", classes=np.array(words["classes"]), domains=np.array(words["domains"])))
    metadata = {name: json.dumps(names) for name, names in words.items()}
    save_file({"inputs": X, "labels": Y, "domain": DOMAIN}, tmp_path / "b.safetensors", metadata)
    second = load(tmp_path / "b.safetensors")
    assert first.digest == second.digest
    for found in (first, second):
        assert (found.kind, found.shape) == ("arrays", (12,))
        assert found.classes == ("standing", "lying") and found.domains == ("ink", "rose")
        assert found.labels.tolist() == Y.tolist() and found.domain_ids.tolist() == DOMAIN.tolist()
        assert np.array_equal(arrays_of(found, [7, 0]), X[[7, 0]])


@pytest.mark.parametrize("kind", ["uint8", "float16", "float64", "int32", ">f4"])
def test_bytes_stay_bytes_and_other_numbers_are_given_in_single_precision(kind: str, tmp_path: Path) -> None:
    pictures = np.arange(8 * 2 * 3 * 3).reshape(8, 2, 3, 3).astype(kind)
    found = arrays_of(load(npz(tmp_path / "a.npz", x=pictures)), range(8))
    assert found.dtype == (np.uint8 if kind == "uint8" else np.float32)
    assert found.shape == (8, 2, 3, 3) and np.array_equal(found, pictures)


def test_a_compressed_file_and_words_for_labels(tmp_path: Path) -> None:
    labels = np.array(["b", "a"] * 4)
    np.savez_compressed(tmp_path / "a.npz", x=X, y=labels, name=np.array([f"n{i}" for i in range(8)]))
    found = load(tmp_path / "a.npz", limit_per_class=3)
    assert found.classes == ("a", "b") and found.domains == ("a",) and len(found.names) == 6
    assert [int(name[1:]) for name in found.names] == [int(row[0]) // 12 for row in arrays_of(found, range(6))]


def test_the_digest_follows_numbers_labels_and_domains(tmp_path: Path) -> None:
    changes: list[dict[str, Array]] = [
        {},
        {"x": X + 1},
        {"y": 1 - Y},
        {"domain": 1 - DOMAIN},
        {"x": X.reshape(8, 3, 4)},
    ]
    digests = [load(npz(tmp_path / f"{n}.npz", **change)).digest for n, change in enumerate(changes)]
    assert len(set(digests)) == 5
    assert load(npz(tmp_path / "again.npz")).digest == digests[0]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X.astype(object)}, r"type object, expected numbers or text"),
        ({"y": np.array(["a", 1], object)}, "type object, expected numbers or text"),
        ({"x": X.astype(complex)}, "type complex128, expected numbers"),
        ({"x": X[:, 0]}, r"inputs of shape \(8,\), expected \(examples, …\)"),
        ({"x": X[:, :0]}, r"inputs of shape \(8, 0\)"),
        ({"x": np.array([["a"] * 2] * 8)}, "inputs of type <U1, expected numbers"),
        ({"y": Y[:5]}, r"array 'y': shape \(5,\), expected \(8,\) as there are inputs"),
        ({"y": Y + 0.5}, "example 1: column 'y': expected a word or a whole number"),
        ({"y": Y * 2, "classes": np.array(["a", "b"])}, "example 2: label '2' is none of the classes"),
        ({"domains": np.array(["p", "q", "r"])}, "domain 'r' is empty, expected examples of 2 classes"),
        ({"classes": np.array(["a", "a"])}, "array 'classes': a name stands there twice"),
        ({"classes": np.array([1, 2])}, "array 'classes': expected a list of names"),
        ({"x": np.where(X == 40, np.nan, X)}, "example 4: a number that is not finite"),
        ({"x": np.where(X == 80, 1e300, X.astype(float))}, "example 7: a number that is not finite"),
    ],
)
def test_arrays_that_are_wrong_say_where(arrays: dict[str, Array], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(npz(tmp_path / "a.npz", **arrays))


def test_an_unknown_array_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'z'") as caught:
        load(npz(tmp_path / "a.npz"), columns=Columns(input="z"))
    read = "say which to read: columns.input of [data] in a recipe, --on RECIPE.toml"
    assert caught.value.hint == f"columns: x, y, domain; {read}"


class Marker:
    """What a pickle that ran would leave."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]  # a path is what touch takes


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": (8,)})
    out.write(pickle.dumps([Marker(tmp_path / "ran")]))
    with zipfile.ZipFile(npz(tmp_path / "a.npz"), "a") as archive:
        archive.writestr("name.npy", out.getvalue())
    with pytest.raises(DataError, match="'name': type object"):
        load(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000, 1000000)}",  # 16 TB in a few bytes
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-8, -12)}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (99999999999, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 12",
        "(" * 2000,
        "__import__('os').system('true')",
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_made(header: str, tmp_path: Path) -> None:
    magic = np.lib.format.magic(2, 0)
    data = magic + len(header).to_bytes(4, "little") + header.encode() + X.tobytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
        archive.writestr("y.npy", b"")
    with pytest.raises(DataError, match=r"a\.npz: array 'x'"):
        load(tmp_path / "a.npz")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    whole = path.read_bytes()
    for name, data in (("cut.npz", whole[:200]), ("turned.npz", whole[:300] + b"!!!!" + whole[304:])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            load(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match=r"cut\.safetensors: truncated"):
        load(tmp_path / "cut.safetensors")


def test_types_that_numpy_lacks_are_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    save_tensors(
        {"x": torch.zeros(4, 3, dtype=torch.bfloat16), "y": torch.tensor([0, 1, 0, 1])}, tmp_path / "a.safetensors"
    )
    with pytest.raises(DataError, match="array 'x': type BF16"):
        load(tmp_path / "a.safetensors")
