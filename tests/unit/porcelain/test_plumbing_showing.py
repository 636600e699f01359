"""How weight files are shown by git's diff: numbers up to a limit, then names."""

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import FormatError
from modelgit.formats.manifest import parse, write
from modelgit.porcelain.plumbing.headers import DtypeChange, MetadataChange
from modelgit.porcelain.plumbing.showing import Shown, difference, manifest_of, source_of, text_of
from modelgit.repo.look import hashed
from modelgit.repo.repository import Repository

ONE = np.ones(100, np.float32)


def file(place: Path, **tensors: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Path:
    save_file(tensors, place)
    return place


def nowhere(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "absent", None)


def test_a_file_and_its_manifest_have_one_text(tmp_path: Path) -> None:
    weights = file(tmp_path / "m.safetensors", b=ONE, a=ONE.reshape(10, 10))
    (tmp_path / "manifest").write_text(write(hashed(weights)))
    rows = list(text_of(weights))
    assert rows == list(text_of(tmp_path / "manifest"))
    assert [row.rsplit(" ", 1)[0] for row in rows] == ["header of 128 bytes", "a F32 [10,10]", "b F32 [100]"]
    assert manifest_of(tmp_path / "manifest") == parse((tmp_path / "manifest").read_text(), "")
    assert list(text_of(Path("/dev/null"))) == []
    (tmp_path / "other").write_text("something else")
    with pytest.raises(FormatError):
        list(text_of(tmp_path / "other"))


@pytest.mark.parametrize(("limit", "numbers"), [(0, 1), (399, 1), (401, 2), (10**9, 2)])
def test_numbers_up_to_a_limit_names_beyond(tmp_path: Path, limit: int, numbers: int) -> None:
    repo = nowhere(tmp_path)
    old = source_of(repo, file(tmp_path / "old.safetensors", a=ONE, b=ONE, c=ONE, gone=ONE, shaped=ONE))
    changed = file(tmp_path / "new.safetensors", a=2 * ONE, b=3 * ONE, c=ONE, fresh=ONE, shaped=ONE.reshape(10, 10))
    shown = difference(repo, "m.safetensors", old, source_of(repo, changed), limit)
    assert [(t.name, t.kind) for t in shown.tensors] == [
        ("a", "changed"),
        ("b", "changed"),
        ("fresh", "added"),
        ("gone", "removed"),
        ("shaped", "shape"),
    ]
    found = [t.relative_norm for t in shown.tensors if t.relative_norm is not None]
    assert found == pytest.approx([1.0, 2.0][:numbers])
    assert shown.same == 1
    assert (shown.unread is None) == (numbers == 2 and limit > 800)
    assert all(t.changed_share is None or math.isclose(t.changed_share, 1) for t in shown.tensors)


def test_what_differs_beside_the_values(tmp_path: Path) -> None:
    """Metadata, types, order, and values that are not finite, each told apart from the others."""
    repo = nowhere(tmp_path)
    save_file({"a": ONE, "b": ONE}, tmp_path / "old", {"format": "pt", "epoch": "3"})
    save_file({"a": ONE, "b": ONE}, tmp_path / "told", {"format": "pt", "epoch": "4", "by": "me"})
    save_file({"a": ONE.astype(np.float16), "b": ONE * np.inf}, tmp_path / "half", {"format": "pt", "epoch": "3"})
    raw = (tmp_path / "old").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    (tmp_path / "padded").write_bytes((size + 8).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * 8 + raw[8 + size :])
    ends = {name: source_of(repo, tmp_path / name) for name in ("old", "told", "half", "padded")}
    shown = {name: difference(repo, "m", ends["old"], end) for name, end in ends.items()}
    assert shown["old"] == Shown((), 2)
    assert shown["padded"] == Shown((), 2, rewritten=("m",))
    keys = (MetadataChange("m", "by", None, "me"), MetadataChange("m", "epoch", "3", "4"))
    assert shown["told"] == Shown((), 2, metadata=keys)
    assert shown["half"].dtypes == (DtypeChange("F32", "F16", 1),)
    assert [(t.name, t.old_dtype, t.dtype, t.nan, t.inf) for t in shown["half"].tensors] == [
        ("a", "F32", "F16", 0, 0),
        ("b", "F32", "F32", 0, 100),
    ]
    nothing = source_of(repo, Path("/dev/null"))
    assert [(t.kind, t.inf) for t in difference(repo, "m", nothing, ends["half"]).tensors] == [
        ("added", 0),
        ("added", 100),
    ]
