"""How text becomes values, and values text."""

import pytest

from modelgit.cli.handed_on import directory_of, refuse_verb, verb_at
from modelgit.cli.screen.blocks import Table, bytes_text, count_text, plain_table, seconds_text
from modelgit.cli.words import choice, numbers, pairs
from modelgit.errors import UsageError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (18_800_000, "18.8 MB"),
        (123_456_789, "123 MB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_counts() -> None:
    assert [count_text(n, "tensor") for n in (0, 1, 1200)] == ["0 tensors", "1 tensor", "1,200 tensors"]


def test_a_plain_table_is_aligned_without_blanks_at_line_ends() -> None:
    table = Table(("name", "size>", ""), (("a", "12", "x"), ("long name", "3", "")))
    assert plain_table(table) == ["name       size", "a            12  x", "long name     3"]


def test_settings() -> None:
    assert pairs(["density=0.2", "a=b=c", "empty="], "--set") == {"density": "0.2", "a": "b=c", "empty": ""}
    for word in ("density", "=1"):
        with pytest.raises(UsageError, match="expected KEY=VALUE"):
            pairs([word], "--set")


def test_weights() -> None:
    assert numbers("0.5,-1,2e-1", "--weights") == (0.5, -1.0, 0.2)
    assert numbers(None, "--weights") == ()
    with pytest.raises(UsageError, match="expected numbers"):
        numbers("a,b", "--weights")


def test_choices() -> None:
    assert choice("drop", ("error", "drop"), "--heads") == "drop"
    with pytest.raises(UsageError, match="expected one of error, drop"):
        choice("dorp", ("error", "drop"), "--heads")
    with pytest.raises(UsageError) as caught:
        choice("drp", ("error", "drop"), "--heads")
    assert caught.value.hint == "did you mean --heads drop?"


@pytest.mark.parametrize(
    ("words", "at"),
    [([], None), (["--help"], None), (["log", "-n", "2"], 0), (["-C", "log", "--debug", "tag"], 3), (["-C"], None)],
)
def test_where_the_verb_stands(words: list[str], at: int | None) -> None:
    assert verb_at(words) == at


def test_directories_add_up_as_in_git() -> None:
    assert directory_of(["-C", "a", "--debug", "-C", "b"]) == "a/b"
    assert directory_of([]) == ""


def test_a_verb_that_nobody_knows() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_verb("mrege", ["merge", "log"])
    assert (caught.value.message, caught.value.hint) == ("'mrege' is not a modelgit command", "did you mean merge?")
    with pytest.raises(UsageError) as caught:
        refuse_verb("qqqq", ["merge", "log"])
    assert caught.value.hint == "modelgit --help lists the commands"
