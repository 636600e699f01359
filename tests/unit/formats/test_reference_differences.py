"""Where we differ from the reference reader: the list in docs/reference/manifest.md, case by case, and nothing else."""

import json
import struct
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError, deserialize

from modelgit.errors import FormatError
from modelgit.formats.safetensors import Header, parse_header

U8 = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
DOCS = Path(__file__).parents[3] / "docs" / "reference" / "manifest.md"


def file_of(text: str | bytes, data: bytes = b"x") -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def with_field(value: str) -> bytes:
    return file_of(f'{{"a":{U8[:-1]},"later":{value}}}}}')


def named(name: str) -> bytes:
    return file_of(f"{{{json.dumps(name)}:{U8}}}")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# What the reference accepts and we refuse: a word of the table in the docs, the file, a word of our message.
STRICTER = [
    ("comes twice", file_of(f'{{"a":{U8},"a":{U8}}}'), "key 'a' comes twice"),
    ("comes twice", file_of(f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{U8}}}'), "key 'k' comes twice"),
    ("comes twice", with_field('1,"later":2'), "key 'later' comes twice"),
    ("do not show", named("a\x1b[31m"), "control characters"),
    ("do not show", named("a\0"), "control characters"),
    ("do not show", named("a\u200db"), "control characters"),
    ("do not show", named("\u202eb"), "control characters"),
    ("a path", named("../a"), "looks like a path"),
    ("a path", named("/a"), "looks like a path"),
    ("a path", named("\\a"), "looks like a path"),
    ("a path", named("C:\\a"), "looks like a path"),
    ("composed form", named("e\u0301"), "NFC"),
    ("4096 bytes", named("a" * 4097), "1 to 4096 bytes"),
    ("4096 bytes", named(""), "1 to 4096 bytes"),
    ("no integer", with_field("1.5"), "expected integers only, got 1.5"),
    ("white space", file_of(f' {{"a":{U8}}}'), "begins with"),
    ("an array in place of a table", file_of('{"a":["U8",[1],[0,1]]}'), "expected dtype, shape and data_offsets"),
    ("`null`", file_of(f'{{"__metadata__":null,"a":{U8}}}'), "expected a table of strings"),
    ("64 dimensions", file_of(f'{{"a":{U8.replace("[1]", json.dumps([1] * 65))}}}'), "at most 64 integers"),
    ("2⁶³", file_of('{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', b""), "2**63 - 1"),
    ("100 levels", with_field(nested(101)), "nested deeper than 100"),
]
# What both refuse, and a lenient JSON reader would not.
BOTH = [
    file_of('{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}'),
    file_of('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}'),
    file_of('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e0]}}'),
    file_of(f'{{"__metadata__":{{"k":"\\ud800"}},"a":{U8}}}'),
    file_of(f'{{"__metadata__":{{"\\udc00":"v"}},"a":{U8}}}'),
    with_field('"\\ud83d"'),
    with_field(nested(400)),
    with_field("NaN"),
    with_field("-Infinity"),
    with_field("9" * 5000),
    file_of(f'{{"a":{U8},}}'),
    file_of(f"{{'a':{U8}}}"),
    file_of(f'{{"a":{U8}}}//'),
    file_of(b'{"\xff":' + U8.encode() + b"}"),
    file_of(b'{"\xc0\x80":' + U8.encode() + b"}"),
    file_of(b"\xef\xbb\xbf{}", b""),
    file_of(b'{"a\x01":' + U8.encode() + b"}"),
    file_of(f'{{"a":{U8.replace("[1]", "[4294967296,4294967296]")}}}'),
    file_of(f'{{"a":{nested(300)}}}'),
    file_of(f'{{"a":{U8.replace("[0,1]", f"[0,{nested(300)}]")}}}'),
]
# Odd, and accepted by both.
ODD = [
    file_of(f'{{\t"a":\r\n{U8} }}\n \t'),
    with_field(nested(60)),
    with_field('{"a":{"b":[1,2,{"c":null}]},"d":"\\u00e9"}'),
    with_field("9" * 30),
    file_of(f'{{"layer-0.w":{U8}}}'),
    file_of(f'{{"__metadata__":{{"k":"\\ud83d\\ude00"}},"[{{]}}":{U8}}}'),
    file_of(f'{{"a":{U8},"z":{{"dtype":"F64","shape":[0,9],"data_offsets":[0,0]}}}}'),
    file_of('{"a":{"dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}', b""),
]


def ours(content: bytes) -> Header:
    return parse_header(content[: 8 + struct.unpack("<Q", content[:8])[0]], len(content), "m.safetensors")


@pytest.mark.parametrize(("word", "content", "message"), STRICTER, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_though_the_reference_takes_it(word: str, content: bytes, message: str) -> None:
    deserialize(content)  # type: ignore[no-untyped-call]
    with pytest.raises(FormatError) as caught:
        ours(content)
    assert message in caught.value.message
    assert caught.value.message.startswith("m.safetensors: ")
    assert len(caught.value.message) < 1000
    assert word in DOCS.read_text().partition("### Where we are stricter")[2]


@pytest.mark.parametrize("content", BOTH)
def test_refused_by_both(content: bytes) -> None:
    with pytest.raises(SafetensorError):
        deserialize(content)  # type: ignore[no-untyped-call]
    with pytest.raises(FormatError) as caught:
        ours(content)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("content", ODD)
def test_odd_and_accepted_by_both(content: bytes) -> None:
    theirs = {
        name: (told["dtype"], tuple(told["shape"]))
        for name, told in deserialize(content)  # type: ignore[no-untyped-call]
    }
    assert {entry.name: (entry.dtype, entry.shape) for entry in ours(content).tensors} == theirs


@pytest.mark.parametrize("values", ["[],", "0,"])
def test_a_header_of_countless_values_is_refused_before_it_is_parsed(values: str) -> None:
    raw = file_of(f'{{"a":{{"z":[{values * (16_000_001)}0]}}}}', b"")
    before = sys.getallocatedblocks()
    with pytest.raises(FormatError, match="more than 16000000 values"):
        ours(raw)
    assert sys.getallocatedblocks() - before < 10_000
