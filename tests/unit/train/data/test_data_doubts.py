"""Labels that look mistyped: rare ones, one slip from a frequent one."""

import numpy as np
import pytest

from modelgit.train.data.doubts import doubts, one_slip


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("cat", "cats", True),
        ("ct", "cat", True),
        ("cat", "cut", True),
        ("cta", "cat", True),
        ("cat", "cat", True),
        ("cat", "act", True),
        ("cat", "dog", False),
        ("cat", "tac", False),
        ("cat", "catty", False),
        ("abcd", "badc", False),
        ("", "a", True),
    ],
)
def test_one_slip(one: str, other: str, slip: bool) -> None:
    assert one_slip(one, other) is slip and one_slip(other, one) is slip


@pytest.mark.parametrize(
    ("names", "counts", "told"),
    [
        (("cat", "cta", "dog"), (20, 1, 20), "'cta' (1) looks like 'cat' (20)"),
        (("Cat ", "cat"), (2, 1200), "'Cat ' (2) looks like 'cat' (1,200)"),
        (("cat", "cut"), (20, 20), ""),
        (("cat", "cut"), (4, 1), ""),
        (("cat", "cut"), (20, 3), ""),
        (("10", "11"), (20, 1), ""),
        (("a", "b"), (20, 1), ""),
        (("cat", "dog"), (20, 1), ""),
        (("cat", "cats"), (20, 0), ""),
    ],
)
def test_rare_names_that_look_like_frequent_ones(names: tuple[str, ...], counts: tuple[int, ...], told: str) -> None:
    labels = np.repeat(np.arange(len(names)), counts)
    assert doubts(labels, names) == told


def test_of_many_some_are_told() -> None:
    names = ("word", *(f"word{letter}" for letter in "abcd"))
    assert doubts(np.repeat(np.arange(5), (30, 1, 1, 1, 1)), names).count("looks like") == 3
    assert doubts(np.repeat(np.arange(5), (30, 1, 1, 1, 1)), names).endswith(", …")
