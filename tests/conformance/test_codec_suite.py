"""Every implementation of the transforms gives the same frames, and every frame gives its data back."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from modelgit.errors import CorruptObject
from modelgit.store.codec import frames as codec
from modelgit.store.codec.transforms import Bytes, NumpyTransforms, Transforms, load_compiled

COMPILED = load_compiled()
IMPLEMENTATIONS: list[Transforms] = [NumpyTransforms(), *([COMPILED] if COMPILED else [])]
implementations = pytest.mark.parametrize("tools", IMPLEMENTATIONS, ids=lambda tools: type(tools).__name__)
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
counts = pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 40_000])


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
    stored = memoryview(b"".join(codec.encode_delta(data, parent, width, tools)))
    into = parent.copy()
    codec.decode_delta(stored, width, into, tools)
    assert into.tobytes() == data.tobytes()


@pytest.mark.skipif(COMPILED is None, reason="the kernel is not built")
@widths
@cases
@counts
def test_compiled_gives_the_reference_bytes(width: int, case: str, count: int) -> None:
    data, parent = CASES[case](width, count), weights(width, count, seed=9)
    full = [b"".join(codec.encode_full(data, width, tools)) for tools in IMPLEMENTATIONS]
    delta = [b"".join(codec.encode_delta(data, parent, width, tools)) for tools in IMPLEMENTATIONS]
    assert full[0] == full[1]
    assert delta[0] == delta[1]


@implementations
def test_the_order_is_exponent_then_lane_then_position(tools: Transforms) -> None:
    exponents = np.array([3, 1, 1, 3, 1, 3, 3, 1, 1, 3], np.uint16)
    parent = (exponents << np.uint16(7)).view(np.uint8)
    data = (parent.view("<u2") + np.arange(10, dtype=np.uint16)).view(np.uint8)
    planes = np.empty((2, 10), np.uint8)
    tools.delta_split(2, data, parent, np.empty_like(data), planes)
    # positions 1 2 4 7 8 have exponent 1 (8 is lane 0, so first), then 0 9(lane 1) 3 5 6; a step of n zigzags to 2n
    assert (planes[0] // 2).tolist() == [8, 1, 2, 4, 7, 0, 9, 3, 5, 6]
    assert planes[1].tolist() == [0] * 10


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
    delta = codec.total_bytes(codec.encode_delta(child, parent, 2)) / len(child)
    assert 0.64 < full < 0.68
    assert delta < 0.25
    assert codec.delta_pays(child, parent, 2)
    assert not codec.delta_pays(np.random.default_rng(1).permutation(child.view("<u2")).view(np.uint8), parent, 2)


@widths
def test_a_child_that_equals_its_parent_takes_a_few_bytes(width: int) -> None:
    parent = weights(width, 4000)
    into = parent.copy()
    stored = b"".join(codec.encode_same(width))
    assert len(stored) == 6 * width
    assert stored == b"".join(codec.encode_delta(parent, parent, width))
    codec.decode_delta(memoryview(stored), width, into)
    assert into.tobytes() == parent.tobytes()


def frame(kinds: list[int], parts: list[bytes]) -> memoryview:
    head = struct.pack(f"<{len(kinds)}B{len(kinds)}I", *kinds, *(len(part) for part in parts))
    return memoryview(head + b"".join(parts))


BOMB = codec.TOOLS.general.compress(bytes(1 << 20))


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
