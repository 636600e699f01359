"""Headers: what the reference writes is read and rebuilt; everything odd and dangerous is refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from modelgit.errors import FormatError
from modelgit.formats.safetensors import TensorSpan, build_header, parse_header, read_header


def file_of(table: object, data: bytes = b"", pad: bytes = b"") -> bytes:
    text = (table if isinstance(table, str) else json.dumps(table)).encode() + pad
    return struct.pack("<Q", len(text)) + text + data


def parse(content: bytes) -> object:
    length = struct.unpack("<Q", content[:8])[0]
    return parse_header(content[: 8 + length], len(content), "m.safetensors")


def span(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
TYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32,
         torch.float64, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


def test_reads_and_rebuilds_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = {f'{i}.{"b" if i % 2 else "a"} ü"': torch.zeros(3, 2).to(t) for i, t in enumerate(TYPES)}
    content = save(
        {**tensors, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}, {"format": "pt"}
    )  # several keys it writes in random order
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    header = read_header(path)
    assert header.size_bytes == len(content)
    assert {s.name for s in header.tensors} == {*tensors, "scalar", "empty"}
    again = build_header([(s.name, s.dtype, s.shape) for s in header.tensors][::-1], header.metadata)
    assert again.raw == content[: header.data_start]


@pytest.mark.parametrize(
    "content",
    [
        file_of({"a": span(0, 2)}, b"xy", pad=b"   "),
        file_of({"b": span(1, 3), "a": span(0, 1)}, b"xyz"),
        file_of({"a": span(0, 4, [], "F32"), "__metadata__": {"k": "v"}}, b"abcd"),
        file_of({"a": span(0, 1), "odd": span(1, 5, [1], "F32")}, b"abcde"),
        file_of({"z": span(0, 0, [0, 7], "F32"), "a": span(0, 1)}, b"x"),
        file_of({"a": {**span(0, 1), "later": "field"}}, b"x"),
        file_of({"a": span(0, 1, [2], "F4")}, b"x"),
        file_of({}),
    ],
    ids=[
        "padding",
        "header order",
        "metadata last",
        "misaligned",
        "empty tensor",
        "unknown field",
        "half bytes",
        "no tensors",
    ],
)
def test_accepts_the_odd_but_harmless(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    header = read_header(path)
    assert header.raw + content[header.data_start :] == content


def test_tensors_come_in_data_order() -> None:
    header = parse_header(
        *(lambda c: (c[: 8 + struct.unpack("<Q", c[:8])[0]], len(c)))(
            file_of({"b": span(1, 3), "a": span(0, 1)}, b"xyz")
        ),
        "m",
    )
    assert header.tensors == (TensorSpan("a", "U8", (1,), 0, 1), TensorSpan("b", "U8", (2,), 1, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, expected a header of at least 8"),
        (b"\x00" * 7, "7 bytes, expected a header of at least 8"),
        (struct.pack("<Q", 2**63) + b"{}", "expected at most 100000000"),
        (struct.pack("<Q", 50) + b"{}", "truncated: header of 50 bytes in a file of 10"),
        (file_of("[]"), "expected a JSON object"),
        (file_of(" {}"), "begins with"),
        (file_of('{"a":1', b""), "not valid JSON"),
        (file_of("{}", pad=b"\x00"), "not valid JSON"),
        (file_of('{"a":' + "[" * 100000), "not valid JSON"),
        (file_of('{"a":NaN}'), "expected integers only"),
        (file_of('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"x"), "expected integers only"),
        (file_of('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"x"), "shape: expected integers"),
        (file_of('{"a":' + ONE + ',"a":' + ONE + "}", b"x"), "'a' comes twice"),
        (file_of({"__metadata__": {"k": 1}}), "expected a table of strings"),
        (file_of({"a": span(0, 2)}, b"x"), "truncated: the header describes 2 bytes of tensors, the file holds 1"),
        (file_of({"a": span(0, 1)}, b"xyz"), "2 bytes after the last tensor"),
        (file_of({"a": span(0, 2), "b": span(1, 3)}, b"xyz"), "overlaps"),
        (file_of({"a": span(0, 1), "b": span(2, 3)}, b"xyz"), "leaves a hole"),
        (file_of({"a": span(0, 3, [4])}, b"xyz"), "expected 4 bytes for U8"),
        (file_of({"a": span(0, 1, [2**62, 2**62])}, b"x"), "more than"),
        (file_of({"a": span(0, 1, [2**64])}, b"x"), "expected integers from 0"),
        (file_of({"a": span(0, 1, [-1])}, b"x"), "expected integers from 0"),
        (file_of({"a": span(0, 1, [3], "F4")}, b"x"), "fill no whole number of bytes"),
        (file_of({"a": span(0, 1, dtype="Q8")}, b"x"), "unknown dtype 'Q8'"),
        (file_of({"a": {"dtype": "U8"}}), "expected dtype, shape and data_offsets"),
        (file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1]}}, b"x"), "data_offsets: expected"),
        (file_of({"../../x": span(0, 1)}, b"x"), "looks like a path"),
        (file_of({"/etc/x": span(0, 1)}, b"x"), "looks like a path"),
        (file_of({"a\\..\\b": span(0, 1)}, b"x"), "looks like a path"),
        (file_of({"a\u001b[31m": span(0, 1)}, b"x"), "control characters"),
        (file_of({"a\u0000": span(0, 1)}, b"x"), "control characters"),
        (file_of({"\u202ea": span(0, 1)}, b"x"), "control characters"),
        (file_of({"": span(0, 1)}, b"x"), "expected 1 to 4096 bytes"),
        (file_of({"x" * 5000: span(0, 1)}, b"x"), "expected 1 to 4096 bytes"),
        (file_of('{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "not valid Unicode"),
        (file_of({"e\u0301": span(0, 1)}, b"x"), "composed form"),
    ],
)  # fmt: skip
def test_refuses_and_says_what_was_expected(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message.replace("[", r"\[")) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 12


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read: No such file"):
        read_header(tmp_path / "none")


def test_building_refuses_bad_names_and_twins() -> None:
    with pytest.raises(FormatError, match="looks like a path"):
        build_header([("../x", "U8", (1,))], {})
    with pytest.raises(FormatError, match="two tensors of one name"):
        build_header([("x", "U8", (1,)), ("x", "U8", (1,))], {})
