"""Headers against the reference reader: what it wrote comes back, what it refuses we refuse, whatever the bytes."""

import json
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.safetensors import Header, build_header, check_name, parse_header

QUICK = settings(max_examples=150, deadline=None, derandomize=True)
WHOLE = sorted(name for name, row in DTYPES.items() if row.bits % 8 == 0)
NUMPY = {name: np.dtype(row.numpy) for name, row in DTYPES.items() if row.numpy is not None}

Row = tuple[str, str, tuple[int, ...]]


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


def may_be(name: str) -> bool:
    try:
        check_name(name)
    except FormatError:
        return False
    return True


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(may_be)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPE_SHAPES = st.one_of(
    st.tuples(st.sampled_from(WHOLE), SHAPES),
    st.tuples(st.just("F4"), SHAPES.map(lambda shape: (*shape, 2))),
    st.tuples(st.sampled_from(["F6_E2M3", "F6_E3M2"]), SHAPES.map(lambda shape: (*shape, 4))),
)
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(NAMES, DTYPE_SHAPES).map(lambda pair: (pair[0], *pair[1])), max_size=6, unique_by=lambda row: row[0]
)


def data_of(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def file_of(table: object, data: bytes, pad: bytes = b"") -> bytes:
    text = json.dumps(table, ensure_ascii=False).encode() + pad
    return struct.pack("<Q", len(text)) + text + data


def parsed(content: bytes) -> Header:
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    return parse_header(content[: 8 + min(length, len(content))], len(content), "m.safetensors")


def ours(content: bytes) -> list[tuple[str, str, list[int], bytes]] | None:
    try:
        header = parsed(content)
    except FormatError:
        return None
    start = header.data_start
    return sorted((t.name, t.dtype, list(t.shape), content[start + t.start : start + t.end]) for t in header.tensors)


def theirs(content: bytes) -> list[tuple[str, str, list[int], bytes]] | None:
    try:
        tensors = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError:
        return None
    return sorted((name, t["dtype"], list(t["shape"]), bytes(t["data"])) for name, t in tensors)


def laid_out(rows: Sequence[Row]) -> tuple[dict[str, dict[str, object]], bytes]:
    """Returns the header's table with the tensors in the order of `rows`, and the data area."""
    table: dict[str, dict[str, object]] = {}
    position = 0
    for name, dtype, shape in rows:
        end = position + size_bytes(dtype, shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return table, data_of(position)


@QUICK
@given(
    rows=ROWS, order=st.randoms(use_true_random=False), pad=st.integers(0, 9), last=st.booleans(), extra=st.booleans()
)
def test_odd_but_valid_files_are_read_as_the_reference_reads_them(
    rows: list[Row], order: object, pad: int, last: bool, extra: bool
) -> None:
    table, data = laid_out(rows)
    names = list(table)
    order.shuffle(names)  # type: ignore[attr-defined]
    shuffled: dict[str, object] = {n: {**table[n], **({"later": ["field", 1]} if extra else {})} for n in names}
    note: dict[str, object] = {"__metadata__": {"format": "pt", "k": "ü"}}
    content = file_of({**shuffled, **note} if last else {**note, **shuffled}, data, b" " * pad)
    header = parsed(content)
    assert header.raw + content[header.data_start :] == content
    assert header.size_bytes == len(content)
    assert header.metadata == {"format": "pt", "k": "ü"}
    assert ours(content) == theirs(content)


@QUICK
@given(rows=ROWS, metadata=st.dictionaries(NAMES, st.text(max_size=8), max_size=1))
def test_a_built_header_is_the_reference_writers(rows: list[Row], metadata: dict[str, str]) -> None:
    known = [row for row in rows if row[1] in NUMPY]
    header = build_header(known, metadata)
    written = save({name: np.zeros(shape, NUMPY[dtype]) for name, dtype, shape in known}, metadata or None)
    assert header.raw == written[: header.data_start]
    assert header.size_bytes == len(written)
    assert parsed(written) == header


@QUICK
@given(rows=ROWS, metadata=st.dictionaries(NAMES, st.text(max_size=8), max_size=3))
def test_a_built_header_is_read_back(rows: list[Row], metadata: dict[str, str]) -> None:
    header = build_header(rows, metadata)
    assert parse_header(header.raw, header.size_bytes, "m") == header
    assert sorted((t.name, t.dtype, t.shape) for t in header.tensors) == sorted(rows)
    assert header.data_start % 8 == 0


@QUICK
@given(
    rows=ROWS.filter(len),
    field=st.sampled_from(["dtype", "shape", "start", "end", "cut", "more", "pad"]),
    amount=st.integers(1, 9),
    choice=st.integers(0, 5),
)
def test_one_wrong_field_is_judged_as_the_reference_judges_it(
    rows: list[Row], field: str, amount: int, choice: int
) -> None:
    table, data = laid_out(rows)
    entry = table[rows[choice % len(rows)][0]]
    start, end = entry["data_offsets"]  # type: ignore[misc]
    pad = b""
    if field == "dtype":
        entry["dtype"] = sorted(DTYPES)[amount]
    elif field == "shape":
        entry["shape"] = [*entry["shape"], amount]  # type: ignore[misc]
    elif field == "start":
        entry["data_offsets"] = [start + amount, end]  # type: ignore[has-type]
    elif field == "end":
        entry["data_offsets"] = [start, end + amount]  # type: ignore[has-type]
    elif field == "pad":
        pad = b"\0" * amount
    else:
        data = data[:-amount] if field == "cut" else data + b"x" * amount
    content = file_of(table, data, pad)
    assert ours(content) == theirs(content)


@QUICK
@given(rows=ROWS, flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
@example(rows=[], flips=[(7, 255)])
def test_damaged_bytes_are_never_read_more_kindly_than_by_the_reference(
    rows: list[Row], flips: list[tuple[int, int]]
) -> None:
    content = bytearray(file_of(*laid_out(rows)))
    for place, value in flips:
        content[place % len(content)] = value
    mine = ours(bytes(content))
    assert mine is None or mine == theirs(bytes(content))


@QUICK
@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused_with_our_own_error(content: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parsed(content)
    assert caught.value.message.startswith("m.safetensors: ")


@QUICK
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)))
def test_arbitrary_json_is_never_read_more_kindly_than_by_the_reference(value: object) -> None:
    content = file_of({"a": value, "__metadata__": value} if not isinstance(value, dict) else value, b"")
    mine = ours(content)
    assert mine is None or mine == theirs(content)


@pytest.mark.parametrize("depth", [10, 200, 5_000, 200_000])
def test_deep_nesting_ends_in_our_own_error_or_is_ignored_as_an_unknown_field(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    text = f'{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"z":{deep}}}}}'.encode()
    content = struct.pack("<Q", len(text)) + text + b"x"
    mine = ours(content)
    assert mine in (None, [("a", "U8", [1], b"x")])
    assert depth < 5_000 or mine is None


def test_a_header_over_the_limit_is_refused_before_it_is_read() -> None:
    prefix = struct.pack("<Q", 100_000_001)
    with pytest.raises(FormatError, match="header of 100000001 bytes, expected at most 100000000"):
        parse_header(prefix, 200_000_000, "m")
    assert theirs(prefix + b"{}") is None
