"""Small checkpoints that ask for a great deal: refused at once, with little memory and a short message."""

import io
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from modelgit.errors import FormatError
from modelgit.formats import torch_pickle
from modelgit.formats.torch_zip import LEGACY_MAGIC, LEGACY_PROTOCOL, TorchFile

NESTED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of itself twice, sixty deep: 2^60 when printed
TEXT = b"X\x01\x00\x00\x00"


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as found:
        for name, data in {"a/data.pkl": program, **(members or {})}.items():
            found.writestr(name, data)
    return path


@contextmanager
def refused(says: str, *, mib: int = 64) -> Iterator[None]:
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=says) as caught:
            yield
        assert tracemalloc.get_traced_memory()[1] < mib << 20
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 2000
    assert time.process_time() - start < 20


def storage(kind: bytes, elements: bytes = b"K\x04") -> bytes:
    return b"(" + kind + b"ctorch\nFloatStorage\n" + TEXT + b"0" + TEXT + b"c" + elements + b"tQ"


PLAIN = storage(TEXT.replace(b"\x01", b"\x07") + b"storage")
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (storage(NESTED), "persistent id"),
        (REBUILD + PLAIN + b"K\x00K\x04\x85K\x01\x85\x89}" + NESTED + b"tR", "metadata"),
        (b"}" + NESTED + b"K\x01s", "a dict key is a tuple"),
        (b"}\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"K\x01s", "a dict key is a number of 32767 bits"),
        (REBUILD + PLAIN + b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096, "expected a dict of tensors"),
        (REBUILD + PLAIN + b"K\x00(" + b"K\x01" * 65 + b"t", "expected a dict of tensors"),
        (b"ctorch\nSize\n(" + b"K\x01" * 65 + b"t\x85R", "at most 64 dimensions, got 65"),
        (b"ctorch\nSize\n(\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"t\x85R", "a number of 32767 bits"),
    ],
)
def test_what_would_print_or_count_without_end(tmp_path: Path, program: bytes, says: str) -> None:
    path = archive(tmp_path / "a.pt", b"\x80\x02" + program + b".", {"a/data/0": bytes(16)})
    with refused(says):
        TorchFile(path)


def test_a_list_made_into_dicts_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 50_000)
    pair = TEXT + b"aK\x01"
    items = b"](" + b"".join(b"](" + pair + b"e" for _ in range(1000)) + b"eq\x01"
    again = b"ccollections\nOrderedDict\nq\x02" + b"h\x02h\x01\x85R" * 10_000
    with refused("copies more than 50000 items"):
        TorchFile(archive(tmp_path / "a.pt", b"\x80\x02" + items + again + b"."))


def test_too_many_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 50_000)
    with refused("more than 50000 opcodes"):
        TorchFile(archive(tmp_path / "a.pt", b"\x80\x02" + b"N" * 50_010 + b"."))


def test_one_storage_in_the_name_of_a_thousand_tensors(tmp_path: Path) -> None:
    large = torch.zeros(100_000)
    torch.save({f"t{i}": large for i in range(1000)}, tmp_path / "a.pt")
    with refused("expected at most 16 times that"):
        TorchFile(tmp_path / "a.pt")
    torch.save({f"t{i}": large for i in range(10)}, tmp_path / "b.pt")
    with TorchFile(tmp_path / "b.pt") as found:
        assert len(found.names()) == 10


def test_bombs_in_the_older_container(tmp_path: Path) -> None:
    begin = [pickle.dumps(LEGACY_MAGIC, 2), pickle.dumps(LEGACY_PROTOCOL, 2)]
    bomb = b"\x80\x02" + NESTED + b"."
    system = pickle.dumps({"little_endian": True}, 2)
    for parts, says in (
        ([begin[0], bomb, system], "legacy protocol"),
        ([*begin, system, pickle.dumps({}, 2), b"\x80\x02](" + NESTED + b"e."], "storage keys"),
        ([*begin, system, bomb, pickle.dumps([], 2)], "expected a dict of tensors"),
    ):
        (tmp_path / "a.pt").write_bytes(b"".join(parts))
        with refused(says):
            TorchFile(tmp_path / "a.pt")


def test_an_archive_with_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as found:
        found.writestr("a/data.pkl", bytes((64 << 20) + 1))
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    with refused("data.pkl has 67108865 bytes, more than 67108864"):
        TorchFile(tmp_path / "a.pt")
