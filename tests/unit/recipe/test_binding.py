"""Binding is strict: it names what is wrong and what would be right."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from modelgit.errors import RecipeError
from modelgit.recipe.binding import ELSEWHERE, bind, check_values
from modelgit.train.choices import Coral, Irm, Lora
from modelgit.train.config import FineTune


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Shape:
    steps: int
    lr: float = 0.1
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()


def test_fills_defaults_and_converts_lists_and_tables() -> None:
    assert bind(Shape, {"steps": 3, "sizes": [1, 2], "inner": {"depth": 4}, "lr": 1}, "[x]") == Shape(
        steps=3, lr=1.0, sizes=(1, 2), inner=Inner(4)
    )


def test_null_only_where_it_is_allowed() -> None:
    assert bind(Shape, {"steps": 3, "note": None}, "[x]").note is None
    with pytest.raises(RecipeError, match=r"\[x\].steps: expected a whole number"):
        bind(Shape, {"steps": None}, "[x]")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"step": 3}, r"\[x\]: unknown key 'step', did you mean 'steps'\?"),
        ({}, r"\[x\]: missing key 'steps'"),
        ({"steps": "3"}, r"\[x\].steps: expected a whole number, got a string \('3'\)"),
        ({"steps": True}, r"\[x\].steps: expected a whole number, got a boolean"),
        ({"steps": 1.5}, r"\[x\].steps: expected a whole number, got a float"),
        ({"steps": 1, "kind": "c"}, r"\[x\].kind: expected one of 'a', 'b', got a string"),
        ({"steps": 1, "sizes": 3}, r"\[x\].sizes: expected a list"),
        ({"steps": 1, "sizes": [1, "2"]}, r"\[x\].sizes\[1\]: expected a whole number"),
        ({"steps": 1, "inner": {"width": 3}}, r"\[x\].inner: unknown key 'width'"),
        ({"steps": 1, "lr": "fast"}, r"\[x\].lr: expected a number, got a string \('fast'\)"),
        ([], r"\[x\]: expected a table, got a list"),
    ],
)
def test_says_where_what_was_expected_and_what_was_there(table: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        bind(Shape, table, "[x]")
    assert caught.value.exit_code == 16


def test_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        bind(Inner, {"zzz": 1}, "[y]")
    assert caught.value.hint == "known keys: depth"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"learning_rate": 1}, r"\[train\]: unknown key 'learning_rate', did you mean 'lr'\?"),
        ({"lora": {"r": 4}}, r"\[train\]\.lora: unknown key 'r', did you mean 'rank'\?"),
        ({"epochs": 4}, "'epochs', did you mean 'steps'"),
        ({"zzz": 4}, r"unknown key 'zzz'$"),
    ],
)
def test_what_is_called_otherwise_elsewhere_is_known(table: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        check_values(FineTune, {"lr": 0.1, **table}, "[train]")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("coral", Coral()),
        ({"name": "coral", "gamma": 2}, Coral(2.0)),
        ({"name": "irm", "anneal": 3}, Irm(anneal=3)),
    ],
)
def test_a_choice_is_a_name_or_a_table_with_its_settings(written: object, meant: object) -> None:
    assert bind(FineTune, {"steps": 5, "lr": 0.1, "objective": written}, "[train]").objective == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("corel", r"\[train\]\.objective: expected one of 'erm', 'coral', .*, got a string \('corel'\)"),
        ({"gamma": 1.0}, r"\[train\]\.objective: expected one of 'erm'"),
        ({"name": "coral", "gama": 1.0}, r"\[train\]\.objective \(coral\): unknown key 'gama', did you mean 'gamma'"),
        ({"name": "irm", "anneal": "5"}, r"\[train\]\.objective \(irm\)\.anneal: expected a whole number"),
        (3, r"\[train\]\.objective: expected a table"),
    ],
)
def test_a_choice_that_is_none_is_refused(written: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        bind(FineTune, {"steps": 5, "lr": 0.1, "objective": written}, "[train]")


def test_names_of_elsewhere_stand_for_keys_that_there_are() -> None:
    known = {field.name for shape in (FineTune, Lora) for field in dataclasses.fields(shape)}
    assert set(ELSEWHERE.values()) <= known and not set(ELSEWHERE) & known
