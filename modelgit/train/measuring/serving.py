"""How sure it is that a model is too sure, or serves some groups better than others: calibration and gaps, drawn anew.

All figures of a model come from the same draws of things, which cost the most.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from modelgit.train.measuring.calibration import BINS, calibration_error
from modelgit.train.measuring.intervals import LEVEL, Interval, Numbers, resampled

Integers = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Names = npt.NDArray[np.object_]
GapKind = Literal["accuracy", "parity", "odds"]
DRAWS = 2000
FEWEST = 10  # examples of one class in a group, below which the group says nothing of that class


@dataclass(frozen=True, slots=True)
class Gap:
    """The widest difference between two groups, `more` and `less`, in how often something is so of their examples.

    Of "accuracy", that the answer is right; of "parity", that it is `answer`; of "odds" the same among examples whose
    label is `label`, of groups with FEWEST such or more. `size` is that difference; its interval is of these two
    groups, which were chosen for being furthest apart.
    """

    kind: GapKind
    more: str
    less: str
    answer: str
    label: str
    size: Interval


@dataclass(frozen=True, slots=True)
class Serving:
    """The expected calibration error, and the widest gaps between groups; no gaps where there is one group alone."""

    ece: Interval
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Contrast:
    """A gap with what it is found by: `hits` (n,) are the examples of which it is so, `among` (n,) those that count."""

    kind: GapKind
    more: str
    less: str
    answer: str
    label: str
    hits: Bools
    among: Bools


def serving(
    likely: npt.NDArray[np.floating],
    labels: Integers,
    groups: Sequence[str],
    things: Sequence[str],
    words: Sequence[str],
) -> Serving:
    """Returns calibration and gaps of probabilities (n, classes), with 95 % intervals over things.

    `labels` (n,) are numbers of classes called `words`; `groups` and `things` are names, one for each example.

    Raises:
        DataError: no examples, or not as many labels.
    """
    ece, of = calibration_error(likely, labels), np.asarray(groups, dtype=object)
    found = list(contrasts(likely.argmax(1), labels, of, words)) if len(set(groups)) > 1 else []
    names, thing = np.unique(np.asarray(things, dtype=str), return_inverse=True)
    columns = [*calibration_columns(likely, labels)]
    for one in found:
        for name in (one.more, one.less):
            inside = one.among & (of == name)
            columns += [inside & one.hits, inside]
    sums = np.zeros((len(names), len(columns)))
    np.add.at(sums, thing, np.stack(columns, 1).astype(np.float64))
    drawn = resampled(len(names), lambda times, _: figures(times @ sums, len(found)), draws=DRAWS)
    whole = figures(sums.sum(0, keepdims=True), len(found))[0]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    sizes = [Interval(float(m), float(a), float(b)) for m, a, b in zip(whole[1:], low[1:], high[1:], strict=True)]
    gaps = (Gap(c.kind, c.more, c.less, c.answer, c.label, size) for c, size in zip(found, sizes, strict=True))
    ends = min(ece, float(low[0])), max(ece, float(high[0]))  # an error drawn anew is larger than the one found
    return Serving(Interval(ece, *ends), tuple(gaps))


def calibration_columns(likely: npt.NDArray[np.floating], labels: Integers) -> Iterator[Numbers]:
    """Yields for each bin how much too sure examples in it are (n,), and ones: what to divide by."""
    confidence = likely.max(1).astype(np.float64)
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    surplus = confidence - (likely.argmax(1) == labels)
    yield from (np.where(place == i, surplus, 0.0) for i in range(BINS))
    yield np.ones(len(labels))


def figures(sums: Numbers, gaps: int) -> Numbers:
    """Returns the calibration error and the gaps (draws, 1 + gaps) of sums over what was drawn.

    A gap is not a number where a draw has nobody of a group.
    """
    ece = np.abs(sums[:, :BINS]).sum(1) / sums[:, BINS]
    pairs = sums[:, BINS + 1 :].reshape(len(sums), gaps, 2, 2)
    shares = np.full(pairs.shape[:3], np.nan)
    np.divide(pairs[..., 0], pairs[..., 1], out=shares, where=pairs[..., 1] > 0)
    return np.concatenate([ece[:, None], shares[..., 0] - shares[..., 1]], 1)


def contrasts(answers: Integers, labels: Integers, of: Names, words: Sequence[str]) -> Iterator[Contrast]:
    """Yields the widest gap of each kind between groups; `of` (n,) says which group each example is in."""
    everything = np.ones(len(labels), bool)
    inside = {name: of == name for name in sorted(set(of))}
    yield widest("accuracy", [("", everything)], (answers != labels).astype(np.int64), inside, ("",))
    yield widest("parity", [("", everything)], answers, inside, words)
    large = np.zeros(len(labels), bool)
    for own in inside.values():
        counts = np.bincount(labels[own], minlength=len(words))
        large |= own & (counts >= FEWEST)[labels]
    odds = [(word, large & (labels == i)) for i, word in enumerate(words) if compared(large & (labels == i), inside)]
    if odds:
        yield widest("odds", odds, answers, inside, words)


def compared(among: Bools, inside: Mapping[str, Bools]) -> bool:
    """Tells whether examples of two groups at least are among some."""
    return sum(bool((own & among).any()) for own in inside.values()) > 1


def widest(
    kind: GapKind,
    cases: Sequence[tuple[str, Bools]],
    values: Integers,
    inside: Mapping[str, Bools],
    words: Sequence[str],
) -> Contrast:
    """Returns in which case (label, examples) and which value two groups are furthest apart, the first of equals."""
    best: tuple[float, Contrast] | None = None
    for label, among in cases:
        names = [name for name, own in inside.items() if (own & among).any()]
        if not names:
            continue
        shares = np.stack([share_of_each(values[inside[name] & among], len(words)) for name in names])
        value = int(np.ptp(shares, axis=0).argmax())
        more, less = names[int(shares[:, value].argmax())], names[int(shares[:, value].argmin())]
        apart = float(np.ptp(shares[:, value]))
        if best is None or apart > best[0]:
            best = apart, Contrast(kind, more, less, words[value], label, values == value, among)
    assert best is not None  # there are examples, so some case has a group
    return best[1]


def share_of_each(values: Integers, count: int) -> Numbers:
    """Returns how often each of the first `count` numbers is among values."""
    return np.bincount(values, minlength=count)[:count] / len(values)
