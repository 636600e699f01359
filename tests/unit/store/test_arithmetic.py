"""One correct rounding, whatever the values: compared with exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from modelgit.errors import UsageError
from modelgit.store.codec.arithmetic import NumpySums, finish, linear, sums

FORMATS = {"F32": (24, -149, 127), "F16": (11, -24, 15), "BF16": (8, -133, 127)}  # precision, least exponent, greatest
BITS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def nearest(value: Fraction, dtype: str) -> Fraction | None:
    """Return the value of `dtype` nearest to `value`, ties to even; None for overflow."""
    precision, least, greatest = FORMATS[dtype]
    if value == 0:
        return Fraction(0)
    size = abs(value)
    exponent = math.floor(math.log2(size)) if size.denominator < 2**900 and size.numerator < 2**900 else -2000
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while size < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision + 1, least)
    rounded = round(size / unit) * unit
    if rounded >= Fraction(2) ** (greatest + 1):
        return None
    return rounded if value > 0 else -rounded


def as_floats(raw: bytes | bytearray, dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)
    return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def hard_values() -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    exponents = rng.integers(-160, 130, 4000)
    values = rng.uniform(1, 2, 4000) * 2.0**exponents * rng.choice([-1, 1], 4000)
    edges = [0.0, -0.0, 65504.0, 65519.99, 65520.0, 3.3895e38, 3.4e38, 1e-45, 2**-149, 2**-134, 3 * 2**-134, 2**-25]
    ties = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-24, 1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40]
    return np.concatenate([values, edges, ties, -np.array(ties)])


@pytest.mark.parametrize("dtype", sorted(FORMATS))
def test_narrowing_equals_the_exact_oracle(dtype: str) -> None:
    values = hard_values()
    raw = np.empty(len(values) * np.dtype(BITS[dtype]).itemsize, np.uint8)
    finish(values, 1.0, dtype, raw)
    for value, got in zip(values.tolist(), as_floats(raw.tobytes(), dtype).tolist(), strict=True):
        expected = nearest(Fraction(value), dtype)
        if expected is None:
            assert got == math.copysign(math.inf, value)
        else:
            assert Fraction(got) == expected, (value, got)
            assert math.copysign(1, got) == math.copysign(1, value)


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_the_mean_of_one_tensor_with_itself_is_itself(dtype: str) -> None:
    width = np.dtype(BITS[dtype]).itemsize
    raw = np.random.default_rng(1).integers(0, 256, 4096 * width, np.uint8)
    with np.errstate(invalid="ignore"):
        finite = np.abs(as_floats(raw.tobytes(), dtype)) < 1e300
    data = raw.view(BITS[dtype])[finite].tobytes() + np.array([0, 1 << (8 * width - 1)], BITS[dtype]).tobytes()
    assert linear([data, data], [1.0, 1.0], 2.0, dtype) == data
    assert linear([data], [1.0], 1.0, dtype) == data


def test_the_order_given_is_the_order_of_the_sum() -> None:
    one, big = np.array([1.0]).tobytes(), np.array([1e16]).tobytes()
    forward = linear([one, one, big], [1.0, 1.0, 1.0], 1.0, "F64")
    backward = linear([big, one, one], [1.0, 1.0, 1.0], 1.0, "F64")
    assert np.frombuffer(forward)[0] == 1.0000000000000002e16
    assert np.frombuffer(backward)[0] == 1e16


def test_products_are_rounded_before_they_are_added() -> None:
    x = np.array([1 + 2.0**-30]).tobytes()
    minus = np.array([-(1 + 2.0**-29)]).tobytes()
    got = np.frombuffer(linear([x, minus], [1 + 2.0**-30, 1.0], 1.0, "F64"))[0]
    assert got == 0.0  # a fused multiply-add would leave 2**-60


@pytest.mark.parametrize(
    ("dtype", "quiet"), [("F64", 0x7FF8 << 48), ("F32", 0x7FC00000), ("F16", 0x7E00), ("BF16", 0x7FC0)]
)
def test_every_nan_is_the_same_and_infinities_stay(dtype: str, quiet: int) -> None:
    exponent = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    sign = 1 << (8 * np.dtype(BITS[dtype]).itemsize - 1)
    data = np.array([exponent, exponent | sign, exponent | 1, exponent | sign | 5], BITS[dtype]).tobytes()
    got = np.frombuffer(linear([data], [2.0], 1.0, dtype), BITS[dtype]).tolist()
    assert got == [exponent, exponent | sign, quiet, quiet]
    opposite = np.array([exponent | sign, exponent, 0, 0], BITS[dtype]).tobytes()
    assert np.frombuffer(linear([data, opposite], [1.0, 1.0], 1.0, dtype), BITS[dtype]).tolist()[:2] == [quiet, quiet]


@pytest.mark.parametrize(
    ("inputs", "coefficients", "divisor", "dtype"),
    [
        ([], [], 1.0, "F32"),
        ([b"\0" * 4], [1.0, 2.0], 1.0, "F32"),
        ([b"\0" * 4, b"\0" * 8], [1.0, 1.0], 1.0, "F32"),
        ([b"\0" * 3], [1.0], 1.0, "F32"),
        ([b"\0" * 4], [1.0], 0.0, "F32"),
        ([b"\0" * 4], [math.nan], 1.0, "F32"),
        ([b"\0" * 4], [1.0], 1.0, "I32"),
    ],
)
def test_what_cannot_be_added_is_refused(
    inputs: list[bytes], coefficients: list[float], divisor: float, dtype: str
) -> None:
    with pytest.raises(UsageError):
        linear(inputs, coefficients, divisor, dtype)


@pytest.mark.parametrize("dtype", sorted(BITS))
@pytest.mark.parametrize("divisor", [1.0, 3.0, 4.0, 2.0**-1040, -0.7])
def test_the_kernel_gives_the_bytes_that_numpy_gives(dtype: str, divisor: float) -> None:
    random, width = np.random.default_rng(3), np.dtype(BITS[dtype]).itemsize
    count, plain, fast = 5000, NumpySums(), sums()
    inputs = [random.integers(0, 256, count * width, np.uint8).astype(np.uint8) for _ in range(3)]
    coefficients = np.array([0.3, -1.0, 2.5])
    wanted, got = (np.zeros(count * width, np.uint8) for _ in range(2))
    plain.combine(inputs, coefficients, divisor, dtype, wanted)
    fast.combine(inputs, coefficients, divisor, dtype, got)
    assert np.array_equal(wanted, got)
    total, apart = np.zeros(count), np.zeros(count)
    plain.accumulate(total, inputs, coefficients, dtype, first=True)
    fast.accumulate(apart, inputs[:1], coefficients[:1], dtype, first=True)
    fast.accumulate(apart, inputs[1:], coefficients[1:], dtype, first=False)
    assert np.array_equal(total, apart, equal_nan=True)
    assert plain.peak(inputs[0], dtype) == fast.peak(inputs[0], dtype) > 0
    for minus in (True, False):
        rows, others = np.zeros((3, count)), np.zeros((3, count))
        peaks = plain.spread(inputs, dtype, rows, minus=minus), fast.spread(inputs, dtype, others, minus=minus)
        assert peaks == (max(plain.peak(data, dtype) for data in inputs),) * 2
        assert np.array_equal(rows, others, equal_nan=True)
    plain.widen(inputs[0], dtype, total)
    fast.widen(inputs[0], dtype, apart)
    assert np.array_equal(total, apart, equal_nan=True)


@pytest.mark.parametrize("dtype", sorted(BITS))
@pytest.mark.parametrize("low", [2.0**-150, 2.0**-126, 1e-3])
def test_values_between_two_numbers_of_a_type_are_rounded_as_numpy_does(dtype: str, low: float) -> None:
    """Halves between neighbours, a last place beside them, zeros, what is too large and what is no number."""
    random, width = np.random.default_rng(4), np.dtype(BITS[dtype]).itemsize
    halves = (np.arange(128, 256) + 0.5)[:, None] * 2.0 ** np.arange(-7, 130, 8)
    near = np.concatenate([np.nextafter(halves, 0), halves, np.nextafter(halves, np.inf)]).reshape(-1)
    values = np.concatenate([near * low, random.standard_normal(3000), [0.0, -0.0, np.inf, np.nan, 1e300, 2.0**128]])
    values *= np.where(random.random(values.size) < 0.5, -1.0, 1.0)
    wanted, got = (np.zeros(values.size * width, np.uint8) for _ in range(2))
    NumpySums().finish(values, 1.0, dtype, wanted)
    sums().finish(values, 1.0, dtype, got)
    assert np.array_equal(wanted, got)


def test_narrow_values_of_all_bit_patterns_come_back() -> None:
    for dtype in ("BF16", "F16"):
        bits, values = np.arange(65536, dtype="<u2"), np.empty(65536)
        sums().widen(bits.view(np.uint8), dtype, values)
        NumpySums().widen(bits.view(np.uint8), dtype, (wanted := np.empty(65536)))
        assert np.array_equal(values, wanted, equal_nan=True)
        back = np.empty(131072, np.uint8)
        finish(values, 1.0, dtype, back)
        assert np.array_equal(back.view("<u2")[~np.isnan(values)], bits[~np.isnan(values)])


def test_bytes_at_an_odd_place_are_summed_too() -> None:
    data = np.zeros(9, np.uint8)
    data[1:].view("<f4")[:] = [1.5, 2.5]
    assert np.frombuffer(linear([data[1:].data], [2.0], 1.0, "F32"), "<f4").tolist() == [3.0, 5.0]
