"""What a PyTorch pickle says, without running it.

A pickle is a program. This module walks its opcodes with `pickletools`, carries out by itself the few that only
build data, and stops with a FormatError at the first that would import or call anything outside a short list.
Nothing is ever imported or called by name: the names below select functions of this file.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Protocol, TypeVar, cast

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES

T = TypeVar("T")
MAX_OPCODES = 5_000_000
MAX_DIMENSIONS = 64
HINT = "Convert the file where you trust it: torch.load, then safetensors.torch.save_file; and import the result."
STORAGES: Mapping[str, str | None] = {  # torch's storage class -> dtype of its elements; None: bytes
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": None,
}
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
TORCH_DTYPES: Mapping[str, str] = {d.torch: d.name for d in DTYPES.values() if d.torch}


class Stream(Protocol):
    """A readable file positioned at the first opcode; it is left just behind the last one."""

    def read(self, n: int = -1, /) -> bytes:
        """Return up to `n` bytes and move on."""

    def readline(self) -> bytes:
        """Return the bytes up to and with the next newline, and move on."""

    def tell(self) -> int:
        """Return the position."""


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle refers to; it stays a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat run of elements kept outside the pickle; `dtype` None means that elements are bytes."""

    key: str
    dtype: str | None
    elements: int


@dataclass(frozen=True, slots=True)
class StridedTensor:
    """A view of a storage; `offset` and `strides` count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Machine:
    """The data a pickle has built so far: a stack, its marks, and the memo; `copied` counts items that calls copied."""

    stack: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    copied: int = 0

    def since_mark(self) -> list[object]:
        """Take and return everything above the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken


def read_pickle(stream: Stream, source: str) -> object:
    """Return the value that a pickle describes: dicts, lists, tuples, scalars, text, StridedTensor.

    Raises: FormatError naming the opcode or global that is more than data, or for a damaged pickle.
    """
    machine, opcode = Machine(), "the first opcode"
    try:
        for count, (op, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            opcode = op.name
            if count > MAX_OPCODES:
                raise FormatError(f"{source}: more than {MAX_OPCODES} opcodes in its pickle.", hint=HINT)
            handler = HANDLERS.get(opcode)
            if handler is None:
                raise FormatError(f"{source}: opcode {opcode} does more than build a state dict.", hint=HINT)
            handler(machine, argument)
        return machine.stack.pop()
    except FormatError as error:
        raise FormatError(f"{source}: {error.message.removeprefix(f'{source}: ')}", hint=HINT) from error
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{source}: damaged pickle near {opcode}: {error}.", hint=HINT) from error


# ------------------------------------------------------------------------------------ values that calls give


def _expect(value: object, kind: type[T], where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{where}: expected {kind.__name__}, got {type(value).__name__}.")
    return value


def _integers(value: object, where: str) -> tuple[int, ...]:
    items = _expect(value, tuple, where)
    if len(items) > MAX_DIMENSIONS:
        raise FormatError(f"{where}: expected at most {MAX_DIMENSIONS} dimensions, got {len(items)}.")
    numbers = tuple(_expect(item, int, where) for item in items)
    if any(not 0 <= number < 2**63 for number in numbers):
        raise FormatError(f"{where}: expected integers from 0 to 2**63 - 1, got {_short(numbers)}.")
    return numbers


def _short(numbers: tuple[int, ...]) -> str:
    """Return the numbers as text, those that are very long by their size."""
    return ", ".join(str(n) if n.bit_length() < 100 else f"a number of {n.bit_length()} bits" for n in numbers)


def _tensor(storage: object, offset: object, shape: object, strides: object, dtype: str | None) -> StridedTensor:
    storage = _expect(storage, Storage, "storage of a tensor")
    kind = dtype or storage.dtype
    if kind is None:
        raise FormatError("a tensor over an untyped storage does not say its dtype.")
    (start,) = _integers((offset,), "offset of a tensor")
    tensor = StridedTensor(storage, kind, start, _integers(shape, "shape"), _integers(strides, "strides"))
    if len(tensor.shape) != len(tensor.strides):
        raise FormatError(f"a tensor has {len(tensor.shape)} sizes but {len(tensor.strides)} strides.")
    return tensor


def _plain(metadata: tuple[object, ...]) -> None:
    if any(metadata):  # lazily conjugated or negated: the bytes are not the values
        raise FormatError("a tensor with metadata (conjugated or negated lazily) is not supported.")


def _rebuild_v2(arguments: tuple[object, ...]) -> StridedTensor:
    storage, offset, shape, strides, _grad, _hooks, *metadata = arguments
    _plain(tuple(metadata))
    return _tensor(storage, offset, shape, strides, None)


def _rebuild_v3(arguments: tuple[object, ...]) -> StridedTensor:
    storage, offset, shape, strides, _grad, _hooks, dtype, *metadata = arguments
    _plain(tuple(metadata))
    known = TORCH_DTYPES[_expect(dtype, Name, "dtype of a tensor").name]
    return _tensor(storage, offset, shape, strides, known)


def _rebuild_v1(arguments: tuple[object, ...]) -> StridedTensor:
    storage, offset, shape, strides = arguments
    return _tensor(storage, offset, shape, strides, None)


def _parameter(arguments: tuple[object, ...]) -> StridedTensor:
    return replace(_expect(arguments[0], StridedTensor, "data of a parameter"))


def _ordered_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    result: dict[object, object] = {}
    for pair in _expect(arguments[0], list, "items of an OrderedDict") if arguments else ():
        key, value = _expect(pair, list, "item of an OrderedDict")
        _put(result, key, value)
    return result


def _size(arguments: tuple[object, ...]) -> tuple[int, ...]:
    return _integers(arguments[0], "torch.Size")


CALLS: Mapping[str, Callable[[tuple[object, ...]], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _rebuild_v1,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _parameter,
}


# --------------------------------------------------------------------------------------------- opcodes


def _known(name: Name) -> bool:
    is_storage = name.module in STORAGE_MODULES and name.name in STORAGES
    is_dtype = name.module == "torch" and name.name in TORCH_DTYPES
    return str(name) in CALLS or is_storage or is_dtype


def _push_name(machine: Machine, module: object, name: object) -> None:
    found = Name(_expect(module, str, "module of a global"), _expect(name, str, "global"))
    if found.module in STORAGE_MODULES and found.name.endswith("Storage") and not _known(found):
        raise FormatError(f"it holds tensors of {found}, a type that safetensors files cannot hold.")
    if not _known(found):
        raise FormatError(f"its pickle refers to {found}, which is more than data.")
    machine.stack.append(found)


def _global(machine: Machine, argument: object) -> None:
    module, _, name = _expect(argument, str, "global").partition(" ")
    _push_name(machine, module, name)


def _stack_global(machine: Machine, _: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _push_name(machine, module, name)


def _reduce(machine: Machine, _: object) -> None:
    arguments = _expect(machine.stack.pop(), tuple, "arguments of a call")
    name = str(_expect(machine.stack.pop(), Name, "what is called"))
    if name not in CALLS:
        raise FormatError(f"its pickle calls {name}, which is more than data.")
    machine.copied += sum(len(argument) for argument in arguments if isinstance(argument, list))
    if machine.copied > MAX_OPCODES:
        raise FormatError(f"its pickle copies more than {MAX_OPCODES} items.")
    machine.stack.append(CALLS[name](arguments))


def _build(machine: Machine, _: object) -> None:
    _expect(machine.stack.pop(), dict, "attributes of a dict")  # state_dict's _metadata: module versions, not weights
    _expect(machine.stack[-1], dict, "what gets attributes")


def _persistent(machine: Machine, _: object) -> None:
    kind, storage, key, _location, elements, *view = _expect(machine.stack.pop(), tuple, "persistent id")
    name = _expect(storage, Name, "storage type")
    if kind != "storage" or name.name not in STORAGES or any(item is not None for item in view):
        raise FormatError(f"a persistent id with {name} is not a plain storage.")
    (count,) = _integers((elements,), "elements of a storage")
    machine.stack.append(Storage(_expect(key, str, "key of a storage"), STORAGES[name.name], count))


def _put(target: dict[object, object], key: object, value: object) -> None:
    if not isinstance(key, str | int | float | None):
        raise FormatError(f"a dict key is a {type(key).__name__}, expected text or a number.")
    if isinstance(key, int) and key.bit_length() > 64:
        raise FormatError(f"a dict key is a number of {key.bit_length()} bits, expected at most 64.")
    target[key] = value


def _set_items(machine: Machine, _: object) -> None:
    items = machine.since_mark()
    target = _expect(machine.stack[-1], dict, "what gets items")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _put(target, key, value)


def _set_item(machine: Machine, _: object) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _put(_expect(machine.stack[-1], dict, "what gets an item"), key, value)


def _append(machine: Machine, _: object) -> None:
    value = machine.stack.pop()
    _expect(machine.stack[-1], list, "what is appended to").append(value)


def _appends(machine: Machine, _: object) -> None:
    items = machine.since_mark()
    _expect(machine.stack[-1], list, "what is appended to").extend(items)


def _mark(machine: Machine, _: object) -> None:
    machine.marks.append(len(machine.stack))


def _tuple(machine: Machine, _: object) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _list(machine: Machine, _: object) -> None:
    machine.stack.append(machine.since_mark())


def _short_tuple(n: int) -> Callable[[Machine, object], None]:
    def build(machine: Machine, _: object) -> None:
        if len(machine.stack) < n:
            raise IndexError("the stack is too short")
        items = tuple(machine.stack[-n:])
        machine.stack[-n:] = [items]

    return build


def _push(machine: Machine, argument: object) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], object]) -> Callable[[Machine, object], None]:
    return lambda machine, _: machine.stack.append(make())


def _remember(machine: Machine, argument: object) -> None:
    machine.memo[_expect(argument, int, "memo key")] = machine.stack[-1]


def _memoize(machine: Machine, _: object) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _recall(machine: Machine, argument: object) -> None:
    machine.stack.append(machine.memo[_expect(argument, int, "memo key")])


def _nothing(_machine: Machine, _: object) -> None:
    """Proto, frame and stop carry no data."""


HANDLERS: Mapping[str, Callable[[Machine, object], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), _push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"), _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    "MEMOIZE": _memoize,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _short_tuple(1),
    "TUPLE2": _short_tuple(2),
    "TUPLE3": _short_tuple(3),
    "LIST": _list,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
