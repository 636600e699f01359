"""The lines of `log --graph`."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelgit.cli.screen.graph import draw


def picture(*versions: tuple[str, str]) -> list[str]:
    """Returns the drawing of commits, each given with its parents' one-letter names."""
    rows = draw([(commit, tuple(parents)) for commit, parents in versions])
    return [f"{row.drawing} {row.commit}" if row.commit else row.drawing for row in rows]


def test_a_line() -> None:
    assert picture(("c", "b"), ("b", "a"), ("a", "")) == ["* c", "* b", "* a"]


def test_a_merge_of_two() -> None:
    assert picture(("m", "ab"), ("b", "o"), ("a", "o"), ("o", "")) == [
        "* m",
        "|\\",
        "| * b",
        "* | a",
        "|/",
        "* o",
    ]


def test_a_merge_of_three() -> None:
    assert picture(("m", "abc"), ("c", "o"), ("b", "o"), ("a", "o"), ("o", "")) == [
        "* m",
        "|\\",
        "|\\ \\",
        "| | * c",
        "| * | b",
        "* | | a",
        "|/ /",
        "|/",
        "* o",
    ]


def test_two_roots() -> None:
    assert picture(("b", ""), ("a", "")) == ["* b", "", "* a"]
    assert picture(("c", "a"), ("b", ""), ("d", ""), ("a", "")) == ["* c", "| * b", "|", "| * d", "* a"]


def test_a_line_passes_under_others() -> None:
    assert picture(("x", "o"), ("y", "p"), ("z", "o"), ("o", "p"), ("p", "")) == [
        "* x",
        "| * y",
        "| | * z",
        "|_|/",
        "* | o",
        "|/",
        "* p",
    ]


def test_lines_to_parents_beyond_the_list_run_on() -> None:
    assert picture(("b", "a")) == ["* b", "~"]
    assert picture(("b", "o"), ("a", "p")) == ["* b", "| * a", "~ ~"]


def test_a_merge_whose_first_parent_is_beyond_the_list() -> None:
    assert picture(("m", "abc"), ("c", "o"), ("b", "o")) == [
        "* m",
        "|\\",
        "|\\ \\",
        "| | * c",
        "| * | b",
        "~ ~ ~",
    ]


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sets(st.integers(1, 6), max_size=4), min_size=1, max_size=14))
def test_every_version_stands_in_one_row_in_order(jumps: list[set[int]]) -> None:
    total = len(jumps)
    versions = [(str(i), tuple(str(i + jump) for jump in sorted(own))) for i, own in enumerate(jumps)]
    rows = list(draw(versions))
    assert [row.commit for row in rows if row.commit] == [commit for commit, _ in versions]
    assert all((row.drawing.count("*") == 1) == (row.commit is not None) for row in rows)
    assert all(set(row.drawing) <= set("*|\\/_~ ") for row in rows)
    beyond = any(int(parent) >= total for _, parents in versions for parent in parents)
    assert ("~" in rows[-1].drawing) == beyond and all("~" not in row.drawing for row in rows[:-1])
