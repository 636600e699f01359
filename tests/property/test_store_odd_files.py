"""Weight files written by hand, as oddly as the format allows, come back from the store byte for byte."""

import json
import random
import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.manifest import Manifest, parse, write
from modelgit.store.backend import MemoryBackend
from modelgit.store.files.intake import store_file
from modelgit.store.files.materialise import materialise
from modelgit.store.objects import ObjectStore

ODD = settings(max_examples=60, deadline=None, derandomize=True)
WHOLE = [name for name, row in sorted(DTYPES.items()) if row.bits % 8 == 0]
SIZES = st.sampled_from([0, 1, 2, 3, 7, 100, 9000, 70_001])
SHAPES: st.SearchStrategy[tuple[int, ...]] = st.one_of(st.just(()), SIZES.map(lambda n: (n,)), st.just((2, 0, 3)))
ROW: st.SearchStrategy[tuple[str, tuple[int, ...]]] = st.one_of(
    st.tuples(st.sampled_from(WHOLE), SHAPES),
    st.tuples(st.sampled_from(["F4", "F6_E2M3", "F6_E3M2"]), SIZES.map(lambda n: (n, 4))),
)


@st.composite
def weight_files(draw: st.DrawFn) -> bytes:
    """Return a file with its table in one order, its data in another, and spaces where nobody puts them."""
    rows = draw(st.lists(ROW, max_size=6))
    seed = draw(st.integers(0, 99))
    names = [f'layer.{i} ü"{"x" * (i % 3)}' for i in range(len(rows))]
    spans, position = dict[str, object](), 0
    for name, (dtype, shape) in zip(names, rows, strict=True):
        end = position + size_bytes(dtype, shape)
        spans[name] = {"shape": list(shape), "data_offsets": [position, end], "dtype": dtype}
        position = end
    listed = list(spans.items())
    random.Random(seed).shuffle(listed)
    notes: list[dict[str, object]] = [{}, {"__metadata__": {}}, {"__metadata__": {"format": "pt", "é": "\n"}}]
    note = draw(st.sampled_from(notes))
    table = {**dict(listed), **note} if draw(st.booleans()) else {**note, **dict(listed)}
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (",\n\t", " :\r\n")]))
    text = json.dumps(table, ensure_ascii=draw(st.booleans()), separators=separators).encode()
    text += draw(st.sampled_from([b"", b" ", b"   ", b"\n", b" " * 500]))
    return struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(position)


def stored(store: ObjectStore, path: Path, parent: Manifest | None = None) -> Manifest:
    with store.begin() as pack:
        manifest = store_file(pack, path, parent)
        pack.commit()
    return manifest


@ODD
@given(weight_files(), st.integers(0, 99))
def test_odd_files_come_back_byte_for_byte(content: bytes, seed: int) -> None:
    deserialize(content)  # type: ignore[no-untyped-call]
    header = 8 + struct.unpack("<Q", content[:8])[0]
    tuned = bytearray(content)
    for at in random.Random(seed).sample(range(header, len(content)), min(50, len(content) - header)):
        tuned[at] ^= 1
    with tempfile.TemporaryDirectory() as folder:
        place, store = Path(folder) / "m.safetensors", ObjectStore(MemoryBackend(), threads=1)
        place.write_bytes(content)
        first = stored(store, place)
        place.write_bytes(tuned)
        second = stored(store, place, first)
        assert parse(write(first), "m") == first
        for manifest, expected in ((first, content), (second, bytes(tuned))):
            materialise(store, manifest, place)
            assert place.read_bytes() == expected
    assert store.fsck(full=True).problems == ()
