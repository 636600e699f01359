"""Labels that look like a slip of the pen: where no classes are given, each spelling makes a class of its own."""

from collections.abc import Sequence

import numpy as np

from modelgit.train.data.dataset import Integers

RARE, TIMES = 2, 5  # a slip is made in at most so many examples, and its class is so many times as frequent
SHORTEST = 3  # of shorter names most look alike
SHOWN = 3


def doubts(labels: Integers, classes: Sequence[str]) -> str:
    """Returns which classes look like others that are mistyped, in words; "" if none do."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    rare = [number for number, count in enumerate(counts) if 0 < count <= RARE]
    found = []
    for number in rare:
        near = [other for other in range(len(classes)) if counts[other] >= TIMES * counts[number]]
        like = next((other for other in near if alike(classes[number], classes[other])), None)
        if like is not None:
            found.append(f"{classes[number]!r} ({counts[number]}) looks like {classes[like]!r} ({counts[like]:,})")
    return ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")


def alike(one: str, other: str) -> bool:
    """Tells whether two names are the same but for case and spaces, or one slip apart; numbers are never."""
    if one.isdecimal() or other.isdecimal():
        return False
    same = one.casefold().split() == other.casefold().split()
    return same or (min(len(one), len(other)) >= SHORTEST and one_slip(one, other))


def one_slip(one: str, other: str) -> bool:
    """Tells whether a character added, left out or replaced, or two turned round, make one name of the other."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(long) > len(short):
        return short[at:] == long[at + 1 :]
    turned = short[at : at + 2] == long[at : at + 2][::-1]
    return short[at + 1 :] == long[at + 1 :] or (turned and short[at + 2 :] == long[at + 2 :])
