"""Every implementation of the transforms gives the same frames, and every frame gives its data back."""

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from modelgit.errors import CorruptObject
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.buffers import TOOLS
from modelgit.store.codec.compiled import load_compiled
from modelgit.store.codec.reference import NumpyTransforms
from modelgit.store.codec.transforms import Coded, Residuals, Transforms

COMPILED, NARROW = load_compiled(), load_compiled(wide=False)
IMPLEMENTATIONS: list[Transforms] = [NumpyTransforms(), *(found for found in (COMPILED, NARROW) if found)]
NAMES = ["numpy", "compiled", "compiled, one at a time"][: len(IMPLEMENTATIONS)]
implementations = pytest.mark.parametrize("tools", IMPLEMENTATIONS, ids=NAMES)
widths = pytest.mark.parametrize("width", [1, 2, 4, 8])
FLOATS = {2: "<f2", 4: "<f4", 8: "<f8"}


def weights(width: int, count: int, seed: int = 0, drift: float = 0.0) -> Bytes:
    """Return `count` normal weights as raw bytes; `drift` moves each a little."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.02, count)
    if drift:
        values = values + np.random.default_rng(seed + 1).normal(0, drift, count)
    if width == 1:
        return np.clip(values * 1000 + 128, 0, 255).astype(np.uint8)
    return values.astype(FLOATS[width]).view(np.uint8)


CASES: dict[str, Callable[[int, int], Bytes]] = {
    "weights": weights,
    "zeros": lambda width, count: np.zeros(width * count, np.uint8),
    "noise": lambda width, count: np.random.default_rng(3).integers(0, 256, width * count, np.uint8),
    "sparse": lambda width, count: (np.random.default_rng(4).random(width * count) > 0.99).astype(np.uint8),
    "ones": lambda width, count: np.full(width * count, 255, np.uint8),
}
cases = pytest.mark.parametrize("case", sorted(CASES))
counts = pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 1000, 40_000])


@implementations
@widths
@cases
@counts
def test_full_round_trip(tools: Transforms, width: int, case: str, count: int) -> None:
    data = CASES[case](width, count)
    into = np.empty_like(data)
    codec.decode_full(memoryview(b"".join(codec.encode_full(data, width, tools))), width, into, tools)
    assert into.tobytes() == data.tobytes()


@implementations
@widths
@cases
@counts
def test_delta_round_trip(tools: Transforms, width: int, case: str, count: int) -> None:
    data, parent = CASES[case](width, count), weights(width, count, seed=9)
    stored = memoryview(b"".join(differences.encode_delta(data, parent, width, tools)))
    into, apart, before = parent.copy(), np.empty_like(parent), parent.tobytes()
    differences.decode_delta(stored, width, into, tools)
    assert into.tobytes() == data.tobytes()
    differences.decode_delta(stored, width, apart, tools, parent=parent)
    assert apart.tobytes() == data.tobytes() and parent.tobytes() == before


@pytest.mark.skipif(COMPILED is None, reason="the kernel is not built")
@widths
@cases
@counts
def test_compiled_gives_the_reference_bytes(width: int, case: str, count: int) -> None:
    data, parent = CASES[case](width, count), weights(width, count, seed=9)
    full = [b"".join(codec.encode_full(data, width, tools)) for tools in IMPLEMENTATIONS]
    delta = [b"".join(differences.encode_delta(data, parent, width, tools)) for tools in IMPLEMENTATIONS]
    assert len(set(full)) == len(set(delta)) == 1


@implementations
def test_the_residuals_of_known_elements(tools: Transforms) -> None:
    parent = np.arange(130, dtype=np.uint16) << np.uint16(7)
    child = parent.copy()
    child[[64, 65, 66, 127]] += np.array([1, 0xFFFF, 100, 8], np.uint16)  # + 1, - 1, + 100, + 8
    found = tools.residuals(2, child.view(np.uint8), parent.view(np.uint8))
    assert found.active.tolist() == [0, 1, 0]
    assert found.keys.tolist() == list(range(64, 128))
    # zigzag 2, 1, 200 = 110|01000 in binary: highest bit 7, two below 10; 16 = 100|00: highest bit 4, two below 00
    assert found.tokens[:3].tolist() == [2, 1, 16 + 4 * 3 + 2]
    assert found.tokens[3:].tolist() == [0] * 60 + [16]
    assert found.bits.tolist() == [0b00_01000]  # five raw bits of the one, two of the other, the lowest first


@implementations
@widths
def test_tokens_count_up_with_the_difference(tools: Transforms, width: int) -> None:
    limit = (1 << 8 * width) - 1
    zigzags = sorted({z for high in range(8 * width) for low in range(-9, 9) if 0 < (z := (1 << high) + low) <= limit})
    steps = [-(z + 1) // 2 if z & 1 else z // 2 for z in [*zigzags, limit]]
    child = np.array([step % (limit + 1) for step in steps], f"<u{width}").view(np.uint8)
    tokens = tools.residuals(width, child, np.zeros_like(child)).tokens.tolist()
    assert tokens == sorted(tokens)
    assert tokens[:15] == list(range(1, 16))
    assert tokens[-1] == 32 * width - 1


@implementations
@pytest.mark.parametrize("count", [10, 5000, 40_001])
def test_coded_tokens_take_what_their_entropy_says(tools: Transforms, count: int) -> None:
    rng = np.random.default_rng(5)
    tokens = np.minimum(rng.geometric(0.6, count) - 1, 15).astype(np.uint8)
    keys = rng.integers(100, 104, count).astype(np.uint8)
    empty = np.empty(0, np.uint8)
    residuals = Residuals(np.ones(-(-count // 64), np.uint8), tokens, keys, empty)
    counted = tools.count(2, residuals)
    assert counted.shape == (256, 64)
    assert counted.sum() == count
    assert counted[101, 0] == ((keys == 101) & (tokens == 0)).sum()
    coded = tools.encode(2, residuals, differences.model_of(counted), 256)
    assert len(coded.states) == 256
    share = np.bincount(tokens) / count
    entropy_bits = -(share[share > 0] * np.log2(share[share > 0])).sum() * count
    assert 16 * len(coded.words) <= 1.01 * entropy_bits + 40


@implementations
@pytest.mark.parametrize("wrong", ["words", "fewer words", "states", "bits"])
def test_words_that_do_not_fit_are_noticed(tools: Transforms, wrong: str) -> None:
    data, parent = weights(4, 30_000), weights(4, 30_000, seed=9)
    stored = b"".join(differences.encode_delta(data, parent, 4, tools))
    found = differences.parse_frame(memoryview(stored), 4, 30_000)
    words, states = found.coded.words.copy(), found.coded.states.copy()
    words[len(words) // 2] ^= wrong == "words"
    states[7] ^= wrong == "states"
    kept = Coded(states, words[: len(words) - (wrong == "fewer words")])
    into = parent.copy()
    bits = found.bits[: len(found.bits) - (wrong == "bits")]
    assert not tools.apply(4, into, into, replace(found, coded=kept, bits=bits))


def test_contexts_at_the_ends_share_until_they_are_enough() -> None:
    counts = np.zeros((256, 64), np.uint32)
    counts[10, 0], counts[50, 1], counts[60, 2], counts[70, 3], counts[90, 4] = 3, 2000, 5, 3000, 4
    model = differences.model_of(counts)
    assert (model.first, model.last) == (50, 70)
    assert model.frequencies.sum(axis=1).tolist() == [4096] * 21
    assert model.frequencies[0, :2].tolist() == [6, 4090]
    assert model.frequencies[10, 2] == 4096
    assert model.frequencies[1, 0] == 4096  # keys that never come
    assert model.frequencies[20, 3:5].tolist() == [4091, 5]


@implementations
def test_the_bit_planes_of_known_bytes(tools: Transforms) -> None:
    plane = np.array([1, 0, 1, 0, 0, 0, 0, 128], np.uint8)
    bits = np.empty((8, 1), np.uint8)
    tools.bits_split(plane, bits)
    assert bits.reshape(-1).tolist() == [0b101, 0, 0, 0, 0, 0, 0, 0b10000000]
    back = np.empty(8, np.uint8)
    tools.bits_join(bits, back)
    assert back.tolist() == plane.tolist()


@widths
def test_misaligned_data_is_encoded_the_same(width: int) -> None:
    data = weights(width, 5000)
    shifted = np.empty(len(data) + 1, np.uint8)[1:]
    shifted[:] = data
    assert b"".join(codec.encode_full(shifted, width)) == b"".join(codec.encode_full(data, width))


def test_weights_shrink_to_the_measured_share() -> None:
    count = 1 << 20
    parent = (weights(4, count).view("<u4") >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    child = (weights(4, count, drift=1e-4).view("<u4") >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    full = codec.total_bytes(codec.encode_full(parent, 2)) / len(parent)
    delta = codec.total_bytes(differences.encode_delta(child, parent, 2)) / len(child)
    assert 0.64 < full < 0.68
    assert delta < 0.2
    assert differences.delta_pays(child, parent, 2)
    assert not differences.delta_pays(np.random.default_rng(1).permutation(child.view("<u2")).view(np.uint8), parent, 2)


@widths
def test_a_child_that_equals_its_parent_takes_a_few_bytes(width: int) -> None:
    parent = weights(width, 4000)
    into = parent.copy()
    stored = b"".join(differences.encode_same())
    assert stored == b"\0"
    assert stored == b"".join(differences.encode_delta(parent, parent, width))
    differences.decode_delta(memoryview(stored), width, into)
    assert into.tobytes() == parent.tobytes()


def frame(kinds: list[int], parts: list[bytes]) -> memoryview:
    head = struct.pack(f"<{len(kinds)}B{len(kinds)}I", *kinds, *(len(part) for part in parts))
    return memoryview(head + b"".join(parts))


BOMB = TOOLS.general.compress(bytes(1 << 20))


@pytest.mark.parametrize(
    "stored",
    [
        memoryview(b""),
        memoryview(b"\0" * 9),
        frame([0, 0], [b"x" * 16, b"x" * 15]),
        frame([2, 2], [b"ab", b"a"]),
        frame([9, 2], [b"a", b"a"]),
        frame([1, 2], [b"not zstd", b"a"]),
        frame([1, 2], [BOMB, b"a"]),
        frame([3, 2], [b"short", b"a"]),
        frame([3, 2], [bytes([3] * 8) + struct.pack("<8I", *[0] * 8), b"a"]),
        memoryview(bytes(frame([2, 2], [b"a", b"a"])) + b"tail"),
    ],
)
def test_malformed_frames_are_refused(stored: memoryview) -> None:
    with pytest.raises(CorruptObject):
        codec.decode_full(stored, 2, np.empty(32, np.uint8))


def test_a_zstd_frame_of_another_length_is_refused_before_it_is_decoded() -> None:
    stored = frame([1, 2], [BOMB, b"a"])
    with pytest.raises(CorruptObject, match="declares 1048576 bytes, expected 16"):
        codec.decode_full(stored, 2, np.empty(32, np.uint8))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 8, 12, 16, 200, -1])
def test_a_difference_with_any_byte_changed_is_refused_or_of_no_account(at: int) -> None:
    data, parent = weights(2, 20_000), weights(2, 20_000, seed=9)
    stored = bytearray(b"".join(differences.encode_delta(data, parent, 2)))
    stored[at] ^= 0x40
    results = set[bytes | str]()
    for tools in IMPLEMENTATIONS:
        into = parent.copy()
        try:
            differences.decode_delta(memoryview(stored), 2, into, tools)
            results.add(into.tobytes())
        except CorruptObject:
            results.add("refused")
    assert len(results) == 1


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\1",
        b"\2" + bytes(15),
        differences.HEAD.pack(1, 9, 8, 0, 0, 0, 0),
        differences.HEAD.pack(1, 0, 0, 9, 0, 0, 0) + bytes(4 << 9),
        differences.HEAD.pack(1, 0, 0, 0, 1 << 31, 1 << 31, 1 << 31),
        differences.HEAD.pack(1, 0, 0, 0, 0, 0, 9) + bytes(4) + b"not zstd!",
        differences.HEAD.pack(1, 0, 0, 0, 0, 0, len(BOMB)) + bytes(4) + BOMB,
    ],
)
def test_malformed_differences_are_refused(stored: bytes) -> None:
    with pytest.raises(CorruptObject):
        differences.decode_delta(memoryview(stored), 2, np.zeros(32, np.uint8))


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler")
def test_where_there_is_a_compiler_the_kernel_is_built() -> None:
    assert COMPILED is not None
    assert NARROW is not None
