"""Binding TOML tables to frozen dataclasses, strictly.

An unknown key names the known ones, a wrong type says where, what was expected and what was there.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from modelgit.errors import RecipeError

T = TypeVar("T")
Table = Mapping[str, object]
# What settings are called elsewhere (by PEFT, by transformers, in many a script), where no likeness leads to ours.
ELSEWHERE = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "learning_rate": "lr",
    "batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "checkpoint",
    "epochs": "steps",
    "iterations": "steps",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
    "bf16": "precision",
}


def bind(shape: type[T], table: object, where: str) -> T:
    """Returns a `shape` (a dataclass) filled from `table`; `where` names the table in errors.

    Raises:
        RecipeError: an unknown or missing key, or a value of another type.
    """
    values = expect_table(table, where)
    hints = typing.get_type_hints(shape)
    fields = {f.name: f for f in dataclasses.fields(shape)}  # type: ignore[arg-type]  # every caller passes a dataclass
    check_keys(values, fields, where)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where}: missing key '{name}'", hint=f"known keys: {', '.join(fields)}")
    return shape(**{name: convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def check_keys(values: Table, known: typing.Iterable[str], where: str) -> None:
    """Refuses keys that are not in `known`, with the nearest known name."""
    known = list(known)
    for key in values:
        if key not in known:
            near = nearest(key, known)
            did_you_mean = f", did you mean '{near}'?" if near is not None else ""
            raise RecipeError(f"{where}: unknown key '{key}'{did_you_mean}", hint=f"known keys: {', '.join(known)}")


def nearest(key: str, known: typing.Sequence[str]) -> str | None:
    """Returns the known name that a key may stand for: what it means elsewhere, else one that is spelt alike."""
    if (ours := ELSEWHERE.get(key)) in known:
        return ours
    return next(iter(difflib.get_close_matches(key, known, n=1)), None)


def check_values(shape: type, table: Table, where: str) -> None:
    """Checks keys and types of a table that is a part of a `shape`, which others complete. Raises as `bind`."""
    hints = typing.get_type_hints(shape)
    check_keys(table, hints, where)
    for name, value in table.items():
        convert(hints[name], value, f"{where}.{name}")


def expect_table(value: object, where: str) -> Table:
    """Returns `value` if it is a table."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected a table, got {describe(value)}")
    return value


def convert(hint: Any, value: object, where: str) -> Any:  # the type is only known at run time
    """Returns `value` as the type `hint` says, refusing everything that is not plainly that type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return convert_union(get_args(hint), value, where)
    if origin is typing.Literal:
        return convert_literal(get_args(hint), value, where)
    if origin is tuple:
        return convert_tuple(get_args(hint)[0], value, where)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return expect_table(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return bind(hint, value, where)
    return convert_scalar(hint, value, where)


def convert_union(options: tuple[Any, ...], value: object, where: str) -> Any:
    """The first option that fits; None only where the type allows it (JSON has a null, TOML has none)."""
    if value is None and type(None) in options:
        return None
    if len(real := [option for option in options if option is not type(None)]) == 1:
        return convert(real[0], value, where)
    shapes = [option for option in options if dataclasses.is_dataclass(option)]
    if len(shapes) == len(options):
        return convert_named({default_name(option): option for option in shapes}, value, where)
    if len(shapes) == 1 and isinstance(value, Mapping):  # what is wrong in the table is then told
        return convert(shapes[0], value, where)
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(option, value, where)
        except RecipeError:
            continue
    names = " or ".join(kind_of(option) for option in options if option is not type(None))
    raise RecipeError(f"{where}: expected {names}, got {describe(value)}")


def default_name(shape: Any) -> str:
    """Returns what a choice is called: the default of its field `name`."""
    return str(next(field.default for field in dataclasses.fields(shape) if field.name == "name"))


def convert_named(options: Mapping[str, Any], value: object, where: str) -> Any:
    """One of several choices: its name, or a table with its name and settings."""
    table = {"name": value} if isinstance(value, str) else expect_table(value, where)
    name = convert_literal(
        tuple(options), table.get("name"), f"{where}.name" if "name" in table and table is value else where
    )
    return bind(options[name], table, f"{where} ({name})")


def convert_literal(options: tuple[Any, ...], value: object, where: str) -> Any:
    """One of the words listed."""
    if value in options:
        return value
    raise RecipeError(f"{where}: expected one of {', '.join(map(repr, options))}, got {describe(value)}")


def convert_tuple(item: Any, value: object, where: str) -> tuple[Any, ...]:
    """A list whose items are all of one type."""
    if not isinstance(value, list | tuple):
        raise RecipeError(f"{where}: expected a list, got {describe(value)}")
    return tuple(convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))


def convert_scalar(hint: Any, value: object, where: str) -> Any:
    """A number, word or flag; an integer may stand where a float is wanted, nothing else is converted."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is object:
        return value
    if type(value) is not hint:
        raise RecipeError(f"{where}: expected {kind_of(hint)}, got {describe(value)}")
    return value


def kind_of(hint: Any) -> str:
    """Returns what a type is called in messages."""
    kinds = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", tuple: "a list"}
    shape = get_origin(hint) or hint
    table = shape in (dict, Mapping) or dataclasses.is_dataclass(shape)
    return "a table" if table else kinds.get(shape, str(shape))


def describe(value: object) -> str:
    """Returns the value and its TOML type, for messages."""
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "a list", dict: "a table"}
    return f"{names.get(type(value), type(value).__name__)} ({value!r})"
